"""The ledger's rows as values. Times are epoch milliseconds."""

from __future__ import annotations

import msgspec

from session_manager.files.versions import Identity

# Kinds of attempts, and states of a removal.
REMOVE, RESTORE = "remove", "restore"
PURGE, ERASE = "purge", "erase"
REMOVED, KEPT, RESTORED, PURGED, ERASED = "removed", "kept", "restored", "purged", "erased"

# A key's token and its value, which may be a slice of an index in memory.
Member = tuple[bytes, bytes | memoryview]


class Facts(msgspec.Struct, omit_defaults=True):
    """Facts to keep about a removed session; none of its messages. Cost in US dollars."""

    session_type: str | None = None
    label: str | None = None
    model: str | None = None
    tokens: int | float | None = None
    cost_usd: int | float | None = None
    started_at: int | float | None = None
    activity: int | None = None


class Details(msgspec.Struct, omit_defaults=True):
    """The part of a removal that can be erased."""

    keys: list[str]
    files: list[tuple[str, str]]
    facts: Facts
    places: list[int] = []
    shares: list[str] = []


class Removal(msgspec.Struct):
    """One session to remove: its keys, its raw members (key token, value), its files from → to (base names).

    ``places`` are the positions of the keys in the index, counted from 0; empty if unknown. ``shares`` are files of the
    session that are not archived with it, because others have them, too: ``<name>`` in its agent's own folder,
    ``<agent>/<name>`` in another's.
    """

    session_id: str
    reason: str
    keys: list[str]
    members: list[Member]
    files: list[tuple[str, str]]
    removal_id: int = 0
    facts: Facts = msgspec.field(default_factory=Facts)
    places: list[int] = []
    shares: list[str] = []


class Temp(msgspec.Struct):
    """A temporary index file: its base name and its identity before it was swapped in."""

    name: str
    identity: Identity


class Attempt(msgspec.Struct):
    """One agent's part of a run. ``expected`` are the versions of the index that may be discarded when displaced.

    ``archive_runs`` maps each removal id to the run under whose name its second names are kept: the attempt's own run
    for a removal, for a restore that of the run that removed the session. ``spared`` are names of files that an
    erasure keeps.
    """

    attempt_id: int
    run_id: str
    agent_id: str
    temps: list[Temp]
    expected: list[Identity]
    removals: list[Removal]
    kind: str = REMOVE
    archive_runs: dict[int, str] = {}
    spared: list[str] = []

    def file_names(self) -> set[str]:
        """Returns all names in the sessions folder that the attempt's files have or get."""
        named = {name for removal in self.removals for pair in removal.files for name in pair}
        return named | {temp.name for temp in self.temps}

    def archive_run(self, removal: Removal) -> str:
        """Returns the run under whose name the second names of a removal's files are kept."""
        return self.archive_runs.get(removal.removal_id, self.run_id)


class Mark(msgspec.Struct, frozen=True):
    """One status update for history. ``run_id`` and ``changed_at`` (epoch ms) distinguish it from a later one."""

    agent_id: str
    session_id: str
    status: str
    run_id: str
    changed_at: int


class Archived(msgspec.Struct, frozen=True):
    """What a purge needs to know about a removal that can still be restored. ``archives`` are base names."""

    removal_id: int
    session_id: str
    run_id: str
    store_id: str
    removed_at: int
    finished: bool
    archives: list[str]
    keys: list[str]
    label: str | None


class Removed(msgspec.Struct):
    """One removal, looked up afterwards.

    ``state`` is ``removed``, ``kept``, ``restored``, ``purged`` or ``erased``, since ``changed_at`` unless it is the
    first. ``finished`` is False while the attempt is open. ``files`` are from → to (base names); ``shares`` are files
    that stayed because others have them, too. ``mark`` is (status, state) of the session's mark, or None if there
    never was one. ``has_entries`` is True while the raw entries are kept. An erased one has no keys, files or facts.
    """

    removal_id: int
    run_id: str
    function: str | None
    asked_by: str | None
    user: str | None
    host: str | None
    store_id: str
    agent_id: str
    session_id: str
    reason: str
    state: str
    removed_at: int
    changed_at: int | None
    finished: bool
    keys: list[str]
    files: list[tuple[str, str]]
    facts: Facts
    mark: tuple[str, str] | None
    has_entries: bool
    shares: list[str]
