"""get_session_stats: counts sessions, stale ones, and those that a prune would remove."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import msgspec

from session_manager.core.errors import SessionManagerError, with_errors
from session_manager.core.retention import Policy
from session_manager.functions.context import Agents, Context, Minutes
from session_manager.functions.policy import with_policy_to_read
from session_manager.functions.prune_sessions import preview

DESCRIPTION = (
    "Counts sessions: total, stale by age, prunable, by agent and by type; also bytes on disk and pending history "
    "marks."
)


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of get_session_stats."""

    agent: Agents | None = None
    stale_minutes: Minutes = 60


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns the counts: stale by age alone, prunable as prune_sessions with that age would decide now.

    Bytes are those of transcripts and archives in the sessions folders; by agent those of all transcripts, by type
    those of transcripts that have a session.
    """
    context, unusable = with_policy_to_read(context)
    plan = preview(context, arguments.agent, Policy(arguments.stale_minutes))
    stale = sum(d.old for d in plan.decisions)
    by_agent = {agent.agent_id: len(agent.sessions) for agent in plan.agents}
    used = {a.agent_id: a.snapshot.usage(a.names) for a in plan.agents if a.snapshot is not None}
    bytes_by_type: Counter[str] = Counter()
    for usage in used.values():
        bytes_by_type.update(usage.by_type)
    document = {
        "total_sessions": len(plan.decisions),
        "stale_sessions": stale,
        "active_sessions": len(plan.decisions) - stale,
        "by_agent": by_agent,
        "stale_threshold_minutes": arguments.stale_minutes,
        "prunable_sessions": len(plan.removed),
        "by_type": dict(Counter(d.session.session_type for d in plan.decisions).most_common()),
        "transcript_bytes": sum(usage.live for usage in used.values()),
        "archived_bytes": sum(usage.archived for usage in used.values()),
        "bytes_by_agent": {agent_id: usage.live for agent_id, usage in used.items()},
        "bytes_by_type": dict(bytes_by_type),
        "pending_history_marks": pending_marks(context),
        **unusable,
    }
    return with_errors(document, plan.errors)


def pending_marks(context: Context) -> int | None:
    """Returns the number of marks pending for history; None when the ledger cannot be read now."""
    from session_manager.settings import ledger_path

    try:
        os.stat(ledger_path(context.settings))
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError:
        return None
    from session_manager.ledger import Ledger

    try:
        ledger = Ledger.open_existing(context.settings, "ro")
        if ledger is None:
            return 0
        with ledger:
            return ledger.pending_count()
    except SessionManagerError:
        return None
