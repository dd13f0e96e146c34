"""The gateway's own stores: listed, pruned and deleted from as the gateway itself would; SQLite stores refused."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from revive import revive
from support import Skill, StoreBuilder, picture

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("list_sessions", {}),
    ("get_session_stats", {}),
    ("prune_sessions", {"dry_run": True}),
    ("prune_sessions", {}),
    ("delete_session", {"session_id": "s", "force": True}),
    ("cleanup_after_delegation", {"session_id": "s", "wait_seconds": 0}),
    ("cleanup_orphans", {}),
    ("cleanup_orphans", {"dry_run": False, "force": True}),
    ("readopt_orphans", {}),
    ("readopt_orphans", {"dry_run": False, "rebuild": True}),
]


def stringify(value: Any) -> bytes:
    """JSON.stringify(value, null, 2), as the gateway writes its index (a lone surrogate becomes an escape)."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda m: f"\\u{ord(m[0]):04x}", text).encode()


def index_of(agents: Path, agent: str) -> Path:
    return agents / agent / "sessions" / "sessions.json"


def without(text: bytes, gone: Collection[str]) -> bytes:
    """The text that the gateway would have written after it removed the sessions ``gone`` itself."""
    left = {k: e for k, e in json.loads(text).items() if e["sessionId"] not in gone}
    return stringify(left)


@pytest.mark.parametrize("name", ["sixteen", "mixed"])
def test_stringify_writes_what_the_gateway_wrote(request: pytest.FixtureRequest, name: str) -> None:
    agents: Path = request.getfixturevalue(name)
    for index in agents.glob("*/sessions/sessions.json"):
        assert stringify(json.loads(index.read_bytes())) == index.read_bytes()


@pytest.mark.parametrize("name", ["sixteen", "mixed"])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"max_age_minutes": 1}, {"max_age_minutes": 500}, {"session_type": "cron"}, {"limit": 3},
     {"include_durable": True}],
)  # fmt: skip
def test_a_prune_leaves_what_the_gateway_would_have_left(
    request: pytest.FixtureRequest, skill: Skill, name: str, arguments: dict[str, Any]
) -> None:
    agents: Path = request.getfixturevalue(name)
    before = {p.parent.parent.name: p.read_bytes() for p in agents.glob("*/sessions/sessions.json")}
    answer = skill("prune_sessions", arguments)
    document = answer.document
    assert (answer.exit_code, document["errors"]) == (0, [])
    gone = set(document["deleted_ids"])
    assert gone
    for agent, text in before.items():
        assert index_of(agents, agent).read_bytes() == without(text, gone)
        for session_id in {e["sessionId"] for e in json.loads(text).values()}:
            live = index_of(agents, agent).with_name(f"{session_id}.jsonl").exists()
            was = Path(f"{session_id}.jsonl")
            archived = list((agents / agent / "sessions").glob(f"{was}.deleted.*"))
            assert (live and not archived) or session_id in gone or not live
            assert not (live and session_id in gone)


def test_sixteen_is_listed_as_the_index_says(sixteen: Path, skill: Skill) -> None:
    rows = skill("list_sessions").document["sessions"]
    for row in rows:
        entry = json.loads(index_of(sixteen, row["agentId"]).read_bytes())[row["key"]]
        assert entry["sessionId"] == row["id"]
        assert row["label"] == entry.get("label", row["label"])
        assert row["model"] == entry.get("model")
    assert Counter(r["agentId"] for r in rows) == {"main": 10, "analyst": 3, "aria-talk": 2, "aria-memeothy": 1}
    assert sum(":run:" in r["key"] for r in rows) == 0


def test_mixed_is_listed_and_counted(mixed: Path, skill: Skill) -> None:
    entries = json.loads(index_of(mixed, "main").read_bytes())
    document = skill("list_sessions").document
    assert document["session_count"] == len({e["sessionId"] for e in entries.values()}) == 67
    by_key = {r["key"]: r for r in document["sessions"]}
    assert by_key["agent:main:cron:undated"]["updatedAt"] is None
    assert by_key["agent:main:cron:absurd-date"]["updatedAt"] is None
    assert by_key["agent:main:cron:string-date"]["updatedAt"].startswith("20")
    assert by_key["agent:main:cron:emoji"]["label"] == "cut emoji \ufffd"
    assert by_key["global"]["session_type"] == "main"
    assert skill("get_session_stats").document["by_type"] == {
        "cron": 20, "subagent": 11, "group": 8, "channel": 5, "direct": 5, "thread": 4, "hook": 4, "acp": 3, "api": 3,
        "main": 2, "node": 1, "heartbeat": 1,
    }  # fmt: skip


