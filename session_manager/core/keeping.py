"""Sessions kept in addition to a policy's pins: those pinned one by one, and those restored lately.

A prune skips restored sessions for some days: the person who undid a removal does not want it repeated.
"""

from __future__ import annotations

import msgspec

from session_manager.core.errors import Damaged
from session_manager.core.session import DAY_MS


class Pin(msgspec.Struct, frozen=True):
    """When (epoch ms) and by whom a session was pinned."""

    at: int
    by: str | None = None


class Kept(msgspec.Struct):
    """Pins by session id, for every agent; and the time of the restore (epoch ms) by ``<agent>/<id>``."""

    pins: dict[str, Pin] = {}
    restored: dict[str, int] = {}

    def spared(self, now_ms: int, keep_days: int) -> frozenset[str]:
        """Returns the sessions restored within the last ``keep_days``."""
        since = now_ms - keep_days * DAY_MS
        return frozenset(name for name, at in self.restored.items() if at > since)


def decode(data: bytes, path: str) -> Kept:
    """Reads the text of the file at ``path``. Raises Damaged (``pins_damaged``)."""
    try:
        return msgspec.json.decode(data, type=Kept)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(path, str(error)) from error


def damaged(path: str, why: str) -> Damaged:
    """Returns the error for a file that cannot be read: the pins are unknown then."""
    return Damaged(
        f"the pin file {path} cannot be read ({why}); nothing is removed until you restore it from a backup, "
        "or move it away to continue without pins",
        code="pins_damaged",
    )
