"""Finishes or undoes what a killed process left half done. Only under the store's lock.

A session whose key is in the index lives: its files get their names back, and its other keys their places. One
whose keys are all gone is finished: its files are archived and its mark is owed. So afterwards every session is
wholly live or wholly removed.
"""

from __future__ import annotations

import contextlib
import os

from session_manager.live.archive import Failures, archive_files, bring_back_files
from session_manager.live.atomic import OWN_PREFIX, clear_errors, sync_folder
from session_manager.live.gateway_lock import StoreLock
from session_manager.live.index import Index
from session_manager.live.ledger import Attempt, Ledger, Temp
from session_manager.live.liveness import now_ms
from session_manager.live.merge import merge
from session_manager.live.steps import step
from session_manager.live.swap import TEMP_SUFFIX, Swap, identity_of
from session_manager.live.transcripts import files_by_session
from session_manager.live.volume import Snapshot, Store, read_file, read_snapshot


def recover(store: Store, lock: StoreLock, ledger: Ledger | None) -> tuple[list[dict[str, object]], Failures]:
    """Ends every open attempt of a store and removes temporary files that nobody needs any more.

    Returns what was done, for the result's ``recovered``, and the files that still could not be moved.
    Raises Damaged when the index cannot be read: then everything stays as it is.
    """
    attempts = ledger.open_attempts(store.store_id) if ledger is not None else []
    done: list[dict[str, object]] = []
    failures: Failures = []
    for attempt in attempts:
        assert ledger is not None
        kept, failed = recover_attempt(store, lock, ledger, attempt)
        failures += failed
        finished = [r.session_id for r in attempt.removals if r.session_id not in kept]
        done.append(
            {"run_id": attempt.run_id, "agentId": attempt.agent_id, "finished": finished, "undone": sorted(kept)}
        )
    _sweep(store, {temp.name for attempt in attempts for temp in attempt.temps})
    return done, failures


def _sweep(store: Store, known: set[str]) -> None:
    folder = os.path.dirname(store.index_path)
    with clear_errors("tidy up", folder):
        for name in os.listdir(folder):
            # Not in the ledger means never swapped: the ledger hears of a temporary file before it is used.
            if name.startswith(OWN_PREFIX) and name.endswith(TEMP_SUFFIX) and name not in known:
                os.unlink(os.path.join(folder, name))


def recover_attempt(store: Store, lock: StoreLock, ledger: Ledger, attempt: Attempt) -> tuple[set[str], Failures]:
    """Ends one open attempt; returns the sessions that live, and the files that could not be moved."""
    with clear_errors("recover the store in", store.sessions_dir):
        swap = Swap(store, lock, ledger, attempt)
        for temp in list(attempt.temps):
            _rescue(store, swap, attempt, temp)
        snapshot = read_snapshot(store, now_ms())
        by_id = {session.id for session in snapshot.sessions}
        alive = {r.session_id for r in attempt.removals if r.session_id in by_id}
        _put_back(swap, attempt, snapshot, alive)
        step("index recovered")
        lock.check()
        failures = bring_back_files(store, (r for r in attempt.removals if r.session_id in alive))
        names = [source for r in attempt.removals for source, _ in r.files]
        in_use = files_by_session(names, snapshot.sessions, store.sessions_dir)
        failures += archive_files(
            store,
            lock,
            ledger,
            (r for r in attempt.removals if r.session_id not in alive),
            {name for files in in_use.values() for name in files},
        )
        swap.clean()
        sync_folder(store.sessions_dir)
        step("files recovered")
    ledger.finish(attempt, alive, complete=not failures)
    step("recovery noted")
    return alive, failures


def _rescue(store: Store, swap: Swap, attempt: Attempt, temp: Temp) -> None:
    """Merges a displaced version of the index that only this temporary file still holds."""
    path = os.path.join(os.path.dirname(store.index_path), temp.name)
    try:
        if identity_of(path) in attempt.expected:
            return
        rescued = Index(read_file(path)[0])
    except (FileNotFoundError, ValueError):
        return
    current = read_snapshot(store, now_ms())
    if current.index is None or current.identity is None:
        return
    gone = {key: member[1] for r in attempt.removals for key, member in zip(r.keys, r.members, strict=False)}
    entries = current.index.entries
    if current.identity in attempt.expected:
        merged = merge(rescued, attempt.removals, {**entries, **gone}, entries)
        text = merged.text or rescued.data
    else:
        # The gateway wrote once more after that: its later version wins, only what it lacks is added.
        lacking = {k: v for k, v in rescued.entries.items() if k not in entries and bytes(v) != gone.get(k)}
        put = {key: rescued.raw(key) for key in lacking}
        text = current.index.edited((), put)
    swap.install(current.index, current.identity, text)


def _put_back(swap: Swap, attempt: Attempt, snapshot: Snapshot, alive: set[str]) -> None:
    if snapshot.index is None or snapshot.identity is None:
        return
    entries = snapshot.index.entries
    missing = {
        key: member
        for r in attempt.removals
        if r.session_id in alive
        for key, member in zip(r.keys, r.members, strict=False)
        if key not in entries
    }
    if missing:
        swap.install(snapshot.index, snapshot.identity, snapshot.index.edited((), missing))


def try_recover(store: Store, lock: StoreLock, ledger: Ledger, attempt: Attempt) -> tuple[set[str], Failures]:
    """Cleans up after a failure at once where that is possible; the next call does it where it is not.

    Returns the sessions that live, by what the index says now, and the files that could not be moved.
    """
    with contextlib.suppress(Exception):
        return recover_attempt(store, lock, ledger, attempt)
    going = {r.session_id for r in attempt.removals}
    with contextlib.suppress(Exception):
        return going & {s.id for s in read_snapshot(store, now_ms()).sessions}, []
    return going, []
