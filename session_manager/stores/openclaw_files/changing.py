"""What every change of a store begins with: its lock, the end of interrupted runs, and a guarded intent."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection
from typing import TypeVar

from session_manager.archives.archive import Failures
from session_manager.archives.work import Work
from session_manager.core.errors import Locked
from session_manager.core.progress import stage
from session_manager.files.atomic import clear_errors
from session_manager.files.steps import step
from session_manager.files.versions import Identity
from session_manager.ledger import Attempt, Removal, Temp
from session_manager.stores.openclaw_files.gateway_lock import LockLost, StoreLock, has_dead_marker, lock_of
from session_manager.stores.openclaw_files.recovery import open_attempts, recover
from session_manager.stores.openclaw_files.store import Snapshot, Store
from session_manager.stores.openclaw_files.swap import is_temp, write_temp
from session_manager.stores.openclaw_files.unguarded import refuse_unguarded as refuse

Done = TypeVar("Done")


def locked(work: Work, store: Store, act: Callable[[StoreLock], Done]) -> Done:
    """Runs ``act`` under the store's lock; starts again if another process took the lock over.

    Raises Locked when it cannot be acquired in time, Refused when the folder cannot be written, and whatever
    ``act`` raises.
    """
    deadline = time.monotonic() + work.settings.lock_timeout
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


def end_earlier(work: Work, store: Store, lock: StoreLock) -> tuple[list[Removal], list[dict[str, object]], Failures]:
    """Recovers the interrupted runs of a store. Raises Damaged, LockLost, Refused or Failed.

    Returns what this run had done before it lost the lock, document elements for all other runs, and files
    that could not be moved.
    """
    ended, failures = recover(store, lock, work.existing_ledger)
    me = (work.run.run_id, store.agent_id)
    mine = [e for e in ended if e.attempt is not None and (e.attempt.run_id, e.attempt.agent_id) == me]
    own = [r for e in mine for r in e.finished]
    return own, [e.document(store) for e in ended if e not in mine], failures


def has_unfinished(work: Work, store: Store, names: Collection[str]) -> bool:
    """Returns True if a killed process left work to finish or files to remove in a store (``names`` lie there)."""
    if any(is_temp(store, name) for name in names) or has_dead_marker(store):
        return True
    ledger = work.existing_ledger
    if store.shared_as is not None:
        return bool(open_attempts(store, names, ledger))
    return ledger is not None and ledger.has_open_attempts(store.store_id, store.agent_id, names)


def refuse_unguarded(work: Work, snapshot: Snapshot) -> None:
    """Raises Refused (``no_exchange``) if a change of this index could overwrite a gateway's writes."""
    with clear_errors("rewrite the index of", snapshot.store.sessions_dir):
        refuse(snapshot, allowed=work.unguarded)


def intend(
    work: Work, lock: StoreLock, store: Store, read: Identity, text: bytes, removals: list[Removal]
) -> tuple[Temp, Attempt]:
    """Writes the new index beside the version ``read``, and the intent to install it: both durably, or neither."""
    stage(f"recording the removals of {store.agent_id}")
    temp = write_temp(store, text)
    try:
        step("index prepared")
        lock.check()
        attempt = work.ledger.intend(work.run, store.store_id, store.agent_id, [temp], [read, temp.identity], removals)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(os.path.dirname(store.index_path), temp.name))
        raise
    step("intent written")
    return temp, attempt
