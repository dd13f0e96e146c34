"""What the ledger's rows hold, as values."""

from __future__ import annotations

import msgspec

from session_manager.live.volume import Identity


class Removal(msgspec.Struct):
    """One session that goes: its keys, its raw members (key token, value), its files from → to (base names)."""

    session_id: str
    reason: str
    keys: list[str]
    members: list[tuple[bytes, bytes]]
    files: list[tuple[str, str]]
    removal_id: int = 0


class Temp(msgspec.Struct):
    """A temporary index file: its base name and the identity that it had before it was swapped in."""

    name: str
    identity: Identity


class Attempt(msgspec.Struct):
    """One agent's part of a run. ``expected`` are the versions of the index that may be thrown away when displaced."""

    attempt_id: int
    run_id: str
    agent_id: str
    temps: list[Temp]
    expected: list[Identity]
    removals: list[Removal]


class Mark(msgspec.Struct, frozen=True):
    """One thing that history has still to hear. ``run_id`` and ``changed_at`` (epoch ms) tell it from a later one."""

    agent_id: str
    session_id: str
    status: str
    run_id: str
    changed_at: int
