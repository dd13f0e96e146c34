"""Shared by cleanup_orphans and readopt_orphans: one read of all agents, and one way to classify a folder."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from session_manager.archives import folder
from session_manager.core.errors import SessionManagerError
from session_manager.core.orphans import Judged, judge_entries, judge_orphans
from session_manager.core.retention import Policy
from session_manager.core.session import Session
from session_manager.files.versions import Identity, read_file
from session_manager.functions.context import Context
from session_manager.functions.reading import (
    AgentRead,
    Reference,
    View,
    agent_ids,
    foreign_references,
    kin_by_agent,
    names_referred_to,
    observe,
)
from session_manager.stores.base import Store, not_supported
from session_manager.stores.openclaw_files.kind import FilesStore
from session_manager.stores.openclaw_files.orphans import Folder, Mentions, classify, orphans_in, with_traces
from session_manager.stores.openclaw_files.snapshot import bare_entries, read_snapshot
from session_manager.stores.openclaw_files.store import Snapshot
from session_manager.stores.openclaw_files.wrapping import unwrapped

# The most elements that a list in a result shows; the counts beside it count all.
SHOWN = 100


class AgentState(msgspec.Struct):
    """One agent as of one read: a snapshot, or the error that prevented it.

    ``store`` is None when there is none or that is unknown. ``mentions`` are there even when the index is damaged.
    """

    agent_id: str
    store: FilesStore | None
    snapshot: Snapshot | None
    mentions: Mentions
    error: SessionManagerError | None = None


class Everyone:
    """All agents, as of one read: an agent may refer to another agent's orphan."""

    def __init__(self, context: Context) -> None:
        self.agents = [_state(context, agent_id, store) for agent_id, store in context.volume.stores(None)]
        found = [(a, a.snapshot) for a in self.agents if a.snapshot is not None]
        reads = [AgentRead(a.agent_id, a.store, snapshot, snapshot.names) for a, snapshot in found]
        self._references: list[Reference] = foreign_references(reads)
        self._kin = kin_by_agent(View(reads, []))

    def scope(self, context: Context, agents: str | Sequence[str] | None) -> list[AgentState]:
        """Returns all agents or the named ones. Raises UsageError or NotFound for a bad name."""
        names = agent_ids(context, agents)
        return [a for a in self.agents if names is None or a.agent_id in names]

    def shared(self, store: folder.Folder) -> set[str]:
        """Returns names of files in ``store`` that other agents' entries refer to."""
        return names_referred_to(self._references, store, ())

    def kin(self, agent_id: str) -> Sequence[Session]:
        """Returns sessions of other agents that share a family with one of this agent's."""
        return self._kin.get(agent_id, ())

    def mentions_elsewhere(self, agent_id: str) -> list[Mentions]:
        """Returns the files that the other agents' indexes mention."""
        return [a.mentions for a in self.agents if a.agent_id != agent_id]


def _state(context: Context, agent_id: str, store: Store | SessionManagerError | None) -> AgentState:
    nothing = Mentions(b"")
    if store is None or isinstance(store, SessionManagerError):
        return AgentState(agent_id, None, None, nothing, store)
    if not isinstance(store, FilesStore):
        return AgentState(agent_id, None, None, nothing, not_supported(store, "look for orphans"))
    try:
        now = context.clock()
        snapshot = read_snapshot(store, now)
        observe(context, snapshot, now)
    except SessionManagerError as error:
        return AgentState(agent_id, store, None, _mentions_of_damaged(store), error)
    return AgentState(agent_id, store, snapshot, Mentions(snapshot.index.data if snapshot.index else b""))


def _mentions_of_damaged(store: FilesStore) -> Mentions:
    try:
        return Mentions(unwrapped(read_file(store.index_path)[0]))
    except OSError:
        return Mentions(b"")


class Plan(msgspec.Struct):
    """An agent's part of a folder. In ``orphans`` and ``entries``, ``reason`` None means that it may be removed.

    ``transcripts`` counts all in the folder, of any agent.
    """

    folder: Folder
    orphans: list[Judged]
    entries: list[Judged]
    transcripts: int


class Planner:
    """Decides for one agent, repeatedly: for a dry run, under the lock, and right before the change."""

    def __init__(self, context: Context, everyone: Everyone, agent_id: str, older_than_minutes: int) -> None:
        self._context = context
        self._everyone = everyone
        self._agent_id = agent_id
        self._policy = Policy(older_than_minutes, include_durable=True)
        self._mentions: tuple[Identity | None, Mentions] | None = None

    def plan(self, snapshot: Snapshot) -> Plan:
        """Classifies the folder and decides about its orphans and the entries without a transcript."""
        now = self._context.clock()
        store, sessions = snapshot.store, snapshot.sessions
        cutoff, current = self._policy.cutoff(now), self._context.settings.current
        observe(self._context, snapshot, now)
        folder = self.classify(snapshot)
        found_orphans = orphans_in(store, folder, snapshot.names, cutoff, now) if store.keeper else []
        orphans = judge_orphans(found_orphans, cutoff, current, self._context.pins)
        bare = bare_entries(snapshot, now)
        for session in bare:
            # Without a session id there is no transcript that a run could hold.
            session.observed = True
        listed = [*sessions, *bare]
        raws = (
            {s.id: [snapshot.index.raw(key)[1] for key in s.keys] for s in listed if not _has_file(folder, s)}
            if snapshot.index
            else {}
        )
        found = with_traces(store, folder, listed, raws)
        kin = self._everyone.kin(self._agent_id)
        entries = judge_entries(listed, found, self._policy, now, current, kin)
        part = folder.only(snapshot.own_names(self._everyone.shared(store)))
        return Plan(part, orphans, entries, len(folder.transcripts()))

    def classify(self, snapshot: Snapshot) -> Folder:
        """Only classifies the folder."""
        if self._mentions is None or self._mentions[0] != snapshot.identity:
            self._mentions = (snapshot.identity, Mentions(snapshot.index.data if snapshot.index else b""))
        mentions = [self._mentions[1], *self._everyone.mentions_elsewhere(self._agent_id)]
        return classify(
            snapshot.store, snapshot.names, snapshot.sessions, self._everyone.shared(snapshot.store), mentions
        )


def _has_file(folder: Folder, session: Session) -> bool:
    return session.id + ".jsonl" in folder.sizes
