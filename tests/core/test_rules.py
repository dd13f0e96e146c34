"""What a policy's ages, counts, budgets and pins take, and what they never take."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_manager.core.policy import Pins, RetentionPolicy, Rule
from session_manager.core.protection import protection
from session_manager.core.retention import Decision
from session_manager.core.rules import ByRules, Overrun, decide_by_rules
from session_manager.core.selection import Selection
from session_manager.core.session import Entry, Session, build_sessions

NOW = 1_771_180_200_000
MINUTE = 60_000


def session(rest: str | tuple[str, ...], session_id: str, age: float | None = 10, **fields: Any) -> Session:
    """A session whose last activity is ``age`` minutes ago, with one key or several."""
    busy, agent = fields.pop("busy", False), fields.pop("agent", "main")
    at = None if age is None else NOW - int(age * MINUTE)
    entry = msgspec.convert({"sessionId": session_id, "updatedAt": at, **fields}, Entry)
    keys = (rest,) if isinstance(rest, str) else rest
    (built,) = build_sessions(agent, [(f"agent:{agent}:{key}", entry) for key in keys], NOW)
    built.busy = busy
    return built


def policy(agent_budget: int | None = None, pins: Pins | None = None, **rules: Rule) -> RetentionPolicy:
    return RetentionPolicy(rules, agent_budget, pins or Pins())


def files(sizes: dict[str, int]) -> dict[str, dict[str, int]]:
    """One transcript for each session."""
    return {session_id: {f"{session_id}.jsonl": size} for session_id, size in sizes.items()}


def decide(
    found: Sequence[Session], by: RetentionPolicy, sizes: dict[str, int] | None = None, **more: Any
) -> tuple[dict[str, Decision], list[Overrun]]:
    """Decisions by id, for sessions that have been pinned as the policy says."""
    for each in found:
        each.pinned = each.pinned or by.pins.holds(each)
    only, limit = more.pop("session_type", None), more.pop("limit", None)
    current = more.pop("current", frozenset())
    rules, transcripts = ByRules(by, Selection(only), limit), more.pop("transcripts", None) or files(sizes or {})
    decisions, overruns = decide_by_rules(found, rules, transcripts, NOW, current, **more)
    assert [d.session.id for d in decisions] == [s.id for s in found if only in (None, s.session_type)]
    return {d.session.id: d for d in decisions}, overruns


def going(decided: dict[str, Decision]) -> set[str]:
    return {i for i, d in decided.items() if d.prune}


def crons(*ages: float, job: str = "j") -> list[Session]:
    return [session(f"cron:{job}:run:{job}{age}", f"{job}{age}", age) for age in ages]


def test_an_age_takes_what_is_older_of_its_type_only() -> None:
    found = [session("cron:a", "at", 60), session("cron:b", "over", 60.01), session("hook:c", "hook", 900)]
    decided, _ = decide(found, policy(cron=Rule(60)))
    assert going(decided) == {"over"}
    assert [d.rule for d in decided.values()] == ["within the rules", "older than 60 min", "no rule"]
    assert all(d.reason is None for d in decided.values())


def test_a_count_keeps_the_newest_of_an_agent_or_of_each_job() -> None:
    found = [*crons(1, 5, 3), *crons(2, 6, 9, job="k"), session("hook:h", "h", 99)]
    decided, _ = decide(found, policy(cron=Rule(keep_newest=2)))
    assert going(decided) == {"j3", "j5", "k6", "k9"}
    assert {decided[i].rule for i in going(decided)} == {"over count"}
    decided, _ = decide(found, policy(cron=Rule(keep_newest=2, per_job=True)))
    assert going(decided) == {"j5", "k9"}


def test_a_job_is_one_with_and_without_runs() -> None:
    found = [session("cron:J", "base", 9), session("cron:j:run:r", "run", 1), session("cron:other", "o", 99)]
    assert going(decide(found, policy(cron=Rule(keep_newest=1, per_job=True)))[0]) == {"base"}


def test_a_budget_takes_the_oldest_until_it_fits() -> None:
    found, sizes = crons(1, 2, 3, 4), {"j1": 5, "j2": 4, "j3": 3, "j4": 2}
    for budget, gone in ((14, set()), (13, {"j4"}), (12, {"j4"}), (11, {"j3", "j4"}), (9, {"j3", "j4"}), (4, {*sizes})):
        decided, overruns = decide(found, policy(cron=Rule(budget=budget)), sizes)
        assert going(decided) == gone
        assert {decided[i].rule for i in gone} <= {"over budget"}
        assert overruns == []
        assert going(decide(found, policy(agent_budget=budget), sizes)[0]) == gone


def test_what_has_no_bytes_makes_no_room() -> None:
    found = crons(1, 2, 3)
    assert going(decide(found, policy(cron=Rule(budget=1)), {"j1": 1, "j2": 5})[0]) == {"j2"}


def test_a_budget_looks_at_what_ages_and_counts_have_left() -> None:
    found, sizes = [*crons(100, 1), session("hook:h", "h", 500)], {"j100": 90, "j1": 5, "h": 5}
    decided, _ = decide(found, policy(10, cron=Rule(60)), sizes)
    assert {i: d.rule for i, d in decided.items() if d.prune} == {"j100": "older than 60 min"}
    decided, _ = decide(found, policy(9, cron=Rule(60), hook=Rule(budget=5)), sizes)
    assert going(decided) == {"j100", "h"}


def test_an_agents_budget_counts_conversations_and_takes_none_that_no_rule_names() -> None:
    found, sizes = [session("direct:p", "talk", 900), *crons(1, 2)], {"talk": 50, "j1": 10, "j2": 10}
    decided, overruns = decide(found, policy(65), sizes)
    assert (going(decided), overruns) == ({"j2"}, [])
    assert (decided["talk"].reason, decided["talk"].rule) == ("durable", "over budget")
    decided, overruns = decide(found, policy(45), sizes)
    assert (going(decided), overruns) == ({"j1", "j2"}, [Overrun(None, 45, 50, 1)])
    assert going(decide(found, policy(45, direct=Rule(10_000)), sizes)[0]) == {"talk"}


@pytest.mark.parametrize(
    ("protected", "budget", "gone", "left"),
    [(None, 12, set(), None), (None, 10, {"j2"}, None), (None, 9, {"j1", "j2"}, None),
     ("j2", 12, set(), None), ("j2", 9, {"j1"}, 10), ("j1", 9, {"j2"}, 10)],
)  # fmt: skip
def test_a_transcript_of_two_sessions_counts_once_until_both_go(
    protected: str | None, budget: int, gone: set[str], left: int | None
) -> None:
    found = crons(1, 2)
    transcripts = {"j1": {"shared.jsonl": 10}, "j2": {"shared.jsonl": 10, "j2.jsonl": 2}}
    if protected == "j2":
        transcripts["j2"].pop("j2.jsonl")
        transcripts["j1"]["j1.jsonl"] = 2
    pins = Pins(ids=frozenset({protected} if protected else ()))
    for by in (policy(pins=pins, cron=Rule(budget=budget)), policy(budget, pins)):
        decided, overruns = decide(found, by, transcripts=transcripts)
        assert going(decided) == gone
        assert [o.bytes for o in overruns] == ([] if left is None else [left])


def test_what_only_shares_with_what_stays_makes_no_room() -> None:
    found = [*crons(1, 2), session("cron:p", "pin", 3, pinnedAt=5)]
    transcripts = {"j1": {"j1.jsonl": 4}, "j2": {"pin.jsonl": 9}, "pin": {"pin.jsonl": 9}}
    decided, overruns = decide(found, policy(cron=Rule(budget=5)), transcripts=transcripts)
    assert (going(decided), overruns) == ({"j1"}, [Overrun("cron", 5, 9, 1)])
    assert decided["j2"].rule == "within the rules"


def test_a_members_share_of_another_type_is_not_taken_off_twice() -> None:
    found = [
        session("subagent:p", "p", 99),
        session("hook:h", "h", 98, spawnedBy="agent:main:subagent:p"),
        session("subagent:q", "q", 1),
    ]
    transcripts = {"p": {"x": 5}, "h": {"x": 5, "shared": 7}, "q": {"shared": 7}}
    decided, overruns = decide(found, policy(subagent=Rule(budget=8), hook=Rule(9999)), transcripts=transcripts)
    assert (going(decided), overruns) == ({"p", "h"}, [])
    decided, _ = decide(found, policy(subagent=Rule(budget=6), hook=Rule(9999)), transcripts=transcripts)
    assert going(decided) == {"p", "h", "q"}


def test_a_types_budget_takes_no_family_with_a_member_that_has_no_rule() -> None:
    found = [session("subagent:p", "p", 99), session("hook:h", "h", 98, spawnedBy="agent:main:subagent:p")]
    sizes = {"p": 5, "h": 5}
    decided, overruns = decide(found, policy(subagent=Rule(budget=1)), sizes)
    assert (going(decided), overruns) == (set(), [Overrun("subagent", 1, 5, 1)])
    assert (decided["p"].reason, decided["h"].rule) == ("family", "no rule")
    assert going(decide(found, policy(subagent=Rule(budget=1), hook=Rule(9999)), sizes)[0]) == {"p", "h"}
    assert going(decide(found, policy(1, subagent=Rule(budget=1)), sizes)[0]) == {"p", "h"}


def test_an_overrun_says_by_how_much_and_how_many_stay() -> None:
    found = [*crons(1, 2), session("cron:p", "pin", 3, pinnedAt=5), session("cron:b", "busy", 4, busy=True)]
    decided, overruns = decide(found, policy(cron=Rule(budget=10)), {"j1": 5, "j2": 5, "pin": 20, "busy": 7})
    assert going(decided) == {"j1", "j2"}
    assert overruns == [Overrun("cron", 10, 27, 2)]
    assert {i: d.reason for i, d in decided.items() if d.reason} == {"pin": "pinned", "busy": "busy"}


@pytest.mark.parametrize(
    ("pins", "held"),
    [
        (Pins(ids=frozenset({"one"})), {"one"}),
        (Pins(keys=frozenset({"agent:main:cron:two"})), {"two"}),
        (Pins(labels=frozenset({"Nightly"})), {"two", "three"}),
        (Pins(labels=frozenset({"nightly"})), set()),
        (Pins(keys=frozenset({"agent:main:hook:x"})), {"three"}),
    ],
)
def test_pins_hold_by_key_label_or_id(pins: Pins, held: set[str]) -> None:
    found = [
        session("cron:ONE", "one", 99),
        session("cron:Two", "two", 99, label="Nightly"),
        session(("cron:three", "hook:x"), "three", 99, origin={"label": "Nightly"}),
    ]
    decided, _ = decide(found, policy(pins=pins, cron=Rule(60)))
    assert {i for i, d in decided.items() if d.reason == "pinned"} == held
    assert going(decided) == {"one", "two", "three"} - held


def test_a_label_of_any_key_pins() -> None:
    entries = [("agent:main:cron:a", {"sessionId": "s"}), ("agent:main:hook:a", {"sessionId": "s", "label": "keep"})]
    (built,) = build_sessions("main", [(k, msgspec.convert(e, Entry)) for k, e in entries], NOW)
    assert Pins(labels=frozenset({"keep"})).holds(built)
    assert not Pins(labels=frozenset({"other"})).holds(built)


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (session("cron:a", "me", 99), "current"),
        (session("cron:a", "../x", 99), "unsafe id"),
        (session(("cron:a", "main"), "m", 99), "main"),
        (session("cron:a", "b", 99, busy=True), "busy"),
        (session("cron:a", "b", 99, busy=True, status="running"), "running"),
        (session("cron:a", "u", 99, pendingFinalDelivery=True), "undelivered"),
        (session("cron:a", "p", 99, pinnedAt=1), "pinned"),
        (session("cron:a", "n", None), "unknown age"),
        (session(("cron:a", "direct:p"), "d", 99), "durable"),
        (session(("cron:a", "home"), "d", 99), "unknown type"),
    ],
)
def test_each_protection_holds_against_every_rule(candidate: Session, reason: str) -> None:
    younger = crons(1, 2)
    for by in (policy(cron=Rule(60)), policy(cron=Rule(keep_newest=1)), policy(cron=Rule(budget=1)), policy(1)):
        decided, _ = decide([candidate, *younger], by, {candidate.id: 5, "j1": 0}, current=frozenset({"me"}))
        assert (decided[candidate.id].prune, decided[candidate.id].reason) == (False, reason)


def test_families_go_as_a_whole_or_not_at_all() -> None:
    def family(parent: float, child: float, **fields: Any) -> list[Session]:
        return [
            session("subagent:p", "p", parent),
            session("subagent:p:subagent:c", "c", child, **fields),
            session("subagent:q", "q", 50),
        ]

    sizes = {"p": 5, "c": 5, "q": 5}
    by_age = policy(subagent=Rule(60))
    assert decide(family(99, 1), by_age)[0]["p"].reason == "family"
    assert going(decide(family(99, 98), by_age)[0]) == {"p", "c"}
    by_count = policy(subagent=Rule(keep_newest=2))
    assert going(decide(family(99, 1), by_count)[0]) == set()
    assert going(decide(family(99, 98), by_count)[0]) == set()
    assert going(decide(family(99, 98), policy(subagent=Rule(keep_newest=1)))[0]) == {"p", "c"}
    for by_budget in (policy(subagent=Rule(budget=12)), policy(12)):
        assert going(decide(family(99, 1), by_budget, sizes)[0]) == {"q"}
        assert going(decide(family(99, 98), by_budget, sizes)[0]) == {"p", "c"}
        decided, overruns = decide(family(99, 98, busy=True), by_budget, sizes)
        assert (going(decided), overruns) == ({"q"}, [])
        assert {i: d.reason for i, d in decided.items()} == {"p": "family", "c": "busy", "q": None}


def test_members_in_other_agents_hold_unless_they_are_too_old() -> None:
    parent = session("subagent:p", "p", 99)
    for age, gone in ((1, set()), (99, {"p"})):
        relative = session("subagent:r", "r", age, agent="other", spawnedBy="agent:main:subagent:p")
        by = policy(subagent=Rule(60, budget=1))
        assert going(decide([parent], by, {"p": 5}, relatives=[relative])[0]) == gone
    assert going(decide([parent], policy(1), {"p": 5}, relatives=[relative])[0]) == set()


@pytest.mark.parametrize("rule", [Rule(60, keep_newest=1), Rule(60, budget=1), Rule(60)])
def test_a_family_of_two_agents_goes_in_both_or_in_none(rule: Rule) -> None:
    for parent_age, child_age in itertools.product((10, 99), repeat=2):
        parent, other = session("subagent:p", "p", parent_age), session("subagent:o", "o", 1)
        child = session("subagent:c", "c", child_age, agent="other", spawnedBy="agent:main:subagent:p")
        for by in (policy(subagent=rule), policy(5, subagent=rule)):
            here, _ = decide([parent, other], by, {"p": 9, "o": 1}, relatives=[child])
            there, _ = decide([child], by, {"c": 9}, relatives=[parent])
            assert here["p"].prune == there["c"].prune == (parent_age == child_age == 99)


def test_a_type_and_a_limit_narrow_what_goes() -> None:
    found = [*crons(70, 80, 90), session("hook:h", "h", 99)]
    by = policy(cron=Rule(60), hook=Rule(60))
    assert going(decide(found, by, session_type="cron")[0]) == {"j70", "j80", "j90"}
    decided, _ = decide(found, by, limit=2)
    assert going(decided) == {"h", "j90"}
    assert decided["j70"].reason == "limit"
    assert going(decide(found, by, limit=2, already=1)[0]) == {"h"}


_KEYS = ["cron:{0}:run:{1}", "hook:{1}", "subagent:{1}", "subagent:{0}:subagent:{1}", "direct:{1}", "main"]
_FOUND = st.lists(
    st.tuples(
        st.sampled_from(_KEYS),
        st.integers(0, 2),
        st.none() | st.integers(0, 200),
        st.sampled_from([{}, {}, {}, {"pinnedAt": 1}, {"busy": True}, {"label": "keep"}]),
        st.integers(0, 50),
    ),
    max_size=10,
)
_RULES = st.builds(
    Rule,
    st.none() | st.integers(1, 200),
    st.none() | st.integers(1, 5),
    st.booleans(),
    st.none() | st.integers(1, 150),
)
_POLICIES = st.builds(
    RetentionPolicy,
    st.dictionaries(st.sampled_from(["cron", "hook", "subagent", "direct"]), _RULES),
    st.none() | st.integers(1, 300),
    st.sampled_from([Pins(), Pins(labels=frozenset({"keep"})), Pins(ids=frozenset({"0", "3"}))]),
)
_Rows = list[tuple[str, int, int | None, dict[str, Any], int]]


def _built(rows: _Rows) -> tuple[list[Session], dict[str, int]]:
    found = [session(key.format(n, i), str(i), age, **more) for i, (key, n, age, more, _) in enumerate(rows)]
    return found, {str(i): row[4] for i, row in enumerate(rows)}


@given(_FOUND, _POLICIES, st.sets(st.integers(0, 9).map(str), max_size=1))
def test_nothing_protected_ever_goes_and_every_decision_adds_up(
    rows: _Rows, by: RetentionPolicy, current: set[str]
) -> None:
    found, sizes = _built(rows)
    decided, overruns = decide(found, by, sizes, current=current)
    for d in decided.values():
        assert not (d.prune and d.reason)
        assert d.rule
        assert d.prune or d.reason or d.rule in ("within the rules", "no rule")
        if d.prune:
            assert protection(d.session, current) is None
            assert not by.pins.holds(d.session)
            assert d.session.last_activity is not None
            assert d.session.session_type != "direct" or "direct" in by.rules
    for session_type, rule in [*by.rules.items(), (None, Rule(budget=by.agent_budget))]:
        if rule.budget is None:
            continue
        stays = {i: d for i, d in decided.items() if not d.prune and session_type in (None, d.session.session_type)}
        left = sum(sizes[i] for i in stays)
        (over,) = [o.bytes for o in overruns if o.session_type == session_type] or (None,)
        # The agent's budget, the last to be asked, may take more of a type that is over its own.
        if session_type is None or by.agent_budget is None:
            assert over == (left if left > rule.budget else None)
        assert over is None or over >= left


@given(_FOUND, st.integers(1, 5), st.booleans())
def test_a_count_keeps_exactly_the_newest(rows: _Rows, count: int, per_job: bool) -> None:
    found, _ = _built([("cron:{0}:run:{1}", n, age, {}, 0) for _, n, age, _, _ in rows if age is not None])
    decided, _ = decide(found, policy(cron=Rule(keep_newest=count, per_job=per_job)))

    def job(each: Session) -> str:
        return each.key.split(":")[3] if per_job else ""

    for _, group in itertools.groupby(sorted(found, key=job), key=job):
        ranked = sorted(group, key=lambda s: (s.last_activity or 0, s.id), reverse=True)
        assert [decided[s.id].prune for s in ranked] == [place >= count for place in range(len(ranked))]


@given(_FOUND, st.integers(1, 300), st.booleans())
def test_a_budget_takes_the_oldest_first_and_stops_as_soon_as_it_fits(rows: _Rows, budget: int, of_agent: bool) -> None:
    found, sizes = _built([("cron:{0}:run:{1}", n, age, more, size) for _, n, age, more, size in rows])
    decided, overruns = decide(found, policy(budget) if of_agent else policy(cron=Rule(budget=budget)), sizes)
    left = sum(sizes.values())
    free = (s for s in found if protection(s, frozenset()) is None and s.last_activity is not None and sizes[s.id])
    for each in sorted(free, key=lambda s: (s.last_activity or 0, s.id)):
        assert decided[each.id].prune == (left > budget)
        left -= sizes[each.id] if left > budget else 0
    assert [o.bytes for o in overruns] == ([left] if left > budget else [])


def _looser(value: int | None, more: int | None) -> int | None:
    return None if value is None or more is None else value + more


_MORE = st.none() | st.integers(0, 200)


@given(_FOUND, _POLICIES, _MORE, _MORE, st.sets(st.integers(0, 9).map(str)))
def test_looser_ages_and_counts_and_more_pins_never_remove_more(
    rows: _Rows, by: RetentionPolicy, age: int | None, count: int | None, pinned: set[str]
) -> None:
    tight = {name: Rule(r.max_age_minutes, r.keep_newest, r.per_job) for name, r in by.rules.items()}
    loose = {
        name: Rule(_looser(r.max_age_minutes, age), _looser(r.keep_newest, count), r.per_job)
        for name, r in tight.items()
    }
    before = going(decide(_built(rows)[0], RetentionPolicy(tight, None, by.pins))[0])
    pins = Pins(by.pins.keys, by.pins.labels, by.pins.ids | pinned)
    assert going(decide(_built(rows)[0], RetentionPolicy(loose, None, pins))[0]) <= before


@given(_FOUND, _POLICIES, _MORE)
def test_a_larger_budget_never_removes_more(rows: _Rows, by: RetentionPolicy, more: int | None) -> None:
    found, sizes = _built(rows)
    before = going(decide(found, by, sizes)[0])
    larger = RetentionPolicy(by.rules, _looser(by.agent_budget, more), by.pins)
    assert going(decide(found, larger, sizes)[0]) <= before
    for name, rule in by.rules.items():
        changed = msgspec.structs.replace(rule, budget=_looser(rule.budget, more))
        apart = {n: msgspec.structs.replace(r, budget=r.budget if n == name else None) for n, r in by.rules.items()}
        one = going(decide(found, RetentionPolicy(apart, None, by.pins), sizes)[0])
        other = going(decide(found, RetentionPolicy({**apart, name: changed}, None, by.pins), sizes)[0])
        assert other <= one


@given(_FOUND, _RULES, _MORE, _MORE, _MORE)
def test_one_types_rule_without_families_is_looser_in_every_way(
    rows: _Rows, rule: Rule, age: int | None, count: int | None, budget: int | None
) -> None:
    found, sizes = _built([("cron:{0}:run:{1}", n, at, more, size) for _, n, at, more, size in rows])
    tight = msgspec.structs.replace(rule, per_job=False)
    loose = Rule(
        _looser(rule.max_age_minutes, age), _looser(rule.keep_newest, count), False, _looser(rule.budget, budget)
    )
    assert going(decide(found, policy(cron=loose), sizes)[0]) <= going(decide(found, policy(cron=tight), sizes)[0])


def _calls(count: int) -> int:
    """Calls of Python functions that one decision about so many sessions takes: half single, half one family."""
    found = [session(f"cron:{i % 50}:run:{i}", f"c{i}", 1 + i % 97) for i in range(count)]
    found += [session("subagent:s" + ":subagent:s" * (i > 0) + str(i), f"s{i}", 5, busy=i == 1) for i in range(count)]
    for i in range(1, count):
        found[count + i].parents = (f"agent:main:subagent:s{i - 1}", found[count].key)
    by = policy(1, cron=Rule(50, 2, True, 100), subagent=Rule(60, 1, False, 10))
    sizes = {s.id: 7 for s in found}
    seen = 0

    def count_call(frame: object, event: str, argument: object) -> None:
        nonlocal seen
        seen += event in ("call", "c_call")

    sys.setprofile(count_call)
    try:
        decide_by_rules(found, ByRules(by), files(sizes), NOW, frozenset())
    finally:
        sys.setprofile(None)
    return seen


def test_the_cost_grows_linearly() -> None:
    assert _calls(4000) < 2.3 * _calls(2000)
