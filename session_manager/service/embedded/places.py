"""The embedded database's base folder: its place, its permissions, and its locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath

from session_manager.core.errors import Failed, Refused
from session_manager.service.embedded.accounts import Account, run_as

ROOT_BASE = "/var/lib/session-manager"
PORT = 5432
# The kernel's limit for the path of a socket, without the final NUL.
_SOCKET_LIMIT = 107
_SOCKET_NAME = f".s.PGSQL.{PORT}"
_RECORD = "server.json"
_TEMP_PREFIX = "session-manager-"


def default_base(environ: Mapping[str, str]) -> str:
    """Returns the folder for data when none is configured.

    ``$XDG_STATE_HOME/session-manager`` (an absolute path; for root, too), else ``/var/lib/session-manager`` for root
    and ``~/.local/state/session-manager`` for others.
    """
    state = environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(state):
        return os.path.join(state, "session-manager")
    if os.geteuid() == 0:
        return ROOT_BASE
    home = environ.get("HOME") or os.path.expanduser("~")
    return os.path.join(home, ".local", "state", "session-manager")


@contextlib.contextmanager
def clear_errors(base: str) -> Iterator[None]:
    """Turns an OSError into one of ours.

    Raises Refused (``disk_full``, ``not_writable``, ``not_a_folder``) or Failed (``io_error``).
    """
    try:
        yield
    except OSError as error:
        sentence = f"cannot use {base} for the database: {error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise full_disk(base) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise Refused(f"{sentence}; choose a writable folder, or set DATABASE_URL", code="not_writable") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise Refused(f"{sentence}; choose a folder, or set DATABASE_URL", code="not_a_folder") from error
        raise Failed(sentence, code="io_error") from error


def full_disk(base: str) -> Refused:
    """Returns the error that stands for a file system without space."""
    return Refused(f"no space left for the database in {base}; free some space and start again", code="disk_full")


def check_apart(base: str, agents_dir: str) -> None:
    """Checks that neither folder contains the other, through any links and mounts. Both are real paths.

    Raises Refused (``database_in_agents_dir``).
    """
    if _contains(agents_dir, base) or _contains(base, agents_dir):
        raise Refused(
            f"the database cannot be in {base}: it must be separate from the agents directory {agents_dir}; choose "
            f"another folder, or set DATABASE_URL",
            code="database_in_agents_dir",
        )


def _contains(outer: str, inner: str) -> bool:
    for path in _upward(inner):
        with contextlib.suppress(OSError):
            if path == outer or os.path.samefile(path, outer):
                return True
    return False


def _upward(path: str) -> list[str]:
    return [path, *map(str, PurePath(path).parents)]


def make_base(base: str, account: Account) -> None:
    """Creates the base and its missing parents; changes no existing folder.

    Only the owner can access the new folders; the group of ``account`` can pass through them when that is another
    account. Root's base may not lie where another user could replace it. Raises OSError and Refused
    (``database_unreachable``, ``database_not_owned``, ``database_not_private``).
    """
    path = _upward(base)
    missing = [folder for folder in path if not os.path.lexists(folder)]
    there = path[len(missing)]
    if not os.path.isdir(there):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), there)
    if account.other:
        _check_reach(base, there, account)
        _check_above(path[max(len(missing), 1) : -1])
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            make_folder(folder, account, ours=True)
    status = os.stat(base)
    if status.st_uid != os.geteuid():
        raise Refused(
            f"{base} belongs to user id {status.st_uid}; start the service as that user, or choose another folder",
            code="database_not_owned",
        )
    if status.st_mode & 0o022:
        raise Refused(
            f"other users can write to {base}; remove that permission (chmod go-w), or choose another folder",
            code="database_not_private",
        )


def _check_reach(base: str, there: str, account: Account) -> None:
    """Checks, by trying, that the account can enter the folder that is there already."""
    code, said = run_as(account, ["/bin/sh", "-c", ":"], cwd=there)
    if code:
        raise Refused(
            f"the user {account.name}, who runs PostgreSQL for root, cannot reach {base} ({said}); set XDG_STATE_HOME "
            f"to a folder that this user can pass through, or DATABASE_URL to a server of your own",
            code="database_unreachable",
        )


def _check_above(folders: list[str]) -> None:
    for path in folders:
        status = os.stat(path)
        open_to_all = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
        if open_to_all or status.st_uid != os.geteuid():
            raise Refused(
                f"users besides root can change {path}, so root's database cannot be below it; set XDG_STATE_HOME to "
                f"another folder, or DATABASE_URL to a server of your own",
                code="database_not_private",
            )


def make_folder(path: str, account: Account, *, ours: bool = False) -> None:
    """Creates a private folder of the account, or with ``ours`` one that it may only pass through. Raises OSError."""
    os.mkdir(path, 0o700)
    hand_over(path, account, ours=ours)


def hand_over(path: str, account: Account, *, ours: bool = False) -> None:
    """Lets the account into a private folder, as ``make_folder`` does. Raises OSError."""
    if account.other and ours:
        os.chown(path, -1, account.gid)
        os.chmod(path, 0o710)
    elif account.other:
        os.chown(path, account.uid, account.gid)


def temporary_place(account: Account, fits: Callable[[str], bool]) -> str:
    """Returns where to make a temporary folder: the system's place, if ``fits`` says yes to a path in it."""
    place = tempfile.gettempdir()
    # Root's own may be closed to the account.
    return "/tmp" if account.other or not fits(f"{place}/{_TEMP_PREFIX}12345678") else place


