"""Retention: which sessions are old enough to go, with a reason for each that stays although it is old."""

from __future__ import annotations

from collections.abc import Sequence, Set

import msgspec

from session_manager.core.families import families
from session_manager.core.protection import BUSY, CURRENT, RUNNING, UNDELIVERED, protection
from session_manager.core.selection import Selection
from session_manager.core.session import UNKNOWN, Session

PRUNABLE = frozenset({"cron", "subagent", "hook", "acp", "heartbeat", "node", "api", "explicit"})
MINUTE_MS = 60_000

DURABLE = "durable"
UNKNOWN_TYPE = "unknown type"
UNKNOWN_AGE = "unknown age"
FAMILY = "family"
LIMIT = "limit"


class Policy(msgspec.Struct, frozen=True):
    """What a prune may remove. ``max_age_minutes`` >= 1; ``limit`` >= 1 or None for all; ``only`` narrows the scope."""

    max_age_minutes: int
    session_type: str | None = None
    include_durable: bool = False
    limit: int | None = None
    only: Selection = Selection()

    def cutoff(self, now_ms: int) -> int:
        """Epoch milliseconds; a session is old when its last activity lies before it."""
        return now_ms - self.max_age_minutes * MINUTE_MS

    def covers(self, session: Session) -> bool:
        """Says whether a session is in this policy's scope at all."""
        return self.session_type in (None, session.session_type) and self.only.covers(session)


class Decision(msgspec.Struct):
    """What shall happen to one session.

    ``old`` is by age alone. ``reason`` is set when the session stays although it is old, or although
    its age is unknown; a session that is simply young has none.
    """

    session: Session
    old: bool
    prune: bool
    reason: str | None


def is_old(session: Session, cutoff: int) -> bool:
    """Says whether the last activity lies before ``cutoff`` (epoch ms); an unknown age is not old."""
    activity = session.last_activity
    return activity is not None and activity < cutoff


def decide(
    sessions: Sequence[Session],
    policy: Policy,
    now_ms: int,
    current: Set[str],
    relatives: Sequence[Session] = (),
    already: int = 0,
) -> list[Decision]:
    """Decides for every session in the policy's scope, in the given order.

    ``relatives`` are sessions of other agents, which only count as members of families. ``already`` is how
    many sessions this run has removed before; it counts against ``policy.limit``, which spares the newest.
    """
    cutoff = policy.cutoff(now_ms)
    kept_by_family = _kept_by_family([*sessions, *relatives], cutoff, current)
    decisions = []
    for i, session in enumerate(sessions):
        if not policy.covers(session):
            continue
        old = is_old(session, cutoff)
        reason = None
        if old or session.last_activity is None:
            reason = _reason(session, policy, current) or (FAMILY if i in kept_by_family else None)
        decisions.append(Decision(session, old, old and reason is None, reason))
    if policy.limit is not None:
        going = sorted((d for d in decisions if d.prune), key=lambda d: d.session.last_activity or 0)
        for decision in going[max(0, policy.limit - already) :]:
            decision.prune, decision.reason = False, LIMIT
    return decisions


def _reason(session: Session, policy: Policy, current: Set[str]) -> str | None:
    protected = protection(session, current)
    if protected is not None:
        return protected.reason
    if session.last_activity is None:
        return UNKNOWN_AGE
    if policy.include_durable:
        return None
    durable = session.kinds - PRUNABLE - {policy.session_type}
    if not durable:
        return None
    return UNKNOWN_TYPE if durable == {UNKNOWN} else DURABLE


def _kept_by_family(everyone: Sequence[Session], cutoff: int, current: Set[str]) -> set[int]:
    """Indexes of sessions whose family holds a member that is young, of unknown age, busy, undelivered or calling."""
    kept: set[int] = set()
    for family in families(everyone):
        if any(_holds_family(everyone[i], cutoff, current) for i in family):
            kept.update(family)
    return kept


def _holds_family(session: Session, cutoff: int, current: Set[str]) -> bool:
    if not is_old(session, cutoff):
        return True
    protected = protection(session, current)
    return protected is not None and protected.reason in (CURRENT, BUSY, RUNNING, UNDELIVERED)
