"""Who must never be deleted, whatever else is asked for."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import msgspec
import pytest

from session_manager.core.protection import protection
from session_manager.core.session import Entry, Session, build_sessions

NOW = 1_771_180_200_000


def session(*keys: str, session_id: str = "s", busy: bool = False, **fields: Any) -> Session:
    entry = msgspec.convert({"sessionId": session_id, "updatedAt": NOW - 9_000_000, **fields}, Entry)
    (built,) = build_sessions("main", [(key, entry) for key in keys or ("agent:main:cron:j",)], NOW)
    built.busy = built.busy or busy
    return built


@pytest.mark.parametrize(
    ("candidate", "reason", "overridable"),
    [
        (session(), None, None),
        (session("agent:main:home"), None, None),
        (session(session_id="me"), "current", False),
        (session("agent:main:subagent:me"), "current", False),
        (session("agent:main:cron:j", "agent:main:subagent:me"), "current", False),
        (session(session_id="../x"), "unsafe id", False),
        (session(session_id="a\0b"), "unsafe id", False),
        (session(session_id="\ud83d"), "unsafe id", False),
        (session("agent:main:main"), "main", True),
        (session("agent:other:main"), "main", True),
        (session("main"), "main", True),
        (session("global"), "main", True),
        (session("agent:main:cron:j", "agent:main:main"), "main", True),
        (session("agent:main:main", "agent:main:subagent:x"), "main", True),
        (session(busy=True), "busy", True),
        (session(busy=True, status="running"), "running", True),
        (session(status="running"), None, None),
        (session(status="running", startedAt=NOW - 60_000), "running", True),
        (session(status="running", startedAt=str(NOW - 1_799_000)), "running", True),
        (session(status="running", startedAt=NOW - 1_800_000), None, None),
        (session(status="running", startedAt=NOW - 86_400_000, updatedAt=NOW - 60_000), "running", True),
        (session(status="running", startedAt="soon"), None, None),
        (session(status="running", startedAt=NOW + 9 * 86_400_000), None, None),
        (session("agent:main:cron:j", "agent:main:hook:j", status="running", startedAt=NOW), "running", True),
        (session(status="done", startedAt=NOW - 60_000, updatedAt=NOW), None, None),
        (session(busy=True, status="done"), "busy", True),
        (session(pinnedAt=NOW), "pinned", True),
        (session(pendingFinalDelivery=True), "undelivered", True),
        (session(pendingFinalDelivery=False), None, None),
        (session(pinnedAt=None), None, None),
        (session(pinnedAt=False), None, None),
    ],
)
def test_each_reason(candidate: Session, reason: str | None, overridable: bool | None) -> None:
    found = protection(candidate, frozenset({"me", "agent:main:subagent:me"}))
    assert (found and found.reason, found and found.overridable) == (reason, overridable)


def test_the_strongest_reason_comes_first() -> None:
    ranking: list[tuple[str, dict[str, Any]]] = [
        ("current", {"current": {"agent:main:cron:j"}}),
        ("unsafe id", {"session_id": "../x"}),
        ("main", {"keys": ("agent:main:main", "agent:main:cron:j")}),
        ("busy", {"busy": True}),
        ("undelivered", {"pendingFinalDelivery": True}),
        ("pinned", {"pinnedAt": NOW}),
    ]
    for (stronger, first), (_, second) in combinations(ranking, 2):
        traits = {**second, **first}
        current = frozenset(traits.pop("current", ()))
        found = protection(session(*traits.pop("keys", ()), **traits), current)
        assert found is not None
        assert found.reason == stronger


def test_an_id_of_another_session_is_not_current() -> None:
    assert protection(session(session_id="mee"), frozenset({"me", ""})) is None
