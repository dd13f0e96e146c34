"""A lock that is a file: made, judged and renewed by the gateway's rules.

Invariants:

- It is never visible half written: it is linked, renamed or exchanged into place with its full content. Only if the
  file system has neither links nor an exclusive rename it is made as gateway 2026.2.17 makes it, and is empty for a
  moment.
- A live process's file is never broken. A file taken over by exchange is checked afterwards; if another one came in
  between, that is put back.
- Ours is removed only while its content, with our random token, is still there.
- It is renewed long before a gateway would call it stale (30 s).
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator

import msgspec

from session_manager.files import weaker
from session_manager.files.atomic import NO_LINKS, OWN_PREFIX, exchange, keep_owner, rename_exclusively
from session_manager.files.liveness import (
    OWNER,
    STORE_STALE_MS,
    Marker,
    Payload,
    is_held,
    iso_ms,
    now_ms,
    process_stat,
    read_marker,
    written_at,
)

SUFFIX = ".marker"
RENEW_AFTER_S = 8.0


class LockFile:
    """The lock file at ``path``. ``vouched`` tells if a pid that is dead here is really dead, see ``holding``.

    A lock of a process that cannot be seen here is stale after ``stale_ms``: by default the store's time.

    ``alone``: no other process of ours judges it meanwhile, so one of ours whose process is dead here is free at once.
    ``found`` is the marker that the last attempt to take it found. Every method raises OSError.
    """

    def __init__(self, path: str, vouched: Callable[[], bool], stale_ms: int = STORE_STALE_MS) -> None:
        self.path = path
        self.alone = True
        self.found: Marker | None = None
        self._folder = os.path.dirname(path)
        self._vouched = vouched
        self._stale_ms = stale_ms
        self._token = os.urandom(16).hex()
        self._made_at = 0.0

    def take(self) -> bool:
        """Tries to take the lock without waiting; returns True if it is ours now."""
        found = self.found = read_marker(self.path)
        if found is None:
            return self._place()
        return not self._must_be_respected(found) and self._reclaim(found)

    def is_ours(self) -> bool:
        """Returns True if it still contains our token (inode numbers are reused at once)."""
        found = read_marker(self.path)
        return found is not None and found.payload is not None and found.payload.token == self._token

    def renew(self) -> None:
        """Renews it when it grows old, for a caller who has just checked that it is ours."""
        if time.monotonic() - self._made_at > RENEW_AFTER_S:
            # Replacing our file by a fresh one leaves no moment without a lock.
            with self._prepared() as fresh:
                os.replace(fresh, self.path)

    def drop(self) -> None:
        """Removes it if it is ours and can be removed."""
        with contextlib.suppress(OSError):
            if self.is_ours():
                os.unlink(self.path)

    def sweep(self) -> None:
        """Removes unfinished files of our killed processes; only old ones if another process may be writing one."""
        for name in os.listdir(self._folder):
            if name.startswith(OWN_PREFIX) and name.endswith(SUFFIX):
                path = os.path.join(self._folder, name)
                with contextlib.suppress(FileNotFoundError):
                    if self.alone or now_ms() - os.lstat(path).st_mtime_ns // 1_000_000 > STORE_STALE_MS:
                        os.unlink(path)

    def _must_be_respected(self, found: Marker) -> bool:
        now = now_ms()
        if is_held(found, self._stale_ms, now, self._vouched):
            return True
        if self.alone or found.payload is None or not found.ours or found.payload.space == (_space() or ""):
            return False
        # A process of ours that is not visible here may run on another machine.
        return 0 <= now - written_at(found, now) < self._stale_ms

    def _place(self) -> bool:
        with self._prepared() as fresh:
            return self._put(fresh) and self.is_ours()

    def _put(self, fresh: str) -> bool:
        """Gives a prepared file the lock's name; returns False if that is taken."""
        try:
            try:
                os.link(fresh, self.path)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                weaker.note(weaker.LINKS)
                if not rename_exclusively(fresh, self.path):
                    self._create(fresh)
        except FileExistsError:
            return False
        return True

    def _create(self, fresh: str) -> None:
        with open(fresh, "rb") as file:
            content = file.read()
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, content)
            keep_owner(fd, os.stat(self._folder))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
            raise
        finally:
            os.close(fd)

    def _reclaim(self, dead: Marker) -> bool:
        """Replaces a dead lock by ours; returns False if another file was there by then."""
        with self._prepared() as fresh:
            try:
                if not exchange(fresh, self.path):
                    return self._reclaim_without_exchange(dead)
            except FileNotFoundError:
                return False
            displaced = read_marker(fresh)
            if displaced is not None and displaced.content == dead.content:
                return self.is_ours()
            if self.is_ours():
                with contextlib.suppress(FileNotFoundError):
                    exchange(fresh, self.path)
            return False

    def _reclaim_without_exchange(self, dead: Marker) -> bool:
        aside = self._own_path()
        try:
            os.rename(self.path, aside)
        except FileNotFoundError:
            return False
        moved = read_marker(aside)
        if moved is not None and moved.content != dead.content:
            self._put(aside)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        # The dead one is gone: the next round makes ours, if nobody else is faster.
        return False

    @contextlib.contextmanager
    def _prepared(self) -> Iterator[str]:
        """Writes a fresh lock under a temporary name, which is removed afterwards in any case."""
        stat = process_stat(os.getpid())
        payload = Payload(os.getpid(), iso_ms(now_ms()), stat[1] if stat else None, OWNER, self._token)
        payload.space = None if self.alone else _space()
        path = self._own_path()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            try:
                os.write(fd, msgspec.json.format(msgspec.json.encode(payload), indent=2))
                keep_owner(fd, os.stat(self._folder))
            finally:
                os.close(fd)
            self._made_at = time.monotonic()
            yield path
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _own_path(self) -> str:
        return os.path.join(self._folder, f"{OWN_PREFIX}{os.getpid()}.{os.urandom(6).hex()}{SUFFIX}")


@functools.cache
def _space() -> str | None:
    """Returns a name for the scope of our pids: this boot of the kernel and this pid namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None
