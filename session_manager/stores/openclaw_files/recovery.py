"""Recovery: finishes or undoes what a killed process left half done. Only under the store's lock.

A session with a key in the index lives: its files get their live names back, and its other keys return. If all its
keys are gone its removal is finished: its files are archived and its mark is recorded. An orphan, which never had a
key, gets its files back. Afterwards every session is wholly live or wholly removed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Sequence

import msgspec

from session_manager.archives.archive import (
    Failures,
    archive_files,
    bring_back_files,
    forget_second_names,
    never_brought_back,
)
from session_manager.archives.copying import PART
from session_manager.archives.names import archive_timestamp
from session_manager.archives.purging import end_purge
from session_manager.archives.second_names import SecondNames
from session_manager.core.errors import Locked, SessionManagerError
from session_manager.core.index import Index
from session_manager.files.atomic import OWN_PREFIX, clear_errors, rename_new, sync_folder
from session_manager.files.liveness import now_ms
from session_manager.files.steps import step
from session_manager.files.versions import Identity, identity_of, read_file
from session_manager.ledger import ERASE, PURGE, REMOVE, RESTORE, Attempt, Ledger, Removal, Temp
from session_manager.stores.openclaw_files.erasure import end_erasure
from session_manager.stores.openclaw_files.gateway_lock import StoreLock
from session_manager.stores.openclaw_files.merge import living_ids, union
from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import Snapshot, Store, listing
from session_manager.stores.openclaw_files.swap import Swap, is_ours, is_temp
from session_manager.stores.openclaw_files.transcripts import files_by_session


class Recovered(msgspec.Struct):
    """One attempt that was ended, with its live sessions; or a rescued file that no attempt knows."""

    attempt: Attempt | None
    kept: set[str]
    found: str | None = None

    def document(self, store: Store) -> dict[str, object]:
        """Returns the element of a result's ``recovered``."""
        if self.attempt is None:
            return {"agentId": store.agent_id, "found": self.found}
        finished = {r.session_id for r in self.finished}
        return {
            "run_id": self.attempt.run_id,
            "agentId": self.attempt.agent_id,
            "what": self.attempt.kind,
            "finished": sorted(finished),
            "undone": sorted({r.session_id for r in self.attempt.removals} - finished),
        }

    @property
    def finished(self) -> list[Removal]:
        """The removals of the attempt that were completed."""
        if self.attempt is None:
            return []
        restores = self.attempt.kind == RESTORE
        return [r for r in self.attempt.removals if (r.session_id in self.kept) == restores]


def recover(store: Store, lock: StoreLock, ledger: Ledger | None) -> tuple[list[Recovered], Failures]:
    """Ends every open attempt of a store and removes temporary files that are no longer needed.

    Returns what was done, and the files that still could not be moved. Raises Damaged when the index cannot be
    read: then everything stays as it is.
    """
    names = listing(store)
    attempts = open_attempts(store, names, ledger)
    done: list[Recovered] = []
    failures: Failures = []
    if swapping := [attempt for attempt in attempts if attempt.kind in (REMOVE, RESTORE)]:
        # A killed process leaves no others: its later temporary files belong to its attempt.
        known = {temp.name for temp in swapping[-1].temps}
        swapping[-1].temps += [Temp(name, Identity(0, 0, 0)) for name in _own_files(store) if name not in known]
    for attempt in attempts:
        assert ledger is not None
        kept, failed = recover_attempt(store.of(attempt.agent_id), lock, ledger, attempt)
        failures += failed
        done.append(Recovered(attempt, kept))
    done += [Recovered(None, set(), name) for name in _sweep(store)]
    return done, failures


def open_attempts(store: Store, names: Collection[str], ledger: Ledger | None) -> list[Attempt]:
    """Returns the unfinished attempts on a store's index, oldest first; for a shared index, those of all its agents."""
    if ledger is None:
        return []
    if store.shared_as is None:
        return ledger.open_attempts(store.store_id, store.agent_id, names)
    parts = [store.of(agent_id) for agent_id in {begun.agent_id for begun in ledger.unfinished()}]
    found = [attempt for part in parts for attempt in ledger.open_attempts(part.store_id, part.agent_id, names)]
    return sorted(found, key=lambda attempt: attempt.attempt_id)


def _own_files(store: Store) -> list[str]:
    folder = os.path.dirname(store.index_path)
    with clear_errors("tidy up", folder):
        names = [name for name in os.listdir(folder) if is_temp(store, name)]
    return [n for n in names if not os.path.islink(path := os.path.join(folder, n)) and os.path.isfile(path)]


