"""The lock that both sides honour.

Our own processes exclude each other by a kernel lock under a name of our own. The gateway (2026.2.17 to
2026.4.29) is excluded by its own marker ``sessions.json.lock``, made and judged by its rules.

Invariants:

- The marker is never visible half written: it is linked or exchanged into place with its full content.
- It is made, judged and removed only under the kernel lock, so two of our processes never reclaim the same one.
- A living process's marker is never broken. What we take over by exchange is looked at afterwards; a marker
  that came in between goes back to its place.
- Our marker is removed only while its content, with our random token, is still there.
- It is renewed long before the gateway would call it stale (30 s).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import msgspec
from filelock import FileLock, Timeout

from session_manager.core.errors import Locked
from session_manager.live.atomic import OWN_PREFIX, clear_errors, exchange, keep_owner
from session_manager.live.liveness import (
    OWNER,
    STORE_STALE_MS,
    Marker,
    Payload,
    is_held,
    iso_ms,
    now_ms,
    process_stat,
    read_marker,
    vouched_in,
)
from session_manager.live.volume import Store

KERNEL_LOCK_NAME = OWN_PREFIX + "lock"
RENEW_AFTER_S = 8.0
# The gateway retries after 50, 100, 150 … ms: between two of us that queue, it must find the store free.
PAUSE_S = 0.02
PAUSE_AFTER_WAIT_S = 0.25
_POLL_S = 0.02

_released: dict[str, float] = {}


class LockLost(Exception):
    """Somebody else removed or replaced our marker; what was about to be renamed must not be."""


def has_dead_marker(store: Store) -> bool:
    """Says whether a killed process of ours left its marker on a store."""
    found = read_marker(os.path.join(store.sessions_dir, store.marker_name))
    return found is not None and found.ours and not is_held(found, STORE_STALE_MS, now_ms(), _vouched(store))


def _vouched(store: Store) -> Callable[[], bool]:
    return vouched_in(store.sessions_dir, store.gateways)


class StoreLock:
    """Holds one agent's store, against our own processes and against the gateway.

    ``timeout`` (seconds) covers the whole wait. Entering raises Locked (``store_locked``, with the holder), or
    Refused when the folder cannot be written.
    """

    def __init__(self, store: Store, timeout: float) -> None:
        self._dir = store.sessions_dir
        self._agent_id = store.agent_id
        self._timeout = timeout
        self._marker = os.path.join(self._dir, store.marker_name)
        self._kernel_path = os.path.join(self._dir, KERNEL_LOCK_NAME)
        self._kernel = FileLock(self._kernel_path, mode=0o600)
        self._token = os.urandom(16).hex()
        self._made_at = 0.0
        self._vouched = _vouched(store)

    def __enter__(self) -> Self:
        deadline = time.monotonic() + self._timeout
        with clear_errors("lock", self._dir):
            self._take_kernel_lock(deadline)
            try:
                self._sweep()
                self._take_marker(deadline)
            except BaseException:
                self._drop_marker()
                self._kernel.release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._drop_marker()
        finally:
            _released[self._dir] = time.monotonic()
            self._kernel.release()

    def _drop_marker(self) -> None:
        with contextlib.suppress(OSError):
            if self.is_ours():
                os.unlink(self._marker)

    def is_ours(self) -> bool:
        """Says whether the marker's content still carries our token (inode numbers are reused at once)."""
        found = read_marker(self._marker)
        return found is not None and found.payload is not None and found.payload.token == self._token

    def check(self) -> None:
        """To be called before every rename that the lock covers; renews a marker that grows old.

        Raises LockLost when the marker is no longer ours.
        """
        if not self.is_ours():
            raise LockLost
        if time.monotonic() - self._made_at > RENEW_AFTER_S:
            # Replacing our own marker by a fresh one leaves no moment without it.
            with self._prepared() as fresh:
                os.replace(fresh, self._marker)

    def _take_kernel_lock(self, deadline: float) -> None:
        self._create_kernel_file()
        try:
            self._kernel.acquire(timeout=0)
        except Timeout:
            try:
                self._kernel.acquire(timeout=max(0.0, deadline - time.monotonic()), poll_interval=_POLL_S)
            except Timeout:
                raise self._locked(read_marker(self._marker)) from None
            time.sleep(PAUSE_AFTER_WAIT_S)
        else:
            since = time.monotonic() - _released.get(self._dir, float("-inf"))
            time.sleep(max(0.0, PAUSE_S - since))

    def _create_kernel_file(self) -> None:
        """Makes the file first, for the folder's owner: one made by root would keep everybody else out."""
        try:
            fd = os.open(self._kernel_path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return
        try:
            keep_owner(fd, os.stat(self._dir))
        finally:
            os.close(fd)

    def _sweep(self) -> None:
        """Removes unfinished markers of killed processes of ours; under the kernel lock nobody is writing one."""
        for name in os.listdir(self._dir):
            if name.startswith(OWN_PREFIX) and name.endswith(".marker"):
                os.unlink(os.path.join(self._dir, name))

    def _take_marker(self, deadline: float) -> None:
        while True:
            found = read_marker(self._marker)
            if found is None:
                if self._place():
                    return
            elif not is_held(found, STORE_STALE_MS, now_ms(), self._vouched) and self._reclaim(found):
                return
            if time.monotonic() >= deadline:
                raise self._locked(found)
            time.sleep(_POLL_S)

    def _place(self) -> bool:
        with self._prepared() as fresh:
            try:
                os.link(fresh, self._marker)
            except FileExistsError:
                return False
            return self.is_ours()

    def _reclaim(self, dead: Marker) -> bool:
        """Puts our marker in the place of a dead one; False when something else was there by then."""
        with self._prepared() as fresh:
            try:
                if not exchange(fresh, self._marker):
                    return self._reclaim_without_exchange(dead)
            except FileNotFoundError:
                return False
            displaced = read_marker(fresh)
            if displaced is not None and displaced.content == dead.content:
                return self.is_ours()
            if self.is_ours():
                with contextlib.suppress(FileNotFoundError):
                    exchange(fresh, self._marker)
            return False

    def _reclaim_without_exchange(self, dead: Marker) -> bool:
        aside = self._own_path()
        try:
            os.rename(self._marker, aside)
        except FileNotFoundError:
            return False
        moved = read_marker(aside)
        if moved is not None and moved.content != dead.content:
            with contextlib.suppress(FileExistsError):
                os.link(aside, self._marker)
        os.unlink(aside)
        # Dead and gone: the next round links ours, if nobody else is faster.
        return False

    @contextlib.contextmanager
    def _prepared(self) -> Iterator[str]:
        """A fresh marker of ours under a name of its own, which is gone afterwards whatever became of it."""
        stat = process_stat(os.getpid())
        payload = Payload(os.getpid(), iso_ms(now_ms()), stat[1] if stat else None, OWNER, self._token)
        path = self._own_path()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            try:
                os.write(fd, msgspec.json.format(msgspec.json.encode(payload), indent=2))
                keep_owner(fd, os.stat(self._dir))
            finally:
                os.close(fd)
            self._made_at = time.monotonic()
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _own_path(self) -> str:
        return os.path.join(self._dir, f"{OWN_PREFIX}{os.getpid()}.{os.urandom(6).hex()}.marker")

    def _locked(self, found: Marker | None) -> Locked:
        holder = found.holder() if found else {"who": OWNER, "pid": None, "createdAt": None}
        pid = f" (pid {holder['pid']}, since {holder['createdAt']})" if holder["pid"] is not None else ""
        return Locked(
            f"the store of agent {self._agent_id!r} is locked by {holder['who']}{pid}; waited {self._timeout:.3g} s: "
            "try again, or set ARIA_LOCK_TIMEOUT to wait longer",
            holder=holder,
            agentId=self._agent_id,
        )
