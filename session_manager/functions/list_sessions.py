"""list_sessions: the live sessions, newest first."""

from __future__ import annotations

from typing import Any

import msgspec

from session_manager.core.errors import with_errors
from session_manager.core.protection import protection
from session_manager.core.session import Session
from session_manager.functions.context import Agent, Context, Limit, SessionType, check_session_type, iso_utc
from session_manager.functions.policy import with_policy_to_read
from session_manager.functions.reading import read_view

DESCRIPTION = "Lists the live sessions from the gateway's files, newest first; all agents unless one is named."


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of list_sessions."""

    agent: Agent | None = None
    session_type: SessionType | None = None
    limit: Limit | None = None


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns ``{"session_count", "sessions": [...]}``; one row per (agent, session id)."""
    check_session_type(arguments.session_type)
    context, unusable = with_policy_to_read(context)
    view = read_view(context, arguments.agent)
    errors = view.errors()
    sessions = [s for s in view.sessions if arguments.session_type in (None, s.session_type)]
    sessions.sort(key=lambda s: (-(s.updated_at or 0), s.agent_id, s.id))
    shown = sessions[: arguments.limit]
    document: dict[str, Any] = {
        "session_count": len(sessions),
        "sessions": [_row(s, context.settings.current) for s in shown],
        **unusable,
    }
    return with_errors(document, errors)


def _row(session: Session, current: frozenset[str]) -> dict[str, Any]:
    protected = protection(session, current)
    return {
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
