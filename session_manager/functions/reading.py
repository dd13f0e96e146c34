"""Reads all stores of a call once, without a lock, and the files beside each index."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from session_manager.core.errors import UNSUPPORTED, SessionManagerError, failure
from session_manager.core.families import families
from session_manager.core.progress import stage
from session_manager.core.selection import Selection
from session_manager.core.session import Session
from session_manager.functions.context import Context, named

if TYPE_CHECKING:
    from session_manager.archives.folder import Folder
    from session_manager.core.retention import Cutoff
    from session_manager.stores.base import Snapshot, Store


class AgentRead(msgspec.Struct):
    """One agent's sessions as of one read; ``store`` and ``snapshot`` are None when the agent has no sessions
    folder. ``names`` are its own in a folder that agents share.
    """

    agent_id: str
    store: Store | None
    snapshot: Snapshot | None
    names: list[str]

    @property
    def sessions(self) -> list[Session]:
        """The agent's sessions; none without a store."""
        return [] if self.snapshot is None else self.snapshot.sessions


class View(msgspec.Struct):
    """The agents that could be read, and the failures of the others."""

    agents: list[AgentRead]
    failed: list[tuple[str, SessionManagerError]]

    @property
    def sessions(self) -> list[Session]:
        """All sessions of all agents."""
        return [s for agent in self.agents for s in agent.sessions]

    def of(self, agent_ids: Collection[str] | None) -> View:
        """Returns the part of some agents; all of it for None."""
        if agent_ids is None:
            return self
        return View(
            [agent for agent in self.agents if agent.agent_id in agent_ids],
            [(failed, error) for failed, error in self.failed if failed in agent_ids],
        )

    def errors(self) -> list[dict[str, object]]:
        """Returns the failures as a document's ``errors``; raises when every agent failed."""
        return errors_or_raise(self.failed, bool(self.agents))


def errors_or_raise(failed: Sequence[tuple[str, SessionManagerError]], any_done: bool) -> list[dict[str, object]]:
    """Returns agents' failures as a document's ``errors``; when nothing was done, raises the first of them."""
    errors = [failure(error, agent_id) for agent_id, error in failed]
    if failed and not any_done:
        first = failed[0][1]
        if len(failed) > 1:
            first.details.setdefault("errors", errors)
        raise first
    return errors


def observe(context: Context, snapshot: Snapshot, now_ms: int, cutoff: Cutoff | None = None) -> None:
    """Completes a snapshot's sessions from the files beside the index, and from the policy's pins.

    Times inside transcripts, and the gateway's records of spawned sessions, are read only with a cut-off. Sessions
    count as observed, and may be removed, only if the context is informed of all pins.
    """
    if context.pins is not None:
        for session in snapshot.sessions:
            context.pins.mark(session)
    snapshot.observe(now_ms, cutoff)
    for session in snapshot.sessions:
        session.observed = context.informed


def only_observe(context: Context) -> Callable[[Snapshot], Sequence[tuple[Session, str]]]:
    """Returns the decider for a second read under the lock: it observes, and selects nothing."""

    def choose(snapshot: Snapshot) -> Sequence[tuple[Session, str]]:
        observe(context, snapshot, context.clock())
        return ()

    return choose


def agent_ids(context: Context, agents: str | Sequence[str] | None) -> list[str] | None:
    """Returns the folder names of one agent or several, each once; None for all. Raises UsageError or NotFound."""
    names = named(agents, "agent")
    return None if names is None else list(dict.fromkeys(context.volume.resolve_agent(name) for name in names))


def stores_of(
    context: Context, agents: str | Sequence[str] | None
) -> Iterator[tuple[str, Store | SessionManagerError | None]]:
    """Yields the same as ``Volume.stores``, for all agents, one or several. Raises UsageError or NotFound."""
    for agent_id in agent_ids(context, agents) or (None,):
        yield from context.volume.stores(agent_id)


