"""The volume sync: history follows the gateway's indexes, and never believes an old one."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from revive import revive
from service import Databases, Service, running, wait_until
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from support import StoreBuilder, picture

from session_manager.core.errors import Refused
from session_manager.service import volume_reader
from session_manager.service.config import Config, read_config
from session_manager.service.db import sessions as queries
from session_manager.service.db.engine import WRITERS, make_engine
from session_manager.service.jobs import sync as job
from session_manager.service.jobs.sync import SyncResult, sync_volume


class History:
    """A database, and a service's sync on it, step by step."""

    def __init__(self, url: str, agents: Path, server: Databases) -> None:
        self.url = url
        self.agents = agents
        self._server = server
        self.statements: list[str] = []

    @property
    def config(self) -> Config:
        return read_config({"ARIA_AGENTS_DIR": str(self.agents), "DATABASE_URL": self.url})

    def run(self, work: Callable[[AsyncEngine], Awaitable[Any]]) -> Any:
        """Runs ``work`` on an engine of its own."""

        async def main() -> Any:
            engine = make_engine(self.url)
            event.listen(engine.sync_engine, "before_cursor_execute", self._note)
            try:
                return await work(engine)
            finally:
                await engine.dispose()

        return asyncio.run(main())

    def _note(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        self.statements.append(statement)

    def sync(self, **overrides: Any) -> SyncResult:
        result = self.run(lambda engine: sync_volume(engine, self.config, wait=True))
        assert isinstance(result, SyncResult)
        return result

    def mark(self, status: Any, agent: str, *sids: str) -> None:
        async def work(engine: AsyncEngine) -> None:
            async with engine.begin() as connection:
                await queries.mark_many(connection, status, [(agent, sid) for sid in sids])

        self.run(work)

    def erase(self, agent: str, sid: str) -> None:
        async def work(engine: AsyncEngine) -> None:
            async with engine.begin() as connection:
                await queries.erase_many(connection, [(agent, sid)])

        self.run(work)

    def execute(self, statement: str) -> list[Any]:
        with self._server.connect(self.url) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def statuses(self) -> dict[tuple[str, str], str]:
        rows = self.execute("SELECT agent_id, metadata->>'aria_session_id', status FROM agent_sessions")
        return {(agent, sid): status for agent, sid, status in rows}


@pytest.fixture
def history(database: str, agents: Path, server: Databases) -> History:
    return History(database, agents, server)


def during(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Makes ``act`` happen between the reading of the volume and the writing of history."""
    real = volume_reader.read_volume

    def read(*arguments: Any) -> Any:
        found = real(*arguments)
        monkeypatch.setattr(job, "read_volume", real)
        act()
        return found

    monkeypatch.setattr(job, "read_volume", read)


def test_each_session_of_each_agent_has_a_row(history: History) -> None:
    main, other = StoreBuilder(history.agents), StoreBuilder(history.agents, "analyst")
    cron = main.add("cron:heartbeat", 30, label="Cron: Bericht", model="gpt-4o", inputTokens=70, outputTokens=7)
    main.entries["agent:main:cron:heartbeat:run:1"] = main.entries["agent:main:cron:heartbeat"]
    same = main.add("main", 5)
    other.add("subagent:x", 10, session_id=same, sessionStartedAt=1_771_178_400_000, estimatedCostUsd=0.5)
    main.write()
    other.write()
    result = history.sync()
    assert (result.ran, result.changed, result.created, result.errors) == (True, 2, 3, [])
    rows = {
        (row[0], row[1]): row[2:]
        for row in history.execute(
            "SELECT agent_id, metadata->>'aria_session_id', session_type, status, tokens_used, cost_usd::float8,"
            " metadata->>'label', metadata->>'key', started_at = to_timestamp(1771178400) FROM agent_sessions"
        )
    }
    assert rows == {
        ("main", cron): ("cron", "active", 77, 0.0, "Cron: Bericht", "agent:main:cron:heartbeat", False),
        ("main", same): ("main", "active", 0, 0.0, None, "agent:main:main", False),
        ("analyst", same): ("subagent", "active", 0, 0.5, None, "agent:analyst:subagent:x", True),
    }


def test_a_real_store_goes_up_and_nothing_on_disk_changes(database: str, tmp_path: Path, server: Databases) -> None:
    agents = revive("mixed", tmp_path / "agents")
    before = picture(tmp_path, without_state=False)
    history = History(database, agents, server)
    result = history.sync()
    assert result.created == len(history.statuses()) == 67
    assert picture(tmp_path, without_state=False) == before


def test_what_has_not_changed_is_not_even_opened(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = [StoreBuilder(history.agents, name) for name in ("a", "b", "c")]
    for store in stores:
        store.add("main", 5)
        store.write()
    assert history.sync().changed == 3
    opened: list[str] = []
    real = volume_reader.read_snapshot
    monkeypatch.setattr(volume_reader, "read_snapshot", lambda s, now: opened.append(s.agent_id) or real(s, now))
    history.statements.clear()
    result = history.sync()
    assert (result.unchanged, result.changed, opened) == (3, 0, [])
    assert history.statements
    assert all(statement.lstrip().startswith("SELECT") for statement in history.statements), history.statements
    stores[1].add("cron:1", 5)
    stores[1].write()
    assert (history.sync().created, opened) == (1, ["b"])


def test_only_rows_that_differ_are_written(history: History) -> None:
    store = StoreBuilder(history.agents)
    keys = [f"agent:main:cron:{n}" for n in range(200)]
    for n in range(200):
        store.add(f"cron:{n}", 50, transcript=False)
    store.write()
    history.sync()
    versions = dict(history.execute("SELECT metadata->>'key', xmin::text FROM agent_sessions"))
    store.entries[keys[7]]["label"] = "new"
    store.entries[keys[8]]["inputTokens"] = 12
    store.write()
    history.statements.clear()
    assert history.sync().updated == 2
    writing = [s for s in history.statements if any(word in s for word in ("INSERT", "UPDATE"))]
    assert len(writing) == 1
    after = dict(history.execute("SELECT metadata->>'key', xmin::text FROM agent_sessions"))
    assert {key for key in keys if versions[key] != after[key]} == {keys[7], keys[8]}


def test_a_session_that_vanished_is_ended_and_one_that_is_back_is_active(history: History) -> None:
    store = StoreBuilder(history.agents)
    gone, stays = store.add("cron:1", 50), store.add("cron:2", 50)
    store.write()
    history.sync()
    entry = store.entries.pop("agent:main:cron:1")
    store.write()
    assert history.sync().ended == 1
    assert history.statuses() == {("main", gone): "ended", ("main", stays): "active"}
    assert history.execute("SELECT count(*) FROM agent_sessions WHERE ended_at IS NOT NULL") == [(1,)]
    store.entries["agent:main:cron:1"] = entry
    store.write()
    assert history.sync().revived == 1
    assert history.statuses() == {("main", gone): "active", ("main", stays): "active"}
    assert history.execute("SELECT count(*) FROM agent_sessions WHERE ended_at IS NOT NULL") == [(0,)]


def test_rows_that_the_sync_never_saw_are_not_its_business(history: History) -> None:
    store = StoreBuilder(history.agents)
    store.add("main", 5)
    store.write()
    history.execute(
        "INSERT INTO agent_sessions (agent_id, metadata) VALUES ('main', '{\"aria_session_id\": \"elsewhere\"}')"
    )
    assert history.sync().ended == 0
    assert history.statuses()[("main", "elsewhere")] == "active"


def test_a_row_that_a_client_made_belongs_to_the_sync_once_it_is_in_the_index(history: History) -> None:
    store = StoreBuilder(history.agents)
    sid = store.add("cron:1", 50)
    store.write()
    history.sync()
    history.execute("UPDATE agent_sessions SET volume = NULL")
    store.write()
    history.sync()
    store.entries.clear()
    store.write()
    assert history.sync().ended == 1
    assert history.statuses() == {("main", sid): "ended"}


def test_two_volumes_do_not_end_each_other_s_sessions(history: History, tmp_path: Path, server: Databases) -> None:
    here, there = StoreBuilder(history.agents), StoreBuilder(tmp_path / "second")
    here.add("cron:1", 5, session_id="here")
    there.add("cron:1", 5, session_id="there")
    here.write()
    there.write()
    second = read_config(
        {"ARIA_AGENTS_DIR": str(tmp_path / "second"), "DATABASE_URL": history.url, "ARIA_VOLUME": "second"}
    )
    history.sync()
    history.run(lambda engine: sync_volume(engine, second, wait=True))
    here.write()
    assert history.sync().ended == 0
    assert history.statuses() == {("main", "here"): "active", ("main", "there"): "active"}


@pytest.mark.parametrize("damage", ["truncated", "empty", "not an object", "unreadable name", "missing"])
def test_an_unreadable_index_changes_nothing(history: History, damage: str) -> None:
    good, bad = StoreBuilder(history.agents, "good"), StoreBuilder(history.agents, "bad")
    for store in (good, bad):
        store.add("cron:1", 50, session_id=f"{store.agent}-1")
        store.add("cron:2", 50, session_id=f"{store.agent}-2")
        store.write()
    history.sync()
    text = bad.index.read_bytes()
    bad.index.unlink()
    if damage == "truncated":
        bad.index.write_bytes(text[:-5])
    elif damage == "empty":
        bad.index.write_bytes(b"")
    elif damage == "not an object":
        bad.index.write_bytes(b"[]")
    elif damage == "unreadable name":
        bad.index.mkdir()
    del good.entries["agent:good:cron:1"]
    good.write()
    result = history.sync()
    assert [(e["agentId"], e["code"]) for e in result.errors] == [("bad", "index_damaged")]
    assert history.statuses() == {
        ("good", "good-1"): "ended",
        ("good", "good-2"): "active",
        ("bad", "bad-1"): "active",
        ("bad", "bad-2"): "active",
    }


def test_a_store_that_moved_to_sqlite_is_reported_and_ends_nothing(
    database: str, tmp_path: Path, server: Databases
) -> None:
    history = History(database, revive("moved-to-sqlite", tmp_path / "agents"), server)
    assert {e["code"] for e in history.sync().errors} == {"store_unsupported"}
    assert history.statuses() == {}


def test_an_agent_whose_folder_is_gone_is_reported_and_its_rows_stay(history: History) -> None:
    store = StoreBuilder(history.agents, "leaver")
    sid = store.add("cron:1", 50)
    store.write()
    history.sync()
    (history.agents / "leaver").rename(history.agents.parent / "elsewhere")
    assert [(e["agentId"], e["code"]) for e in history.sync().errors] == [("leaver", "agent_not_found")]
    assert history.statuses() == {("leaver", sid): "active"}


def test_a_stuck_holder_of_the_lock_is_not_waited_for_without_end(
    history: History, server: Databases, tmp_path: Path
) -> None:
    with running(tmp_path / "log", DATABASE_URL=history.url) as service, server.connect(history.url) as holder:
        with holder.transaction():
            holder.execute("SELECT pg_advisory_xact_lock(%s)", (WRITERS,))
            answer = service.client.post("/api/sessions", json={"agent_id": "a"})
            assert (answer.status_code, answer.headers.get("retry-after")) == (503, "2")
        assert service.client.post("/api/sessions", json={"agent_id": "a"}).status_code == 201


def test_a_stale_snapshot_does_not_revive_what_was_ended_after_it(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StoreBuilder(history.agents)
    sid = store.add("cron:1", 50)
    store.write()
    history.sync()
    store.entries["agent:main:cron:1"]["updatedAt"] += 10_000
    store.write()
    during(monkeypatch, lambda: history.mark("ended", "main", sid))
    assert history.sync().revived == 0
    assert history.statuses() == {("main", sid): "ended"}


def test_a_stale_snapshot_does_not_end_what_was_brought_back_after_it(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StoreBuilder(history.agents)
    sid = store.add("cron:1", 50)
    entry = store.entries["agent:main:cron:1"]
    store.write()
    history.sync()
    history.mark("ended", "main", sid)
    del store.entries["agent:main:cron:1"]
    store.write()

    def restore() -> None:
        store.entries["agent:main:cron:1"] = entry
        store.write()
        history.mark("active", "main", sid)

    during(monkeypatch, restore)
    assert history.sync().ended == 0
    assert history.statuses() == {("main", sid): "active"}
    history.sync()
    assert history.statuses() == {("main", sid): "active"}


def test_a_request_that_ends_a_row_again_counts_as_the_newest_word(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StoreBuilder(history.agents)
    sid = store.add("cron:1", 50)
    store.write()
    history.sync()
    history.mark("ended", "main", sid)
    store.entries["agent:main:cron:1"]["updatedAt"] += 60 * 60_000
    store.write()
    during(monkeypatch, lambda: history.mark("ended", "main", sid))
    assert history.sync().revived == 0
    assert history.statuses() == {("main", sid): "ended"}


def test_ended_by_a_request_it_must_have_done_something_since(history: History) -> None:
    store = StoreBuilder(history.agents)
    sid = store.add("cron:1", 50)
    store.write()
    history.sync()
    history.mark("ended", "main", sid)
    entry = store.entries["agent:main:cron:1"]
    for change in ({"label": "written back by the gateway's cache"}, {"updatedAt": entry["updatedAt"] + 60_000}):
        entry.update(change)
        store.write()
        assert history.sync().revived == 0
        assert history.statuses() == {("main", sid): "ended"}
    store.entries["agent:main:cron:1"]["updatedAt"] += 60 * 60_000
    store.write()
    assert history.sync().revived == 1
    assert history.statuses() == {("main", sid): "active"}
    assert history.execute("SELECT ended_at FROM agent_sessions") == [(None,)]


def test_an_erased_row_is_filled_again_only_by_newer_activity(history: History) -> None:
    store = StoreBuilder(history.agents)
    sid = store.add("cron:1", 50, label="secret", totalTokens=5)
    store.write()
    history.sync()
    history.erase("main", sid)
    ((erased,),) = history.execute("SELECT metadata FROM agent_sessions")
    assert set(erased) == {"aria_session_id", "erased_at"}
    entry = store.entries["agent:main:cron:1"]
    for change in ({"label": "from the gateway's cache", "totalTokens": 9}, {"updatedAt": entry["updatedAt"] + 60_000}):
        entry.update(change)
        store.write()
        assert history.sync().updated == 0
        assert history.execute("SELECT metadata, status, tokens_used FROM agent_sessions") == [(erased, "ended", 5)]
    entry["updatedAt"] += 60 * 60_000
    store.write()
    assert history.sync().revived == 1
    ((metadata, status),) = history.execute("SELECT metadata, status FROM agent_sessions")
    assert (metadata["label"], status, "erased_at" in metadata) == ("from the gateway's cache", "active", False)


def test_an_erasure_during_a_sync_is_the_last_word(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StoreBuilder(history.agents)
    sid = store.add("cron:1", 50, label="secret")
    store.write()
    history.sync()
    store.entries["agent:main:cron:1"]["updatedAt"] += 3 * 60 * 60_000
    store.write()
    during(monkeypatch, lambda: history.erase("main", sid))
    history.sync()
    ((metadata, status),) = history.execute("SELECT metadata, status FROM agent_sessions")
    assert (set(metadata), status) == ({"aria_session_id", "erased_at"}, "ended")


def test_a_client_s_own_erased_at_does_not_break_the_sync(history: History) -> None:
    store = StoreBuilder(history.agents)
    sid = store.add("cron:1", 50, label="x")
    store.write()

    async def work(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await queries.create(
                connection,
                {"agent_id": "main", "metadata": {"aria_session_id": sid, "erased_at": "once upon a time"}},
            )

    history.run(work)
    assert history.sync().errors == []
    assert history.execute("SELECT metadata->>'label', metadata->>'erased_at' FROM agent_sessions") == [("x", None)]


def test_a_mark_that_arrives_after_the_sync_has_ended_the_row_is_the_last_word(history: History) -> None:
    store = StoreBuilder(history.agents)
    sid = store.add("cron:1", 50)
    entry = store.entries["agent:main:cron:1"]
    store.write()
    history.sync()
    del store.entries["agent:main:cron:1"]
    store.write()
    history.sync()
    ((ended_at,),) = history.execute("SELECT ended_at FROM agent_sessions")
    history.mark("ended", "main", sid)
    assert history.execute("SELECT ended_at FROM agent_sessions") == [(ended_at,)]
    store.entries["agent:main:cron:1"] = entry
    store.write()
    assert history.sync().revived == 0
    assert history.statuses() == {("main", sid): "ended"}


def test_text_that_no_database_holds(history: History) -> None:
    store = StoreBuilder(history.agents)
    store.add("cron:1", 50, session_id="good", label="half \ud83d of an emoji, and \x00", transcript=False)
    store.add("cron:2", 50, session_id="bad\x00id", transcript=False)
    store.add("cron:3", 50, session_id="x" * 300, transcript=False)
    store.add("cron:4", 50, session_id="huge", inputTokens=10**400, estimatedCostUsd="free", transcript=False)
    store.index.write_text(json.dumps(store.entries))
    result = history.sync()
    assert (result.created, result.skipped, result.errors) == (2, 2, [])
    labels = dict(history.execute("SELECT metadata->>'aria_session_id', metadata->>'label' FROM agent_sessions"))
    assert labels == {"good": "half \ufffd of an emoji, and \ufffd", "huge": None}


def test_a_failed_sync_leaves_history_as_it_was(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StoreBuilder(history.agents)
    for n in range(50):
        store.add(f"cron:{n}", 50, transcript=False)
    store.write()
    end_all = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    during(monkeypatch, lambda: history.execute(end_all))
    with pytest.raises(DBAPIError):
        history.sync()
    assert history.statuses() == {}
    assert history.sync().created == 50


def test_replicas_that_sync_at_once_write_each_change_once(history: History) -> None:
    store = StoreBuilder(history.agents)
    for n in range(300):
        store.add(f"cron:{n}", 50, transcript=False)
    store.write()
    results: list[SyncResult] = []
    threads = [threading.Thread(target=lambda: results.append(history.sync())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(r.created for r in results) == [0, 0, 0, 300]
    assert sorted(r.unchanged for r in results) == [0, 1, 1, 1]


def test_the_loop_s_sync_does_not_wait_for_another_replica(history: History) -> None:
    async def work(engine: AsyncEngine) -> SyncResult:
        async with engine.begin() as connection:
            await job.queries.lock(connection, wait=True)
            return await sync_volume(engine, history.config, wait=False)

    assert history.run(work) == SyncResult(ran=False)


def test_no_volume_is_said(history: History) -> None:
    config = read_config({"DATABASE_URL": history.url, "HOME": "/nonexistent"})
    with pytest.raises(Refused, match="ARIA_AGENTS_DIR") as caught:
        history.run(lambda engine: sync_volume(engine, config, wait=True))
    assert caught.value.code == "no_volume"


def test_three_replicas_sync_by_themselves_and_on_request(history: History, tmp_path: Path) -> None:
    store = StoreBuilder(history.agents)
    store.add("cron:1", 50, session_id="first")
    store.write()
    env = {"DATABASE_URL": history.url, "ARIA_AGENTS_DIR": str(history.agents), "ARIA_SYNC_SECONDS": "1"}
    with (
        running(tmp_path / "log1", **env) as one,
        running(tmp_path / "log2", **env) as two,
        running(tmp_path / "log3", **env) as three,
    ):
        wait_until(lambda: history.statuses() == {("main", "first"): "active"})
        for n in range(10):
            store.add(f"cron:more{n}", 50, session_id=f"more{n}", transcript=False)
            store.write()
            wait_until(lambda n=n: ("main", f"more{n}") in history.statuses())
        replicas: list[Service] = [one, two, three]
        document = replicas[1].client.post("/api/sessions/sync").json()
        assert (document["unchanged"], document["changed"], document["errors"]) == (1, 0, [])
        created = [line for r in replicas for line in r.log.splitlines() if " created, " in line]
        assert sum(int(line.split(" created, ")[0].split()[-1]) for line in created) == 11
        del store.entries["agent:main:cron:1"]
        store.write()
        wait_until(lambda: history.statuses()[("main", "first")] == "ended")
    assert os.path.exists(store.index)