def _sweep(store: Store) -> list[str]:
    """Removes our temporary files that no attempt knows; returns the new names of those with content not ours.

    The ledger may have been moved away, or be another one: a file that may have value is renamed, not removed.
    """
    folder = os.path.dirname(store.index_path)
    names = _own_files(store)
    kept = []
    with clear_errors("tidy up", folder):
        # Nobody else copies under the lock: a killed process left these files.
        for name in os.listdir(store.sessions_dir):
            if name.startswith(OWN_PREFIX) and name.endswith(PART):
                os.unlink(os.path.join(store.sessions_dir, name))
        for name in names:
            path = os.path.join(folder, name)
            text = read_file(path)[0]
            if is_ours(names, text) or not _is_index(text):
                os.unlink(path)
            else:
                kept.append(_keep_in_sight(store, path))
    return kept


def _is_index(text: bytes) -> bool:
    # A file that we were writing when killed is cut off, so it does not parse as an object.
    try:
        Index(text)
    except ValueError:
        return False
    return True


def _keep_in_sight(store: Store, path: str) -> str:
    name = f"{os.path.basename(store.index_path)}.found.{archive_timestamp(now_ms())}"
    rename_new(path, os.path.join(os.path.dirname(path), name))
    return name


def recover_attempt(
    store: Store, lock: StoreLock, ledger: Ledger, attempt: Attempt, known: tuple[bytes, Identity] | None = None
) -> tuple[set[str], Failures]:
    """Ends one open attempt; returns its live sessions, and the files that could not be moved.

    ``known`` is the text of a version of the index.
    """
    if attempt.kind == PURGE:
        # A damaged index may have to be rebuilt from the archives.
        read_snapshot(store, now_ms())
        return set(), end_purge(store, ledger, attempt)
    if attempt.kind == ERASE:
        return set(), end_erasure(store, ledger, attempt)
    if store.database:
        from session_manager.stores.openclaw_files.moved import settle

        return settle(store, lock, ledger, attempt)
    with clear_errors("recover the store in", store.sessions_dir):
        swap = Swap(store, lock, attempt)
        for temp in list(attempt.temps):
            _rescue(store, swap, attempt, temp)
        snapshot = read_snapshot(store, now_ms(), known)
        by_id = living_ids(snapshot, attempt.removals)
        # A removal without keys is that of an orphan; only a new decision can tell if it still is one.
        alive = {r.session_id for r in attempt.removals if r.session_id in by_id or not r.keys}
        put_back(swap, attempt, snapshot, alive)
        step("index recovered")
        lock.check()
        second_names = SecondNames(ledger.state_dir)
        living = [r for r in attempt.removals if r.session_id in alive]
        failures, _ = bring_back_files(store, second_names, attempt, living)
        names = [source for r in attempt.removals for source, _ in r.files]
        in_use = files_by_session(names, snapshot.sessions, store.sessions_dir)
        gone = [r for r in attempt.removals if r.session_id not in alive]
        spared = {name for files in in_use.values() for name in files}
        spared |= never_brought_back(store, second_names, attempt, gone)
        unmoved = archive_files(store, lock, ledger, second_names, attempt, gone, spared)
        step("archives recovered")
        # If restored files cannot be archived again, their entries may belong to another session by now.
        rolled_back = roll_back(store, second_names, swap, attempt, unmoved if attempt.kind == REMOVE else [])
        failures += unmoved if attempt.kind != REMOVE else []
        alive |= rolled_back.alive
        living += [r for r in gone if r.session_id in rolled_back.alive]
        gone = [r for r in gone if r.session_id not in rolled_back.alive]
        # A gateway without a lock may have written an entry back since: a live session keeps its files.
        if woken := _woken(store, attempt, gone):
            alive |= woken
            put_back(swap, attempt, read_snapshot(store, now_ms()), alive)
            back = [r for r in gone if r.session_id in woken]
            failures += bring_back_files(store, second_names, attempt, back)[0]
            living, gone = living + back, [r for r in gone if r.session_id not in woken]
        second_names.keep(store, lock, attempt, gone)
        swap.clean()
        sync_folder(store.sessions_dir)
        forget_second_names(store, second_names, attempt, living)
        with contextlib.suppress(OSError):
            # As after every rewrite: a new mtime, so that no gateway keeps its cached index.
            os.utime(store.index_path)
        step("files recovered")
    ledger.finish(attempt, alive, complete=not failures and not rolled_back.half)
    step("recovery noted")
    return alive, failures + rolled_back.failures


