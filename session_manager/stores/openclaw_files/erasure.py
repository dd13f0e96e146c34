"""Erases a session: every file that is left of it, and everything that the ledger knows of it except that it existed.

A live session is removed before, like any other. Then the order is: the intent in the ledger, durable, with the
receipt; the files; the ledger's details and raw entries; the ledger's own file, rewritten; the end. If killed in
between, the next call that takes the store's lock finds the rest and completes the erasure.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Sequence

import msgspec

from session_manager.archives.archive import Failures
from session_manager.archives.names import original_name
from session_manager.archives.purging import Archive, unlink_all
from session_manager.archives.second_names import PART, SecondNames
from session_manager.core.errors import SessionManagerError
from session_manager.core.session import Session
from session_manager.files.atomic import clear_errors, sync_folder
from session_manager.files.liveness import now_ms
from session_manager.files.steps import step
from session_manager.ledger import Attempt, Ledger, Run
from session_manager.stores.openclaw_files.gateway_lock import StoreLock
from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import Store, listing
from session_manager.stores.openclaw_files.transcripts import files_by_session, owner


class Traces(msgspec.Struct):
    """Files of a session beside the index: those to erase, and those that bear its name but have to stay."""

    files: list[Archive]
    spared: list[str]


class Erased(msgspec.Struct):
    """The result: erased files, freed bytes, removals of the ledger; and files that could not be removed."""

    files: int
    bytes: int
    entries: int
    spared: list[str]
    failures: Failures


class _Known(msgspec.Struct):
    """The files of a session in one agent, by the ledger.

    ``sources`` and ``archives`` are their live and archive names, ``folders`` those of their second names;
    ``foreign`` are archives of other sessions.
    """

    sources: set[str]
    archives: set[str]
    folders: set[str]
    foreign: set[str]


def find_traces(
    store: Store,
    sessions: Sequence[Session],
    names: Iterable[str],
    session_id: str,
    ledger: Ledger | None,
    second_names: SecondNames,
    shared: Collection[str],
) -> Traces:
    """Finds the files of a session among ``names`` in its agent's folder, and among the second names.

    Files that belong to one of ``sessions`` (those in the index), that others refer to (``shared``), or that belong to
    another removal are spared. Raises Refused, Damaged or Failed.
    """
    known = _known(ledger, second_names, store, session_id)
    ids, here = {session_id, *(session.id for session in sessions)}, set(names)
    with clear_errors("look for second names in", second_names.root):
        second = second_names.of_agent(store.agent_id)
    kept = {n for files in files_by_session(here, sessions, store.sessions_dir).values() for n in files}
    kept |= known.foreign.union(shared)
    # Files that a live session names but lacks, because they were archived with another session.
    lost = {original_name(name) for name in here} - here
    lost &= {n for files in files_by_session(lost, sessions, store.sessions_dir).values() for n in files}.union(shared)
    kept |= {name for name in here | second.keys() if original_name(name) in lost}
    traces = Traces([], [])
    for name in sorted(here | second.keys()):
        original = original_name(name)
        whose = owner(original, ids)
        if whose is None and (name in known.archives or (original != name and original in known.sources)):
            whose = session_id
        if whose != session_id:
            continue
        if name in kept:
            traces.spared.append(name)
        else:
            paths = [os.path.join(store.sessions_dir, name)] if name in here else []
            traces.files.append(Archive(name, [*paths, *second.get(name, ())]))
    # Rests of a killed copy are in one of these.
    folders = known.folders.union(os.path.dirname(path) for file in traces.files for path in file.paths)
    if parts := [path for path in second.get(PART, ()) if os.path.dirname(path) in folders]:
        traces.files.append(Archive(PART, parts))
    return traces


def _known(ledger: Ledger | None, second_names: SecondNames, store: Store, session_id: str) -> _Known:
    known = _Known(set(), set(), set(), set())
    if ledger is None:
        return known
    agent_id, own = store.agent_id, set()
    for removal in ledger.removals(agent_id=agent_id, session=session_id):
        own.add(removal.removal_id)
        known.sources.update(source for source, _ in removal.files)
        known.archives.update(target for _, target in removal.files)
        known.folders.add(os.path.dirname(second_names.path(removal.run_id, agent_id, PART)))
    archived = ledger.archived(None if store.mates else agent_id)
    known.foreign.update(n for r in archived if r.removal_id not in own for n in r.archives)
    return known


def erase(
    store: Store, lock: StoreLock, ledger: Ledger, run: Run, session_id: str, traces: Traces, keys: int
) -> Erased:
    """Erases a session that is no longer in the index; ``keys`` is how many it had there, for the receipt.

    Files that could not be removed are in the result: the next call that takes the store's lock tries again. Raises
    LockLost, Refused, Damaged or Failed; nothing has gone then.
    """
    lock.check()
    attempt = ledger.intend_erasure(run, store.store_id, store.agent_id, session_id, traces.spared)
    step("erasure intent written")
    return _erase(store, ledger, attempt, traces, keys)


def end_erasure(store: Store, ledger: Ledger, attempt: Attempt) -> Failures:
    """Ends an erasure that was killed. Returns files that could not be removed. Raises Damaged, Refused or Failed."""
    (receipt,) = attempt.removals
    sessions, names = read_snapshot(store, now_ms()).sessions, listing(store)
    second_names = SecondNames(ledger.state_dir)
    traces = find_traces(store, sessions, names, receipt.session_id, ledger, second_names, attempt.spared)
    return _erase(store, ledger, attempt, traces, 0).failures


def erase_lost(ledger: Ledger, run: Run, agent_id: str, session_id: str) -> Erased:
    """Erases the rest of a session whose agent has no store any more: second names and the ledger's details.

    There is no lock to take, and no later call completes it if killed: call it again. Raises Refused, Damaged or
    Failed.
    """
    nowhere = Store(agent_id, "", "", "")
    traces = find_traces(nowhere, (), (), session_id, ledger, SecondNames(ledger.state_dir), ())
    erased = _unlink(session_id, traces)
    if not erased.failures:
        erased.entries = ledger.forget_lost_session(run, agent_id, session_id)
        ledger.compact()
    return erased


def _erase(store: Store, ledger: Ledger, attempt: Attempt, traces: Traces, keys: int) -> Erased:
    session_id = attempt.removals[0].session_id
    erased = _unlink(session_id, traces)
    try:
        if store.database:
            from session_manager.stores.openclaw_files.waiting import forget_waiting

            forget_waiting(store, [session_id])
            step("waiting entries removed")
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


def _make_durable(store: Store, ledger: Ledger, traces: Traces) -> None:
    paths = [path for file in traces.files for path in file.paths]
    with clear_errors("erase files in", store.sessions_dir):
        for folder in sorted({store.sessions_dir, *map(os.path.dirname, paths)}):
            with contextlib.suppress(FileNotFoundError):
                sync_folder(folder)
    SecondNames(ledger.state_dir).tidy(paths)
