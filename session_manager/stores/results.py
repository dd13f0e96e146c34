"""What the methods of a store take and return, see ``base``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence, Set
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from session_manager.archives.archive import Failures
    from session_manager.archives.second_names import SecondNames
    from session_manager.core.errors import SessionManagerError
    from session_manager.core.orphans import Judged, Orphan
    from session_manager.core.policy import Pins
    from session_manager.core.retention import Policy
    from session_manager.core.session import Session
    from session_manager.ledger import Ledger, Removal
    from session_manager.stores.base import Snapshot


class Usage(msgspec.Struct):
    """Bytes of transcripts and of archives; ``by_type``: those of transcripts, by the type of their session."""

    live: int = 0
    archived: int = 0
    by_type: dict[str, int] = {}


class Details(msgspec.Struct):
    """One session's files, with their bytes: ``files`` by name, ``elsewhere`` by path, None where it cannot be read."""

    files: dict[str, int]
    elsewhere: dict[str, int | None] = {}


class Erasure(msgspec.Struct):
    """What an erasure did in one store.

    ``changed`` is False if nothing was left. ``gone`` were removed from the store before; ``spared`` are files that a
    live session has, too, ``shared`` (agent id, name) those of other removed ones.
    """

    known: bool = False
    changed: bool = False
    keys: int = 0
    files: int = 0
    bytes: int = 0
    entries: int = 0
    gone: list[Removal] = []
    spared: list[str] = []
    shared: list[tuple[str, str]] = []
    recovered: list[dict[str, object]] = []
    reappeared: list[Removal] = []
    failures: Failures = []
    unerased: Failures = []


class Look(msgspec.Struct, frozen=True):
    """What the doctor looks with. ``shared`` returns names of files in the store that other stores refer to."""

    now_ms: int
    ledger: Ledger | None
    second_names: SecondNames
    shared: Callable[[], Collection[str]]


class Woken(msgspec.Struct, frozen=True):
    """A session whose removal is undone: ``run_id`` removed it, ``whole`` is True if it has its files again."""

    agent_id: str
    session_id: str
    run_id: str
    whole: bool

    def document(self) -> dict[str, object]:
        """Returns the element of a result's ``woken``."""
        return {"agentId": self.agent_id, "id": self.session_id, "removed_by": self.run_id, "whole": self.whole}


class Outcome(msgspec.Struct):
    """What happened in one store. ``snapshot`` is the read that the decision was made from.

    ``alive`` are chosen sessions that showed a sign of life at the last moment and were kept; ``reappeared`` were
    removed again, because a gateway had written them back; the removals of ``woken`` were undone. ``left_alone``
    are files of removed sessions that stay outside the store, each with its paths, as far as they are known.
    """

    snapshot: Snapshot
    removed: list[Removal]
    alive: set[str]
    failures: Failures
    recovered: list[dict[str, object]]
    reappeared: list[Removal] = []
    woken: list[Woken] = []
    left_alone: dict[str, list[str]] = {}


class OrphanLook(msgspec.Struct, frozen=True):
    """What a store's orphans are judged with.

    ``observe`` completes a read. ``shared`` are names of files that other stores refer to, ``mentioned`` what their
    lists mention (see ``Store.mentions``), ``kin`` sessions of other agents of the same families.
    """

    clock: Callable[[], int]
    policy: Policy
    current: Set[str]
    pins: Pins | None
    observe: Callable[[Snapshot], None]
    shared: set[str]
    mentioned: Sequence[object]
    kin: Sequence[Session]


class OrphanPlan(msgspec.Struct):
    """An agent's files by class (count, bytes), and its orphans and entries without files, each judged.

    ``transcripts`` counts all in the folder, of any agent; ``is_orphan`` tells if a file is a transcript without entry.
    """

    classes: dict[str, tuple[int, int]]
    orphans: list[Judged]
    entries: list[Judged]
    transcripts: int
    is_orphan: Callable[[str], bool]


class OrphansRemoved(msgspec.Struct):
    """What was done about orphans: to entries (``outcomes``, one for each try), and to files, each with its removal.

    ``by_id`` are the sessions as they were read, ``spared`` are orphans that turned out to be none.
    """

    outcomes: list[Outcome] = []
    by_id: dict[str, Session] = {}
    archived: list[tuple[Orphan, Removal]] = []
    spared: list[Orphan] = []
    failures: Failures = []


class Adoption(msgspec.Struct):
    """A new entry: ``file`` is the transcript's name; times in epoch milliseconds."""

    id: str
    agent_id: str
    key: str
    file: str
    updated_at: int
    started_at: int | None


class Readopted(msgspec.Struct):
    """What readopting did in one store: new entries, transcripts without one and why (file, reason).

    ``kept_as`` is the damaged list's new name, ``salvaged`` counts the entries saved from it; ``failures`` are errors
    after the list was in place.
    """

    adopted: list[Adoption]
    skipped: list[tuple[str, str]]
    kept_as: str | None = None
    salvaged: int = 0
    recovered: list[dict[str, object]] = []
    failures: list[SessionManagerError] = []
