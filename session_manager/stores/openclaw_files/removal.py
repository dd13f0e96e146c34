"""Removes sessions from a store: intent, index, transcripts, under one lock, with one rewrite.

Order, each step durable before the next: the intent in the ledger; the index without the keys; the transcripts
under their archive names; the end of the attempt in the ledger, with the pending marks for history.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import msgspec

from session_manager.archives.archive import Failures, archive_files, bring_back_files, forget_second_names
from session_manager.archives.work import Work
from session_manager.core.errors import Locked, SessionManagerError
from session_manager.core.progress import stage
from session_manager.core.session import Session
from session_manager.files.atomic import clear_errors, sync_folder
from session_manager.files.liveness import now_ms
from session_manager.files.steps import step
from session_manager.files.versions import identity_of
from session_manager.ledger import Attempt, Removal
from session_manager.stores.base import Choose, refuse_unobserved
from session_manager.stores.lives import REAPPEARED
from session_manager.stores.openclaw_files.changing import end_earlier, intend, locked, refuse_unguarded
from session_manager.stores.openclaw_files.gateway_lock import LockLost, StoreLock
from session_manager.stores.openclaw_files.observe import observe_locks
from session_manager.stores.openclaw_files.orphan_removal import archive_orphans
from session_manager.stores.openclaw_files.plan import plan
from session_manager.stores.openclaw_files.reappeared import ghosts
from session_manager.stores.openclaw_files.recovery import put_back, roll_back, try_recover
from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import Snapshot, Store
from session_manager.stores.openclaw_files.swap import IndexChanged, Swap, look_again, parsed_by
from session_manager.stores.openclaw_files.transcripts import no_texts_of
from session_manager.stores.openclaw_files.unmovable import set_aside
from session_manager.stores.openclaw_files.waking import half_removed, idle_strays, take_back
from session_manager.stores.openclaw_files.whereabouts import outside_files
from session_manager.stores.results import Outcome, Woken

# A gateway that waited for the marker takes it within 1 s (2026.2.17: retries after 50, 100, 150 … ms), and mostly
# within a few retries.
SECOND_LOOK_S = 0.4
# Against a gateway that writes all the time the exchange merges; a fresh decision is better before that.
_FRESH_STARTS = 4


def remove(work: Work, store: Store, choose: Choose, shared: Collection[str] = ()) -> Outcome:
    """Removes the sessions that ``choose`` picks from a fresh read under the lock, after recovering killed runs.

    ``choose`` gets the snapshot and returns (session, reason) pairs; it is asked
    again when the gateway wrote in between. ``shared`` are file names that other agents refer to. Raises
    whatever ``choose`` raises, Locked, Refused, Damaged or Failed; the store is then as it was.
    """
    seen: dict[str, Session] = {}
    return locked(work, store, lambda lock: remove_locked(work, store, lock, choose, shared, seen=seen))


def remove_locked(
    work: Work,
    store: Store,
    lock: StoreLock,
    choose: Choose,
    shared: Collection[str],
    *,
    erased: str | None = None,
    seen: dict[str, Session] | None = None,
) -> Outcome:
    """Does what ``remove`` does, for a caller who holds the lock. Also raises LockLost.

    ``erased`` is a session that will be erased with all files of its earlier removals: none of these is undone.
    ``seen`` remembers the chosen sessions, should the lock be lost: this run may have removed them then.
    """
    seen = {} if seen is None else seen
    own, recovered, failures = end_earlier(work, store, lock)
    looked_for_strays = False
    woken: dict[str, Woken] = {}
    fresh_starts_left = _FRESH_STARTS
    while fresh_starts_left >= 0:
        snapshot = read_snapshot(store, now_ms())
        chosen = list(choose(snapshot))
        going = {session.id for session, _ in chosen}
        if (ledger := work.existing_ledger) is not None:
            back = ghosts(ledger, snapshot, work.settings.current, going)
            again = {session.id for session in back}
            settled = {*again, *woken, erased}
            staying = [s for s in snapshot.sessions if s.id not in settled]
            if halves := half_removed(ledger, snapshot, staying, work.second_names):
                # Restore files that an earlier removal still holds first, so that the session is removed whole.
                found, failed = take_back(ledger, work.run, lock, snapshot, halves)
                woken |= {one.session_id: one for one in found}
                failures += failed
                continue
            if not looked_for_strays and erased is None and idle_strays(ledger, shared, snapshot):
                # Lines written to a session after its removal are archived with it.
                failures += archive_orphans(work, store, lock, partial(idle_strays, ledger, shared))[2]
                looked_for_strays = True
                continue
            looked_for_strays = True
            # Even if the caller chose it: the earlier removal holds a ghost's files, and a restore undoes both.
            chosen = [(session, REAPPEARED if session.id in again else reason) for session, reason in chosen]
            chosen += [(session, REAPPEARED) for session in back if session.id not in going]
        refuse_unobserved(session for session, _ in chosen)
        seen.update((session.id, session) for session, _ in chosen)
        if not chosen:
            return Outcome(
                snapshot, own, set(), failures, recovered, [], list(woken.values()), _outside(snapshot, own, seen)
            )
        # With very many sessions each stage takes seconds: keep the marker fresh in between.
        lock.check()
        try:
            removed, alive, failed = _execute(work, lock, snapshot, chosen, shared, fresh_starts_left > 0)
        except IndexChanged:
            fresh_starts_left -= 1
            continue
        _note_left(work, store, {r.session_id for r in removed}, alive, shared)
        reappeared = [r for r in removed if r.session_id not in going]
        own += [r for r in removed if r.session_id in going]
        found = [one for one in woken.values() if one.session_id not in {r.session_id for r in removed}]
        outside = _outside(snapshot, own, seen)
        return Outcome(snapshot, own, alive & going, failures + failed, recovered, reappeared, found, outside)
    raise Locked(f"the gateway keeps writing the index of agent {store.agent_id!r}; try again", agentId=store.agent_id)


def _outside(snapshot: Snapshot, removed: Sequence[Removal], seen: Mapping[str, Session]) -> dict[str, list[str]]:
    """Returns the files of removed sessions that stay outside the agent's folder, or in it with unusable names."""
    gone, store = {removal.session_id for removal in removed}, snapshot.store
    if not gone:
        return {}
    going = [session for session in seen.values() if session.id in gone]
    archived = [source for removal in removed for source, _ in removal.files]
    outside: dict[str, list[str]] = {}
    with contextlib.suppress(OSError):
        # The sessions are removed: a folder that cannot be listed by now is no reason to fail.
        outside = outside_files(store, snapshot.sessions, going, archived)
    return outside | {name: [] for name in no_texts_of(gone, store.sessions_dir)}


