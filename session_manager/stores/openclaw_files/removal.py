"""Removes sessions from a store: intent, index, transcripts, under one lock, with one rewrite.

Order, each step durable before the next: the intent in the ledger; the index without the keys; the transcripts
under their archive names; the end of the attempt in the ledger, with the pending marks for history.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from session_manager.archives.archive import Failures, archive_files, bring_back_files, forget_second_names
from session_manager.archives.names import original_name
from session_manager.archives.second_names import AtRisk, SecondNames
from session_manager.core.errors import Locked, SessionManagerError
from session_manager.core.progress import stage
from session_manager.core.session import DAY_MS, Session
from session_manager.files import weaker
from session_manager.files.atomic import clear_errors, sync_folder
from session_manager.files.liveness import now_ms
from session_manager.files.steps import step
from session_manager.files.versions import Identity, identity_of
from session_manager.ledger import Attempt, Clock, Ledger, Removal, Run, Temp
from session_manager.settings import Settings
from session_manager.stores.openclaw_files.gateway_lock import LockLost, StoreLock, has_dead_marker, lock_of
from session_manager.stores.openclaw_files.observe import observe_locks
from session_manager.stores.openclaw_files.obstacles import Place
from session_manager.stores.openclaw_files.opening import open_volume
from session_manager.stores.openclaw_files.orphan_removal import archive_orphans
from session_manager.stores.openclaw_files.plan import plan
from session_manager.stores.openclaw_files.reappeared import REASON, ghosts
from session_manager.stores.openclaw_files.recovery import open_attempts, put_back, recover, roll_back, try_recover
from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import Snapshot, Store
from session_manager.stores.openclaw_files.swap import IndexChanged, Swap, is_temp, look_again, parsed_by, write_temp
from session_manager.stores.openclaw_files.unguarded import refuse_unguarded
from session_manager.stores.openclaw_files.unmovable import set_aside
from session_manager.stores.openclaw_files.waking import Woken, half_removed, idle_strays, take_back

# A gateway that waited for the marker takes it within 1 s (2026.2.17: retries after 50, 100, 150 … ms), and mostly
# within a few retries.
SECOND_LOOK_S = 0.4
# Against a gateway that writes all the time the exchange merges; a fresh decision is better before that.
_FRESH_STARTS = 4

Done = TypeVar("Done")
Choose = Callable[[Snapshot], Sequence[tuple[Session, str]]]


class Outcome(msgspec.Struct):
    """What happened in one store. ``snapshot`` is the read that the decision was made from.

    ``alive`` are chosen sessions that showed a sign of life at the last moment and were kept; ``reappeared`` were
    removed again, because a gateway had written them back; the removals of ``woken`` were undone.
    """

    snapshot: Snapshot
    removed: list[Removal]
    alive: set[str]
    failures: Failures
    recovered: list[dict[str, object]]
    reappeared: list[Removal] = []
    woken: list[Woken] = []


class Remover:
    """Removes sessions for one run. A context manager that keeps the ledger open in between stores.

    ``force`` says that no gateway writes meanwhile, where its writes could be overwritten.
    """

    def __init__(self, settings: Settings, run: Run, *, force: bool = False) -> None:
        self._settings = settings
        self._force = force or settings.allow_no_exchange
        self.run = run
        self._ledger: Ledger | None = None
        self.second_names = SecondNames(settings.state_dir)
        self.at_risk = AtRisk()
        self._clock: Clock | None = None
        self._weaker: set[str] = set()
        self._noting = contextlib.ExitStack()
        # The version of each store's index that we left, the sessions removed from it, and when we unlocked the store.
        self._left: dict[Store, tuple[Identity | None, set[str], float, Collection[str]]] = {}

    def __enter__(self) -> Self:
        # Report a broken ledger before anything is touched.
        ledger = self.existing_ledger
        self._clock = None if ledger is None else ledger.clock(now_ms())
        self._weaker = self._noting.enter_context(weaker.noted())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._noting.close()
        if self._ledger is not None:
            if error is None:
                self._drop_old(self._ledger)
            self._ledger.__exit__(kind, error, trace)

    def _drop_old(self, ledger: Ledger) -> None:
        """Drops entries and second names past their time; a later run retries what fails."""
        clock, keep_days = self._clock, self._settings.keep_days
        if clock is None:
            # This call made the ledger: nothing in it is old.
            return
        with contextlib.suppress(OSError, SessionManagerError):
            if not self.run.noted:
                ledger.note_use(clock)
                ledger.drop_old_entries(clock, keep_days)
            cutoff = clock.trusted - keep_days * DAY_MS
            self.second_names.drop_old(cutoff, lambda run_id: ledger.is_past(run_id, clock, keep_days), self._living)

    def _living(self, agent_id: str) -> Callable[[str], bool] | None:
        """Returns what tells if an archive belongs to a live session of an agent; None when that cannot be read."""
        with contextlib.suppress(OSError, SessionManagerError):
            store = open_volume(self._settings).archive_store(agent_id)
            if store is None:
                return lambda name: False
            ids = {session.id for session in read_snapshot(store, now_ms()).sessions}
            return lambda name: store.owner(original_name(name), ids) is not None
        return None

    @property
    def ledger(self) -> Ledger:
        """The ledger, created if there is none."""
        if self._ledger is None:
            self._ledger = Ledger.open(self._settings)
        return self._ledger

    @property
    def existing_ledger(self) -> Ledger | None:
        """The ledger, or None if there is none yet. Looks again each time, as another call may have created it."""
        if self._ledger is None:
            self._ledger = Ledger.open_existing(self._settings)
        return self._ledger

    def keep_second_names(self, store: Store, lock: StoreLock, attempt: Attempt, removals: Sequence[Removal]) -> None:
        """Gives archived files their second names; counts those that cannot have one in ``at_risk``."""
        self.at_risk.add(self.second_names.keep(store, lock, attempt, removals))

    def notes(self) -> dict[str, object]:
        """Returns the result members that report weaker guarantees; empty when there are none."""
        clock = {} if self._clock is None else self._clock.document()
        return self.at_risk.document() | clock | weaker.document(self._weaker)

    def refuse_unguarded(self, snapshot: Snapshot) -> None:
        """Raises Refused (``no_exchange``) if a change of this index could overwrite a gateway's writes."""
        with clear_errors("rewrite the index of", snapshot.store.sessions_dir):
            refuse_unguarded(snapshot, allowed=self._force)

    def place(self, snapshot: Snapshot) -> Place:
        """Returns the store as a place to restore sessions to."""
        return Place(snapshot, self.second_names, self._settings.keep_days)

    def has_unfinished(self, store: Store, names: Collection[str]) -> bool:
        """Returns True if a killed process left work to finish or files to remove in a store (``names`` lie there)."""
        if any(is_temp(store, name) for name in names) or has_dead_marker(store):
            return True
        ledger = self.existing_ledger
        if store.shared_as is not None:
            return bool(open_attempts(store, names, ledger))
        return ledger is not None and ledger.has_open_attempts(store.store_id, store.agent_id, names)

    def removed(self, session: str, agent_id: str | None) -> list[tuple[str, str]]:
        """Returns (agent id, session id) of earlier removals of a session, named by its id or one of its keys."""
        ledger = self.existing_ledger
        return ledger.removed(session, agent_id) if ledger is not None else []

    def owe_marks(self, sessions: Collection[tuple[str, str]], *, again: bool = False) -> set[tuple[str, str]]:
        """Records pending marks for ended sessions (agent id, session id); returns those already delivered.

        With ``again`` delivered marks become pending again, because history says that it lacks them.
        """
        return {s for s in sorted(sessions) if self.ledger.owe_mark(self.run, *s, again=again) == "delivered"}

    def remove(self, store: Store, choose: Choose, shared: Collection[str] = ()) -> Outcome:
        """Removes the sessions that ``choose`` picks from a fresh read under the lock, after recovering killed runs.

        ``choose`` gets the snapshot and returns (session, reason) pairs; it is asked
        again when the gateway wrote in between. ``shared`` are file names that other agents refer to. Raises
        whatever ``choose`` raises, Locked, Refused, Damaged or Failed; the store is then as it was.
        """
        return self.locked(store, lambda lock: self.remove_locked(store, lock, choose, shared))

    def locked(self, store: Store, act: Callable[[StoreLock], Done]) -> Done:
        """Runs ``act`` under the store's lock; starts again if another process took the lock over.

        Raises Locked when it cannot be acquired in time, Refused when the folder cannot be written, and whatever
        ``act`` raises.
        """
        deadline = time.monotonic() + self._settings.lock_timeout
        while True:
            try:
                with lock_of(store, max(0.0, deadline - time.monotonic())) as lock:
                    return act(lock)
            except LockLost:
                if time.monotonic() >= deadline:
                    raise Locked(
                        f"the lock of agent {store.agent_id!r} was lost to another process; try again",
                        agentId=store.agent_id,
                    ) from None

    def remove_locked(
        self, store: Store, lock: StoreLock, choose: Choose, shared: Collection[str], *, erased: str | None = None
    ) -> Outcome:
        """Does what ``remove`` does, for a caller who holds the lock. Also raises LockLost.

        ``erased`` is a session that will be erased with all files of its earlier removals: none of these is undone.
        """
        own, recovered, failures = self.end_earlier(store, lock)
        looked_for_strays = False
        woken: dict[str, Woken] = {}
        fresh_starts_left = _FRESH_STARTS
        while fresh_starts_left >= 0:
            snapshot = read_snapshot(store, now_ms())
            chosen = list(choose(snapshot))
            going = {session.id for session, _ in chosen}
            if (ledger := self.existing_ledger) is not None:
                back = ghosts(ledger, snapshot, self._settings.current, going)
                again = {session.id for session in back}
                settled = {*again, *woken, erased}
                staying = [s for s in snapshot.sessions if s.id not in settled]
                if halves := half_removed(ledger, snapshot, staying, self.second_names):
                    # Restore files that an earlier removal still holds first, so that the session is removed whole.
                    found, failed = take_back(ledger, self.run, lock, snapshot, halves)
                    woken |= {one.session_id: one for one in found}
                    failures += failed
                    continue
                if not looked_for_strays and erased is None and idle_strays(ledger, shared, snapshot):
                    # Lines written to a session after its removal are archived with it.
                    failures += archive_orphans(self, store, lock, partial(idle_strays, ledger, shared))[2]
                    looked_for_strays = True
                    continue
                looked_for_strays = True
                # Even if the caller chose it: the earlier removal holds a ghost's files, and a restore undoes both.
                chosen = [(session, REASON if session.id in again else reason) for session, reason in chosen]
                chosen += [(session, REASON) for session in back if session.id not in going]
            if not chosen:
                return Outcome(snapshot, own, set(), failures, recovered, [], list(woken.values()))
            # With very many sessions each stage takes seconds: keep the marker fresh in between.
            lock.check()
            try:
                removed, alive, failed = self._execute(lock, snapshot, chosen, shared, fresh_starts_left > 0)
            except IndexChanged:
                fresh_starts_left -= 1
                continue
            self._note_left(store, {r.session_id for r in removed}, alive, shared)
            reappeared = [r for r in removed if r.session_id not in going]
            own += [r for r in removed if r.session_id in going]
            found = [one for one in woken.values() if one.session_id not in {r.session_id for r in removed}]
            return Outcome(snapshot, own, alive & going, failures + failed, recovered, reappeared, found)
        raise Locked(
            f"the gateway keeps writing the index of agent {store.agent_id!r}; try again", agentId=store.agent_id
        )

    def _note_left(self, store: Store, gone: set[str], alive: set[str], shared: Collection[str]) -> None:
        before = self._left[store][1] if store in self._left else set()
        left = None
        with contextlib.suppress(OSError):
            # Look for files that earlier removals hold of a session that stayed, even if nobody writes.
            left = None if alive else identity_of(store.index_path)
        self._left[store] = left, gone | alive | before, time.monotonic(), shared

    def look_once_more(self, observe: Choose) -> list[tuple[Store, Outcome]]:
        """Looks at this run's stores again, after gateways that waited for the lock had time to write.

        Returns what was done about sessions that are in their index again: those with new activity are woken, those
        that came out of a cache were removed again. ``observe`` completes a snapshot, and chooses nothing.
        """
        found = []
        for store, (left, gone, since, shared) in list(self._left.items()):
            step("store let go")
            time.sleep(max(0.0, since + SECOND_LOOK_S - time.monotonic()))
            with contextlib.suppress(OSError, SessionManagerError):
                if identity_of(store.index_path) == left:
                    continue
                if gone.isdisjoint(s.id for s in read_snapshot(store, now_ms()).sessions):
                    continue
                found.append((store, self.remove(store, observe, shared)))
        return found

    def end_earlier(self, store: Store, lock: StoreLock) -> tuple[list[Removal], list[dict[str, object]], Failures]:
        """Recovers the interrupted runs of a store. Raises Damaged, LockLost, Refused or Failed.

        Returns what this run had done before it lost the lock, document elements for all other runs, and files
        that could not be moved.
        """
        ended, failures = recover(store, lock, self.existing_ledger)
        me = (self.run.run_id, store.agent_id)
        mine = [e for e in ended if e.attempt is not None and (e.attempt.run_id, e.attempt.agent_id) == me]
        own = [r for e in mine for r in e.finished]
        return own, [e.document(store) for e in ended if e not in mine], failures

    def _execute(
        self,
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
        self.refuse_unguarded(snapshot)
        removals = plan(snapshot, chosen, shared)
        text = snapshot.index.without({key for r in removals for key in r.keys})
        temp, attempt = self.intend(lock, store, snapshot.identity, text, removals)
        try:
            with clear_errors("rewrite the index of", store.sessions_dir):
                if fresh_start and identity_of(store.index_path) != snapshot.identity:
                    raise IndexChanged
                stage(f"writing the index of {store.agent_id}")
                swap = Swap(store, lock, attempt)
                swap.install(snapshot.index, snapshot.identity, text, temp)
                failures = self._settle(lock, snapshot, attempt, swap, parsed_by(snapshot.index))
        except LockLost:
            raise
        except BaseException as error:
            alive, failures = try_recover(store, lock, self.ledger, attempt)
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

    def intend(
        self, lock: StoreLock, store: Store, read: Identity, text: bytes, removals: list[Removal]
    ) -> tuple[Temp, Attempt]:
        """Writes the new index beside the version ``read``, and the intent to install it: both durably, or neither."""
        stage(f"recording the removals of {store.agent_id}")
        temp = write_temp(store, text)
        try:
            step("index prepared")
            lock.check()
            attempt = self.ledger.intend(
                self.run, store.store_id, store.agent_id, [temp], [read, temp.identity], removals
            )
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(os.path.dirname(store.index_path), temp.name))
            raise
        step("intent written")
        return temp, attempt

    def _settle(self, lock: StoreLock, snapshot: Snapshot, attempt: Attempt, swap: Swap, settled_at: float) -> Failures:
        """Completes the attempt after the new index: look again, archive, sync, look again, record the end.

        ``settled_at`` (monotonic seconds) is when a gateway that read the old text has finished parsing it.
        """
        store = snapshot.store
        in_use = look_again(store, swap)
        self._spare_busy(snapshot, attempt, swap)
        step("index verified")
        going = [r for r in attempt.removals if r.session_id not in swap.alive]
        unmoved = archive_files(store, lock, self.ledger, self.second_names, attempt, going, in_use)
        step("files archived")
        rolled_back = roll_back(store, self.second_names, swap, attempt, unmoved)
        self.keep_second_names(store, lock, attempt, [r for r in going if r.session_id not in swap.alive])
        step("second names checked")
        time.sleep(max(0.0, settled_at - time.monotonic()))
        look_again(store, swap)
        back = [r for r in going if r.session_id in swap.alive]
        woken = [r for r in back if r.session_id not in rolled_back.alive]
        failures = bring_back_files(store, self.second_names, attempt, woken)[0]
        swap.clean()
        step("displaced index removed")
        if os.path.dirname(store.index_path) != store.sessions_dir:
            sync_folder(os.path.dirname(store.index_path))
        sync_folder(store.sessions_dir)
        forget_second_names(store, self.second_names, attempt, back)
        step("folder synced")
        stage(f"confirming the removals of {store.agent_id}")
        self.ledger.finish(attempt, swap.alive, complete=not failures and not rolled_back.half)
        step("end noted")
        # A gateway 2026.2.17 that read the old text just before the swap, and the mtime just after it, has
        # cached it under the new mtime, and would write it back: a newer mtime makes it read again.
        with contextlib.suppress(OSError):
            os.utime(store.index_path)
        return failures + rolled_back.failures

    def _spare_busy(self, snapshot: Snapshot, attempt: Attempt, swap: Swap) -> None:
        """Restores sessions whose transcript was locked by a run that began after the decision."""
        going = {r.session_id for r in attempt.removals} - swap.alive
        idle = [s for s in snapshot.sessions if s.id in going and not s.busy]
        # Listed afresh: a run may have taken a lock since.
        observe_locks(msgspec.structs.replace(snapshot, _names=None), now_ms())
        begun = {s.id for s in idle if s.busy}
        if begun:
            put_back(swap, attempt, read_snapshot(snapshot.store, now_ms()), begun)
