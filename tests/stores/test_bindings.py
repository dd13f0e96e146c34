"""Sessions that look like leftovers and are not: a CLI or ACP backend holds them, or a person goes on with them."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support import Skill, StoreBuilder, now_ms, picture

from session_manager.core.session import Entry, Session, build_sessions

NOW = 1_771_180_200_000
CHILD = "agent:main:subagent:u"
SLACK = "agent:main:slack:channel:c01:thread:1700.1"


def built(**entries: dict[str, Any]) -> dict[str, Session]:
    """Builds sessions from session id -> entry, which also holds the key."""
    pairs = [(e.pop("key"), msgspec.convert({"sessionId": i, **e}, Entry)) for i, e in entries.items()]
    return {session.id: session for session in build_sessions("main", pairs, NOW)}


def bound(key: str, **fields: Any) -> bool:
    found = built(s={"key": key, **fields})["s"]
    return found.bound or bool(found.threads)


@pytest.mark.parametrize(
    ("key", "fields", "expected"),
    [
        ("agent:main:acp:u", {"acp": {"backend": "acpx", "mode": "persistent", "state": "idle"}}, True),
        ("agent:main:acp:u", {"acp": {"backend": "acpx", "state": "idle"}}, True),
        ("agent:main:acp:u", {"acp": {"backend": "acpx", "mode": "oneshot"}}, False),
        ("agent:main:acp:u", {}, False),
        ("agent:main:acp:u", {"acp": "text"}, False),
        ("agent:main:acp:binding:discord:default:0a1b", {}, True),
        ("agent:main:ACP:Binding:discord:default:0a1b", {}, True),
        (CHILD, {"spawnMode": "session"}, True),
        (CHILD, {"spawnMode": "run"}, False),
        (CHILD, {"deliveryContext": {"channel": "discord", "to": "channel:7", "threadId": "7"}}, True),
        (CHILD, {"origin": {"threadId": 42}}, True),
        (CHILD, {"lastThreadId": "1700.1"}, True),
        (CHILD, {"lastThreadId": ""}, False),
        (CHILD, {"lastThreadId": True, "origin": "x", "deliveryContext": {"threadId": None}}, False),
        (CHILD, {"deliveryContext": {"channel": "discord", "to": "channel:7"}}, False),
        # Handed down by whoever spawned it: its answer goes where the question came from.
        (CHILD, {"lastThreadId": "1700.1", "spawnedBy": SLACK}, False),
        (CHILD, {"lastThreadId": "1700.1", "spawnedBy": f"{SLACK}:heartbeat"}, False),
        (CHILD, {"lastThreadId": 42, "spawnedBy": "agent:main:telegram:group:-1:topic:42"}, False),
        (CHILD, {"lastThreadId": "700.1", "spawnedBy": SLACK}, True),
        (CHILD, {"lastThreadId": "1700.2", "spawnedBy": SLACK}, True),
        ("agent:main:cron:j", {"lastThreadId": "7"}, False),
    ],
)
def test_who_is_bound_by_its_entry(key: str, fields: dict[str, Any], expected: bool) -> None:
    assert bound(key, **fields) is expected


def test_a_thread_that_the_spawner_answers_to_is_handed_down() -> None:
    for theirs, expected in (("7", ()), (7, ()), ("8", ("7",)), (None, ("7",))):
        found = built(
            s={"key": CHILD, "lastThreadId": "7", "spawnedBy": "agent:main:main"},
            m={"key": "agent:main:main", "deliveryContext": {"threadId": theirs}},
        )
        assert found["s"].threads == expected


@pytest.mark.parametrize(
    ("key", "fields", "expected"),
    [
        ("direct:a", {"cliSessionBindings": {"claude-cli": {"sessionId": "c"}}}, True),
        ("direct:a", {"cliSessionIds": {"claude-cli": "c"}}, True),
        ("direct:a", {"claudeCliSessionId": "c"}, True),
        ("direct:a", {"acp": {"mode": "oneshot"}}, True),
        ("acp:u", {}, True),
        ("acp-bridge:u", {}, False),
        ("direct:a", {"cliSessionBindings": {}, "cliSessionIds": None, "claudeCliSessionId": ""}, False),
        ("direct:a", {}, False),
    ],
)
def test_what_a_backend_holds_is_not_empty(
    agents: Path, skill: Skill, key: str, fields: dict[str, Any], expected: bool
) -> None:
    store = StoreBuilder(agents)
    store.add(key, 600, "s", **fields)
    store.add("main", 1, "m")
    store.write()
    header = (store.dir / "s.jsonl").read_text().splitlines()[0]
    (store.dir / "s.jsonl").write_text(header + "\n")
    for function in ("list_sessions", "delete_sessions"):
        document = skill(function, {"empty": True}).document
        shown = document.get("deleted_ids") or [row["id"] for row in document.get("sessions", ())]
        assert shown == ([] if expected else ["s"])


def test_what_a_codex_server_holds_is_not_empty(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", 600, "s")
    store.write()
    (store.dir / "s.jsonl").write_text("")
    assert skill("delete_sessions", {"empty": True}).document["deleted_ids"] == ["s"]
    (store.dir / "s.jsonl.codex-app-server.json").write_text('{"threadId":"t"}')
    assert skill("delete_sessions", {"empty": True}).document["deleted_ids"] == []


def test_an_entry_without_files_whose_words_a_cli_holds_is_no_leftover(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:dead", 60_000, "dead", transcript=False)
    store.add("cron:held", 60_000, "held", transcript=False, cliSessionIds={"claude-cli": "c"})
    store.write()
    found = skill("cleanup_orphans", {"dry_run": True}).document
    assert [entry["id"] for entry in found["removed_entries"]] == ["dead"]


def everything(skill: Skill) -> dict[str, tuple[str, bytes]]:
    """All files; but not the memory in which all who read a database note how far they have read it."""
    found = picture(skill.agents.parent, without_state=False)
    return {name: what for name, what in found.items() if not name.endswith("-shm")}


def both(skill: Skill, arguments: dict[str, Any] | None = None) -> set[str]:
    """Previews and prunes, which must agree with the stats; returns what went."""
    given = arguments or {}
    before = everything(skill)
    would = skill("prune_sessions", {**given, "dry_run": True}).document
    if not given:
        assert skill("get_session_stats").document["prunable_sessions"] == would["pruned_count"]
    assert everything(skill) == before
    real = skill("prune_sessions", given).document
    assert (real["deleted_ids"], real["kept"]) == (would["deleted_ids"], would["kept"])
    return set(real["deleted_ids"])


def test_people_s_conversations_of_any_type_are_durable(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("acp:p", 600, "persistent", acp={"mode": "persistent"})
    store.add("acp:o", 600, "oneshot", acp={"mode": "oneshot"})
    store.add("acp:binding:discord:default:0a", 600, "binding")
    store.add("subagent:t", 600, "thread", spawnedBy="agent:main:main", deliveryContext={"threadId": "7"})
    store.add("subagent:r", 600, "run", spawnedBy="agent:main:main")
    store.add("main", 1, "m")
    store.write()
    dry = skill("prune_sessions", {"dry_run": True}).document
    assert {k["id"]: k["reason"] for k in dry["kept"]} == dict.fromkeys(("persistent", "binding", "thread"), "durable")
    assert both(skill) == {"oneshot", "run"}
    # To name their type means the others of it.
    assert both(skill, {"session_type": "acp"}) == set()
    assert both(skill, {"include_durable": True}) == {"persistent", "binding", "thread"}


# What gateway 2026.6.11 makes of it (openclaw-state-db), as far as it is read.
SCHEMA = """
CREATE TABLE subagent_runs (run_id TEXT NOT NULL PRIMARY KEY, child_session_key TEXT NOT NULL, spawn_mode TEXT,
  created_at INTEGER NOT NULL);
