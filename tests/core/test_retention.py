"""Which sessions a prune removes, and why each old one that stays does stay."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import StoreBuilder, now_ms, picture

from session_manager.core.keys import KINDS
from session_manager.core.retention import PRUNABLE, Decision, Policy, decide, is_old
from session_manager.core.selection import Selection
from session_manager.core.session import Entry, Session, build_sessions
from session_manager.functions import prune_sessions
from session_manager.functions.context import Context
from session_manager.settings import read_settings
from session_manager.stores.openclaw_files.volume import Volume

NOW = 1_771_180_200_000
HOUR = 3_600_000
REST = {
    "main": "main", "cron": "cron:j", "subagent": "subagent:u", "hook": "hook:u", "acp": "acp:u",
    "heartbeat": "heartbeat", "node": "node-n", "voice": "voice:v", "slash": "slack:slash:u", "api": "openai:u",
    "explicit": "explicit:e", "ui": "tui-u", "thread": "slack:channel:c:thread:1", "group": "telegram:group:-1",
    "channel": "slack:channel:c", "direct": "direct:p", "unknown": "home",
}  # fmt: skip


def session(
    kind: str, session_id: str = "s", at: int | None = NOW - 2 * HOUR, more: tuple[str, ...] = (), **fields: Any
) -> Session:
    """An old session of ``kind``, with keys of the kinds ``more`` beside."""
    busy = fields.pop("busy", False)
    entry = msgspec.convert({"sessionId": session_id, "updatedAt": at, **fields}, Entry)
    (built,) = build_sessions("main", [(f"agent:main:{REST[k]}", entry) for k in (kind, *more)], NOW)
    built.busy = busy
    return built


def one(candidate: Session, policy: Policy, current: frozenset[str] = frozenset()) -> Decision:
    (decision,) = decide([candidate], policy, NOW, current)
    return decision


def test_every_kind_is_in_the_table() -> None:
    assert set(REST) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_by_age_and_what_must_be_asked_for(kind: str) -> None:
    default = one(session(kind), Policy(60))
    asked = one(session(kind), Policy(60, Selection(kind)))
    everything = one(session(kind), Policy(60, include_durable=True))
    if kind == "main":
        assert {d.reason for d in (default, asked, everything)} == {"main"}
        return
    assert (default.prune, asked.prune, everything.prune) == (kind in PRUNABLE, True, True)
    reasons = {"unknown": "unknown type"}
    assert default.reason == (None if kind in PRUNABLE else reasons.get(kind, "durable"))


@pytest.mark.parametrize(
    ("candidate", "policy", "reason"),
    [
        (session("cron", "me"), Policy(60), "current"),
        (session("cron", "../x"), Policy(60), "unsafe id"),
        (session("cron", busy=True), Policy(60), "busy"),
        (session("cron", busy=True, status="running"), Policy(60), "running"),
        (session("cron", pinnedAt=1), Policy(60), "pinned"),
        (session("direct", pinnedAt=1), Policy(60, include_durable=True), "pinned"),
        (session("cron", at=None), Policy(60), "unknown age"),
        (session("cron", at=0), Policy(60), "unknown age"),
        (session("cron", at=NOW + 25 * HOUR), Policy(60), "unknown age"),
        (session("direct", at=None), Policy(60), "unknown age"),
        (session("main", at=None), Policy(60), "main"),
        (session("direct"), Policy(60), "durable"),
        (session("unknown"), Policy(60), "unknown type"),
        # Protected, or durable, as soon as any of its keys is.
        (session("cron", more=("main",)), Policy(60, Selection("cron"), True), "main"),
        (session("cron", more=("direct",)), Policy(60), "durable"),
        (session("cron", more=("direct",)), Policy(60, Selection("cron")), "durable"),
        (session("cron", more=("unknown",)), Policy(60), "unknown type"),
        (session("cron", more=("unknown", "direct")), Policy(60), "durable"),
        (session("subagent", more=("hook",)), Policy(60), None),
        (session("cron", more=("direct",)), Policy(60, include_durable=True), None),
    ],
)
def test_each_reason(candidate: Session, policy: Policy, reason: str | None) -> None:
    decision = one(candidate, policy, frozenset({"me"}))
    assert (decision.reason, decision.prune) == (reason, reason is None)


@pytest.mark.parametrize(("age_ms", "old"), [(HOUR + 1, True), (HOUR, False), (HOUR - 1, False), (-HOUR, False)])
def test_old_means_before_the_cut_off(age_ms: int, old: bool) -> None:
    decision = one(session("cron", at=NOW - age_ms), Policy(60))
    assert (decision.old, decision.prune, decision.reason) == (old, old, None)
    assert is_old(session("cron", at=NOW - age_ms), Policy(60).cutoff(NOW)) is old


def test_the_transcript_makes_a_session_young() -> None:
    candidate = session("cron")
    candidate.transcript_activity = NOW - 5
    assert (one(candidate, Policy(60)).old, one(candidate, Policy(60)).prune) == (False, False)


def test_a_session_type_leaves_all_others_out() -> None:
    found = [session("cron", "a"), session("hook", "b"), session("direct", "c"), session("cron", "d", at=NOW)]
    decided = decide(found, Policy(60, Selection("cron")), NOW, frozenset())
    assert [(d.session.id, d.prune) for d in decided] == [("a", True), ("d", False)]


def test_a_limit_takes_the_oldest_and_says_so() -> None:
    found = [session("cron", f"s{age}", at=NOW - age * HOUR) for age in (3, 9, 5, 7)]
    for limit, already, gone in ((2, 0, {"s9", "s7"}), (2, 1, {"s9"}), (2, 2, set()), (2, 5, set()), (9, 0, None)):
        decided = decide(found, Policy(60, limit=limit), NOW, frozenset(), already=already)
        removed = {d.session.id for d in decided if d.prune}
        assert removed == ({s.id for s in found} if gone is None else gone)
        assert all(d.reason == "limit" for d in decided if not d.prune)
        assert [d.session.id for d in decided] == [s.id for s in found]


_SESSIONS = st.lists(
    st.builds(
        lambda kind, at, more, busy, status, pinned, tail: (kind, at, more, busy, status, pinned, tail),
        st.sampled_from(KINDS),
        st.none() | st.integers(NOW - 5 * HOUR, NOW + 26 * HOUR),
        st.lists(st.sampled_from(KINDS), max_size=2),
        st.booleans(),
        st.sampled_from([None, "running", "done"]),
        st.sampled_from([None, 5]),
        st.none() | st.integers(NOW - 5 * HOUR, NOW),
    ),
    max_size=8,
)


@given(
    _SESSIONS,
    st.integers(1, 300),
    st.none() | st.sampled_from(KINDS),
    st.booleans(),
    st.none() | st.integers(1, 4),
    st.sets(st.integers(0, 7).map(str), max_size=1),
)
def test_every_decision_adds_up(
    rows: list[tuple[Any, ...]], age: int, kind: str | None, durable: bool, limit: int | None, current: set[str]
) -> None:
    found = []
    for i, (first, at, more, busy, status, pinned, tail) in enumerate(rows):
        others = tuple(k for k in dict.fromkeys(more) if k != first)
        built = session(first, str(i), at, others, busy=busy, status=status, pinnedAt=pinned)
        built.transcript_activity = tail
        found.append(built)
    policy = Policy(age, Selection(kind), durable, limit)
    decided = decide(found, policy, NOW, current)
    assert [d.session.id for d in decided] == [s.id for s in found if policy.only.covers(s)]
    assert limit is None or sum(d.prune for d in decided) <= limit
    for d in decided:
        assert not (d.prune and d.reason)
        if d.old or d.session.last_activity is None:
            assert d.prune or d.reason
        else:
            assert (d.prune, d.reason) == (False, None)
        if d.prune:
            assert d.old
            assert d.session.id not in current
            assert "main" not in d.session.kinds
            assert not d.session.busy
            assert not d.session.pinned
            assert durable or d.session.kinds <= PRUNABLE | {kind}


def _context(agents: Path) -> Context:
    found = read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_SESSION_ID": "current", "ARIA_API_URL": ""})
    at = now_ms()
    return Context(found, Volume(found.agents_dir), lambda: at)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["main", "other"]),
            st.sampled_from(sorted(REST)),
            st.sampled_from([1, 59, 61, 300, None]),
            st.sampled_from([{}, {"pinnedAt": 5}, {"spawnedBy": "agent:main:subagent:u"}]),
        ),
        max_size=8,
        unique_by=lambda row: row[:2],
    ),
    st.builds(
        prune_sessions.Arguments,
        max_age_minutes=st.sampled_from([1, 60, 120]),
        agent=st.sampled_from([None, "main"]),
        session_type=st.sampled_from([None, "cron", "direct"]),
        include_durable=st.booleans(),
        limit=st.sampled_from([None, 1, 3]),
    ),
)
def test_a_dry_run_says_what_the_run_does_and_writes_nothing(
    rows: list[tuple[str, str, int | None, dict[str, Any]]], arguments: prune_sessions.Arguments
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        agents = Path(folder) / "agents"
        builders = {name: StoreBuilder(agents, name) for name in ("main", "other")}
        builders["main"].add("cron:mine", 600, "current")
        for agent, kind, age, fields in rows:
            builders[agent].add(REST[kind], age, **fields)
        for builder in builders.values():
            builder.write()
        context = _context(agents)
        before = picture(agents, without_state=False)
        would = prune_sessions.run(context, msgspec.structs.replace(arguments, dry_run=True))
        assert picture(agents, without_state=False) == before
        did = prune_sessions.run(context, arguments)
        for member in ("deleted_ids", "kept", "total_sessions", "pruned_count", "kept_count", "errors"):
            assert did[member] == would[member]
        assert did["pruned_count"] + did["kept_count"] == did["total_sessions"]
        assert len(did["deleted_ids"]) == did["pruned_count"]
        left = {entry["sessionId"] for builder in builders.values() for entry in builder.read().values()}
        there = {entry["sessionId"] for builder in builders.values() for entry in builder.entries.values()}
        assert there - left == set(did["deleted_ids"])
        assert "current" in left
        for builder in builders.values():
            if f"agent:{builder.agent}:main" in builder.entries:
                assert f"agent:{builder.agent}:main" in builder.read()
