"""Restores sessions of an agent that has moved to SQLite, as files that a person lets the gateway import."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from session_manager.archives.archive import Failures
from session_manager.archives.work import Work
from session_manager.files.liveness import now_ms
from session_manager.files.steps import step
from session_manager.ledger import Removal, Removed
from session_manager.stores.lives import Find, Restored, refusal, split
from session_manager.stores.openclaw_files.changing import end_earlier
from session_manager.stores.openclaw_files.gateway_lock import LockLost, StoreLock
from session_manager.stores.openclaw_files.moved import settle
from session_manager.stores.openclaw_files.obstacles import LOST, place_of
from session_manager.stores.openclaw_files.sharing import gather
from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import Store


def restore_moved(work: Work, store: Store, lock: StoreLock, find: Find, *, skip_conflicts: bool) -> Restored:
    """Does what ``restoration.restore`` does, for a moved store."""
    done, recovered, failures = end_earlier(work, store, lock)
    going, blocked = split(place_of(work, read_snapshot(store, now_ms())), find(work.ledger))
    if blocked and not skip_conflicts:
        raise refusal(blocked)
    if not going:
        return Restored(done, blocked, recovered, failures)
    removed = [removal for life in going for removal in life]
    gather(work, store, removed)
    back, failed = _execute(work, store, lock, removed)
    alive = {removal.session_id for removal in back}
    lost = [life for life in going if life[0].session_id not in alive]
    if lost:
        place = place_of(work, read_snapshot(store, now_ms()))
        blocked += [(life, place.obstacle(life) or LOST) for life in lost]
        if not back and not done:
            raise failed[0][1] if failed else refusal(blocked)
    return Restored(done + back, blocked, recovered, failures + failed)


def _execute(work: Work, store: Store, lock: StoreLock, removed: Sequence[Removed]) -> tuple[list[Removal], Failures]:
    attempt = work.ledger.intend_restore(work.run, store.store_id, store.agent_id, [], [], removed)
    step("restore intended")
    try:
        alive, failures = settle(store, lock, work.ledger, attempt)
    except LockLost:
        raise
    except BaseException:
        # If this cannot be undone now either, the next call ends it.
        with contextlib.suppress(Exception):
            settle(store, lock, work.ledger, attempt, forward=False)
        raise
    return [removal for removal in attempt.removals if removal.session_id in alive], failures
