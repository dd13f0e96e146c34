"""Explains in words why a session was not removed."""

from __future__ import annotations

from session_manager.core.errors import Refused
from session_manager.core.protection import BUSY, ELSEWHERE, RUNNING, UNDELIVERED, Protection
from session_manager.core.retention import LIMIT
from session_manager.functions.tally import ACTIVE


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


def kept_although_named(reason: str, session_id: str) -> Refused | None:
    """Returns the error for a named session that stayed; None when a limit spared it."""
    if reason == LIMIT:
        return None
    if reason == ACTIVE:
        return Refused(f"session {session_id} has just become active and was kept", code="session_busy", reason=reason)
    return refusal(Protection(reason, overridable=True), session_id)
