"""Versions of a file, told apart by their identity."""

from __future__ import annotations

import os
import stat

import msgspec


class Identity(msgspec.Struct, frozen=True):
    """Distinguishes one version of a file from the next: every writer of the index renames a new file into place."""

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Returns the identity in a stat result."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


def identity_of(path: str) -> Identity:
    """Returns the identity of the file at ``path``, links not followed. Raises OSError."""
    return Identity.of(os.lstat(path))


def read_file(path: str) -> tuple[bytes, Identity]:
    """Reads a whole regular file; returns its text and the identity of that version. Raises OSError."""
    # O_NONBLOCK: a FIFO in place of the file must be an error, not block.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(22, "not a regular file", path)
        return file.read(), Identity.of(status)
