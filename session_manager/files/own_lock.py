"""Excludes our own processes from each other: with the kernel's lock on a file, or if there is none, a lock file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

from filelock import FileLock, Timeout

from session_manager.files import weaker
from session_manager.files.atomic import make_private
from session_manager.files.lock_file import LockFile

_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_POLL_S = 0.02
HELD_SUFFIX = ".held"


class OwnLock:
    """The kernel's lock on a file. If ``works`` is False after ``take``, the file system has no such lock.

    A killed process holds nothing. Every method raises OSError.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = FileLock(path, mode=0o600)
        self.works = True

    def take(self, timeout: float) -> None:
        """Takes the lock, or detects that the file system has none. Raises Timeout."""
        if make_private(self._path) and not has_flock(self._path):
            # A file without a lock on it would suggest to the next call that locks work.
            os.unlink(self._path)
            self._give_up()
            return
        try:
            self._lock.acquire(timeout=timeout, poll_interval=_POLL_S)
        except (Timeout, NotImplementedError):
            if has_flock(self._path):
                raise
            self._give_up()

    def _give_up(self) -> None:
        self.works = False
        weaker.note(weaker.FLOCK)

    def release(self) -> None:
        """Releases it."""
        self._lock.release()


@contextlib.contextmanager
def own_lock(path: str, timeout: float) -> Iterator[None]:
    """Holds the lock with the file ``path`` for a moment. Raises Timeout and OSError."""
    kernel = OwnLock(path)
    kernel.take(timeout)
    try:
        with contextlib.nullcontext() if kernel.works else _held(path + HELD_SUFFIX, timeout):
            yield
    finally:
        kernel.release()


@contextlib.contextmanager
def _held(path: str, timeout: float) -> Iterator[None]:
    lock = LockFile(path, lambda: False)
    lock.alone = False
    deadline = time.monotonic() + timeout
    while not lock.take():
        if time.monotonic() >= deadline:
            raise Timeout(path)
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        lock.drop()


def has_flock(path: str) -> bool:
    """Returns True if the kernel can lock a file, even if another process holds it now."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _NO_FLOCK
    finally:
        os.close(fd)
    return True
