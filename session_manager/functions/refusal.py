"""Explains in words why a session was not removed."""

from __future__ import annotations

from session_manager.core.errors import Refused
from session_manager.core.protection import Protection, refusal
from session_manager.core.retention import LIMIT
from session_manager.functions.tally import ACTIVE


def kept_although_named(reason: str, session_id: str) -> Refused | None:
    """Returns the error for a named session that stayed; None when a limit spared it."""
    if reason == LIMIT:
        return None
    if reason == ACTIVE:
        return Refused(f"session {session_id} has just become active and was kept", code="session_busy", reason=reason)
    return refusal(Protection(reason, overridable=True), session_id)
