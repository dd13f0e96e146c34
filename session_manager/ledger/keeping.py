"""Stores which sessions to keep: pinned ones, and those that were restored lately.

One small file in the state directory, ``kept.json``, replaced as a whole under its own lock. Every call that chooses
sessions to remove reads it, so it needs neither SQLite nor TOML; the retention policy, which has pins too, is a
person's file and is never written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection

import msgspec

from session_manager.core.errors import Locked
from session_manager.core.keeping import Kept, Pin, damaged, decode
from session_manager.core.selection import full_name
from session_manager.files.atomic import clear_errors, private_in, sync_folder, write_new
from session_manager.files.versions import read_file
from session_manager.settings import Settings, kept_path

LOCK_SUFFIX = ".lock"
_TEMP_SUFFIX = ".tmp"


def edit(settings: Settings, change: Callable[[Kept], bool]) -> None:
    """Lets ``change`` edit the content, and writes it durably if that returns True; creates the file if needed.

    Raises Damaged (``pins_damaged``), Locked, Refused or Failed; nothing is changed then.
    """
    from filelock import Timeout

    from session_manager.files.own_lock import own_lock
    from session_manager.ledger.connection import make_state_dir

    path = kept_path(settings)
    with clear_errors("change", path):
        make_state_dir(settings.state_dir)
        try:
            with own_lock(path + LOCK_SUFFIX, settings.lock_timeout):
                kept = _read(path)
                if change(kept):
                    _replace(path, msgspec.json.encode(kept))
        except Timeout as error:
            raise Locked(f"another call holds {path}{LOCK_SUFFIX}; try again") from error


def _read(path: str) -> Kept:
    try:
        return decode(read_file(path)[0], path)
    except FileNotFoundError:
        return Kept()
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error


def _replace(path: str, data: bytes) -> None:
    """Replaces the file by a new version, for a caller who holds the lock. Raises OSError."""
    temp = path + _TEMP_SUFFIX
    # Left by a killed call.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temp)
    write_new(temp, data, private_in(os.path.dirname(path)))
    os.replace(temp, path)
    sync_folder(os.path.dirname(path))


def pin(settings: Settings, session_ids: Collection[str], now_ms: int) -> set[str]:
    """Pins sessions, in every agent; returns those that were pinned before. Raises as ``edit`` does."""
    before: set[str] = set()

    def change(kept: Kept) -> bool:
        before.update(kept.pins.keys() & session_ids)
        kept.pins.update((i, Pin(now_ms, settings.asked_by)) for i in session_ids if i not in before)
        return len(before) < len(set(session_ids))

    edit(settings, change)
    return before


def unpin(settings: Settings, session_id: str) -> bool:
    """Removes a pin; returns True if there was one. Raises as ``edit`` does."""
    return _dropped(settings, lambda kept: kept.pins.pop(session_id, None) is not None)


def note_restored(settings: Settings, sessions: Collection[tuple[str, str]], now_ms: int) -> None:
    """Records that sessions (agent id, session id) are restored. Raises as ``edit`` does."""

    def change(kept: Kept) -> bool:
        spared = kept.spared(now_ms, settings.keep_days)
        kept.restored = {name: at for name, at in kept.restored.items() if name in spared}
        kept.restored.update((full_name(agent_id, session_id), now_ms) for agent_id, session_id in sessions)
        return True

    edit(settings, change)


def forget(settings: Settings, session_id: str, agent_ids: Collection[str]) -> None:
    """Forgets a session that was erased. Raises as ``edit`` does."""

    def change(kept: Kept) -> bool:
        gone = [kept.restored.pop(full_name(agent_id, session_id), None) for agent_id in agent_ids]
        return kept.pins.pop(session_id, None) is not None or any(gone)

    _dropped(settings, change)


def _dropped(settings: Settings, change: Callable[[Kept], bool]) -> bool:
    """Applies ``change`` if there is a file; returns True if it changed anything."""
    changed = False

    def drop(kept: Kept) -> bool:
        nonlocal changed
        changed = change(kept)
        return changed

    if os.path.lexists(kept_path(settings)):
        edit(settings, drop)
    return changed
