"""The one durable writer, and the two renames that need the kernel's help."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator

from session_manager.core.errors import Failed, Refused, SessionManagerError
from session_manager.files import weaker
from session_manager.files.versions import Identity

# Every file of ours in a sessions folder starts with this: the gateway's clean-ups and our grammar skip it.
OWN_PREFIX = ".session_manager."

_AT_FDCWD = -100
_NOREPLACE = 1
_EXCHANGE = 2
_RENAMEAT2 = (
    {"x86_64": 316, "aarch64": 276, "riscv64": 276, "s390x": 347, "ppc64le": 357}.get(os.uname().machine)
    if sys.platform == "linux"
    else None
)
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)
# Errors of file systems without hard links, fsync, or file modes.
NO_LINKS = (errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_MODES = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextlib.contextmanager
def clear_errors(what: str, path: str) -> Iterator[None]:
    """Turns an OSError into one of ours, whose sentence names the operation.

    Raises Refused (``disk_full``, ``not_writable``) or Failed (``io_error``).
    """
    try:
        yield
    except OSError as error:
        raise explain(error, what, path) from error


def explain(error: OSError, what: str, path: str) -> SessionManagerError:
    """Returns our error for an OSError while doing ``what`` with ``path``."""
    sentence = f"cannot {what} {path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Refused(f"{sentence}; free some space and call again", code="disk_full")
    if error.errno == errno.EROFS:
        return Refused(f"{sentence}; mount it for writing", code="not_writable")
    if error.errno in (errno.EACCES, errno.EPERM):
        from session_manager.files.owners import run_as

        return Refused(f"{sentence}; {run_as(path)}", code="not_writable")
    if error.errno == errno.ENAMETOOLONG:
        return Refused(f"{sentence}; give the file a shorter name and call again", code="name_too_long")
    return Failed(sentence, code="io_error")


def write_new(
    path: str, data: bytes | Iterable[bytes | memoryview], like: os.stat_result, *, durable: bool = True
) -> Identity:
    """Writes ``data`` (or its parts) to a new file with the mode and owner of ``like``; a failure leaves no file.

    Returns the new file's identity. Raises OSError; EPERM when the owner cannot be kept, because a gateway that
    cannot read its own index any more would start an empty one.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb") as file:
            keep_owner(fd, like)
            keep_mode(fd, like)
            file.writelines((data,) if isinstance(data, bytes) else data)
            file.flush()
            if durable:
                sync(fd)
            return Identity.of(os.fstat(fd))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise


def make_private(path: str) -> bool:
    """Makes an empty file, 0600, owned by the owner of its folder; False if it exists. Raises OSError.

    A file owned by root would lock out all other users.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return False
    try:
        keep_owner(fd, os.stat(os.path.dirname(path)))
    finally:
        os.close(fd)
    return True


def private_in(folder: str) -> os.stat_result:
    """Returns mode 0600 and the folder's owner as a stat result, for a new private file. Raises OSError."""
    status = os.stat(folder)
    return os.stat_result((stat.S_IFREG | 0o600, *status[1:10]))


def keep_owner(file: int | str, like: os.stat_result) -> None:
    """Gives a file or folder the owner and group of ``like`` if they differ. Raises OSError."""
    status = os.stat(file)
    if (status.st_uid, status.st_gid) != (like.st_uid, like.st_gid):
        # A group that we are not a member of is no reason to fail if the owner is right.
        try:
            os.chown(file, like.st_uid, like.st_gid)
        except PermissionError:
            if status.st_uid != like.st_uid:
                raise


def keep_mode(fd: int, like: os.stat_result) -> None:
    """Gives a file the mode of ``like``. Raises OSError, unless there are no modes and the owner's bits are set."""
    try:
        os.fchmod(fd, stat.S_IMODE(like.st_mode))
    except OSError as error:
        lost = like.st_mode & ~os.fstat(fd).st_mode & stat.S_IRWXU
        if error.errno not in _NO_MODES or lost:
            raise
        weaker.note(weaker.MODES)


@contextlib.contextmanager
def opened_folder(path: str) -> Iterator[int]:
    """Opens a folder, links not followed, to reach names in it without walking its path. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


def sync(fd: int) -> None:
    """Syncs an open file or folder, if the file system can. Raises OSError."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        weaker.note(weaker.FSYNC)


def sync_file(path: str) -> None:
    """Makes a file's content durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        sync(fd)
    finally:
        os.close(fd)


def sync_folder(path: str) -> None:
    """Makes the names in a folder durable. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd)
    finally:
        os.close(fd)


def exchange(first: str, second: str) -> bool:
    """Swaps two names in one step; False if the system or file system cannot. Raises OSError."""
    return _renameat2(first, second, _EXCHANGE)


def rename_exclusively(source: str, target: str) -> bool:
    """Renames in one step without overwriting; False if the system or file system cannot.

    Raises FileExistsError and other OSErrors.
    """
    return _renameat2(source, target, _NOREPLACE)


def rename_new(source: str, target: str, folder: int | None = None) -> None:
    """Renames without ever overwriting; ``folder`` is an open folder that contains both names.

    Raises FileExistsError, FileNotFoundError and other OSErrors.
    """
    if _renameat2(source, target, _NOREPLACE, _AT_FDCWD if folder is None else folder):
        return
    # Like the kernel, report a missing source first, or a file that has already been moved would seem to be in its
    # own way.
    os.stat(source, dir_fd=folder, follow_symlinks=False)
    with contextlib.suppress(FileNotFoundError):
        os.stat(target, dir_fd=folder, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
    os.rename(source, target, src_dir_fd=folder, dst_dir_fd=folder)


def _renameat2(source: str, target: str, flags: int, folder: int = _AT_FDCWD) -> bool:
    if _RENAMEAT2 is None:
        return False
    result = _syscall()(_RENAMEAT2, folder, os.fsencode(source), folder, os.fsencode(target), flags)
    if result == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), source, None, target)


@functools.cache
def _syscall() -> Callable[..., int]:
    function = ctypes.CDLL(None, use_errno=True).syscall
    number, path = ctypes.c_long, ctypes.c_char_p
    function.argtypes = [number, ctypes.c_int, path, ctypes.c_int, path, ctypes.c_uint]
    function.restype = number
    return function