def own_folder(base: str, name: str, account: Account) -> str:
    """Returns a private folder of the account in ``base``, creating it if necessary.

    Raises OSError and Refused (``database_not_owned``).
    """
    path = os.path.join(base, name)
    with contextlib.suppress(FileExistsError):
        make_folder(path, account)
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != account.uid:
        raise Refused(f"{path} is not a folder of the user {account.name}; move it away", code="database_not_owned")
    return path


def lock(path: str, patience_s: float) -> int | None:
    """Takes an exclusive lock that ends with the last process that inherited it.

    Returns the file descriptor, None when another process holds it for longer than ``patience_s``. Raises OSError.
    """
    fd = private(path, os.O_RDWR | os.O_CREAT)
    end = time.monotonic() + patience_s
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
            if time.monotonic() > end:
                os.close(fd)
                return None
            time.sleep(0.02)
    except BaseException:
        os.close(fd)
        raise


def socket_folder(base: str, account: Account) -> str:
    """Returns a private folder for the socket: in ``base`` if that is suitable, else a new temporary one.

    Raises OSError.
    """
    if _good_for_socket(os.path.join(base, "socket")):
        return own_folder(base, "socket", account)
    folder = tempfile.mkdtemp(prefix=_TEMP_PREFIX, dir=temporary_place(account, _good_for_socket))
    hand_over(folder, account)
    return folder


def _good_for_socket(folder: str) -> bool:
    try:
        length = len(f"{folder}/{_SOCKET_NAME}".encode())
    except UnicodeEncodeError:
        return False
    # The client reads a comma as a separator of hosts.
    return length <= _SOCKET_LIMIT and "," not in folder


def write_record(base: str, folder: str, pid: int) -> None:
    """Records the socket's folder and the server's process id (0 when not yet known). Raises OSError."""
    path = os.path.join(base, _RECORD)
    with open(f"{path}.new", "w", opener=private, encoding="ascii") as file:
        json.dump({"socket": folder, "pid": pid}, file)
    os.replace(f"{path}.new", path)


def read_record(base: str) -> tuple[str, int] | None:
    """Returns the recorded socket folder and process id, None without a record. Raises OSError."""
    try:
        with open(os.path.join(base, _RECORD), encoding="ascii") as file:
            found = json.load(file)
        return str(found["socket"]), int(found["pid"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def drop_record(base: str, account: Account) -> None:
    """Deletes the record and the temporary folder that it names, once no server runs. Raises OSError."""
    if found := read_record(base):
        folder = found[0]
        with contextlib.suppress(OSError):
            if os.path.basename(folder).startswith(_TEMP_PREFIX) and os.lstat(folder).st_uid == account.uid:
                shutil.rmtree(folder)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(base, _RECORD))


def private(path: str, flags: int) -> int:
    """Opens a file that only its owner may read, never through a link (an opener for ``open``). Raises OSError."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
