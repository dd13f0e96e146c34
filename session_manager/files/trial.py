"""What a file system can do, tested in a temporary folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator

from session_manager.files import weaker
from session_manager.files.atomic import OWN_PREFIX, exchange, sync_file, sync_folder
from session_manager.files.lock_file import SUFFIX as LOCK_FILE
from session_manager.files.own_lock import has_flock

SUFFIX = ".trial"
# Files of a killed process are older than any trial takes.
_LEFT_S = 3600
_MODE = 0o640


def lacks(folder: str) -> set[str]:
    """Returns those capabilities named in ``weaker`` that a folder's file system lacks. Raises OSError."""
    sweep(folder)
    with _trial(folder) as place:
        one, other = (_made(os.path.join(place, name), name.encode()) for name in ("one", "other"))
        tried: dict[str, Callable[[], bool]] = {
            weaker.EXCHANGE: lambda: exchange(one, other) and _content(one) == b"other",
            weaker.LINKS: lambda: _links(one, os.path.join(place, "link")),
            weaker.FLOCK: lambda: has_flock(one),
            weaker.FSYNC: lambda: _syncs(one, place),
            weaker.MODES: lambda: _keeps_modes(one),
        }
        return {lack for lack, works in tried.items() if not works()}


def has_locks(folder: str) -> bool:
    """Returns True if the file system of a folder has the locks that SQLite needs. Raises OSError."""
    with _trial(folder) as place, open(_made(os.path.join(place, "one"), b""), "r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def kind_of(folder: str) -> str | None:
    """Returns the type of a folder's file system, or None if unknown."""
    try:
        device = os.stat(folder).st_dev
        place = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                # "36 35 98:0 /root /mount options tag - type source superblock", with any number of tags.
                fields, _, rest = line.partition(" - ")
                if fields.split()[2] == place and rest:
                    return rest.split()[0]
    except (OSError, IndexError):
        pass
    return None


def can_exchange(folder: str) -> bool:
    """Returns True if two files of a folder can be swapped in one step, for the holder of its lock. Raises OSError."""
    made: list[str] = []
    try:
        for _ in range(2):
            made.append(_made(os.path.join(folder, f"{OWN_PREFIX}{os.getpid()}.{os.urandom(6).hex()}{LOCK_FILE}"), b""))
        return exchange(*made)
    finally:
        for path in made:
            os.unlink(path)


def sweep(folder: str) -> None:
    """Removes old files that killed processes left there. Raises OSError."""
    for name in os.listdir(folder):
        if name.startswith(OWN_PREFIX) and name.endswith(SUFFIX):
            left = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                if time.time() - os.lstat(left).st_mtime > _LEFT_S:
                    shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _trial(folder: str) -> Iterator[str]:
    place = tempfile.mkdtemp(SUFFIX, f"{OWN_PREFIX}{os.getpid()}.", folder)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _made(path: str, content: bytes) -> str:
    with open(path, "xb") as file:
        file.write(content)
    return path


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _links(path: str, link: str) -> bool:
    try:
        os.link(path, link)
    except OSError:
        return False
    return os.path.samefile(path, link)


def _syncs(path: str, folder: str) -> bool:
    with weaker.noted() as noted:
        sync_file(path)
        sync_folder(folder)
    return not noted


def _keeps_modes(path: str) -> bool:
    with contextlib.suppress(OSError):
        os.chmod(path, _MODE)
    return stat.S_IMODE(os.lstat(path).st_mode) == _MODE
