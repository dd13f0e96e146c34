"""Lock files in the gateway's format: who wrote one, and whether it is still held.

Payload and staleness: gateway 2026.2.17 and 2026.4.14 ``acquireSessionWriteLock``: JSON ``{pid, createdAt,
starttime?}``. The store's marker is stale after 30 s, a transcript's lock after 30 min.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec

from session_manager.core.session import epoch_ms

STORE_STALE_MS = 30_000
TRANSCRIPT_STALE_MS = 1_800_000
OWNER = "session_manager"
RUNTIMES = ("node", "nodejs", "bun", "deno")
_KIN = re.compile("openclaw|clawdbot|moltbot|moldbot")


class Payload(msgspec.Struct, rename="camel", omit_defaults=True):
    """The content of a lock file. ``starttime`` is field 22 of /proc/<pid>/stat, in clock ticks since boot.

    Only this tool writes ``owner``, ``token`` and ``space`` (the pid namespace that the pid belongs to).
    """

    pid: int
    created_at: Any = None
    starttime: int | None = None
    owner: str | None = None
    token: str | None = None
    space: str | None = None


class Marker(msgspec.Struct):
    """A lock file as found: its bytes, its payload (None if empty or garbage), its mtime in epoch ms."""

    content: bytes
    payload: Payload | None
    mtime_ms: int

    @property
    def ours(self) -> bool:
        """Returns True if this tool wrote it."""
        return self.payload is not None and self.payload.owner == OWNER

    def holder(self) -> dict[str, object]:
        """Describes the holder for a failure document."""
        if self.payload is None:
            return {"who": "unknown", "pid": None, "createdAt": None}
        who = OWNER if self.ours else "gateway"
        return {"who": who, "pid": self.payload.pid, "createdAt": self.payload.created_at}


def read_marker(path: str) -> Marker | None:
    """Reads a lock file; None when there is none. One that cannot be read counts as garbage of its age."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError:
        try:
            return Marker(b"", None, os.lstat(path).st_mtime_ns // 1_000_000)
        except FileNotFoundError:
            return None
        except OSError:
            return Marker(b"", None, now_ms())
    with open(fd, "rb", buffering=0) as file:
        mtime_ms = os.fstat(fd).st_mtime_ns // 1_000_000
        try:
            content = file.read(65536)
        except OSError:
            content = b""
    return Marker(content, _payload(content), mtime_ms)


def _payload(content: bytes) -> Payload | None:
    try:
        return msgspec.json.decode(content, type=Payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def written_at(marker: Marker, now_ms: int) -> int:
    """Returns the time at which a lock file was written (epoch ms): the time in it, else its mtime."""
    created = None if marker.payload is None else epoch_ms(marker.payload.created_at, now_ms)
    return created if created is not None and created <= now_ms else min(marker.mtime_ms, now_ms)


def process_lives(pid: int, starttime: int | None) -> bool:
    """Returns True if a process lives here, and started at ``starttime`` if that is known.

    Another user's process counts as alive; a zombie does not, as it cannot write any more.
    """
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (OSError, OverflowError):
        return False
    found = process_stat(pid)
    if found is None:
        return True
    state, started = found
    if state in ("Z", "X"):
        return False
    return starttime is None or started == starttime


def process_stat(pid: int) -> tuple[str, int] | None:
    """Returns a process's state letter and start time (clock ticks since boot); None without a /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The command's name is in parentheses and may itself contain spaces and parentheses.
            fields = file.read().rpartition(b")")[2].split()
        return fields[0].decode(), int(fields[19])
    except (OSError, IndexError, ValueError):
        return None


def arguments_of(pid: str) -> list[str]:
    """Returns a process's command line; a title that replaces it may be padded with blanks."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            text = file.read(4096).decode("utf-8", "replace")
    except OSError:
        return []
    return [part.strip() for part in text.rstrip("\0").split("\0")] if text.strip("\0") else []


def may_be_gateway(pid: int) -> bool:
    """Returns True if a process might be or start a gateway; also if it cannot be inspected."""
    arguments = arguments_of(str(pid))
    return (
        not arguments
        or os.path.basename(arguments[0]) in RUNTIMES
        or any(_KIN.search(argument.lower()) for argument in arguments)
    )


def program_of(pid: int) -> str | None:
    """Returns the name of the program that a process runs, or None if it cannot be inspected."""
    arguments = arguments_of(str(pid))
    return os.path.basename(arguments[0]) or None if arguments else None


def is_held(marker: Marker, stale_ms: int, now_ms: int, vouched: Callable[[], bool]) -> bool:
    """Returns True if a lock file must be respected.

    A living process's lock always must. A dead one's is free at once only if its pid is meaningful here: this tool
    wrote the lock, or a gateway of this very store runs in this process namespace (``vouched``). Otherwise, and for
    garbage, the gateway's own staleness time must have passed, because a pid of another container looks dead here.
    """
    payload = marker.payload
    if payload is not None:
        if owner_lives(payload):
            return True
        if marker.ours or vouched():
            return False
    return 0 <= now_ms - written_at(marker, now_ms) < stale_ms


def owner_lives(payload: Payload) -> bool:
    """Returns True if the process that a lock names lives here.

    Each container has a pid 1: if the one here is no gateway, it has not written a gateway's lock. Gateway 2026.6.11
    judges any pid like this, by the process's arguments.
    """
    if payload.pid == 1 and payload.starttime is None and process_lives(1, None):
        return may_be_gateway(1)
    return process_lives(payload.pid, payload.starttime)


def now_ms() -> int:
    """Returns the wall clock in epoch milliseconds."""
    return time.time_ns() // 1_000_000


def iso_ms(epoch_ms: int) -> str:
    """Writes epoch milliseconds as JavaScript's ``toISOString`` does: ``2026-02-15T18:00:00.123Z``."""
    from datetime import UTC, datetime

    moment = datetime.fromtimestamp(epoch_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{epoch_ms % 1000:03d}Z"


def kernel_lock_holder(path: str) -> int | None:
    """Returns the pid that holds the kernel's lock on a file, as the kernel lists it; None if none is listed.

    Trying the lock would take it. Processes in other containers are not visible, and without a /proc none are.
    """
    try:
        status = os.stat(path)
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in lines:
        # "1: FLOCK ADVISORY WRITE <pid> <major>:<minor>:<inode> 0 EOF"; a waiting one has "->" as its second field.
        if len(line) >= 6 and line[1] == "FLOCK" and line[5] == place and line[4].isdigit():
            return int(line[4]) or None
    return None
