"""A second name of one file: a hard link, or a durable copy within a budget."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from io import FileIO
from typing import BinaryIO

from session_manager.archives.folder import Guard
from session_manager.files import weaker
from session_manager.files.atomic import NO_LINKS, keep_owner, opened_folder, sync

PART = ".part"
LINKLESS = (errno.EXDEV, *NO_LINKS)
# The gateway waits for the store meanwhile: a file that exceeds this keeps one name only, and is reported.
_COPY_BYTES, _COPY_S = 256 * 1024 * 1024, 5.0
_PIECE = 1024 * 1024


def alone(path: str) -> None:
    """Replaces a file that has other names by its own copy under this name. Raises OSError."""
    status = os.lstat(path)
    if status.st_nlink == 1 or not stat.S_ISREG(status.st_mode):
        return
    part = own_part()
    with opened_folder(os.path.dirname(path)) as folder:
        Copying(None).copy(folder, os.path.basename(path), folder, part)
        os.rename(part, os.path.basename(path), src_dir_fd=folder, dst_dir_fd=folder)
        sync(folder)


def own_part() -> str:
    return f".session_manager.{os.getpid()}.{os.urandom(6).hex()}{PART}"


def keep_at(source: int, here: str, target: int, name: str, copying: Copying) -> bool:
    """Gives the file ``here`` the second name ``name``; False if it has it, or does not exist. Raises OSError."""
    try:
        theirs = os.stat(here, dir_fd=source, follow_symlinks=False)
        if here != name and _exists(name, source):
            return False
        try:
            ours = os.stat(name, dir_fd=target, follow_symlinks=False)
        except FileNotFoundError:
            try:
                os.link(here, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
                return True
            except OSError as error:
                if error.errno not in LINKLESS:
                    raise
                if error.errno != errno.EXDEV:
                    weaker.note(weaker.LINKS)
        else:
            if _alike(ours, theirs):
                return False
            if not holds(source, here, target, name):
                # On a file system that treats two spellings as one name it may belong to another session.
                raise OSError(errno.EEXIST, "another file has that name", name)
            if ours.st_size == theirs.st_size:
                return False
        copying.within_budget(source, here)
        copying.copy(source, here, target, PART)
        os.rename(PART, name, src_dir_fd=target, dst_dir_fd=target)
    except FileNotFoundError:
        # The file itself is gone: the gateway, or a person, was faster.
        return False
    return True


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _alike(ours: os.stat_result, theirs: os.stat_result) -> bool:
    """Returns True if a file is the same as another one, or a copy of it."""
    same_file = (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
    return same_file or (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)


def holds(folder: int, name: str, second_folder: int, second: str) -> bool:
    """Returns True if a file is the same as a second name, or begins with its whole content. Raises OSError."""
    ours = os.stat(second, dir_fd=second_folder, follow_symlinks=False)
    theirs = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if _alike(ours, theirs):
        return True
    if not (stat.S_ISREG(ours.st_mode) and stat.S_ISREG(theirs.st_mode) and ours.st_size <= theirs.st_size):
        return False
    with _reading(second, second_folder) as beginning, _reading(name, folder) as whole:
        while piece := beginning.read(_PIECE):
            if whole.read(len(piece)) != piece:
                return False
    return True


def _reading(name: str, folder: int) -> BinaryIO:
    return os.fdopen(os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), "rb")


class Copying:
    """Durable copies, within a budget of bytes and seconds for all of them together."""

    def __init__(self, lock: Guard | None) -> None:
        self.lock = lock
        self._bytes = _COPY_BYTES
        self._deadline: float | None = None

    def within_budget(self, folder: int, name: str) -> None:
        """Subtracts a file's bytes from the budget. Raises OSError (EFBIG) if they exceed the rest of it."""
        self._deadline = self._deadline or time.monotonic() + _COPY_S
        size = os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
        if size > self._bytes or time.monotonic() > self._deadline:
            raise OSError(errno.EFBIG, "copying it would take too long", name)
        self._bytes -= size

    def copy(self, source: int, name: str, target: int, new: str) -> None:
        """Copies a regular file with its times, 0600, owned by the owner of the target folder. Raises OSError."""
        from_fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=source)
        with open(from_fd, "rb", buffering=0) as reading:
            status = os.fstat(from_fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", name)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new, dir_fd=target)
            to_fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
            try:
                with open(to_fd, "wb", buffering=0) as writing:
                    keep_owner(to_fd, os.fstat(target))
                    self._pour(reading, writing)
                    with contextlib.suppress(PermissionError):
                        # Where no times can be kept, files are compared by content.
                        os.utime(to_fd, ns=(status.st_atime_ns, status.st_mtime_ns))
                    sync(to_fd)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(new, dir_fd=target)
                raise

    def _pour(self, reading: FileIO, writing: FileIO) -> None:
        while piece := reading.read(_PIECE):
            view = memoryview(piece)
            while view:
                view = view[writing.write(view) :]
            if self.lock is not None:
                self.lock.check()
