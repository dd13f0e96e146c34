"""What the ledger's rows hold, as values. Times are epoch milliseconds."""

from __future__ import annotations

import msgspec

from session_manager.live.volume import Identity

# What an attempt does to the sessions it names, and how far a removal is.
REMOVE, RESTORE = "remove", "restore"
PURGE, ERASE = "purge", "erase"
REMOVED, KEPT, RESTORED, PURGED, ERASED = "removed", "kept", "restored", "purged", "erased"

# A key's token and its value, which may be part of an index in memory.
Member = tuple[bytes, bytes | memoryview]


class Facts(msgspec.Struct, omit_defaults=True):
    """What is worth knowing of a session when it has gone; nothing of what was said in it. Cost in US dollars."""

    session_type: str | None = None
    label: str | None = None
    model: str | None = None
    tokens: int | float | None = None
    cost_usd: int | float | None = None
    started_at: int | float | None = None
    activity: int | None = None


class Removal(msgspec.Struct):
    """One session that goes: its keys, its raw members (key token, value), its files from → to (base names).

    ``places`` are those of the keys in the index, counted from 0; empty where they are not known. ``shares`` are files
    that the session had and that did not go with it, because others have them, too: ``<name>`` in its agent's own
    folder, ``<agent>/<name>`` in another's.
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
    """A temporary index file: its base name and the identity that it had before it was swapped in."""

    name: str
    identity: Identity


class Attempt(msgspec.Struct):
    """One agent's part of a run. ``expected`` are the versions of the index that may be thrown away when displaced.

    ``archive_runs`` says for each removal (by id) under which run's name its second names are kept: the attempt's
    own when it removes, that of the run that removed the session when it restores. ``spared`` are names of files that
    an erasure leaves alone.
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
        """Returns all names that the attempt gives to files in the sessions folder, or takes from them."""
        named = {name for removal in self.removals for pair in removal.files for name in pair}
        return named | {temp.name for temp in self.temps}

    def archive_run(self, removal: Removal) -> str:
        """Returns the run under whose name the second names of a removal's files are kept."""
        return self.archive_runs.get(removal.removal_id, self.run_id)


class Mark(msgspec.Struct, frozen=True):
    """One status update for history. ``run_id`` and ``changed_at`` (epoch ms) tell it from a later one."""

    agent_id: str
    session_id: str
    status: str
    run_id: str
    changed_at: int


class Archived(msgspec.Struct, frozen=True):
    """What a purge must know of a removal that could still be restored. ``archives`` are base names."""

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

    ``state`` is ``removed``, ``kept``, ``restored``, ``purged`` or ``erased``, since ``changed_at`` when it is no
    longer the first. ``finished`` is False while the attempt is open. ``files`` are from → to (base names), ``shares``
    those that it had and did not take along. ``mark`` is what history has heard of the session: (status, state), or
    None when nothing was ever owed. ``has_entries`` says whether the raw entries are still there. An erased one has
    neither keys nor files nor facts.
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
