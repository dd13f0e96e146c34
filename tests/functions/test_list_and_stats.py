"""list_sessions and get_session_stats: their shapes, what they agree on, and that they write nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from support import Skill, StoreBuilder, picture

ROW = {"id", "sessionId", "key", "agentId", "session_type", "label", "updatedAt", "contextTokens", "model"}
READS: list[tuple[str, dict[str, Any]]] = [
    ("list_sessions", {}),
    ("get_session_stats", {}),
    ("prune_sessions", {"dry_run": True}),
]


def test_a_row_has_the_documented_members(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:abc123", 0, "abc123", label="heartbeat", contextTokens=500, model="gpt-4o")
    store.entries["agent:main:cron:abc123"]["updatedAt"] = 1_771_178_400_000
    store.write()
    answer = skill("list_sessions")
    assert answer.exit_code == 0
    assert answer.document["session_count"] == 1
    row = answer.document["sessions"][0]
    assert row.keys() >= ROW
    assert {k: row[k] for k in ROW} == {
        "id": "abc123",
        "sessionId": "abc123",
        "key": "agent:main:cron:abc123",
        "agentId": "main",
        "session_type": "cron",
        "label": "heartbeat",
        "updatedAt": "2026-02-15T18:00:00+00:00",
        "contextTokens": 500,
        "model": "gpt-4o",
    }


def test_absent_fields_are_null(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.entries["agent:main:cron:a"] = {"sessionId": "bare"}
    store.write()
    row = skill("list_sessions").document["sessions"][0]
    assert [row[k] for k in ("label", "updatedAt", "contextTokens", "model")] == [None] * 4


def test_one_row_per_agent_and_id(agents: Path, skill: Skill) -> None:
    for agent in ("main", "other"):
        store = StoreBuilder(agents, agent)
        for rest in ("cron:job", "cron:job:run:same", "telegram:direct:5"):
            store.add(rest, 90, "same")
        store.write()
    rows = skill("list_sessions").document["sessions"]
    assert sorted((r["agentId"], r["id"]) for r in rows) == [("main", "same"), ("other", "same")]
    assert skill("get_session_stats").document["by_agent"] == {"main": 1, "other": 1}


@pytest.mark.parametrize(
    ("keys", "telling"),
    [
        ([("telegram:direct:5", None), ("cron:job", None)], "cron:job"),
        ([("telegram:direct:5", "a label"), ("subagent:x", None)], "subagent:x"),
        ([("cron:job", None), ("cron:job:run:s", "Cron: job")], "cron:job:run:s"),
        ([("telegram:direct:5", None), ("main", "label")], "main"),
        ([("hook:a", None), ("hook:b", None)], "hook:a"),
    ],
)
def test_the_most_telling_key_wins(
    agents: Path, skill: Skill, keys: list[tuple[str, str | None]], telling: str
) -> None:
    store = StoreBuilder(agents)
    for rest, label in keys:
        store.add(rest, 90, "s", **({"label": label} if label else {}))
    store.write()
    assert skill("list_sessions").document["sessions"][0]["key"] == f"agent:main:{telling}"


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"label": "own", "origin": {"label": "o"}, "deliveryContext": {"to": "d"}}, "own"),
        ({"origin": {"label": "o"}, "deliveryContext": {"to": "d"}}, "o"),
        ({"origin": {"from": "x"}, "deliveryContext": {"to": "d"}}, "d"),
        ({"label": None, "origin": None, "deliveryContext": None}, None),
        ({"origin": "text", "deliveryContext": ["list"]}, None),
        ({}, None),
    ],
)
def test_label_falls_back(agents: Path, skill: Skill, fields: dict[str, Any], label: str | None) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", 90, **fields)
    store.write()
    assert skill("list_sessions").document["sessions"][0]["label"] == label


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1_771_178_400_000, "2026-02-15T18:00:00+00:00"),
        ("1771178400000", "2026-02-15T18:00:00+00:00"),
        (1_771_178_400_123, "2026-02-15T18:00:00.123+00:00"),
        *((absurd, None) for absurd in (0, -5, 864 * 10**15, True, None, "soon", [], {}, 1e300)),
        (4_102_444_800_000, None),
    ],
)
def test_updated_at(agents: Path, skill: Skill, value: Any, shown: str | None) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", None)
    store.entries["agent:main:cron:a"]["updatedAt"] = value
    store.write()
    answer = skill("list_sessions")
    assert (answer.exit_code, answer.document["sessions"][0]["updatedAt"]) == (0, shown)


def test_newest_first_filter_and_limit(agents: Path, skill: Skill) -> None:
    ages = {"a": 50, "b": 10, "c": 999, "d": 30}
    for agent in ("main", "other"):
        store = StoreBuilder(agents, agent)
        for name, age in ages.items():
            store.add(f"cron:{name}", age + (agent == "other"), f"{agent}-{name}")
        store.add("telegram:group:-1", 1, f"{agent}-g")
        store.write()

    def ids(**arguments: Any) -> list[str]:
        return [s["id"] for s in skill("list_sessions", arguments).document["sessions"]]

    newest = ["main-b", "other-b", "main-d", "other-d", "main-a", "other-a", "main-c", "other-c"]
    assert set(ids()[:2]) == {"main-g", "other-g"}
    assert ids()[2:] == newest
    assert ids(session_type="cron") == newest
    assert ids(session_type="cron", agent="other") == newest[1::2]
    assert ids(session_type="cron", limit=3) == newest[:3]
    # The count is that of all sessions asked for, so that a limited list does not hide how many there are.
    assert skill("list_sessions", {"session_type": "cron", "limit": "3"}).document["session_count"] == 8
    assert ids(session_type="voice") == []


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("=agent:main:main", "main"), ("=main", "main"), ("=global", "main"), ("cron:j", "cron"),
        ("cron:j:run:s", "cron"), ("subagent:u", "subagent"), ("subagent:u:subagent:v", "subagent"),
        ("hook:u", "hook"), ("acp:u", "acp"), ("heartbeat", "heartbeat"), ("main:heartbeat", "heartbeat"),
        ("node-abc", "node"), ("node:abc", "node"), ("voice:x", "voice"), ("discord:slash:u", "slash"),
        ("openai:u", "api"), ("openai-user:u", "api"), ("openresponses:u", "api"), ("explicit:u", "explicit"),
        ("dashboard:u", "ui"), ("tui-u", "ui"), ("slack:channel:c:thread:1.2", "thread"),
        ("telegram:group:-1:topic:7", "thread"), ("telegram:group:-1", "group"), ("discord:channel:1", "channel"),
        ("whatsapp:direct:+1", "direct"), ("direct:+1", "direct"), ("whatever", "unknown"), ("=unknown", "unknown"),
    ],
)  # fmt: skip
def test_session_type_comes_from_the_key(agents: Path, skill: Skill, key: str, kind: str) -> None:
    store = StoreBuilder(agents)
    store.add(key, 90, chatType="direct", transcript=False)
    store.write()
    assert skill("list_sessions").document["sessions"][0]["session_type"] == kind
    assert skill("get_session_stats").document["by_type"] == {kind: 1}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"session_type": "corn"}, "cron"),
        ({"limit": 0}, "limit"),
        ({"limit": -1}, "limit"),
        ({"agnet": "main"}, "agent"),
        ({"agent": 7}, "agent"),
    ],
)
def test_bad_arguments(sixteen: Path, skill: Skill, arguments: dict[str, Any], word: str) -> None:
    answer = skill("list_sessions", arguments)
    assert answer.exit_code == 2
    assert word in answer.document["error"]


def test_stats_count_types_bytes_and_marks(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    young = store.add("cron:young", 5)
    old = store.add("cron:old", 90)
    store.add("telegram:group:-1", 90)
    store.add("main", 90)
    no_session = store.add("hook:undated", None)
    del store.entries["agent:main:hook:undated"]["sessionId"]
    store.write()
    (store.dir / f"{young}-topic-3.jsonl").write_bytes(b"x" * 1001)
    (store.dir / "orphan.jsonl").write_bytes(b"y" * 7)
    (store.dir / "gone.jsonl.deleted.2026-02-15T18-00-00.123Z").write_bytes(b"z" * 333)
    (store.dir / "gone.jsonl.reset.2026-02-15T18-00-00Z").write_bytes(b"z" * 22)
    (store.dir / f"{old}.jsonl.lock").write_bytes(b"not counted")
    live = sum(p.stat().st_size for p in store.dir.glob("*.jsonl"))

    stats = skill("get_session_stats").document
    assert (stats["total_sessions"], stats["stale_sessions"], stats["active_sessions"]) == (4, 3, 1)
    assert stats["by_agent"] == {"main": 4}
    assert stats["by_type"] == {"cron": 2, "group": 1, "main": 1}
    assert stats["stale_threshold_minutes"] == 60
    assert (stats["transcript_bytes"], stats["archived_bytes"]) == (live, 355)
    assert stats["bytes_by_agent"] == {"main": live}
    cron = sum(
        (store.dir / name).stat().st_size for name in (f"{young}.jsonl", f"{young}-topic-3.jsonl", f"{old}.jsonl")
    )
    assert stats["bytes_by_type"]["cron"] == cron
    without = 7 + (store.dir / f"{no_session}.jsonl").stat().st_size
    assert sum(stats["bytes_by_type"].values()) == live - without
    assert stats["pending_history_marks"] == 0

    (store.dir / f"{old}.jsonl.lock").unlink()
    moved = (store.dir / f"{old}.jsonl").stat().st_size
    assert skill("delete_session", {"session_id": old}).exit_code == 0
    stats = skill("get_session_stats", {"stale_minutes": "1"}).document
    assert (stats["total_sessions"], stats["stale_sessions"], stats["prunable_sessions"]) == (3, 3, 1)
    assert (stats["transcript_bytes"], stats["archived_bytes"]) == (live - moved, 355 + moved)
    assert stats["pending_history_marks"] == 1
    assert stats["stale_threshold_minutes"] == 1


@pytest.mark.parametrize("minutes", [1, 60, 61, 300, 5000, 10**6])
@pytest.mark.parametrize("name", ["sixteen", "mixed"])
def test_list_stats_and_preview_agree(request: pytest.FixtureRequest, skill: Skill, name: str, minutes: int) -> None:
    request.getfixturevalue(name)
    listed = skill("list_sessions").document
    stats = skill("get_session_stats", {"stale_minutes": minutes}).document
    preview = skill("prune_sessions", {"max_age_minutes": minutes, "dry_run": True}).document
    assert listed["session_count"] == stats["total_sessions"] == preview["total_sessions"]
    assert stats["total_sessions"] == stats["stale_sessions"] + stats["active_sessions"]
    assert stats["total_sessions"] == sum(stats["by_agent"].values()) == sum(stats["by_type"].values())
    assert stats["prunable_sessions"] == preview["pruned_count"] == len(preview["deleted_ids"])
    assert preview["pruned_count"] + preview["kept_count"] == preview["total_sessions"]
    assert set(preview["deleted_ids"]) <= {s["id"] for s in listed["sessions"]}


@pytest.mark.parametrize(("function", "arguments"), READS)
@pytest.mark.parametrize("name", ["sixteen", "mixed"])
def test_reads_write_nothing(
    request: pytest.FixtureRequest, skill: Skill, name: str, function: str, arguments: dict[str, Any]
) -> None:
    agents: Path = request.getfixturevalue(name)
    before = picture(agents, without_state=False)
    assert skill(function, arguments).exit_code == 0
    assert picture(agents, without_state=False) == before
    # Nor when there is a ledger already.
    skill("prune_sessions", {"limit": 1})
    before = picture(agents, without_state=False)
    assert skill(function, arguments).exit_code == 0
    assert picture(agents, without_state=False) == before


@pytest.mark.parametrize(
    ("function", "arguments"),
    [*READS, ("prune_sessions", {}), ("delete_session", {"session_id": "x"}),
     ("cleanup_after_delegation", {"session_id": "x"})],
)  # fmt: skip
def test_an_unknown_agent_is_not_found(sixteen: Path, skill: Skill, function: str, arguments: dict[str, Any]) -> None:
    before = picture(sixteen, without_state=False)
    answer = skill(function, {**arguments, "agent": "analist"})
    assert (answer.exit_code, answer.document["code"]) == (5, "agent_not_found")
    assert "'analyst'" in answer.document["error"]
    assert picture(sixteen, without_state=False) == before


def test_an_agent_is_found_whatever_its_case(sixteen: Path, skill: Skill) -> None:
    assert skill("list_sessions", {"agent": "Analyst"}).document["session_count"] == 3


@pytest.mark.parametrize(("function", "arguments"), [*READS, ("prune_sessions", {})])
def test_one_damaged_agent_makes_it_partial(
    sixteen: Path, skill: Skill, function: str, arguments: dict[str, Any]
) -> None:
    index = sixteen / "analyst" / "sessions" / "sessions.json"
    index.write_bytes(index.read_bytes()[:-40])
    before = picture(sixteen / "analyst")
    answer = skill(function, arguments)
    document = answer.document
    assert answer.exit_code == 3
    assert document["code"] == "partial"
    assert "analyst" in document["error"]
    assert [set(e) for e in document["errors"]] == [{"agentId", "id", "code", "error"}]
    assert [(e["agentId"], e["id"], e["code"]) for e in document["errors"]] == [("analyst", None, "index_damaged")]
    counted = document.get("session_count", document.get("total_sessions"))
    assert counted == 13
    assert picture(sixteen / "analyst") == before


@pytest.mark.parametrize(("function", "arguments"), [*READS, ("prune_sessions", {})])
@pytest.mark.parametrize("named", [True, False])
def test_nothing_but_damage_is_that_damage(
    sixteen: Path, skill: Skill, function: str, arguments: dict[str, Any], named: bool
) -> None:
    agents = ["analyst"] if named else [p.name for p in sixteen.iterdir()]
    for agent in agents:
        (sixteen / agent / "sessions" / "sessions.json").write_bytes(b"[]")
    answer = skill(function, {**arguments, **({"agent": "analyst"} if named else {})})
    assert (answer.exit_code, answer.document["code"]) == (7, "index_damaged")
    assert not {"sessions", "total_sessions"} & answer.document.keys()


def test_a_ledger_that_cannot_be_read_does_not_fail_the_stats(sixteen: Path, skill: Skill) -> None:
    (sixteen / ".session_manager").mkdir()
    (sixteen / ".session_manager" / "ledger.sqlite").write_bytes(b"no database" * 100)
    stats = skill("get_session_stats")
    assert (stats.exit_code, stats.document["pending_history_marks"]) == (0, None)


def test_marks_are_counted_as_the_ledger_holds_them(sixteen: Path, skill: Skill) -> None:
    skill("prune_sessions", {"agent": "main"})
    ledger = sixteen / ".session_manager" / "ledger.sqlite"
    with sqlite3.connect(ledger) as connection:
        connection.execute(
            "UPDATE marks SET state = 'delivered' WHERE session_id IN (SELECT session_id FROM marks LIMIT 2)"
        )
        (waiting,) = connection.execute("SELECT count(*) FROM marks WHERE state = 'pending'").fetchone()
    connection.close()
    assert skill("get_session_stats").document["pending_history_marks"] == waiting > 0
