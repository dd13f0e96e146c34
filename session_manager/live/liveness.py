"""Lock files in the gateway's format: who wrote one, and whether it is still held.

Payload and staleness: gateway 2026.2.17 and 2026.4.14 ``acquireSessionWriteLock``: JSON ``{pid, createdAt,
starttime?}``. The store's marker is stale after 30 s, a transcript's lock after 30 min.
"""

from __future__ import annotations

import os
import time
from typing import Any

import msgspec

from session_manager.core.session import epoch_ms

STORE_STALE_MS = 30_000
TRANSCRIPT_STALE_MS = 1_800_000
OWNER = "session_manager"


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


def now_ms() -> int:
    """Returns the wall clock in epoch milliseconds."""
    return time.time_ns() // 1_000_000


def iso_ms(epoch_ms: int) -> str:
    """Writes epoch milliseconds as JavaScript's ``toISOString`` does: ``2026-02-15T18:00:00.123Z``."""
    from datetime import UTC, datetime

    moment = datetime.fromtimestamp(epoch_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{epoch_ms % 1000:03d}Z"