CREATE TABLE acp_sessions (session_key TEXT NOT NULL PRIMARY KEY, session_id TEXT, mode TEXT NOT NULL);
CREATE TABLE current_conversation_bindings (binding_key TEXT NOT NULL PRIMARY KEY, target_session_key TEXT NOT NULL,
  expires_at INTEGER);
CREATE TABLE plugin_state_entries (plugin_id TEXT NOT NULL, namespace TEXT NOT NULL, entry_key TEXT NOT NULL,
  value_json TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER,
  PRIMARY KEY (plugin_id, namespace, entry_key));
"""


def spawned(agents: Path) -> StoreBuilder:
    """Sub-agents and ACP sessions, all old; the entries of "run" and "session" hold a thread of their own."""
    store = StoreBuilder(agents)
    for name in ("run", "session"):
        store.add(f"subagent:{name}", 600, name, lastThreadId="7", spawnedBy="agent:main:main")
    for name in ("plain", "focused", "unbound", "discord"):
        store.add(f"subagent:{name}", 600, name)
    for name in ("persistent", "oneshot"):
        store.add(f"acp:{name}", 600, name)
    store.add("main", 1, "m")
    return store.write()


def database(agents: Path) -> sqlite3.Connection:
    """The gateway's own database beside the agents directory, as it keeps it: in WAL mode."""
    place = agents.parent / "state"
    place.mkdir()
    connection = sqlite3.connect(place / "openclaw.sqlite", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(SCHEMA)
    runs = [("1", "run", "session"), ("2", "run", "run"), ("3", "session", "session"), ("4", "plain", None)]
    for number, name, mode in runs:
        connection.execute(
            "INSERT INTO subagent_runs VALUES (?, ?, ?, ?)", (number, f"agent:main:subagent:{name}", mode, int(number))
        )
    for name in ("persistent", "oneshot"):
        connection.execute("INSERT INTO acp_sessions VALUES (?, ?, ?)", (f"agent:main:acp:{name}", name, name))
    for name, expires in (("focused", None), ("unbound", now_ms() - 1)):
        row = (name, f"agent:main:subagent:{name}", expires)
        connection.execute("INSERT INTO current_conversation_bindings VALUES (?, ?, ?)", row)
    values = {"discord": json.dumps({"targetSessionKey": "agent:Main:subagent:discord"}), "broken": "{"}
    for key, value in values.items():
        row = ("discord", "thread-bindings", key, value, 1, None)
        connection.execute("INSERT INTO plugin_state_entries VALUES (?, ?, ?, ?, ?, ?)", row)
    return connection


@pytest.mark.parametrize("gateway_runs", [True, False])
def test_the_gateway_s_database_tells_more_than_the_entry(agents: Path, skill: Skill, gateway_runs: bool) -> None:
    spawned(agents)
    connection = database(agents)
    if not gateway_runs:
        connection.close()
    assert both(skill) == {"run", "plain", "unbound", "oneshot"}
    connection.close()


def test_the_files_of_older_gateways_tell_it_too(agents: Path, skill: Skill) -> None:
    spawned(agents)
    runs = {
        name: {"childSessionKey": f"agent:main:subagent:{name}", "spawnMode": mode, "task": "\ud83d"}
        for name, mode in (("run", "run"), ("session", "session"), ("plain", None))
    }
    persistent, focused = (
        {"targetSessionKey": f"agent:main:{rest}"} for rest in ("acp:persistent", "subagent:focused")
    )
    files = {
        "subagents/runs.json": {"version": 2, "runs": runs},
        "discord/thread-bindings.json": {"version": 1, "bindings": {"7": persistent}},
        "telegram/thread-bindings-a.json": {"version": 1, "bindings": [focused]},
        "other/thread-bindings.json": [1],
    }
    for name, document in files.items():
        path = agents.parent / name
        path.parent.mkdir()
        path.write_text(json.dumps(document))
    assert both(skill) == {"run", "plain", "unbound", "discord", "oneshot"}


def test_they_are_told_beside_the_gateway_s_own_agents_directory(tmp_path: Path) -> None:
    """A config may put the indexes elsewhere."""
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    for folder in (state / "agents", state / "subagents"):
        folder.mkdir(parents=True)
    (state / "openclaw.json").write_text(
        json.dumps({"session": {"store": f"{elsewhere}/{{agentId}}/sessions/sessions.json"}})
    )
    runs = {"1": {"childSessionKey": "agent:main:subagent:plain", "spawnMode": "session"}}
    (state / "subagents" / "runs.json").write_text(json.dumps({"version": 2, "runs": runs}))
    spawned(elsewhere)
    skill = Skill(elsewhere, ARIA_AGENTS_DIR=None, OPENCLAW_STATE_DIR=str(state), ARIA_API_URL="")
    document = skill("prune_sessions", {"dry_run": True}).document
    assert {kept["id"] for kept in document["kept"]} == {"run", "session", "plain"}


@pytest.mark.parametrize("name", ["subagents/runs.json", "telegram/thread-bindings-a.json", "state/openclaw.sqlite"])
def test_what_cannot_be_read_may_bind_all(agents: Path, skill: Skill, name: str) -> None:
    spawned(agents)
    path = agents.parent / name
    path.parent.mkdir()
    path.write_bytes(b"no JSON, and no database of any kind" * 100)
    assert both(skill) == set()
    assert both(skill, {"include_durable": True, "session_type": "acp"}) == {"persistent", "oneshot"}
    os.unlink(path)
    assert both(skill) == {"plain", "focused", "unbound", "discord"}
