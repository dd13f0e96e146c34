"""A session as a row of a document."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from session_manager.core.protection import protection
from session_manager.core.session import Session
from session_manager.functions.context import iso_utc


def row(session: Session, current: Set[str]) -> dict[str, Any]:
    """Returns a session's row in list_sessions; ``bytes`` only when its size was looked up."""
    protected = protection(session, current)
    found = {
        "id": session.id,
        "sessionId": session.id,
        "key": session.key,
        "agentId": session.agent_id,
        "session_type": session.session_type,
        "label": session.label,
        "updatedAt": iso_utc(session.updated_at),
        "contextTokens": session.context_tokens,
        "model": session.model,
        "protected": protected.reason if protected else None,
    }
    return found if session.size is None else {**found, "bytes": session.size}
