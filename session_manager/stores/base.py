"""The interface of a store kind: what one program's way to keep sessions must offer, and what holds when it is killed.

One store is one agent's sessions. A kind is a folder beside this module; the functions know only what is in here.
Every method may raise Damaged (the store cannot be read; nothing was changed), Refused, Failed, and Locked (another
process holds the store), except where it says otherwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from session_manager.archives.folder import Folder, Guard
from session_manager.core.errors import Refused, SessionManagerError
from session_manager.core.session import Session

if TYPE_CHECKING:
    from session_manager.archives.archive import Failures
    from session_manager.archives.second_names import SecondNames
    from session_manager.archives.work import Work
    from session_manager.core.diagnosis import Check
    from session_manager.core.errors import Damaged
    from session_manager.core.orphans import Orphan
    from session_manager.core.retention import Cutoff
    from session_manager.core.selection import Selection
    from session_manager.ledger import Archived, Ledger, Removal
    from session_manager.stores.lives import Blocked, Find, Life, Obstacle, Restored
    from session_manager.stores.results import (
        Details,
        Erasure,
        Look,
        OrphanLook,
        OrphanPlan,
        OrphansRemoved,
        Outcome,
        Readopted,
        Usage,
    )


Done = TypeVar("Done")


class Place(Protocol):
    """A store as a place to restore sessions to."""

    def was_taken_back(self, life: Life) -> bool:
        """Returns True if removals of one session were already restored, and completely."""

    def obstacle(self, life: Life) -> Obstacle | None:
        """Returns what is in the way of restoring one session, or None."""

    def claim(self, life: Life) -> None:
        """Marks the keys and file names of ``life`` as taken."""


class Snapshot(Protocol):
    """One read of a store. It changes nothing but its own sessions."""

    @property
    def agent_id(self) -> str:
        """The agent whose store it is."""

    @property
    def sessions(self) -> list[Session]:
        """All sessions, as of this read."""

    @property
    def names(self) -> list[str]:
        """The names of the files that lie in the store; none if it keeps its sessions in no files."""

    def release(self) -> None:
        """Frees the text of the list, which only ``orphans`` needs: a view of all agents would hold all of them."""

    def observe(self, now_ms: int, cutoff: Cutoff | None = None) -> None:
        """Completes the sessions: whether a run is in progress, and what else the list of them does not say.

        Times inside transcripts, and whether somebody still uses a spawned session, are read only with a cut-off: of
        sessions that look older than it.
        """

    def measure(self, only: Selection, *, sizes: bool = False) -> None:
        """Sets ``size`` (bytes) and ``empty`` if ``only`` asks for them; with ``sizes`` the size of every session."""

    def transcript_sizes(self) -> dict[str, dict[str, int]]:
        """Returns the bytes of each transcript by session id and name; one may belong to several sessions."""

    def without_messages(self, asked: Iterable[Session]) -> tuple[set[str], set[str]]:
        """Returns the ids of the sessions in ``asked`` without a message, and of those of which not all can be read."""

    def references(self, names: Sequence[str]) -> list[tuple[str, str, str]]:
        """Returns (session id, folder, file name) of files in other stores that belong to sessions of this one, too.

        ``names`` are this agent's own, if several agents share the folder.
        """

    def own_names(self, others: Collection[str]) -> list[str]:
        """Returns the ``names`` that are this agent's; ``others`` belong to other agents' sessions in this folder."""

    def own_files(self) -> set[str]:
        """Returns the ``names`` of files that belong to a session."""

    def archives_of(self, session_id: str, names: Iterable[str]) -> list[str]:
        """Returns those ``names`` that show that a session was deleted or reset, by its owner or by us."""

    def usage(self, names: Iterable[str]) -> Usage:
        """Returns the bytes of ``names`` on disk."""

    def details(self, session: Session, now_ms: int) -> Details:
        """Looks closely at one session: also sets its size and the time of its last message."""


# Picks sessions to remove, each with its reason, from a read under the store's lock. It is asked again when the
# store's owner wrote in between.
Choose = Callable[[Snapshot], Sequence[tuple[Session, str]]]


class Orphans(Protocol):
    """The files in a store that no session has, and the sessions that have no file."""

    def plan(self, snapshot: Snapshot) -> OrphanPlan:
        """Classifies the store's files and decides about its orphans; changes nothing."""

    def remove(
        self, work: Work, choose: Callable[[OrphanPlan], tuple[list[Orphan], list[Session]]], into: OrphansRemoved
    ) -> None:
        """Removes what ``choose`` picks from a fresh plan under the lock; it is asked again right before each change.

        ``into`` gets what was done, also when this raises. Killed anywhere, files of orphans get their names back, and
        sessions are wholly live or wholly removed.
        """

    def adoptable(self, read: Snapshot | None, error: Damaged | None, session_id: str | None) -> Readopted:
        """Returns what ``readopt`` would do after a read (a Snapshot), or after the ``error`` that prevented it."""

    def readopt(self, work: Work, session_id: str | None, *, rebuild: bool) -> Readopted:
        """Gives idle transcripts without an entry one; with ``rebuild`` replaces a list that cannot be read.

        The damaged list is kept beside it. Killed anywhere, the list is the old one or the new one.
        """


