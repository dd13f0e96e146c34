"""get_session_stats: how many sessions there are, how many are stale, and what a prune would remove."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import msgspec

from session_manager.core.errors import SessionManagerError, with_errors
from session_manager.core.retention import Policy
from session_manager.functions.context import Agent, Context, Minutes
from session_manager.functions.policy import with_policy_to_read
from session_manager.functions.prune_sessions import preview
from session_manager.functions.reading import AgentRead
from session_manager.live.transcripts import is_transcript, parse_archive

DESCRIPTION = (
    "Counts sessions: all, stale by age, prunable, by agent and by type; bytes on disk; history marks that wait."
)


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of get_session_stats."""

    agent: Agent | None = None
    stale_minutes: Minutes = 60


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns the counts: stale by age alone, prunable as prune_sessions with that age would decide now.

    Bytes are those of transcripts and archives in the sessions folders."""
    context, unusable = with_policy_to_read(context)
    plan = preview(context, arguments.agent, Policy(arguments.stale_minutes))
    stale = sum(d.old for d in plan.decisions)
    by_agent = {agent.agent_id: len(agent.sessions) for agent in plan.agents}
    transcript_bytes, archived_bytes = _bytes(plan.agents)
    document = {
        "total_sessions": len(plan.decisions),
        "stale_sessions": stale,
        "active_sessions": len(plan.decisions) - stale,
        "by_agent": by_agent,
        "stale_threshold_minutes": arguments.stale_minutes,
        "prunable_sessions": len(plan.removed),
        "by_type": dict(Counter(d.session.session_type for d in plan.decisions).most_common()),
        "transcript_bytes": transcript_bytes,
        "archived_bytes": archived_bytes,
        "pending_history_marks": pending_marks(context),
        **unusable,
    }
    return with_errors(document, plan.errors)


def _bytes(agents: list[AgentRead]) -> tuple[int, int]:
    live = archived = 0
    for agent in agents:
        for name in agent.names:
            is_archive = parse_archive(name) is not None
            if not is_archive and not is_transcript(name):
                continue
            assert agent.store is not None
            try:
                size = os.lstat(os.path.join(agent.store.sessions_dir, name)).st_size
            except OSError:
                continue
            live, archived = (live, archived + size) if is_archive else (live + size, archived)
    return live, archived


def pending_marks(context: Context) -> int | None:
    """Returns how many marks wait for history; None when the ledger cannot be read now."""
    from session_manager.settings import ledger_path

    try:
        os.stat(ledger_path(context.settings))
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError:
        return None
    from session_manager.live.ledger import Ledger

    try:
        ledger = Ledger.open_existing(context.settings, "ro")
        if ledger is None:
            return 0
        with ledger:
            return ledger.pending_count()
    except SessionManagerError:
        return None