def test_mixed_keeps_what_must_be_kept(mixed: Path, skill: Skill) -> None:
    entries = json.loads(index_of(mixed, "main").read_bytes())
    names = {p.name for p in mixed.glob("main/sessions/*")}
    document = skill("prune_sessions").document
    assert Counter(k["reason"] for k in document["kept"]) == {"durable": 22, "main": 2, "unknown age": 2}
    kept_keys = {k for k, e in entries.items() if e["sessionId"] in {x["id"] for x in document["kept"]}}
    assert {"agent:main:cron:undated", "agent:main:cron:absurd-date", "agent:main:main", "global"} <= kept_keys
    # Orphans, archives of the gateway, the leftover temporary file and the dead process's lock are not ours.
    mine = {i for e in entries.values() for i in [e["sessionId"]]}
    strangers = {n for n in names if not any(n.startswith(i) for i in mine)}
    assert len(strangers) > 3
    assert strangers <= {p.name for p in mixed.glob("main/sessions/*")}
    assert not (mixed.parent / "outside.jsonl").exists()


@pytest.mark.parametrize(
    ("key", "archived"),
    [
        ("agent:main:cron:emoji", True),
        ("agent:main:cron:bigint", True),
        ("agent:main:cron:elsewhere", True),
        ("agent:main:cron:relative-file", True),
        ("agent:main:cron:undated", True),
        ("agent:main:cron:absurd-date", True),
        ("agent:main:cron:no-transcript", False),
        ("agent:main:telegram:group:-100777:topic:2", True),
        ("agent:main:whatsapp:direct:+15551000003", True),
        ("agent:main:heartbeat", True),
        ("global", True),
    ],
)
def test_mixed_deleted_from_as_the_gateway_would(mixed: Path, skill: Skill, key: str, archived: bool) -> None:
    index = index_of(mixed, "main")
    text = index.read_bytes()
    session_id = json.loads(text)[key]["sessionId"]
    names = {p.name for p in index.parent.iterdir()}
    answer = skill("delete_session", {"session_id": session_id, "force": True})
    assert (answer.exit_code, answer.document["transcript_archived"]) == (0, archived)
    assert index.read_bytes() == without(text, {session_id})
    gone = names - {p.name for p in index.parent.iterdir()}
    assert all(n.startswith(session_id) for n in gone)
    assert bool(gone) == archived


def test_a_deleted_cron_session_takes_its_sidecars_along(mixed: Path, skill: Skill) -> None:
    session_id = "09a3ffdd-c318-4aa5-a7cd-41b45103de53"
    folder = mixed / "main" / "sessions"
    files = {p.name: p.read_bytes() for p in folder.glob(f"{session_id}*")}
    assert len(files) == 4
    assert skill("delete_session", {"session_id": session_id}).exit_code == 0
    after = {p.name.split(".deleted.")[0]: p.read_bytes() for p in folder.glob(f"{session_id}*.deleted.*")}
    assert after == files
    assert len(list(folder.glob(f"{session_id}*"))) == 4


def test_everything_deletable_can_be_deleted(sixteen: Path, skill: Skill) -> None:
    for row in skill("list_sessions").document["sessions"]:
        answer = skill("delete_session", {"session_id": row["id"], "agent": row["agentId"], "force": True})
        assert answer.exit_code == 0
    for index in sixteen.glob("*/sessions/sessions.json"):
        assert index.read_bytes() == b"{}"
    assert skill("get_session_stats").document["pending_history_marks"] == 16


# --- stores that have moved to SQLite -------------------------------------------------------------------------