class Store(Folder, Protocol):
    """One agent's sessions as one program keeps them."""

    @property
    def kind(self) -> str:
        """The name of the kind, as its folder is called."""

    @property
    def mates(self) -> bool:
        """Whether other agents keep their files in the same folder."""

    def read(self, now_ms: int) -> Snapshot:
        """Reads the list of its sessions once, without a lock, and no more than that."""

    def remove(self, work: Work, choose: Choose, shared: Collection[str] = ()) -> Outcome:
        """Removes the sessions that ``choose`` picks from a fresh read under the store's lock.

        Interrupted runs are ended first. ``shared`` are names of files that stay, because other stores refer to them.
        If killed at any moment, the next call that changes the store ends it: each session is then wholly live or
        wholly removed. Raises whatever ``choose`` raises; the store is then as it was.
        """

    def look_once_more(self, work: Work, observe: Choose) -> Outcome | None:
        """Looks again at a store that this run has changed, once its owner had time to write; None if all is well.

        Sessions that woke up are restored, those that came out of a cache are removed again. Also raises OSError.
        """

    def has_unfinished(self, work: Work, names: Collection[str] | None = None) -> bool:
        """Returns True if a killed process left work to finish; ``names`` lie in the store, if they are known."""

    def locked(self, work: Work, act: Callable[[Guard], Done]) -> Done:
        """Runs ``act``, which gets the guard, under the store's lock; starts again if another process took that over.

        Raises Locked when it cannot be acquired in time, and whatever ``act`` raises.
        """

    def end_earlier(self, work: Work, guard: Guard) -> tuple[list[Removal], list[dict[str, object]], Failures]:
        """Ends what killed runs left, by what is true now, for a caller who holds the lock.

        Returns what this very run had done before it lost the lock, what was done about other runs, and failures.
        """

    def place(self, second_names: SecondNames, keep_days: int, now_ms: int) -> Place:
        """Reads it as a place to restore sessions to; their entries are kept for ``keep_days``."""

    def restorable(self, work: Work, found: Iterable[Life], now_ms: int) -> tuple[list[Life], list[Blocked]]:
        """Returns the lives that can be restored now, and the others with their obstacles; none that live already."""

    def restore(self, work: Work, find: Find, *, skip_conflicts: bool) -> Restored:
        """Restores the lives that ``find`` returns, all of their keys and files, byte for byte.

        If killed at any moment, the next call that changes the store ends it: each session is wholly live or wholly
        removed. Raises Refused for an obstacle, unless ``skip_conflicts``; nothing is restored then.
        """

    def give_back(self, work: Work, names: Collection[str]) -> Failures:
        """Restores files that a session of another agent names, unless they are there."""

    def archive_last(
        self, work: Work, names: Mapping[str, str], referred_to: Callable[[], Collection[str]]
    ) -> tuple[list[Removal], Failures]:
        """Archives files (name -> session id) whose last session, one of another agent, was removed.

        Those that sessions still name (``referred_to``) stay.
        """

    def knows(self, work: Work, session_id: str, sessions: Sequence[Session], names: Sequence[str]) -> bool:
        """Returns True if the store or the ledger has anything of a session, or a killed process left work to finish.

        ``sessions`` and ``names`` are those of a read.
        """

    def holds(self, name: str) -> bool:
        """Returns True if a file lies in the store."""

    def erase(
        self,
        work: Work,
        session_id: str,
        choose: Choose,
        shared: Collection[str],
        into: Erasure,
        *,
        force: bool,
    ) -> None:
        """Removes a session that ``choose`` allows, and erases all files and entries that are left of it.

        ``into`` gets what was done, also when this raises. Files that others share (``shared``) stay. If killed, the
        next call that changes the store completes it.
        """

    def left_of(self, session_id: str) -> list[tuple[str, str]]:
        """Returns (place, reason) of what an erasure could not reach. Places begin with the agent's name."""

    def check(self, look: Look) -> Iterator[Check]:
        """Yields what is wrong with the store, and what to do; for the doctor."""

    def writer(self, now_ms: int) -> str | None:
        """Returns what may write the store now, as part of a sentence; None without a sign of any."""

    def mentions(self, snapshot: Snapshot | None) -> object:
        """Returns what the list of a read mentions, for ``OrphanLook``; None: of a list that cannot be read."""

    def orphans(self, look: OrphanLook) -> Orphans | None:
        """Returns the store's orphans; None if this kind has none."""

    def to_import(self) -> dict[str, str] | None:
        """Returns what a person has to do before restored sessions live: ``agentId``, ``index``, ``how``; or None."""

    def archives(self, names: Sequence[str], ledger: Ledger | None) -> tuple[list[str], list[Archived]]:
        """Returns the ``names`` that may be this agent's archives, and its removals in the ledger."""


