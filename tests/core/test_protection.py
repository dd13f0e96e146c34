"""Who must never be deleted, whatever else is asked for."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import StoreBuilder, now_ms

from session_manager.archives.work import Work
from session_manager.core.protection import protection
from session_manager.core.session import Entry, Session, build_sessions
from session_manager.functions.context import Context
from session_manager.functions.reading import observe
from session_manager.ledger import start_run
from session_manager.settings import read_settings
from session_manager.stores.base import Snapshot
from session_manager.stores.openclaw_files.volume import Volume

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


def test_a_session_that_nobody_has_looked_at_is_never_removed(agents: Path) -> None:
    """Neither by a caller that forgets to look, nor by one that looks without knowing the pins."""
    store = StoreBuilder(agents)
    store.add("cron:a", 600, "a")
    store.write()
    before = {path: path.read_bytes() for path in agents.rglob("*") if path.is_file()}
    settings = read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": ""})
    volume = Volume(str(agents))
    context = Context(settings, volume, now_ms)
    found = volume.store("main")
    assert found is not None

    def forgets(snapshot: Snapshot) -> list[tuple[Session, str]]:
        return [(session, "old") for session in snapshot.sessions]

    def knows_no_pins(snapshot: Snapshot) -> list[tuple[Session, str]]:
        observe(context, snapshot, now_ms())
        return forgets(snapshot)

    for choose in (forgets, knows_no_pins):
        with Work(settings, start_run("test", settings), volume.living) as work, pytest.raises(RuntimeError):
            found.remove(work, choose)
    left = {path: path.read_bytes() for path in agents.rglob("*") if path.is_file()}
    assert {path: text for path, text in left.items() if path in before} == before
    assert not [path for path in left if ".deleted." in path.name]
