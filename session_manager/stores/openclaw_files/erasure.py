"""Finds what is left of a session that is to be erased."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence

import msgspec

from session_manager.archives.archive import Failures
from session_manager.archives.copying import PART
from session_manager.archives.erasing import Traces, carry_out
from session_manager.archives.names import original_name
from session_manager.archives.purging import Archive
from session_manager.archives.second_names import SecondNames
from session_manager.core.session import Session
from session_manager.files.atomic import clear_errors
from session_manager.files.liveness import now_ms
from session_manager.files.steps import step
from session_manager.ledger import Attempt, Ledger
from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import Store, listing
from session_manager.stores.openclaw_files.transcripts import files_by_session, owner


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


def end_erasure(store: Store, ledger: Ledger, attempt: Attempt) -> Failures:
    """Ends an erasure that was killed. Returns files that could not be removed. Raises Damaged, Refused or Failed."""
    (receipt,) = attempt.removals
    sessions, names = read_snapshot(store, now_ms()).sessions, listing(store)
    second_names = SecondNames(ledger.state_dir)
    traces = find_traces(store, sessions, names, receipt.session_id, ledger, second_names, attempt.spared)
    return carry_out(store, ledger, attempt, traces, 0, also_of(store, receipt.session_id)).failures


def also_of(store: Store, session_id: str) -> Callable[[], None] | None:
    """Returns what removes a session's entry that waits for an import; None if the agent has not moved to SQLite."""
    if not store.database:
        return None
    from session_manager.stores.openclaw_files.waiting import forget_waiting

    def forget() -> None:
        forget_waiting(store, [session_id])
        step("waiting entries removed")

    return forget


def traces_of_lost(ledger: Ledger, agent_id: str, session_id: str) -> Traces:
    """Finds what is left of a session whose agent has no store any more: second names. Raises Refused or Failed."""
    nowhere = Store(agent_id, "", "", "")
    return find_traces(nowhere, (), (), session_id, ledger, SecondNames(ledger.state_dir), ())