def _note_left(work: Work, store: Store, gone: set[str], alive: set[str], shared: Collection[str]) -> None:
    before = work.left[store][1] if store in work.left else set()
    left = None
    with contextlib.suppress(OSError):
        # Look for files that earlier removals hold of a session that stayed, even if nobody writes.
        left = None if alive else identity_of(store.index_path)
    work.left[store] = left, gone | alive | before, time.monotonic(), shared


def look_once_more(work: Work, store: Store, observe: Choose) -> Outcome | None:
    """Looks at a store again, after gateways that waited for its lock had time to write; None if nothing came back.

    Sessions that are in their index again with new activity are woken, those that came out of a cache are removed
    again. ``observe`` completes a snapshot, and chooses nothing. Raises what ``remove`` raises, and OSError.
    """
    left, gone, since, shared = work.left[store]
    step("store let go")
    time.sleep(max(0.0, since + SECOND_LOOK_S - time.monotonic()))
    if identity_of(store.index_path) == left:
        return None
    if gone.isdisjoint(s.id for s in read_snapshot(store, now_ms()).sessions):
        return None
    return remove(work, store, observe, shared)


def _execute(
    work: Work,
    lock: StoreLock,
    snapshot: Snapshot,
    chosen: Sequence[tuple[Session, str]],
    shared: Collection[str],
    fresh_start: bool,
) -> tuple[list[Removal], set[str], Failures]:
    store = snapshot.store
    assert snapshot.index is not None
    assert snapshot.identity is not None
    chosen, unmovable = set_aside(snapshot, chosen)
    if not chosen:
        return [], set(), unmovable
    refuse_unguarded(work, snapshot)
    removals = plan(snapshot, chosen, shared)
    text = snapshot.index.without({key for r in removals for key in r.keys})
    temp, attempt = intend(work, lock, store, snapshot.identity, text, removals)
    try:
        with clear_errors("rewrite the index of", store.sessions_dir):
            if fresh_start and identity_of(store.index_path) != snapshot.identity:
                raise IndexChanged
            stage(f"writing the index of {store.agent_id}")
            swap = Swap(store, lock, attempt)
            swap.install(snapshot.index, snapshot.identity, text, temp)
            failures = _settle(work, lock, snapshot, attempt, swap, parsed_by(snapshot.index))
    except LockLost:
        raise
    except BaseException as error:
        alive, failures = try_recover(store, lock, work.ledger, attempt)
        removed = [r for r in removals if r.session_id not in alive]
        if removed and isinstance(error, IndexChanged):
            return removed, alive & swap.alive, failures + unmovable
        if not removed or not isinstance(error, SessionManagerError):
            raise
        # The index is already written: report the removed sessions as removed, beside the error.
        return removed, alive & swap.alive, [*failures, *unmovable, (None, error)]
    # A file that could not be moved is no sign of life.
    alive = swap.alive - {session_id for session_id, _ in failures}
    return [r for r in removals if r.session_id not in swap.alive], alive, failures + unmovable