class Volume(Protocol):
    """The stores of all agents that one setting names."""

    @property
    def root(self) -> str:
        """The folder that holds them."""

    @property
    def shared(self) -> bool:
        """Whether all agents share one list of sessions, so that an agent without a session has no place of its own."""

    def agent_ids(self) -> list[str]:
        """Returns the agents that have a store, in order of name. Raises Refused or Failed."""

    def resolve_agent(self, agent: str) -> str:
        """Returns the name of an agent as the stores have it. Raises UsageError, or NotFound (``agent_not_found``)."""

    def store(self, agent_id: str) -> Store | None:
        """Returns an agent's store, or None when it has none. Raises Refused for one that cannot be used."""

    def archive_store(self, agent_id: str) -> Store | None:
        """Does what ``store`` does; for an agent that another kind keeps by now, returns where its archives lie."""

    def stores(self, agent: str | None) -> Iterator[tuple[str, Store | SessionManagerError | None]]:
        """Yields what ``stores_of`` does, for all agents or the named one."""

    def stores_of(self, agent_ids: Iterable[str]) -> Iterator[tuple[str, Store | SessionManagerError | None]]:
        """Yields (agent id, its store; or the error or None if it has none)."""

    def activity(self, agent_id: str, now: int) -> Mapping[str, int]:
        """Returns the last activity (epoch ms) in the list of an agent's sessions, by session id; 0 if unknown."""

    def living(self, agent_id: str) -> Callable[[str], bool] | None:
        """Returns what tells if an archive belongs to a live session of an agent; None when that cannot be read."""

    def erase_lost(self, work: Work, agent_id: str, session_id: str) -> Erasure:
        """Erases the rest of a session whose agent has no store any more."""


def refuse_unobserved(chosen: Iterable[Session]) -> None:
    """Raises RuntimeError if nobody has looked whether these sessions are busy or pinned: a fault in our own code.

    Every kind calls it before it removes sessions.
    """
    for session in chosen:
        if not session.observed:
            raise RuntimeError(f"session {session.id} is to be removed, but nobody has looked if it is in use")


def not_supported(store: Store, what: str) -> Refused:
    """Returns the error for something that a kind of store cannot do; ``what`` ends its sentence."""
    return Refused(
        f"the sessions of agent {store.agent_id!r} are kept by {store.kind}, for which this version cannot {what}",
        code="not_supported",
        agentId=store.agent_id,
    )


def reported(agent_id: str, removals: Iterable[Removal]) -> list[dict[str, object]]:
    """Returns the elements of a result's ``reappeared``."""
    return [{"agentId": agent_id, "id": r.session_id, "keys": r.keys} for r in removals]


def look_once_more(work: Work, observe: Choose) -> Iterator[tuple[Store, Outcome]]:
    """Looks at a run's stores again, and yields what had to be done. A store that cannot be read by then is left out.

    ``observe`` completes a snapshot, and chooses nothing.
    """
    for store in list(work.left):
        with contextlib.suppress(OSError, SessionManagerError):
            outcome = store.look_once_more(work, observe)
            if outcome is not None:
                yield store, outcome
