"""Retention: decides which sessions are old enough to remove, with a reason for each old one that stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set

import msgspec

from session_manager.core.families import families
from session_manager.core.keys import UNKNOWN
from session_manager.core.protection import BUSY, CURRENT, ELSEWHERE, RUNNING, UNDELIVERED, protection
from session_manager.core.selection import Selection
from session_manager.core.session import Session

PRUNABLE = frozenset({"cron", "subagent", "hook", "acp", "heartbeat", "node", "api", "explicit"})
MINUTE_MS = 60_000
# Epoch milliseconds, for all sessions or for each.
Cutoff = int | Callable[[Session], int]

DURABLE = "durable"
UNKNOWN_TYPE = "unknown type"
UNKNOWN_AGE = "unknown age"
RESTORED = "restored"
FAMILY = "family"
LIMIT = "limit"
WITHIN = "within the rules"
# Reasons that keep not only the session, but its whole family.
HOLDING = frozenset({CURRENT, BUSY, RUNNING, UNDELIVERED, ELSEWHERE})


class Policy(msgspec.Struct, frozen=True):
    """What a prune may remove. ``max_age_minutes`` >= 1; ``limit`` >= 1 or None for all; ``only`` narrows the scope."""

    max_age_minutes: int
    only: Selection = Selection()
    include_durable: bool = False
    limit: int | None = None

    def cutoff(self, now_ms: int) -> int:
        """Returns the time (epoch ms) before which the last activity of an old session lies."""
        return now_ms - self.max_age_minutes * MINUTE_MS


class Decision(msgspec.Struct):
    """The decision about one session.

    ``old`` is by age alone, under a retention policy by any of its rules. ``reason`` says why an old session, or one of
    unknown age, stays; a session that is simply young has none. ``rule`` names the rule that would remove it, or says
    why none would.
    """

    session: Session
    old: bool
    prune: bool
    reason: str | None
    rule: str


def is_old(session: Session, cutoff: int) -> bool:
    """Returns True if the last activity lies before ``cutoff`` (epoch ms); an unknown age is not old."""
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
    """Decides about every session in the policy's scope, in the given order.

    ``relatives`` are sessions of other agents, which only count as members of families. ``already`` is the number of
    sessions that this run has removed before; it counts against ``policy.limit``, which spares the newest.
    """
    cutoff = policy.cutoff(now_ms)
    kept_by_family = _kept_by_family([*sessions, *relatives], cutoff, current)
    decisions = []
    for i, session in enumerate(sessions):
        if not policy.only.covers(session):
            continue
        old = is_old(session, cutoff)
        reason = None
        if old or session.last_activity is None:
            reason = _reason(session, policy, current) or (FAMILY if i in kept_by_family else None)
        rule = older_than(policy.max_age_minutes) if old else WITHIN
        decisions.append(Decision(session, old, old and reason is None, reason, rule))
    apply_limit(decisions, policy.limit, already)
    return decisions


def older_than(minutes: int) -> str:
    """Returns the name of the rule that removes sessions older than so many minutes."""
    return f"older than {minutes} min"


def apply_limit(decisions: Iterable[Decision], limit: int | None, already: int) -> None:
    """Spares the newest of the chosen sessions beyond ``limit``, which includes those ``already`` removed."""
    if limit is None:
        return
    going = sorted((d for d in decisions if d.prune), key=lambda d: d.session.last_activity or 0)
    for decision in going[max(0, limit - already) :]:
        decision.prune, decision.reason = False, LIMIT


def _reason(session: Session, policy: Policy, current: Set[str]) -> str | None:
    protected = protection(session, current)
    if protected is not None:
        return protected.reason
    if session.last_activity is None:
        return UNKNOWN_AGE
    if session.restored:
        return RESTORED
    return None if policy.include_durable else durable(session, policy.only.types)


def durable(session: Session, named: Set[str]) -> str | None:
    """Returns why a session's types keep it, or None if all of them are removed by age or are ``named``.

    A session that a person still uses is kept even if its type is named.
    """
    kinds = session.kinds - PRUNABLE - named
    if kinds:
        return UNKNOWN_TYPE if kinds == {UNKNOWN} else DURABLE
    return DURABLE if session.bound or session.threads else None


def _kept_by_family(everyone: Sequence[Session], cutoff: int, current: Set[str]) -> set[int]:
    """Returns the indexes of sessions whose family has a member that is young, restored, of unknown age, calling,
    undelivered or busy, as far as can be seen.
    """
    kept: set[int] = set()
    for family in families(everyone):
        if any(_holds_family(everyone[i], cutoff, current) for i in family):
            kept.update(family)
    return kept


def _holds_family(session: Session, cutoff: int, current: Set[str]) -> bool:
    if session.restored or not is_old(session, cutoff):
        return True
    protected = protection(session, current)
    return protected is not None and protected.reason in HOLDING
