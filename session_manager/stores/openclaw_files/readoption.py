"""Restores entries to an index that lost them; rebuilds an unreadable index, and keeps the damaged file beside it.

An addition takes the steps of every edit: intent, swap, look again. A rebuilt index replaces exactly the file that was
read, which has a second name by then; any other file there is put back.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping

import msgspec

from session_manager.archives.names import archive_timestamp
from session_manager.archives.work import Work
from session_manager.core.errors import Damaged, Locked, SessionManagerError
from session_manager.core.index import Index
from session_manager.core.jsonscan import scan_beginning
from session_manager.core.session import trimmed_or_none
from session_manager.files.atomic import clear_errors, exchange, private_in, rename_new, sync_folder, write_new
from session_manager.files.liveness import now_ms
from session_manager.files.steps import step
from session_manager.files.versions import Identity, identity_of, read_file
from session_manager.stores.openclaw_files.changing import end_earlier, intend, refuse_unguarded
from session_manager.stores.openclaw_files.gateway_lock import LockLost, StoreLock
from session_manager.stores.openclaw_files.recovery import try_recover
from session_manager.stores.openclaw_files.snapshot import read_snapshot, sessions_of
from session_manager.stores.openclaw_files.store import Snapshot, Store
from session_manager.stores.openclaw_files.swap import IndexChanged, Swap, look_again, parsed_by, write_temp
from session_manager.stores.openclaw_files.wrapping import texts_inside

_FRESH_STARTS = 20
_EMPTY = Index(b"{}")

# Key → (key token, value), both raw.
Members = Mapping[str, tuple[bytes, bytes]]
ChooseMembers = Callable[[Snapshot], Members]


class Broken(msgspec.Struct):
    """An index that cannot be read: its bytes and identity, both None when it is missing."""

    data: bytes | None
    identity: Identity | None


class Readopted(msgspec.Struct):
    """The result for one store: the new members, the damaged file's new name, the number of entries salvaged from it.

    ``failures`` are errors after the index was in place.
    """

    members: Members
    kept_as: str | None
    salvaged: int
    recovered: list[dict[str, object]]
    failures: list[SessionManagerError]


def salvage(store: Store, error: Damaged) -> tuple[Snapshot, Broken]:
    """Returns the readable part of an unreadable index: all of it behind a byte order mark, in another encoding or
    between comments; else the entries that are complete before the damage.

    Raises ``error`` if even its bytes cannot be read.
    """
    try:
        data, identity = read_file(store.index_path)
    except FileNotFoundError:
        return Snapshot(store, _EMPTY, None, []), Broken(None, None)
    except OSError:
        raise error from None
    index = _most_of(data)
    return Snapshot(store, index, identity, sessions_of(store, index, now_ms())), Broken(data, identity)


def _most_of(data: bytes) -> Index:
    """Returns the index with the most sessions in ``data``; a complete one byte for byte."""
    best, most = _EMPTY, 0
    for text in texts_inside(data):
        try:
            index = Index(text)
        except ValueError:
            index = _beginning_of(text)
        count = sum(trimmed_or_none(entry.session_id) is not None for _, entry in index.decoded())
        if count > most:
            best, most = index, count
    return best


def _beginning_of(text: bytes) -> Index:
    """Returns an index of the sessions with complete entries at the beginning of a damaged text."""
    put = {}
    for m in scan_beginning(text):
        token, value = text[m.key_start : m.key_end], text[m.value_start : m.value_end]
        with contextlib.suppress(ValueError):
            ((key, entry),) = Index(b"{" + token + b":" + value + b"}").decoded()
            if value.startswith(b"{") and trimmed_or_none(entry.session_id) is not None:
                put[key] = (token, value)
    return Index(_EMPTY.edited((), put))


def readopt(work: Work, store: Store, lock: StoreLock, choose: ChooseMembers, *, rebuild: bool) -> Readopted:
    """Adds the members that ``choose`` picks from a fresh read; with ``rebuild`` also to an unreadable index.

    Recovers killed runs first, or last if that is only possible with the rebuilt index. Raises
    Damaged, Locked, LockLost, Refused or Failed, and whatever ``choose`` raises.
    """
    recovered: list[dict[str, object]] = []
    try:
        recovered = end_earlier(work, store, lock)[1]
    except Damaged:
        if not rebuild:
            raise
    for _ in range(_FRESH_STARTS):
        broken = None
        try:
            snapshot = read_snapshot(store, now_ms())
        except Damaged as error:
            if not rebuild:
                raise
            snapshot, broken = salvage(store, error)
        members = choose(snapshot)
        if snapshot.index is None or (broken is None and not members):
            return Readopted({}, None, 0, recovered, [])
        refuse_unguarded(work, snapshot)
        lock.check()
        try:
            if broken is None:
                return Readopted(members, None, 0, recovered, _add(work, snapshot, lock, members))
            kept_as = _replace(store, lock, broken, snapshot.index.edited((), members))
        except IndexChanged:
            continue
        failures: list[SessionManagerError] = []
        try:
            with clear_errors("make durable the index in", store.sessions_dir):
                sync_folder(os.path.dirname(store.index_path))
            step("rebuilt index synced")
            recovered += end_earlier(work, store, lock)[1]
        except SessionManagerError as error:
            failures.append(error)
        return Readopted(members, kept_as, len(snapshot.index.entries), recovered, failures)
    raise Locked(f"the gateway keeps writing the index of agent {store.agent_id!r}; try again", agentId=store.agent_id)


def _add(work: Work, snapshot: Snapshot, lock: StoreLock, members: Members) -> list[SessionManagerError]:
    """Adds members to a readable index. Returns errors after that; raises if nothing was added."""
    store, index, identity = snapshot.store, snapshot.index, snapshot.identity
    assert index is not None
    assert identity is not None
    text = index.edited((), members)
    temp, attempt = intend(work, lock, store, identity, text, [])
    try:
        with clear_errors("rewrite the index of", store.sessions_dir):
            if identity_of(store.index_path) != identity:
                raise IndexChanged
            swap = Swap(store, lock, attempt)
            swap.install(index, identity, text, temp)
            settled_at = parsed_by(index)
            time.sleep(max(0.0, settled_at - time.monotonic()))
            look_again(store, swap)
            swap.clean()
            sync_folder(os.path.dirname(store.index_path))
            step("additions synced")
        work.ledger.finish(attempt, ())
        step("additions noted")
    except LockLost:
        raise
    except BaseException as error:
        try_recover(store, lock, work.ledger, attempt)
        if isinstance(error, SessionManagerError) and _is_added(store, members):
            return [error]
        raise
    with contextlib.suppress(OSError):
        os.utime(store.index_path)
    return []


def _is_added(store: Store, members: Members) -> bool:
    with contextlib.suppress(SessionManagerError):
        index = read_snapshot(store, now_ms()).index
        return index is not None and members.keys() <= index.entries.keys()
    return False


def _replace(store: Store, lock: StoreLock, broken: Broken, text: bytes) -> str | None:
    """Replaces an unreadable index by ``text``; returns the name under which the old file is kept."""
    folder = os.path.dirname(store.index_path)
    with clear_errors("rebuild the index in", folder):
        written = write_temp(store, text, like=None if broken.identity else private_in(folder))
        temp = os.path.join(folder, written.name)
        try:
            step("rebuilt index prepared")
            kept_as = None
            if broken.identity is None:
                try:
                    rename_new(temp, store.index_path)
                except FileExistsError:
                    raise IndexChanged from None
            else:
                kept_as = _keep_beside(store, broken)
                step("damaged index kept")
                lock.check()
                _take_place(temp, store.index_path, broken.identity)
            step("index rebuilt")
        finally:
            # A file that is neither ours nor the damaged one is a gateway's: recovery keeps it under a visible name.
            with contextlib.suppress(FileNotFoundError):
                if identity_of(temp) in (written.identity, broken.identity):
                    os.unlink(temp)
    return kept_as


def _take_place(temp: str, index_path: str, expected: Identity) -> None:
    """Swaps ``temp`` with the index. Raises IndexChanged if that is no longer the expected one."""
    if identity_of(index_path) != expected:
        raise IndexChanged
    if not exchange(temp, index_path):
        os.replace(temp, index_path)
    elif identity_of(temp) != expected:
        exchange(temp, index_path)
        raise IndexChanged


def _keep_beside(store: Store, broken: Broken) -> str:
    """Gives the damaged index a second name, or a copy if the file system has no links; never over another file."""
    folder, name = os.path.split(store.index_path)
    moment = now_ms()
    while True:
        kept_as = f"{name}.damaged.{archive_timestamp(moment)}"
        path = os.path.join(folder, kept_as)
        try:
            os.link(store.index_path, path)
        except FileExistsError:
            moment += 1
            continue
        except OSError:
            write_new(path, broken.data or b"", os.stat(store.index_path))
        else:
            if identity_of(path) != broken.identity:
                # By now it is a newer version, which needs no second name.
                os.unlink(path)
                raise IndexChanged
        sync_folder(folder)
        return kept_as
