"""Live sessions whose earlier messages are still in the archive of a removal.

A message that reaches a session at the moment of its removal wakes it: the gateway writes the entry back, with a new
time, and begins a new transcript. A gateway without a lock does so from its cache; a restored backup of the index has
the same effect. Such a removal is undone: the files are restored, and joined to the new transcript.

Nothing is moved while a run is active, or may be about to begin. Measured: a run that found no transcript writes one
when the model has answered; if a transcript was restored meanwhile, gateway 2026.2.17 appends to it, while 2026.6.11
ends the run and loses the message. Between the entry and the lock of a run pass 0.1 to 0.8 s.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Sequence

from session_manager.archives.archive import Failures
from session_manager.archives.second_names import SecondNames
from session_manager.core.orphans import Orphan
from session_manager.core.session import Session
from session_manager.files.liveness import now_ms
from session_manager.ledger import REMOVED, Ledger, Removed, Run
from session_manager.stores.openclaw_files.gateway_lock import StoreLock
from session_manager.stores.openclaw_files.names import session_id_of
from session_manager.stores.openclaw_files.observe import held_transcripts, observe_locks
from session_manager.stores.openclaw_files.recovery import recover_attempt
from session_manager.stores.openclaw_files.store import Snapshot, Store
from session_manager.stores.openclaw_files.transcripts import files_by_session
from session_manager.stores.openclaw_files.whereabouts import is_transcript
from session_manager.stores.results import Woken

# Within this time a run shows by its lock or its status, even on a busy machine.
_SETTLED_MS = 3_000
# The gateway records a run's end in the entry after the run's last line.
_ENDING_MS = 1_000


def half_removed(
    ledger: Ledger, snapshot: Snapshot, sessions: Iterable[Session], second_names: SecondNames
) -> list[Removed]:
    """Returns the removals that hold files of live ``sessions``, oldest first.

    A session that was removed again out of a gateway's cache had no files: that removal belongs to the one before.
    """
    living = {session.id for session in sessions}
    store, here = snapshot.store, set(snapshot.names)

    def holds_files(removed: Removed) -> bool:
        return any(
            target in here or os.path.lexists(second_names.path(removed.run_id, store.agent_id, target))
            for _, target in removed.files
        )

    halves: list[Removed] = []
    half: set[str] = set()
    for removed in ledger.standing(store.agent_id, living, REMOVED):
        if holds_files(removed) if removed.files else removed.session_id in half:
            halves.append(removed)
            half.add(removed.session_id)
    return halves


def strays(
    ledger: Ledger, snapshot: Snapshot, states: Collection[str], shared: Collection[str]
) -> dict[str, list[str]]:
    """Returns, by session id, transcripts without an entry of sessions that the ledger has in one of ``states``.

    Gateway 2026.2.17 writes one when the session is removed between its entry's update and its run, and no entry.
    A transcript that another session's entry names, here or in another agent (``shared``), belongs to that session.
    """
    store, sessions = snapshot.store, snapshot.sessions
    living = {session.id for session in sessions}
    found: dict[str, list[str]] = {}
    for name in snapshot.names:
        if is_transcript(name) and name.removesuffix(".jsonl") not in living:
            session_id = session_id_of(name)
            if session_id is not None and session_id not in living:
                found.setdefault(session_id, []).append(name)
    known = ledger.standing(store.agent_id, found.keys(), *states)
    sources = {session_id: {s for r in known if r.session_id == session_id for s, _ in r.files} for session_id in found}
    mine = {i: sorted(sources[i].intersection(names).difference(shared)) for i, names in found.items()}
    mine = {i: names for i, names in mine.items() if names}
    left = [name for names in mine.values() for name in names]
    owned = files_by_session(left, sessions, store.sessions_dir) if left else {}
    taken = {name for files in owned.values() for name in files}
    return {i: names for i, names in mine.items() if taken.isdisjoint(names)}


def idle_strays(ledger: Ledger, shared: Collection[str], snapshot: Snapshot) -> list[Orphan]:
    """Returns idle strays of removed sessions: lines written after a removal are archived with the session."""
    store, now = snapshot.store, now_ms()
    found = strays(ledger, snapshot, (REMOVED,), shared)
    held = set(held_transcripts(store, snapshot.names, now)) if found else set()
    orphans = []
    for session_id, files in found.items():
        paths = [os.path.join(store.sessions_dir, name) for name in files]
        with contextlib.suppress(OSError):
            written = max(os.lstat(path).st_mtime_ns // 1_000_000 for path in paths)
            if held.isdisjoint(files) and written < now - _SETTLED_MS:
                size = sum(os.lstat(path).st_size for path in paths)
                orphans.append(Orphan(store.agent_id, session_id, files, size, written, busy=False))
    return orphans


def take_back(
    ledger: Ledger, run: Run, lock: StoreLock, snapshot: Snapshot, halves: Sequence[Removed]
) -> tuple[list[Woken], Failures]:
    """Undoes removals of live sessions, except of sessions that are busy now.

    Returns the outcome of each session, and failed moves. Raises LockLost, Refused, Damaged or Failed.
    """
    store = snapshot.store
    observe_locks(snapshot, now_ms())
    living = {session.id: session for session in snapshot.sessions}
    whole: set[str] = set()
    failures: Failures = []
    sources: dict[str, list[str]] = {}
    for removed in halves:
        sources.setdefault(removed.session_id, []).extend(source for source, _ in removed.files)
    waiting = {i for i, names in sources.items() if living[i].busy or _is_about_to_run(store, living[i], names)}
    free = [removed for removed in halves if removed.session_id not in waiting]
    if free and snapshot.identity is not None:
        attempt = ledger.intend_restore(run, store.store_id, store.agent_id, [], [snapshot.identity], free)
        alive, failures = recover_attempt(store, lock, ledger, attempt)
        whole = alive - {session_id for session_id, _ in failures if session_id is not None}
    # A removal that is undone at once also has its mark withdrawn.
    ledger.cancel_ends(run, store.agent_id, waiting)
    newest = {removed.session_id: removed for removed in halves}
    woken = [Woken(store.agent_id, i, removed.run_id, i in whole) for i, removed in newest.items()]
    return woken, failures


def _is_about_to_run(store: Store, session: Session, sources: Iterable[str]) -> bool:
    """Returns True if the session may have received a message that its transcripts do not show yet."""
    activity = session.entry_activity or 0
    if activity < now_ms() - _SETTLED_MS:
        return False
    for name in filter(is_transcript, sources):
        with contextlib.suppress(OSError):
            if os.lstat(os.path.join(store.sessions_dir, name)).st_mtime_ns // 1_000_000 >= activity - _ENDING_MS:
                return False
    return True