def _settle(
    work: Work, lock: StoreLock, snapshot: Snapshot, attempt: Attempt, swap: Swap, settled_at: float
) -> Failures:
    """Completes the attempt after the new index: look again, archive, sync, look again, record the end.

    ``settled_at`` (monotonic seconds) is when a gateway that read the old text has finished parsing it.
    """
    store = snapshot.store
    in_use = look_again(store, swap)
    _spare_busy(snapshot, attempt, swap)
    step("index verified")
    going = [r for r in attempt.removals if r.session_id not in swap.alive]
    unmoved = archive_files(store, lock, work.ledger, work.second_names, attempt, going, in_use)
    step("files archived")
    rolled_back = roll_back(store, work.second_names, swap, attempt, unmoved)
    work.keep_second_names(store, lock, attempt, [r for r in going if r.session_id not in swap.alive])
    step("second names checked")
    time.sleep(max(0.0, settled_at - time.monotonic()))
    look_again(store, swap)
    back = [r for r in going if r.session_id in swap.alive]
    woken = [r for r in back if r.session_id not in rolled_back.alive]
    failures = bring_back_files(store, work.second_names, attempt, woken)[0]
    swap.clean()
    step("displaced index removed")
    if os.path.dirname(store.index_path) != store.sessions_dir:
        sync_folder(os.path.dirname(store.index_path))
    sync_folder(store.sessions_dir)
    forget_second_names(store, work.second_names, attempt, back)
    step("folder synced")
    stage(f"confirming the removals of {store.agent_id}")
    work.ledger.finish(attempt, swap.alive, complete=not failures and not rolled_back.half)
    step("end noted")
    # A gateway 2026.2.17 that read the old text just before the swap, and the mtime just after it, has
    # cached it under the new mtime, and would write it back: a newer mtime makes it read again.
    with contextlib.suppress(OSError):
        os.utime(store.index_path)
    return failures + rolled_back.failures


def _spare_busy(snapshot: Snapshot, attempt: Attempt, swap: Swap) -> None:
    """Restores sessions whose transcript was locked by a run that began after the decision."""
    going = {r.session_id for r in attempt.removals} - swap.alive
    idle = [s for s in snapshot.sessions if s.id in going and not s.busy]
    # Listed afresh: a run may have taken a lock since.
    observe_locks(msgspec.structs.replace(snapshot, _names=None), now_ms())
    begun = {s.id for s in idle if s.busy}
    if begun:
        put_back(swap, attempt, read_snapshot(snapshot.store, now_ms()), begun)
