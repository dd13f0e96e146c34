"""Agents that have one sessions folder: an index for all of them, by whose keys rows go, or one for each in it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
from service import Databases
from small_aria import SmallAria
from support import Skill, StoreBuilder, now_ms
from test_kill import KILL_AT

from session_manager.service.config import read_config
from session_manager.service.db.engine import make_engine
from session_manager.service.jobs.sync import SyncResult, sync_volume

SHARED, APART = "sessions.json", "{agentId}-store.json"


class Folder(StoreBuilder):
    """A sessions folder of several agents, as ``session.store`` puts it there."""

    def __init__(self, root: Path, name: str) -> None:
        self.root, self.name = root, name
        self.state = root / "state"
        (self.state / "agents").mkdir(parents=True)
        config = {"session": {"store": str(root / "all" / name)}, "agents": {"list": [{"id": "ops"}, {"id": "main"}]}}
        (self.state / "openclaw.json").write_text(json.dumps(config))
        self.dir = root / "all"
        self.dir.mkdir()
        self.agent = "main"
        self.entries: dict[str, Any] = {}
        self.skill = Skill(root, ARIA_AGENTS_DIR=None, OPENCLAW_STATE_DIR=str(self.state), ARIA_API_URL="")

    def put(self, agent: str, rest: str, session_id: str, age_minutes: float = 300, **fields: Any) -> None:
        self.add(f"=agent:{agent}:{rest}", age_minutes, session_id, **fields)

    def index_of(self, agent: str) -> Path:
        return self.dir / self.name.replace("{agentId}", agent)

    def write(self) -> Folder:
        agents = {key.split(":")[1] if key.startswith("agent:") else "ops" for key in self.entries}
        for agent in agents:
            entries = {k: e for k, e in self.entries.items() if self.name == SHARED or k.startswith(f"agent:{agent}:")}
            self.index_of(agent).write_text(json.dumps(entries, indent=2))
        return self

    def left(self) -> list[str]:
        """All keys that are left."""
        paths = {self.index_of(agent) for agent in ("main", "ops", "analyst")}
        return sorted(key for path in paths if path.exists() for key in json.loads(path.read_bytes()))

    def transcripts(self) -> set[str]:
        return {path.name for path in self.dir.iterdir() if ".jsonl" in path.name and "json.lock" not in path.name}

    def call(self, function: str, arguments: dict[str, Any] | None = None, **env: str) -> dict[str, Any]:
        answer = self.skill(function, arguments, **env)
        assert answer.exit_code == 0, answer.document
        return answer.document


@pytest.fixture
def shared(tmp_path: Path) -> Folder:
    return Folder(tmp_path, SHARED)


@pytest.fixture(params=[SHARED, APART])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    found = Folder(tmp_path, request.param)
    for agent in ("main", "ops"):
        found.put(agent, "main", f"{agent}-main")
        found.put(agent, "cron:a", f"{agent}-a")
        found.put(agent, "cron:b", f"{agent}-b", 1)
    return found.write()


def named(document: dict[str, Any], name: str = "sessions") -> list[tuple[str, str]]:
    return sorted((row["agentId"], row["id"]) for row in document[name])


def archived(folder: Folder) -> set[str]:
    return {name.partition(".deleted.")[0] for name in folder.transcripts() if ".deleted." in name}


def test_rows_go_by_the_agent_in_the_key(folder: Folder) -> None:
    expected = [(agent, f"{agent}-{name}") for agent in ("main", "ops") for name in ("a", "b", "main")]
    assert named(folder.call("list_sessions")) == expected
    assert named(folder.call("list_sessions", {"agent": "ops"})) == expected[3:]
    stats = folder.call("get_session_stats")
    assert (stats["total_sessions"], stats["by_agent"], stats["prunable_sessions"]) == (6, {"main": 3, "ops": 3}, 2)
    sizes = {path.name: path.stat().st_size for path in folder.dir.glob("*.jsonl")}
    assert stats["transcript_bytes"] == sum(sizes.values()) == sum(stats["bytes_by_agent"].values())
    assert stats["bytes_by_agent"]["ops"] == sum(size for name, size in sizes.items() if name.startswith("ops"))
    assert folder.skill("list_sessions", {"agent": "opps"}).document["code"] == "agent_not_found"


def test_keys_without_an_agent_are_the_default_agents(shared: Folder) -> None:
    for key in ("global", "cron:a", "agent:only-two", "agent::x"):
        shared.add(f"={key}", 1, key.replace(":", "-"))
    shared.put("Big Name", "cron:b", "b")
    shared.put("../../main", "cron:c", "c")
    shared.write()
    found = named(shared.call("list_sessions"))
    # What gateways make of such names.
    assert found == sorted(
        [("big-name", "b"), ("main", "c"), ("ops", "agent--x"), ("ops", "agent-only-two"), ("ops", "cron-a"),
         ("ops", "global")]
    )  # fmt: skip
    assert {row["id"]: row["session_type"] for row in shared.call("list_sessions")["sessions"]}["global"] == "main"


def test_a_prune_takes_the_named_agents_sessions_only(folder: Folder) -> None:
    before = folder.left()
    dry = folder.call("prune_sessions", {"agent": "ops", "dry_run": True})
    done = folder.call("prune_sessions", {"agent": "ops"})
    assert dry["deleted_ids"] == done["deleted_ids"] == ["ops-a"]
    assert set(before) - set(folder.left()) == {"agent:ops:cron:a"}
    assert archived(folder) == {"ops-a.jsonl"}
    assert [name for name in os.listdir(folder.dir) if name.endswith(".lock") and not name.startswith(".")] == []


def test_main_is_protected_for_each_agent(folder: Folder) -> None:
    done = folder.call("prune_sessions", {"include_durable": True})
    assert sorted(done["deleted_ids"]) == ["main-a", "ops-a"]
    assert named(done, "kept") == [("main", "main-main"), ("ops", "ops-main")]
    refused = folder.skill("delete_session", {"session_id": "ops-main"})
    assert (refused.exit_code, refused.document["code"]) == (4, "session_protected")


def test_a_run_over_all_agents_is_taken_back_byte_for_byte(folder: Folder) -> None:
    before = {path.name: path.read_bytes() for path in folder.dir.iterdir()}
    done = folder.call("prune_sessions")
    assert sorted(done["deleted_ids"]) == ["main-a", "ops-a"]
    deleted = folder.call("list_deleted")
    assert named(deleted, "deleted") == [("main", "main-a"), ("ops", "ops-a")]
    assert all(row["restorable"] for row in deleted["deleted"])
    assert named(folder.call("list_deleted", {"agent": "ops"}), "deleted") == [("ops", "ops-a")]
    back = folder.call("restore_run", {"run_id": done["run_id"]})
    assert sorted(back["restored_ids"]) == ["main-a", "ops-a"]
    after = {p.name: p.read_bytes() for p in folder.dir.iterdir() if not p.name.startswith(".session_manager")}
    assert after == before


def test_history_hears_of_the_agent_in_the_key(folder: Folder, aria: SmallAria) -> None:
    folder.call("prune_sessions", ARIA_API_URL=aria.url)
    told = [request.body for request in aria.requests if request.method == "PATCH"]
    names = {(each["agent_id"], each["aria_session_id"]) for body in told for each in body["sessions"]}
    assert names == {("main", "main-a"), ("ops", "ops-a")}


def test_an_agent_whose_last_session_went_can_have_it_back(shared: Folder) -> None:
    shared.put("main", "main", "m")
    shared.put("analyst", "cron:a", "only")
    shared.write()
    run_id = shared.call("prune_sessions")["run_id"]
    assert shared.left() == ["agent:main:main"]
    assert named(shared.call("list_deleted", {"agent": "analyst"}), "deleted") == [("analyst", "only")]
    assert shared.skill("restore_run", {"run_id": run_id, "agent": "analist"}).document["code"] == "agent_not_found"
    back = shared.call("restore_session", {"session_id": "only", "agent": "analyst"})
    assert back["restored_keys"] == ["agent:analyst:cron:a"]
    assert named(shared.call("list_sessions", {"agent": "analyst"})) == [("analyst", "only")]


def test_a_file_that_another_agents_session_has_stays(folder: Folder) -> None:
    folder.put("main", "cron:c", "same", transcript=False)
    folder.put("ops", "cron:c", "same")
    folder.put("main", "cron:d", "d")
    folder.put("ops", "main:thread:1", "e", 1, transcript=False, sessionFile=str(folder.dir / "d.jsonl"))
    folder.write()
    done = folder.call("prune_sessions", {"agent": "main"})
    assert sorted(done["deleted_ids"]) == ["d", "main-a", "same"]
    assert archived(folder) == {"main-a.jsonl"}
    assert {"same.jsonl", "d.jsonl"} <= folder.transcripts()
    folder.call("delete_session", {"session_id": "same", "agent": "ops"})
    assert archived(folder) == {"main-a.jsonl", "same.jsonl"}


@pytest.mark.parametrize("follow_up", ["main", "ops", None])
@pytest.mark.parametrize("limit", [2, 3, 4, 5, 6, 8])
def test_what_was_killed_for_one_agent_is_ended_for_that_one(
    folder: Folder, tmp_path: Path, limit: int, follow_up: str | None
) -> None:
    """Whichever agent the next call is about: every session is then wholly live, or wholly removed."""
    if folder.name == APART:
        # Each has an index of its own, and ends its own.
        follow_up = follow_up and "ops"
    command = [*KILL_AT, str(limit), str(tmp_path / "steps"), "prune_sessions", json.dumps({"agent": "ops"})]
    killed = subprocess.run(command, env=folder.skill.environment(), capture_output=True, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    done = folder.call("prune_sessions", {"max_age_minutes": 100_000} | ({"agent": follow_up} if follow_up else {}))
    gone = "agent:ops:cron:a" not in folder.left()
    assert archived(folder) == ({"ops-a.jsonl"} if gone else set())
    assert folder.transcripts() >= {"main-a.jsonl", "main-b.jsonl", "ops-b.jsonl"}
    assert [(each["agentId"], each["what"]) for each in done["recovered"]] == [("ops", "remove")]
    assert done["recovered"][0]["finished"] == (["ops-a"] if gone else [])
    assert sorted(folder.left()) == sorted(k for k in folder.entries if not gone or k != "agent:ops:cron:a")
    assert [name for name in os.listdir(folder.dir) if name.endswith(".index")] == []


def test_a_temporary_file_of_another_index_is_left_to_it(tmp_path: Path) -> None:
    folder = Folder(tmp_path, APART)
    for agent in ("main", "ops"):
        folder.put(agent, "cron:a", f"{agent}-a")
    folder.write()
    left = folder.dir / ".session_manager.main-store.json.1.0b7e0b7e0b7e.0123456789abcdef.index"
    left.write_text(json.dumps({"agent:main:cron:new": {"sessionId": "new", "updatedAt": now_ms()}}))
    done = folder.call("prune_sessions", {"agent": "ops"})
    assert left.exists()
    assert "recovered" not in done
    done = folder.call("prune_sessions", {"agent": "main"})
    assert not left.exists()
    assert done["recovered"][0]["found"].startswith("main-store.json.found.")


def test_orphans_are_told_once_and_are_the_first_agents(folder: Folder) -> None:
    for number in range(2):
        folder.transcript(f"orphan-{number}.jsonl", f"orphan-{number}", now_ms() - 10**9)
    arguments = {"older_than_minutes": 60}
    found = folder.call("cleanup_orphans", arguments)
    assert named(found, "archived") == [("ops", "orphan-0"), ("ops", "orphan-1")]
    assert (found["classes"]["true_orphan"]["count"], found["classes"]["live"]["count"]) == (2, 6)
    assert folder.call("cleanup_orphans", {**arguments, "agent": "main"})["archived"] == []
    (folder.dir / "main-a.jsonl").unlink()
    done = folder.call("cleanup_orphans", {**arguments, "dry_run": False})
    assert named(done, "archived") == [("ops", "orphan-0"), ("ops", "orphan-1")]
    assert named(done, "removed_entries") == [("main", "main-a")]
    assert archived(folder) == {"orphan-0.jsonl", "orphan-1.jsonl"}


def test_a_purge_takes_each_agents_own_archives(folder: Folder) -> None:
    folder.put("main", "cron:k", "kept-pinned", label="keep")
    folder.write()
    folder.call("prune_sessions")
    foreign = folder.dir / "x.jsonl.deleted.2020-01-01T00-00-00.000Z"
    foreign.touch()
    policy = folder.root / "policy.toml"
    policy.write_text('[pins]\nlabels = ["keep"]\n')
    arguments = {"older_than_days": 30, "dry_run": True}
    ages = folder.call("purge_archives", arguments, ARIA_POLICY=str(policy))
    assert [row["file"] for row in ages["files"]] == [foreign.name]
    age_ledger(folder, days=40)
    found = folder.call("purge_archives", arguments, ARIA_POLICY=str(policy))
    by_agent = {(row["agentId"], row["file"].partition(".jsonl")[0]) for row in found["files"]}
    assert by_agent == {("main", "main-a"), ("ops", "ops-a"), ("ops", "x")}
    assert found["pinned_count"] == 1
    done = folder.call("purge_archives", {**arguments, "dry_run": False, "agent": "main"}, ARIA_POLICY=str(policy))
    assert [row["file"].partition(".jsonl")[0] for row in done["files"]] == ["main-a"]
    assert archived(folder) == {"ops-a.jsonl", "kept-pinned.jsonl", "x.jsonl"}


def test_archives_of_an_agent_that_has_no_keys_any_more_are_purged(shared: Folder) -> None:
    shared.put("main", "main", "m")
    shared.put("analyst", "cron:a", "only")
    shared.write()
    shared.call("prune_sessions")
    age_ledger(shared, days=40)
    done = shared.call("purge_archives", {"dry_run": False})
    assert [row["agentId"] for row in done["files"]] == ["analyst"]
    assert archived(shared) == set()


def test_erasing_reaches_one_agents_session_only(folder: Folder) -> None:
    folder.put("main", "cron:c", "same", transcript=False)
    folder.put("ops", "cron:c", "same")
    folder.write()
    folder.call("prune_sessions", {"agent": "ops"})
    assert archived(folder) == {"ops-a.jsonl"}
    erase = {"session_id": "ops-a", "confirm": "ops-a"}
    other = folder.skill("erase_session", {**erase, "agent": "main"}, ARIA_ALLOW_ERASE="1")
    assert (other.exit_code, archived(folder)) == (5, {"ops-a.jsonl"})
    done = folder.call("erase_session", erase, ARIA_ALLOW_ERASE="1")
    assert done["receipt"]["agents"] == ["ops"]
    assert archived(folder) == set()
    assert {"main-a.jsonl", "same.jsonl"} <= folder.transcripts()


def test_a_session_is_erased_whose_agent_has_no_keys_any_more(shared: Folder) -> None:
    shared.put("main", "main", "m")
    shared.put("analyst", "cron:a", "only")
    shared.write()
    shared.call("prune_sessions")
    done = shared.call("erase_session", {"session_id": "only", "confirm": "only"}, ARIA_ALLOW_ERASE="1")
    assert (done["receipt"]["agents"], done["receipt"]["files"]) == (["analyst"], 1)
    assert shared.transcripts() == {"m.jsonl"}


def test_a_damaged_shared_index_is_one_failure(shared: Folder) -> None:
    for agent in ("main", "ops"):
        shared.put(agent, "cron:a", f"{agent}-a")
    text = shared.write().index_of("main").read_text()
    shared.index_of("main").write_text(text[:-1] + ', "agent:ops:cron:b": {"sessionId"')
    for arguments in ({}, {"agent": "main"}):
        answer = shared.skill("prune_sessions", arguments)
        assert (answer.exit_code, answer.document["code"]) == (7, "index_damaged")
    done = shared.call("readopt_orphans", {"rebuild": True, "dry_run": False})
    assert done["salvaged_entries"] == 2
    assert named(shared.call("list_sessions")) == [("main", "main-a"), ("ops", "ops-a")]


def test_the_doctor_speaks_of_the_folder_once(folder: Folder) -> None:
    (folder.dir / f"{folder.index_of('ops').name}.lock").write_text("{}")
    answer = folder.skill("doctor")
    checks = {check["name"]: check for check in answer.document["checks"]}
    assert checks["agents_dir"]["what"].startswith(f"{folder.dir}/{folder.name} (session.store of ")
    assert [name for name in checks if name.startswith("lock ")] == [f"lock ops/{folder.index_of('ops').name}.lock"]
    assert checks["store main"]["ok"]


def test_history_gets_rows_by_the_agent_in_the_key(shared: Folder, database: str, server: Databases) -> None:
    environ = {"OPENCLAW_STATE_DIR": str(shared.state), "HOME": str(shared.root), "DATABASE_URL": database}

    def sync() -> SyncResult:
        async def once() -> SyncResult:
            engine = make_engine(database)
            try:
                return await sync_volume(engine, read_config(environ), wait=True)
            finally:
                await engine.dispose()

        return asyncio.run(once())

    def rows() -> list[tuple[Any, ...]]:
        with server.connect(database) as connection:
            sql = "SELECT agent_id, metadata->>'aria_session_id', status FROM agent_sessions ORDER BY 1, 2"
            return connection.execute(sql).fetchall()

    shared.put("analyst", "cron:a", "a")
    shared.put("ops", "main", "m")
    shared.write()
    assert (sync().created, sync().wrote) == (2, False)
    assert rows() == [("analyst", "a", "active"), ("ops", "m", "active")]
    del shared.entries["agent:analyst:cron:a"]
    shared.write()
    result = sync()
    assert (result.ended, result.errors) == (1, [])
    assert rows() == [("analyst", "a", "ended"), ("ops", "m", "active")]
    assert sync().wrote is False


def age_ledger(folder: Folder, days: int) -> None:
    """Makes everything in the ledger so much older."""
    path = folder.state / "agents" / ".session_manager" / "ledger.sqlite"
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE attempts SET created_at = created_at - ?", (days * 86_400_000,))
    connection.close()


@pytest.mark.parametrize("first", ["main", "ops"])
def test_a_file_of_two_agents_comes_back_with_the_first(folder: Folder, first: str) -> None:
    for agent in ("main", "ops"):
        folder.put(agent, "cron:both", f"{agent}-both", transcript=False, sessionFile="both.jsonl")
    folder.write()
    folder.transcript("both.jsonl", "both", now_ms() - 9_000_000)
    gone = folder.call("prune_sessions")["deleted_ids"]
    assert {"main-both", "ops-both"} <= set(gone)
    assert "both.jsonl" in archived(folder)
    second = "ops" if first == "main" else "main"
    assert folder.call("restore_session", {"session_id": f"{first}-both"})["restored_files"] == ["both.jsonl"]
    assert folder.call("restore_session", {"session_id": f"{second}-both"})["restored_files"] == []
    assert folder.call("verify_ledger")["whole"] is True
    folder.call("delete_session", {"session_id": f"{first}-both"})
    folder.call("delete_session", {"session_id": f"{second}-both"})
    arguments = {"session_id": f"{second}-both", "confirm": f"{second}-both"}
    folder.call("erase_session", arguments, ARIA_ALLOW_ERASE="1")
    assert folder.call("restore_session", {"session_id": f"{first}-both"})["restored_files"] == ["both.jsonl"]
