"""Erases a session's archives, and everything that the ledger knows of it except that it existed.

A live session is removed before, like any other. Then the order is: the intent in the ledger, durable, with the
receipt; the files; the ledger's details and raw entries; the ledger's own file, rewritten; the end. If killed in
between, the next call that takes the store's lock finds the rest and completes the erasure.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import msgspec

from session_manager.archives.archive import Failures
from session_manager.archives.folder import Folder, Guard
from session_manager.archives.purging import Archive, unlink_all
from session_manager.archives.second_names import SecondNames
from session_manager.core.errors import SessionManagerError
from session_manager.files.atomic import clear_errors, sync_folder
from session_manager.files.steps import step
from session_manager.ledger import Attempt, Ledger, Run


class Traces(msgspec.Struct):
    """Files of a session: those to erase, and those that bear its name but have to stay."""

    files: list[Archive]
    spared: list[str]


class Erased(msgspec.Struct):
    """The result: erased files, freed bytes, removals of the ledger; and files that could not be removed."""

    files: int
    bytes: int
    entries: int
    spared: list[str]
    failures: Failures


def erase(
    store: Folder,
    lock: Guard,
    ledger: Ledger,
    run: Run,
    session_id: str,
    traces: Traces,
    keys: int,
    also: Callable[[], None] | None = None,
) -> Erased:
    """Erases a session that lives no longer; ``keys`` is how many keys it had, for the receipt.

    Files that could not be removed are in the result: the next call that takes the store's lock tries again. ``also``
    removes what a kind keeps beside its archives. Raises Refused, Damaged or Failed, and what the lock's check raises;
    nothing has gone then.
    """
    lock.check()
    attempt = ledger.intend_erasure(run, store.store_id, store.agent_id, session_id, traces.spared)
    step("erasure intent written")
    return carry_out(store, ledger, attempt, traces, keys, also)


def carry_out(
    store: Folder, ledger: Ledger, attempt: Attempt, traces: Traces, keys: int, also: Callable[[], None] | None = None
) -> Erased:
    """Does what an attempt to erase intends, also one that was killed; see ``erase``."""
    session_id = attempt.removals[0].session_id
    erased = _unlink(session_id, traces)
    try:
        if also is not None:
            also()
        _make_durable(store, ledger, traces)
        step("erased folders synced")
        if not erased.failures:
            counts = {"keys": keys, "files": erased.files, "bytes": erased.bytes}
            erased.entries = ledger.forget_session(attempt, session_id, counts)
            step("session forgotten")
            ledger.compact()
            step("ledger compacted")
            ledger.finish_erasure(attempt)
            step("erasure noted")
    except SessionManagerError as error:
        # Report the erased files anyway; the next call continues from here.
        erased.failures.append((session_id, error))
    return erased


def erase_lost(ledger: Ledger, run: Run, agent_id: str, session_id: str, traces: Traces) -> Erased:
    """Erases the rest of a session whose agent has no store any more: second names and the ledger's details.

    There is no lock to take, and no later call completes it if killed: call it again. Raises Refused, Damaged or
    Failed.
    """
    erased = _unlink(session_id, traces)
    if not erased.failures:
        erased.entries = ledger.forget_lost_session(run, agent_id, session_id)
        ledger.compact()
    return erased


def _unlink(session_id: str, traces: Traces) -> Erased:
    erased = Erased(0, 0, 0, traces.spared, [])
    for file in traces.files:
        freed, error = unlink_all(file.paths)
        step("trace removed")
        erased.bytes += freed
        erased.files += error is None
        if error is not None:
            erased.failures.append((session_id, error))
    return erased


def _make_durable(store: Folder, ledger: Ledger, traces: Traces) -> None:
    paths = [path for file in traces.files for path in file.paths]
    with clear_errors("erase files in", store.sessions_dir):
        for folder in sorted({store.sessions_dir, *map(os.path.dirname, paths)}):
            with contextlib.suppress(FileNotFoundError):
                sync_folder(folder)
    SecondNames(ledger.state_dir).tidy(paths)
