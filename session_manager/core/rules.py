"""Retention by rules: which sessions a policy's ages, counts and budgets remove from one agent, and which stay.

The rules are applied in order: ages and counts, then the budget of each type, then that of the agent; each budget
counts the sessions left by then. A session that several rules would remove bears the name of the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set

import msgspec

from session_manager.core.families import families
from session_manager.core.keys import parse_key
from session_manager.core.policy import RetentionPolicy
from session_manager.core.protection import protection
from session_manager.core.retention import (
    FAMILY,
    HOLDING,
    MINUTE_MS,
    RESTORED,
    UNKNOWN_AGE,
    WITHIN,
    Decision,
    apply_limit,
    durable,
    older_than,
)
from session_manager.core.selection import Selection
from session_manager.core.session import Session

NO_RULE = "no rule"
OVER_COUNT = "over count"
OVER_BUDGET = "over budget"


class ByRules(msgspec.Struct, frozen=True):
    """What a prune by a policy may remove: sessions that the policy takes and ``only`` covers, at most ``limit``."""

    policy: RetentionPolicy
    only: Selection = Selection()
    limit: int | None = None

    def cutoff(self, now_ms: int) -> Callable[[Session], int]:
        """Returns, for each session, the time (epoch ms) before which its transcript need not be read.

        Counts and budgets take the oldest first, so a transcript that is newer than its entry counts.
        """
        rules = self.policy.rules

        def of(session: Session) -> int:
            rule = rules.get(session.session_type)
            if self.policy.agent_budget is not None or (rule and (rule.keep_newest or rule.budget)):
                return (session.entry_activity or 0) + 1
            return now_ms - rule.max_age_minutes * MINUTE_MS if rule and rule.max_age_minutes else 0

        return of

    @property
    def needs_sizes(self) -> bool:
        """Returns True if the policy has a budget."""
        return self.policy.agent_budget is not None or any(r.budget is not None for r in self.policy.rules.values())


class Overrun(msgspec.Struct, frozen=True):
    """A budget that cannot be met: ``bytes`` of ``protected`` sessions stay. Without a type: the agent's budget."""

    session_type: str | None
    budget: int
    bytes: int
    protected: int


def decide_by_rules(
    sessions: Sequence[Session],
    rules: ByRules,
    transcripts: Mapping[str, Mapping[str, int]],
    now_ms: int,
    current: Set[str],
    relatives: Sequence[Session] = (),
    already: int = 0,
) -> tuple[list[Decision], list[Overrun]]:
    """Decides about one agent's sessions, in the given order; also returns the budgets that cannot be met.

    ``transcripts`` are bytes by file name by session id, ``relatives`` and ``already`` as for ``retention.decide``.
    """
    judge = _Judge(sessions, relatives, rules.policy, transcripts, now_ms, current)
    judge.by_age_and_count()
    overruns = judge.by_budgets()
    covered = (i for i, session in enumerate(sessions) if rules.only.covers(session))
    decisions = [judge.decision(i) for i in covered]
    apply_limit(decisions, rules.limit, already)
    return decisions, overruns


