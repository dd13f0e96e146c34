"""A session whose result has not been delivered yet: neither pruned nor cleaned up, unless somebody insists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import Skill, StoreBuilder, picture

from session_manager.core.retention import Policy, decide
from session_manager.core.session import Entry, awaits_delivery, build_sessions

NOW = 1_771_180_200_000
OWED = {"pendingFinalDelivery": True}


@pytest.mark.parametrize(
    ("fields", "awaits"),
    [
        ({}, False),
        (OWED, True),
        ({"pendingFinalDelivery": {"kind": "replayable", "text": "x", "deliveries": [{"id": "1"}]}}, True),
        ({"pendingFinalDelivery": False}, False),
        ({"pendingFinalDelivery": None}, False),
        ({"pendingFinalDelivery": 0}, False),
        ({"pendingFinalDelivery": {}}, False),
        ({"pendingFinalDelivery": False, "pendingFinalDeliveryText": "left behind"}, False),
        ({"pendingFinalDeliveryText": "the result"}, True),
        ({"pendingFinalDeliveryText": ""}, False),
        ({"pendingFinalDeliveryIntentId": "intent-1"}, True),
        ({"pendingFinalDeliveryAttemptCount": 3}, False),
        ({"restartRecoveryDeliveryContext": {"channel": "telegram", "to": "1"}}, True),
        ({"restartRecoveryDeliveryContext": {}}, False),
        ({"restartRecoveryDeliveryRunId": "run-1"}, True),
        ({"restartRecoveryDeliveryRunId": ""}, False),
        ({"restartRecoveryDeliveryReceiptState": "terminal-pending"}, True),
        ({"restartRecoveryDeliveryReceiptState": "delivered"}, False),
        ({"restartRecoveryTerminalRunIds": ["run-1"]}, False),
    ],
)
def test_which_fields_tell(fields: dict[str, Any], awaits: bool) -> None:
    assert awaits_delivery(msgspec.convert({"sessionId": "s", **fields}, Entry)) is awaits


def test_one_entry_of_a_session_is_enough() -> None:
    entries = [("agent:main:subagent:a", Entry("s")), ("agent:main:hook:a", Entry("s", pending_final_delivery=True))]
    assert [s.undelivered for s in build_sessions("main", entries, NOW)] == [True]


def test_the_family_waits_for_it() -> None:
    """Whoever spawned it is where the result goes."""
    old = NOW - 7_200_000
    entries = [
        ("agent:main:subagent:a", Entry("a", updated_at=old)),
        ("agent:main:subagent:a:subagent:b", Entry("b", updated_at=old, pending_final_delivery=True)),
        ("agent:main:subagent:c", Entry("c", updated_at=old)),
    ]
    decided = decide(build_sessions("main", entries, NOW), Policy(60), NOW, set())
    assert {d.session.id: d.reason for d in decided} == {"a": "family", "b": "undelivered", "c": None}


def test_a_prune_keeps_it_and_says_why(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("subagent:owed", 300, "owed", **OWED)
    store.add("subagent:done", 300, "done")
    store.write()
    for dry_run in (True, False):
        document = skill("prune_sessions", {"dry_run": dry_run}).document
        assert document["deleted_ids"] == ["done"]
        assert document["kept"] == [{"id": "owed", "agentId": "main", "reason": "undelivered"}]
    assert [r["protected"] for r in skill("list_sessions").document["sessions"]] == ["undelivered"]
    assert skill("get_session_stats").document["prunable_sessions"] == 0


@pytest.mark.parametrize("function", ["delete_session", "cleanup_after_delegation"])
def test_it_is_deleted_only_by_force(agents: Path, skill: Skill, function: str) -> None:
    store = StoreBuilder(agents)
    store.add("subagent:owed", 300, "owed", **OWED)
    store.write()
    before = picture(agents)
    answer = skill(function, {"session_id": "owed"})
    assert (answer.exit_code, answer.document["code"], answer.document["reason"]) == (
        4,
        "session_protected",
        "undelivered",
    )
    assert "force" in answer.document["error"]
    assert picture(agents) == before
    assert skill(function, {"session_id": "owed", "force": True}).document["deleted"] == "owed"


def test_delivered_meanwhile(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("subagent:owed", 300, "owed", **OWED)
    store.write()
    del store.entries["agent:main:subagent:owed"]["pendingFinalDelivery"]
    store.write()
    assert skill("cleanup_after_delegation", {"session_id": "owed"}).exit_code == 0
