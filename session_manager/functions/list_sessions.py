"""list_sessions: the live sessions, newest first."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from session_manager.core.errors import with_errors
from session_manager.core.retention import MINUTE_MS, is_old
from session_manager.functions.context import Agents, Context, Filters, Limit, Minutes
from session_manager.functions.policy import with_policy_to_read
from session_manager.functions.reading import measure_view, read_view
from session_manager.functions.rows import row

DESCRIPTION = "Lists the live sessions from the gateway's files, newest first; all agents unless one is named."

Sizes = Annotated[bool, msgspec.Meta(description="also the bytes of each session's files")]


class Arguments(Filters, forbid_unknown_fields=True):
    """Arguments of list_sessions."""

    agent: Agents | None = None
    limit: Limit | None = None
    older_than_minutes: Minutes | None = None
    sizes: Sizes = False


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns ``{"session_count", "sessions": [...]}``; one row per (agent, session id)."""
    only = arguments.selection()
    context, unusable = with_policy_to_read(context)
    age = arguments.older_than_minutes
    cutoff = None if age is None else context.clock() - age * MINUTE_MS
    view = read_view(context, arguments.agent, cutoff)
    errors = view.errors()
    measure_view(view, only, sizes=arguments.sizes)
    sessions = [s for s in view.sessions if only.covers(s) and (cutoff is None or is_old(s, cutoff))]
    sessions.sort(key=lambda s: (-(s.updated_at or 0), s.agent_id, s.id))
    shown = sessions[: arguments.limit]
    document: dict[str, Any] = {
        "session_count": len(sessions),
        "sessions": [row(s, context.settings.current) for s in shown],
        **unusable,
    }
    return with_errors(document, errors)
