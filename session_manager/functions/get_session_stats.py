"""get_session_stats: counts sessions, stale ones, and those that a prune would remove."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import msgspec

from session_manager.archives.names import parse_archive
from session_manager.core.errors import SessionManagerError, with_errors
from session_manager.core.retention import Policy
from session_manager.functions.context import Agents, Context, Minutes
from session_manager.functions.policy import with_policy_to_read
from session_manager.functions.prune_sessions import preview
from session_manager.functions.reading import AgentRead
from session_manager.stores.openclaw_files.transcripts import files_by_session
from session_manager.stores.openclaw_files.whereabouts import is_transcript

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
    sizes = _sizes(plan.agents)
    document = {
        "total_sessions": len(plan.decisions),
        "stale_sessions": stale,
        "active_sessions": len(plan.decisions) - stale,
        "by_agent": by_agent,
        "stale_threshold_minutes": arguments.stale_minutes,
        "prunable_sessions": len(plan.removed),
        "by_type": dict(Counter(d.session.session_type for d in plan.decisions).most_common()),
        "transcript_bytes": sizes.live,
        "archived_bytes": sizes.archived,
        "bytes_by_agent": sizes.by_agent,
        "bytes_by_type": sizes.by_type,
        "pending_history_marks": pending_marks(context),
        **unusable,
    }
    return with_errors(document, plan.errors)


class Sizes(msgspec.Struct):
    """Bytes of transcripts and of archives; those of transcripts by agent, and by the type of their session."""

    live: int = 0
    archived: int = 0
    by_agent: dict[str, int] = {}
    by_type: dict[str, int] = {}


def _sizes(agents: list[AgentRead]) -> Sizes:
    sizes = Sizes()
    for agent in agents:
        if agent.store is None:
            continue
        folder = agent.store.sessions_dir
        files = files_by_session(agent.names, agent.sessions, folder)
        # A transcript that several sessions share counts once.
        types = {name: s.session_type for s in reversed(agent.sessions) for name in files.get(s.id, ())}
        before = sizes.live
        for name in agent.names:
            is_archive = parse_archive(name) is not None
            if not is_archive and not is_transcript(name):
                continue
            try:
                size = os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                continue
            if is_archive:
                sizes.archived += size
                continue
            sizes.live += size
            if name in types:
                sizes.by_type[types[name]] = sizes.by_type.get(types[name], 0) + size
        sizes.by_agent[agent.agent_id] = sizes.live - before
    return sizes


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