def read_view(
    context: Context,
    agents: str | Sequence[str] | None,
    cutoff: Cutoff | None = None,
    skip: str | None = None,
) -> View:
    """Reads the stores of all agents, or of the named ones, except ``skip``.

    Raises UsageError or NotFound for a bad agent name; failures of single agents are in the view.
    """
    view = View([], [])
    for agent_id, store in stores_of(context, agents):
        if agent_id == skip:
            continue
        if isinstance(store, SessionManagerError):
            view.failed.append((agent_id, store))
        elif store is None:
            view.agents.append(AgentRead(agent_id, None, None, []))
        else:
            try:
                stage(f"reading the sessions of {agent_id}")
                now = context.clock()
                snapshot = store.read(now)
                observe(context, snapshot, now, cutoff)
                snapshot.release()
            except SessionManagerError as error:
                view.failed.append((agent_id, error))
            else:
                view.agents.append(AgentRead(agent_id, store, snapshot, snapshot.names))
    if agents is None and any(read.store is not None and read.store.mates for read in view.agents):
        _tell_names_apart(view)
    return view


def with_moved(context: Context, view: View) -> View:
    """Returns a view that includes agents whose sessions have moved to SQLite, with their earlier archives.

    Their sessions are those in the database. If that cannot be read, the agent has failed as before.
    """
    found = View(list(view.agents), [])
    for agent_id, error in view.failed:
        try:
            store = context.volume.archive_store(agent_id) if error.code == UNSUPPORTED else None
            if store is None:
                raise error
            snapshot = store.read(context.clock())
            snapshot.release()
            found.agents.append(AgentRead(agent_id, store, snapshot, snapshot.names))
        except SessionManagerError as failed:
            found.failed.append((agent_id, failed))
    return found


def _tell_names_apart(view: View) -> None:
    """Reduces the names in a shared folder to each agent's own."""
    reads = [(r, r.snapshot) for r in view.agents if r.store is not None and r.store.mates and r.snapshot is not None]
    files = {read.agent_id: snapshot.own_files() for read, snapshot in reads}
    for read, snapshot in reads:
        read.names = snapshot.own_names(
            set().union(*(files[other.agent_id] for other, _ in reads if other is not read))
        )


def measure_view(view: View, only: Selection, *, sizes: bool = False) -> None:
    """Looks up the details that ``only`` selects, and with ``sizes`` every session's size."""
    for read in view.agents:
        if read.snapshot is not None:
            read.snapshot.measure(only, sizes=sizes)


def kin_by_agent(view: View) -> dict[str, list[Session]]:
    """Returns, for each agent, the sessions of other agents that share a family with one of its own."""
    everyone = view.sessions
    kin: dict[str, list[Session]] = {}
    for family in families(everyone):
        members = [everyone[i] for i in family]
        for agent_id in {s.agent_id for s in members}:
            kin.setdefault(agent_id, []).extend(s for s in members if s.agent_id != agent_id)
    return kin


class Reference(msgspec.Struct, frozen=True):
    """A transcript that an entry names outside its agent's folder, or a file in a folder that agents share."""

    agent_id: str
    session_id: str
    folder: str
    name: str


def foreign_references(agents: Iterable[AgentRead]) -> list[Reference]:
    """Returns the files that entries name in folders of the agents directory other than their own agent's.

    A shared folder is another agent's, too: then all their files are references.
    """
    return [
        Reference(agent.agent_id, *found)
        for agent in agents
        if agent.snapshot is not None
        for found in agent.snapshot.references(agent.names)
    ]


def names_referred_to(references: Iterable[Reference], store: Folder, gone: Collection[tuple[str, str]]) -> set[str]:
    """Returns names of files in ``store`` that other agents' entries refer to by their ``sessionFile``.

    ``gone`` are sessions (agent id, session id) that this run has removed: they refer to nothing any more.
    """
    return {
        r.name
        for r in references
        if r.folder == store.sessions_dir and (r.agent_id, r.session_id) not in gone and r.agent_id != store.agent_id
    }