def refused(skill: Skill, agents: Path, function: str, arguments: dict[str, Any]) -> None:
    before = picture(agents, without_state=False)
    for named in ({}, {"agent": "main"}):
        answer = skill(function, {**arguments, **named})
        assert (answer.exit_code, answer.document["code"]) == (4, "store_unsupported")
        assert answer.document["agentId"] == "main"
        assert "SQLite" in answer.document["error"]
        assert picture(agents, without_state=False) == before


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    return revive("moved-to-sqlite", tmp_path / "agents")


def database(agents: Path, *statements: str, agent: str = "main") -> Path:
    path = agents / agent / "agent" / "openclaw-agent.sqlite"
    path.parent.mkdir(parents=True)
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return path


def a_session(agents: Path) -> StoreBuilder:
    store = StoreBuilder(agents)
    store.add("cron:a", 90, "s")
    return store.write()


@pytest.mark.parametrize(("function", "arguments"), CALLS)
@pytest.mark.parametrize("beside", [False, True])
def test_a_store_in_sqlite_is_refused(
    moved: Path, skill: Skill, function: str, arguments: dict[str, Any], beside: bool
) -> None:
    if beside:
        a_session(moved)
    refused(skill, moved, function, arguments)


@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_an_agent_in_sqlite_beside_one_in_files(
    moved: Path, skill: Skill, function: str, arguments: dict[str, Any]
) -> None:
    store = StoreBuilder(moved, "other")
    store.add("cron:a", 90, "s")
    store.write()
    answer = skill(function, arguments)
    assert (answer.exit_code, answer.document["code"]) == (3, "partial")
    assert [(e["agentId"], e["code"]) for e in answer.document["errors"]] == [("main", "store_unsupported")]


@pytest.mark.parametrize("table", ["session_nodes (k)", "session_entries (k)", '"session_entries" (k)'])
def test_either_table_tells(agents: Path, skill: Skill, table: str) -> None:
    a_session(agents)
    database(agents, f"CREATE TABLE {table}")
    refused(skill, agents, "prune_sessions", {})


@pytest.mark.parametrize("statements", [[], ["CREATE TABLE schema_meta (meta_key TEXT)", "PRAGMA user_version = 1"]])
def test_a_database_without_sessions_does_no_harm(agents: Path, skill: Skill, statements: list[str]) -> None:
    store = a_session(agents)
    path = database(agents, *statements)
    content, names = path.read_bytes(), sorted(path.parent.iterdir())
    assert skill("prune_sessions").document["deleted_ids"] == ["s"]
    assert store.read() == {}
    assert (path.read_bytes(), sorted(path.parent.iterdir())) == (content, names)


@pytest.mark.parametrize("function_arguments", CALLS)
@pytest.mark.parametrize("content", [b"no database at all" * 300, b"SQLite format 3\0" + b"\xff" * 4080, b"x"])
def test_a_corrupt_database_is_refused(
    agents: Path, skill: Skill, content: bytes, function_arguments: tuple[str, dict[str, Any]]
) -> None:
    a_session(agents)
    path = agents / "main" / "agent" / "openclaw-agent.sqlite"
    path.parent.mkdir()
    path.write_bytes(content)
    refused(skill, agents, *function_arguments)


@pytest.mark.parametrize("empty_main", [True, False])
def test_tables_that_exist_only_in_the_write_ahead_log(
    agents: Path, skill: Skill, tmp_path: Path, empty_main: bool
) -> None:
    a_session(agents)
    live = tmp_path / "live.sqlite"
    connection = sqlite3.connect(live, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    if not empty_main:
        connection.execute("CREATE TABLE schema_meta (meta_key TEXT)")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("CREATE TABLE session_nodes (session_key TEXT NOT NULL PRIMARY KEY)")
    target = agents / "main" / "agent" / "openclaw-agent.sqlite"
    target.parent.mkdir()
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{live}{suffix}", f"{target}{suffix}")
    connection.close()
    alone = sqlite3.connect(f"file:{target}?mode=ro&immutable=1", uri=True)
    assert alone.execute("SELECT count(*) FROM sqlite_master WHERE name = 'session_nodes'").fetchone() == (0,)
    alone.close()
    refused(skill, agents, "prune_sessions", {})