class _Judge:
    """One agent's sessions (indexes from 0) and, after them, their relatives in other agents."""

    def __init__(
        self,
        sessions: Sequence[Session],
        relatives: Sequence[Session],
        policy: RetentionPolicy,
        transcripts: Mapping[str, Mapping[str, int]],
        now_ms: int,
        current: Set[str],
    ) -> None:
        self._own = range(len(sessions))
        self._everyone = [*sessions, *relatives]
        self._policy = policy
        self._now = now_ms
        self._families = families(self._everyone)
        self._protected = [protection(session, current) for session in self._everyone]
        self._kept = [self._reason(i) for i in range(len(self._everyone))]
        self._files = [{n: b for n, b in transcripts.get(s.id, {}).items() if b} for s in sessions]
        # A file that a staying session also has is freed with no other session.
        self._stuck = {name for i in self._own if self._kept[i] is not None for name in self._files[i]}
        # Sessions that a rule takes, even if they stay in the end.
        self._rule: dict[int, str] = {}
        self._going: set[int] = set()
        self._held: set[int] = set()

    def _reason(self, i: int) -> str | None:
        protected, session = self._protected[i], self._everyone[i]
        if protected is not None:
            return protected.reason
        if session.last_activity is None:
            return UNKNOWN_AGE
        return RESTORED if session.restored else durable(session, self._policy.rules.keys())

    def _activity(self, i: int) -> int:
        return self._everyone[i].last_activity or 0

    def by_age_and_count(self) -> None:
        """Takes sessions that are too old, then all but the newest of each group; families go as a whole or stay."""
        for i in self._own:
            if self._is_too_old(i):
                minutes = self._policy.rules[self._everyone[i].session_type].max_age_minutes
                self._rule[i] = older_than(minutes or 0)
        for count, group in self._groups():
            group.sort(key=lambda i: (self._activity(i), self._everyone[i].id))
            for i in group[: max(0, len(group) - count)]:
                self._rule.setdefault(i, OVER_COUNT)
        for family in self._families:
            # Of another agent's rules only the ages are known here.
            ours = self._is_ours(family)
            if any(self._holds(i) or not (self._is_too_old(i) or (ours and i in self._rule)) for i in family):
                self._held.update(i for i in family if i in self._rule)
        self._going = {i for i in self._rule if self._kept[i] is None and i not in self._held}

    def _is_too_old(self, i: int) -> bool:
        rule = self._policy.rules.get(self._everyone[i].session_type)
        activity = self._everyone[i].last_activity
        if rule is None or rule.max_age_minutes is None or activity is None:
            return False
        return activity < self._now - rule.max_age_minutes * MINUTE_MS

    def _groups(self) -> Iterable[tuple[int, list[int]]]:
        groups: dict[tuple[str, str], list[int]] = {}
        for i in self._own:
            session = self._everyone[i]
            rule = self._policy.rules.get(session.session_type)
            if rule is not None and rule.keep_newest is not None and session.last_activity is not None:
                job = _cron_job(session) if rule.per_job else ""
                groups.setdefault((session.session_type, job), []).append(i)
        for (session_type, _), group in groups.items():
            yield self._policy.rules[session_type].keep_newest or 0, group

    def _holds(self, i: int) -> bool:
        """Returns True if a session keeps its whole family."""
        protected, session = self._protected[i], self._everyone[i]
        held = protected is not None and protected.reason in HOLDING
        return held or session.restored or session.last_activity is None

    def by_budgets(self) -> list[Overrun]:
        """Takes the oldest of the rest until each budget is met; returns those that cannot be met."""
        by_type: dict[str, list[int]] = {}
        for i in self._own:
            by_type.setdefault(self._everyone[i].session_type, []).append(i)
        budgets: list[tuple[str | None, int | None, Sequence[int]]] = [
            (session_type, rule.budget, by_type.get(session_type, ()))
            for session_type, rule in self._policy.rules.items()
        ]
        budgets.append((None, self._policy.agent_budget, self._own))
        overruns = (self._fit(name, budget, scope) for name, budget, scope in budgets if budget is not None)
        return [overrun for overrun in overruns if overrun is not None]

    def _fit(self, session_type: str | None, budget: int, scope: Sequence[int]) -> Overrun | None:
        staying = {i for i in scope if i not in self._going}
        inside = {i for i in staying if self._files[i] and (self._kept[i] or self._files[i].keys() - self._stuck)}
        users = Counter(name for i in staying for name in self._files[i])
        total = sum({name: size for i in staying for name, size in self._files[i].items()}.values())
        for unit in self._oldest_first(inside) if total > budget else ():
            if total <= budget:
                break
            waiting = inside.intersection(unit)
            for i in waiting:
                self._rule.setdefault(i, OVER_BUDGET)
            if self._must_stay(unit, session_type):
                self._held.update(waiting)
                continue
            taken = [i for i in unit if i in self._own and i not in self._going and self._kept[i] is None]
            for i in taken:
                self._rule.setdefault(i, OVER_BUDGET)
            self._going.update(taken)
            total -= self._freed(staying.intersection(taken), users)
        return Overrun(session_type, budget, total, len(inside - self._going)) if total > budget else None

    def _freed(self, taken: Iterable[int], users: Counter[str]) -> int:
        """Subtracts sessions from the ``users`` of files; returns the bytes of files left without a user."""
        freed = 0
        for i in taken:
            for name, size in self._files[i].items():
                if name in users:
                    users[name] -= 1
                    freed += 0 if users[name] else size
        return freed

    def _oldest_first(self, scope: Iterable[int]) -> list[list[int]]:
        """Returns the units of ``scope``, single sessions and whole families, sorted by their youngest member."""
        family_of = {i: family for family in self._families for i in family}
        units = {unit[0]: unit for i in scope for unit in (family_of.get(i) or [i],)}
        return sorted(units.values(), key=lambda u: (max(map(self._activity, u)), self._everyone[u[0]].id))

    def _must_stay(self, unit: Sequence[int], session_type: str | None) -> bool:
        """Returns True if a member keeps the unit: held, in another agent (with its own budget), or without a rule."""
        return not self._is_ours(unit) or any(
            self._holds(i) or (session_type is not None and self._everyone[i].session_type not in self._policy.rules)
            for i in unit
        )

    def _is_ours(self, unit: Sequence[int]) -> bool:
        return all(i in self._own for i in unit)

    def decision(self, i: int) -> Decision:
        """Returns the decision about one session."""
        session = self._everyone[i]
        rule, reason = self._rule.get(i), None
        has_rule = session.session_type in self._policy.rules or self._policy.agent_budget is not None
        unruled = WITHIN if has_rule else NO_RULE
        if rule is not None or (session.last_activity is None and has_rule):
            reason = self._kept[i] or (FAMILY if i in self._held else None)
        going = i in self._going
        return Decision(session, rule is not None, going, None if going else reason, rule or unruled)


def _cron_job(session: Session) -> str:
    """Returns the job's id out of ``cron:<job>`` or ``cron:<job>:run:<id>``."""
    key = parse_key(session.key)
    return key.rest.lower().split(":")[1]
