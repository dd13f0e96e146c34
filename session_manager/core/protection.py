"""Why a session may not be removed: one function, called on every path, and again under the lock."""

from __future__ import annotations

from collections.abc import Set

import msgspec

from session_manager.core.errors import Refused
from session_manager.core.keys import MAIN, safe_name
from session_manager.core.session import Session

CURRENT = "current"
BUSY = "busy"
PINNED = "pinned"
RUNNING = "running"
UNDELIVERED = "undelivered"
ELSEWHERE = "elsewhere"
UNSAFE_ID = "unsafe id"


class Protection(msgspec.Struct, frozen=True):
    """A reason to keep a session, and whether ``force`` may override it in a delete."""

    reason: str
    overridable: bool


def protection(session: Session, current: Set[str]) -> Protection | None:
    """Returns why ``session`` must be kept, or None if nothing protects it.

    ``current`` holds the ids and keys of the sessions that are calling. A prune respects every reason,
    a delete those that ``force`` does not override. The strongest reason comes first.
    """
    if session.id in current or not current.isdisjoint(session.keys):
        return Protection(CURRENT, overridable=False)
    if not safe_name(session.id):
        # Its files cannot be named safely, so only half of it could be removed.
        return Protection(UNSAFE_ID, overridable=False)
    if MAIN in session.kinds:
        return Protection(MAIN, overridable=True)
    if session.busy:
        return Protection(RUNNING if session.running else BUSY, overridable=True)
    if session.undelivered:
        return Protection(UNDELIVERED, overridable=True)
    if session.pinned:
        return Protection(PINNED, overridable=True)
    if session.elsewhere:
        # It cannot be seen from here if it is in use, or holds anything new.
        return Protection(ELSEWHERE, overridable=True)
    return None


def refusal(protected: Protection, session_id: str, done: str = "deleted") -> Refused:
    """Returns the error for a session that was not ``done``, with the reason and the fix."""
    hints = {
        "current": "it is the calling session, and a session cannot remove itself",
        "main": "it is the agent's main session; call with force: true if you really mean it",
        "pinned": "it is pinned; call with force: true if you really mean it",
        BUSY: "its transcript is locked by a run in progress (doctor shows who holds the lock); try again later, or "
        "call with force: true",
        RUNNING: "a run of it is in progress (one that has died counts as running for 30 minutes); try again later, "
        "or call with force: true",
        UNDELIVERED: "its result has not been delivered yet; try again later, or call with force: true",
        ELSEWHERE: "its transcript is where this call cannot look (its entry names another state folder, mount or "
        "machine), and may be in use; call with force: true if you know that it is not",
        "unsafe id": "its id is not a safe file name; remove it with the gateway's own tools",
    }
    busy = protected.reason in (BUSY, RUNNING)
    return Refused(
        f"session {session_id} was not {done}: {hints[protected.reason]}",
        code="session_busy" if busy else "session_protected",
        reason=protected.reason,
    )
