"""Who delivers marks to history: one process at a time, so that each mark is sent once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from filelock import FileLock, Timeout

from session_manager.live.atomic import clear_errors, keep_owner
from session_manager.settings import Settings

LOCK_NAME = "delivery.lock"


@contextlib.contextmanager
def delivery_lock(settings: Settings) -> Iterator[bool]:
    """Takes the lock if it is free, without waiting; yields whether it is ours.

    It is the kernel's, so a killed process holds nothing. Raises Refused or Failed when the state directory, which
    must be there, cannot be written.
    """
    path = os.path.join(settings.state_dir, LOCK_NAME)
    lock = FileLock(path, mode=0o600)
    with clear_errors("lock", settings.state_dir):
        _make(path, settings.state_dir)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            mine = False
        else:
            mine = True
    try:
        yield mine
    finally:
        lock.release()


def _make(path: str, folder: str) -> None:
    """Makes the file for the folder's owner: one made by root would keep everybody else out."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return
    try:
        keep_owner(fd, os.stat(folder))
    finally:
        os.close(fd)