def _woken(store: Store, attempt: Attempt, gone: Sequence[Removal]) -> set[str]:
    """Returns the removed sessions of an attempt that are in the index again."""
    if attempt.kind != REMOVE or not gone:
        return set()
    with contextlib.suppress(FileNotFoundError):
        if identity_of(store.index_path) in attempt.expected:
            return set()
    living = {session.id for session in read_snapshot(store, now_ms()).sessions}
    return {r.session_id for r in gone} & living


def _rescue(store: Store, swap: Swap, attempt: Attempt, temp: Temp) -> None:
    """Merges a displaced version of the index that only this temporary file still holds."""
    path = os.path.join(os.path.dirname(store.index_path), temp.name)
    try:
        if identity_of(path) in attempt.expected:
            return
        text = read_file(path)[0]
    except FileNotFoundError:
        return
    if is_ours((t.name for t in attempt.temps), text):
        return
    if not _is_index(text):
        _keep_in_sight(store, path)
        return
    if not os.path.lexists(store.index_path):
        rename_new(path, store.index_path)
        return
    current = read_snapshot(store, now_ms())
    if current.index is None or current.identity is None:
        return
    merged = union(current.index, Index(text), attempt.removals, now_ms())
    if merged is not None:
        swap.install(current.index, current.identity, merged)


def put_back(swap: Swap, attempt: Attempt, snapshot: Snapshot, alive: set[str]) -> None:
    """Restores the missing keys of the sessions in ``alive``; the attempt no longer removes these sessions."""
    swap.alive |= alive
    if snapshot.index is None or snapshot.identity is None:
        return
    entries = snapshot.index.entries
    living = [r for r in attempt.removals if r.session_id in alive]
    missing = {k: member for r in living for k, member in zip(r.keys, r.members, strict=False) if k not in entries}
    if missing:
        text = snapshot.index.edited((), missing, places_of(living))
        swap.install(snapshot.index, snapshot.identity, text)


class RolledBack(msgspec.Struct):
    """The outcome for sessions whose files could not all be archived, in words.

    ``alive`` are wholly live again; ``half`` could not be rolled back now.
    """

    failures: Failures
    alive: set[str]
    half: set[str]


def roll_back(store: Store, second_names: SecondNames, swap: Swap, attempt: Attempt, unmoved: Failures) -> RolledBack:
    """Undoes the removal of sessions whose files could not be moved (``unmoved``): files first, then keys.

    Raises Damaged, LockLost and OSError. The next call continues then, and also with sessions still half removed.
    """
    ids = {session_id for session_id, _ in unmoved if session_id is not None}
    if not ids:
        return RolledBack([], set(), set())
    stuck = [r for r in attempt.removals if r.session_id in ids]
    unreturned = {session_id for session_id, _ in bring_back_files(store, second_names, attempt, stuck)[0]}
    with contextlib.suppress(OSError, Locked):
        put_back(swap, attempt, read_snapshot(store, now_ms()), ids - unreturned)
    alive = (ids - unreturned) & {session.id for session in read_snapshot(store, now_ms()).sessions}
    swap.alive -= ids - alive
    step("removals rolled back")
    return RolledBack([(i, _told(i, error, alive)) for i, error in unmoved], alive, ids - alive)


def _told(session_id: str | None, error: SessionManagerError, alive: set[str]) -> SessionManagerError:
    what = "was not changed" if session_id in alive else "is only partly removed, and the next call continues"
    return type(error)(f"session {session_id} {what}: {error.message}", code=error.code)


def places_of(removals: Iterable[Removal]) -> dict[str, int]:
    """Returns the known places that removed keys had in the index."""
    return {key: place for r in removals for key, place in zip(r.keys, r.places, strict=False)}


def try_recover(store: Store, lock: StoreLock, ledger: Ledger, attempt: Attempt) -> tuple[set[str], Failures]:
    """Tries to clean up after a failure at once; otherwise the next call does.

    Returns the sessions that are live in the index now, and the files that could not be moved.
    """
    with contextlib.suppress(Exception):
        return recover_attempt(store, lock, ledger, attempt)
    going = {r.session_id for r in attempt.removals}
    with contextlib.suppress(Exception):
        return going & living_ids(read_snapshot(store, now_ms()), attempt.removals), []
    return going, []
