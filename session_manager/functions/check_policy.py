"""check_policy: reports which sessions the retention policy would remove now, and why; it changes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from session_manager.core.errors import with_errors
from session_manager.core.retention import Decision, Policy
from session_manager.core.session import Session
from session_manager.functions.context import Agents, Context, iso_utc
from session_manager.functions.policy import read_kept, with_policy
from session_manager.functions.prune_sessions import policy_of, preview
from session_manager.functions.reading import AgentRead

if TYPE_CHECKING:
    from session_manager.core.policy import Pins
    from session_manager.core.rules import Overrun

DESCRIPTION = (
    "Shows what the retention policy (session-manager.toml) would remove now and what it would keep, with the "
    "reasons, which budgets cannot be met, and which pins match no session. Changes nothing."
)
_SHOWN = 100
# Agent id, session id -> name -> bytes.
_Transcripts = dict[tuple[str, str], dict[str, int]]


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of check_policy."""

    agent: Agents | None = None


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns the decisions of a prune_sessions without an age now, counted by reason, with the first sessions of each.

    Raises UsageError (``bad_policy``) for a policy that cannot be used.
    """
    context = with_policy(context)
    policy = policy_of(context)
    tally = preview(context, arguments.agent, policy)
    transcripts = _transcripts(tally.agents)
    sizes = {name: sum(files.values()) for name, files in transcripts.items()}
    going = [d for d in tally.decisions if d.prune]
    staying = [d for d in tally.decisions if not d.prune]
    # A pin may hold a session of an agent that was not read.
    whole = arguments.agent is None and not tally.errors
    everyone = (session for agent in tally.agents for session in agent.sessions)
    pins = context.policy.pins if context.policy is not None else None
    document = {
        "policy": context.settings.policy_path if context.policy is not None else None,
        "threshold_minutes": policy.max_age_minutes if isinstance(policy, Policy) else None,
        "total_sessions": len(tally.decisions),
        "would_prune": len(going),
        "would_keep": len(staying),
        "bytes_to_archive": sum(_files(transcripts, going, without=_files(transcripts, staying)).values()),
        "prune_reasons": _counted(d.rule for d in going),
        "keep_reasons": _counted(d.reason or d.rule for d in staying),
        "prune": [_row(d.session, d.rule, sizes) for d in going[:_SHOWN]],
        "keep": [_row(d.session, d.reason or d.rule, sizes) for d in staying[:_SHOWN]],
        "over_budget": [_overrun(agent_id, overrun) for agent_id, overrun in tally.overruns],
        "pinned": _pinned(context),
        "unused_pins": _unused(pins, everyone) if whole else None,
    }
    return with_errors(document, tally.errors)


def _transcripts(agents: list[AgentRead]) -> _Transcripts:
    return {
        (agent.agent_id, session_id): files
        for agent in agents
        if agent.snapshot is not None
        for session_id, files in agent.snapshot.transcript_sizes().items()
    }


def _files(
    transcripts: _Transcripts, decisions: Iterable[Decision], without: Collection[tuple[str, str]] = ()
) -> dict[tuple[str, str], int]:
    """Returns the bytes, by agent and name, of files that some sessions have and the ``without`` sessions do not."""
    return {
        (d.session.agent_id, name): size
        for d in decisions
        for name, size in transcripts.get((d.session.agent_id, d.session.id), {}).items()
        if (d.session.agent_id, name) not in without
    }


def _counted(reasons: Iterable[str]) -> dict[str, int]:
    return dict(Counter(reasons).most_common())


def _row(session: Session, reason: str, sizes: dict[tuple[str, str], int]) -> dict[str, Any]:
    return {
        "id": session.id,
        "agentId": session.agent_id,
        "session_type": session.session_type,
        "label": session.label,
        "last_activity": iso_utc(session.last_activity),
        "bytes": sizes.get((session.agent_id, session.id), 0),
        "reason": reason,
    }


def _overrun(agent_id: str, overrun: Overrun) -> dict[str, Any]:
    what = "its transcripts" if overrun.session_type is None else f"its {overrun.session_type} transcripts"
    over_by = overrun.bytes - overrun.budget
    sessions = "1 session is" if overrun.protected == 1 else f"{overrun.protected} sessions are"
    return {
        "agentId": agent_id,
        "session_type": overrun.session_type,
        "budget": overrun.budget,
        "bytes": overrun.bytes,
        "over_by": over_by,
        "protected": overrun.protected,
        "message": f"agent {agent_id!r}: {what} stay over budget by {over_by} bytes because {sessions} protected",
    }


def _pinned(context: Context) -> list[dict[str, Any]]:
    """Returns the pins set by pin_session, latest first."""
    kept = read_kept(context.settings)
    pins = sorted((kept.pins if kept is not None else {}).items(), key=lambda pin: -pin[1].at)
    return [{"id": session_id, "pinned_at": iso_utc(pin.at), "pinned_by": pin.by} for session_id, pin in pins]


def _unused(pins: Pins | None, sessions: Iterable[Session]) -> dict[str, list[str]]:
    """Returns the pins that match no live session: a misspelt pin looks like any other."""
    if pins is None:
        return {}
    keys, labels, ids = set(pins.keys), set(pins.labels), set(pins.ids)
    for session in sessions:
        keys.difference_update(key.lower() for key in session.keys)
        labels.difference_update((session.label or "", *session.labels))
        ids.discard(session.id)
    unused = {"keys": sorted(keys), "labels": sorted(labels), "ids": sorted(ids)}
    return {name: found for name, found in unused.items() if found}
