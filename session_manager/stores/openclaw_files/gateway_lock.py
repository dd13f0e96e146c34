"""The lock that this tool and the gateway honour.

Our own processes exclude each other with a kernel lock on a file of ours. The gateway (2026.2.17 to
2026.4.29) is excluded with its own marker ``sessions.json.lock``, made and judged by its rules.

The marker is made, judged and removed only under the kernel lock, so two of our processes never reclaim the same one.
If the file system has no such lock, the marker alone keeps them apart, and a process that lost it notices before a
rename.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from filelock import Timeout

from session_manager.core.errors import Locked
from session_manager.files.atomic import OWN_PREFIX, clear_errors
from session_manager.files.liveness import OWNER, STORE_STALE_MS, Marker, is_held, now_ms, read_marker
from session_manager.files.lock_file import LockFile
from session_manager.files.own_lock import OwnLock, own_lock
from session_manager.stores.openclaw_files.gateways import vouched_in
from session_manager.stores.openclaw_files.store import Store

KERNEL_LOCK_NAME = OWN_PREFIX + "lock"
# The gateway retries after 50, 100, 150 … ms: it must find the store free between two of our queued processes.
PAUSE_S = 0.02
PAUSE_AFTER_WAIT_S = 0.25
_POLL_S = 0.02

_released: dict[str, float] = {}


class LockLost(Exception):
    """Another process removed or replaced our marker; the next rename must not happen."""


def has_dead_marker(store: Store) -> bool:
    """Returns True if a killed process of ours left its marker on a store."""
    found = read_marker(os.path.join(store.sessions_dir, store.marker_name))
    return found is not None and found.ours and not is_held(found, STORE_STALE_MS, now_ms(), _vouched(store))


def _vouched(store: Store) -> Callable[[], bool]:
    return vouched_in(store.sessions_dir, store.gateways)


def lock_of(store: Store, timeout: float) -> StoreLock:
    """Returns the lock of a store; if its sessions have moved to SQLite, one without the gateway's marker."""
    return OurLock(store, timeout) if store.database else StoreLock(store, timeout)


class StoreLock:
    """Locks one agent's store against our own processes and against the gateway.

    ``timeout`` (seconds) covers the whole wait. Entering raises Locked (``store_locked``, with the holder), or
    Refused when the folder cannot be written.
    """

    def __init__(self, store: Store, timeout: float) -> None:
        self._dir = store.sessions_dir
        self._agent_id = store.agent_id
        self._timeout = timeout
        self._marker = LockFile(os.path.join(self._dir, store.marker_name), _vouched(store))
        self._kernel = OwnLock(os.path.join(self._dir, KERNEL_LOCK_NAME))

    def __enter__(self) -> Self:
        deadline = time.monotonic() + self._timeout
        with clear_errors("lock", self._dir):
            self._take_kernel_lock(deadline)
            try:
                self._marker.alone = self._kernel.works
                self._marker.sweep()
                self._take_marker(deadline)
            except BaseException:
                self._marker.drop()
                self._kernel.release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._marker.drop()
        finally:
            _released[self._dir] = time.monotonic()
            self._kernel.release()

    def is_ours(self) -> bool:
        """Returns True if the marker is still the one that we made."""
        return self._marker.is_ours()

    def check(self) -> None:
        """Checks the lock; renews a marker that grows old. Call it before every rename that the lock covers.

        Raises LockLost when the marker is no longer ours.
        """
        if not self._marker.is_ours():
            raise LockLost
        self._marker.renew()

    def _take_kernel_lock(self, deadline: float) -> None:
        try:
            self._kernel.take(timeout=0)
        except Timeout:
            try:
                self._kernel.take(timeout=max(0.0, deadline - time.monotonic()))
            except Timeout:
                raise self._locked(read_marker(self._marker.path)) from None
            time.sleep(PAUSE_AFTER_WAIT_S)
        else:
            since = time.monotonic() - _released.get(self._dir, float("-inf"))
            time.sleep(max(0.0, PAUSE_S - since))

    def _take_marker(self, deadline: float) -> None:
        while not self._marker.take():
            if time.monotonic() >= deadline:
                raise self._locked(self._marker.found)
            time.sleep(_POLL_S)

    def _locked(self, found: Marker | None) -> Locked:
        holder = found.holder() if found else {"who": OWNER, "pid": None, "createdAt": None}
        pid = f" (pid {holder['pid']}, since {holder['createdAt']})" if holder["pid"] is not None else ""
        return Locked(
            f"the store of agent {self._agent_id!r} is locked by {holder['who']}{pid}; waited {self._timeout:.3g} s: "
            "try again, or set ARIA_LOCK_TIMEOUT to wait longer",
            holder=holder,
            agentId=self._agent_id,
        )


class OurLock(StoreLock):
    """Locks a moved store against our own processes only: its gateway locks a database, and writes none of its files.

    Removes markers that killed processes left.
    """

    def __init__(self, store: Store, timeout: float) -> None:
        super().__init__(store, timeout)
        self._store = store
        self._held = own_lock(os.path.join(self._dir, KERNEL_LOCK_NAME), timeout)

    def __enter__(self) -> Self:
        with clear_errors("lock", self._dir):
            try:
                self._held.__enter__()
            except Timeout:
                raise self._locked(None) from None
            try:
                self._marker.sweep()
                if has_dead_marker(self._store) and self._marker.take():
                    self._marker.drop()
            except BaseException:
                self._held.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.__exit__(kind, error, trace)

    def is_ours(self) -> bool:
        """Returns True: no other process takes the lock over."""
        return True

    def check(self) -> None:
        """Does nothing: no other process takes the lock over."""
