"""Agents that have moved to SQLite: how sessions that were archived from their files before are restored.

This tool never writes a gateway's database, and an index beside one keeps the gateway from starting. So a session is
restored as files: its transcripts under their live names, with no second name, because the gateway's import skips a
file that has one; and its entries in ``sessions.json.restored``, from where a person lets the gateway import them.

Order, each step durable before the next: the intent in the ledger; the files; the entries; second names; the end in the
ledger. If killed in between, the next call that takes the lock completes it, and also attempts from before the move.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from session_manager.archives.archive import (
    Failures,
    archive_files,
    bring_back_files,
    forget_second_names,
    never_brought_back,
)
from session_manager.archives.copying import alone
from session_manager.archives.second_names import SecondNames
from session_manager.files.atomic import clear_errors, explain, sync_folder
from session_manager.files.liveness import now_ms
from session_manager.files.steps import step
from session_manager.ledger import REMOVED, RESTORE, Attempt, Ledger, Removal
from session_manager.stores.openclaw_files.gateway_lock import StoreLock
from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import Snapshot, Store
from session_manager.stores.openclaw_files.waiting import edit_waiting, held_keys


def settle(
    store: Store, lock: StoreLock, ledger: Ledger, attempt: Attempt, *, forward: bool = True
) -> tuple[set[str], Failures]:
    """Ends an attempt to remove or to restore; returns the live sessions, and the files that could not be moved.

    A restore is completed, unless ``forward`` is False. For a removal from before the move, the sessions that the
    gateway has taken into its database live; an orphan's files are restored. Raises LockLost, Refused, Damaged or
    Failed.
    """
    second_names = SecondNames(ledger.state_dir)
    snapshot = read_snapshot(store, now_ms())
    living = {session.id for session in snapshot.sessions}
    failures: Failures = []
    with clear_errors("recover the store in", store.sessions_dir):
        if attempt.kind == RESTORE:
            back = _back(store, snapshot, second_names, attempt, failures) if forward else []
        else:
            back = [r for r in attempt.removals if not r.keys and r.session_id not in living]
            failures += bring_back_files(store, second_names, attempt, back)[0]
        alive = {r.session_id for r in attempt.removals if r.session_id in living}
        alive |= {r.session_id for r in back}
        gone = [r for r in attempt.removals if r.session_id not in alive]
        # A file that was restored before stays where it is.
        gone = [r for r in gone if ledger.removal(r.removal_id).state == REMOVED]
        spared = never_brought_back(store, second_names, attempt, gone)
        failures += archive_files(store, lock, ledger, second_names, attempt, gone, spared)
        second_names.keep(store, lock, attempt, gone)
        sync_folder(store.sessions_dir)
        step("files back")
        if attempt.kind == RESTORE:
            put = {k: m for r in back for k, m in zip(r.keys, r.members, strict=True)}
            edit_waiting(store, {r.session_id for r in gone}, put)
            step("entries written")
        forget_second_names(store, second_names, attempt, back)
        failures += _without_second_names(store, back)
        step("second names dropped")
    ledger.finish(attempt, alive, complete=not failures)
    step("end noted")
    return alive, failures


def _back(
    store: Store, snapshot: Snapshot, second_names: SecondNames, attempt: Attempt, failures: Failures
) -> list[Removal]:
    """Gives files their live names; returns the removals of complete sessions, whose keys may be restored.

    Sessions that the database has by now stay archived.
    """
    held, living = held_keys(snapshot), {session.id for session in snapshot.sessions}
    able = [r for r in attempt.removals if r.session_id not in living and len(r.members) == len(r.keys)]
    able = [r for r in able if all(held.get(key, r.session_id) == r.session_id for key in r.keys)]
    failed, taken = bring_back_files(store, second_names, attempt, able)
    failures += failed
    there = set(os.listdir(store.sessions_dir)).difference(taken)
    broken = {r.session_id for r in attempt.removals if r not in able}
    broken.update(session_id for session_id, _ in failed if session_id is not None)
    broken.update(r.session_id for r in able if not there.issuperset(source for source, _ in r.files))
    return [r for r in able if r.session_id not in broken]


def _without_second_names(store: Store, back: Iterable[Removal]) -> Failures:
    """Makes sure that files have one name only; returns the failures."""
    failures: Failures = []
    for removal in back:
        for source, _ in removal.files:
            path = os.path.join(store.sessions_dir, source)
            try:
                alone(path)
            except OSError as error:
                failures.append((removal.session_id, explain(error, "copy", path)))
    return failures
