"""What the skill could not tell history, the service of that volume takes from the ledger itself."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from service import Databases, Service, running, wait_until
from small_aria import Hanging, SmallAria
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine
from support import ROOT, Skill, StoreBuilder, ledger_sql, now_ms, picture, small_file_system
from test_service_jobs import items, last_run
from test_service_process import waiting
from test_service_sync import History

from session_manager.core.errors import Refused, SessionManagerError
from session_manager.ledger.delivery import ELSEWHERE
from session_manager.service.config import read_config
from session_manager.service.db.engine import WRITERS, make_engine
from session_manager.service.jobs import delivery as queries
from session_manager.service.jobs.delivery import Delivered, deliver_marks
from session_manager.service.jobs.loop import take_turn
from session_manager.service.jobs.registry import jobs

At = Callable[[str, Callable[[], object]], None]


@pytest.fixture
def history(database: str, agents: Path, server: Databases) -> History:
    return History(database, agents, server)


def known(history: History, *ids: str) -> StoreBuilder:
    """A store with old sessions that history knows."""
    store = StoreBuilder(history.agents)
    for session_id in ids:
        store.add(f"cron:{session_id}", 120, session_id=session_id)
    store.write()
    history.sync()
    return store


def deliver(history: History) -> Delivered:
    result = history.run(lambda engine: deliver_marks(engine, history.config))
    assert isinstance(result, Delivered)
    return result


def status(history: History, session_id: str) -> str | None:
    return history.statuses().get(("main", session_id))


def marks(agents: Path) -> dict[str, tuple[str, str]]:
    """Status and state of each session's mark."""
    return {
        sid: (said, state) for sid, said, state in ledger_sql(agents, "SELECT session_id, status, state FROM marks")
    }


def test_ended_active_again_and_erased(history: History, agents: Path, skill: Skill) -> None:
    known(history, "gone", "back", "private")
    for session_id in ("gone", "back", "private"):
        assert skill("delete_session", {"session_id": session_id}).document["pg_pending"] is True
    assert deliver(history) == Delivered(delivered=3)
    assert set(history.statuses().values()) == {"ended"}
    ended_at = history.execute("SELECT metadata->>'aria_session_id', ended_at, ended_by FROM agent_sessions ORDER BY 1")
    assert [by for *_, by in ended_at] == ["request"] * 3
    assert skill("restore_session", {"session_id": "back"}).document["pg_pending"] is True
    erased = skill("erase_session", {"session_id": "private", "confirm": "private"}, ARIA_ALLOW_ERASE="1").document
    assert erased["pg_status_updated"] is False
    assert deliver(history) == Delivered(delivered=2)
    assert history.statuses() == {("main", "gone"): "ended", ("main", "back"): "active", ("main", "private"): "ended"}
    (rest,) = history.execute("SELECT metadata FROM agent_sessions WHERE metadata->>'aria_session_id' = 'private'")
    assert set(rest[0]) == {"aria_session_id", "erased_at"}
    assert {state for _, state in marks(agents).values()} == {"delivered"}
    assert deliver(history) == Delivered()
    assert skill("get_session_stats").document["pending_history_marks"] == 0
    assert skill("verify_ledger").document["whole"] is True


def test_without_a_ledger_there_is_nothing_to_do_and_nothing_is_made(history: History, agents: Path) -> None:
    known(history, "a")
    before = picture(agents, without_state=False)
    assert deliver(history) == Delivered()
    assert picture(agents, without_state=False) == before
    config = read_config({"DATABASE_URL": history.url, "HOME": "/nonexistent"})
    with pytest.raises(Refused, match="ARIA_AGENTS_DIR"):
        history.run(lambda engine: deliver_marks(engine, config))
    assert [job.possible for job in jobs(config) if job.name == "delivery"] == [False]


def test_what_history_has_no_row_of_waits_for_it_and_is_given_up_after_days(
    history: History, agents: Path, skill: Skill
) -> None:
    store = StoreBuilder(agents)
    for session_id in ("late", "never"):
        store.add(f"cron:{session_id}", 120, session_id=session_id)
    store.write()
    for session_id in ("late", "never"):
        skill("delete_session", {"session_id": session_id})
    for _ in range(2):
        assert deliver(history) == Delivered(missing=2, pending=2)
    late = """INSERT INTO agent_sessions (agent_id, metadata) VALUES ('main', '{"aria_session_id": "late"}')"""
    history.execute(late)
    assert deliver(history) == Delivered(delivered=1, missing=1, pending=1)
    assert history.statuses() == {("main", "late"): "ended"}
    long_ago = now_ms() - 8 * 86_400_000
    ledger_sql(agents, "UPDATE marks SET changed_at = ? WHERE state = 'pending'", long_ago)
    assert deliver(history) == Delivered(given_up=1)
    assert marks(agents) == {"late": ("ended", "delivered"), "never": ("ended", "missing")}


def test_the_mark_of_a_session_that_came_back_to_life_is_dropped(history: History, agents: Path, skill: Skill) -> None:
    store = known(history, "back", "gone")
    assert skill("prune_sessions", {}).document["pg_pending"] == 2
    store.entries = {}
    store.add("cron:back", -0.1, session_id="back")
    store.write()
    assert deliver(history) == Delivered(delivered=1, superseded=1)
    assert history.statuses() == {("main", "back"): "active", ("main", "gone"): "ended"}
    assert marks(agents) == {"back": ("ended", "superseded"), "gone": ("ended", "delivered")}


def test_an_id_that_no_row_can_have_waits_and_keeps_no_other_from_going(
    history: History, agents: Path, skill: Skill
) -> None:
    known(history, "a")
    skill("delete_session", {"session_id": "a"})
    ledger_sql(agents, "INSERT INTO marks SELECT agent_id, ?, status, state, run_id, 1, 0 FROM marks", "x" * 257)
    assert deliver(history) == Delivered(delivered=1, given_up=1)
    ledger_sql(agents, "UPDATE marks SET state = 'pending' WHERE state = 'refused'")
    assert deliver(history) == Delivered(pending=1), "a history that takes nothing is no word about a mark"


# Two layers, and a process that may die between them.

KILLED = """
import asyncio, os, signal, sys
from session_manager.files import steps
from session_manager.service.config import read_config
from session_manager.service.db.engine import make_engine
from session_manager.service.jobs.delivery import deliver_marks
steps.watcher = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == sys.argv[1] else None
async def main():
    config = read_config(os.environ)
    await deliver_marks(make_engine(config.database_url), config)
asyncio.run(main())
"""


@pytest.mark.parametrize("step", ["marks sent", "marks noted"])
def test_killed_after_the_commit_it_is_told_again_which_does_no_harm(
    history: History, agents: Path, skill: Skill, step: str
) -> None:
    known(history, "a", "b")
    skill("delete_session", {"session_id": "a"})
    env = {**skill.environment(), "DATABASE_URL": history.url}
    done = subprocess.run([sys.executable, "-c", KILLED, step], cwd=ROOT, env=env, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    query = "SELECT ended_at, ended_by, status FROM agent_sessions WHERE metadata->>'aria_session_id' = 'a'"
    first = history.execute(query)
    assert first[0][1:] == ("request", "ended")
    noted = step == "marks noted"
    assert marks(agents) == {"a": ("ended", "delivered" if noted else "pending")}
    if not noted:
        # It may have been heard: whoever restores it now has to say so.
        assert ledger_sql(agents, "SELECT sent FROM marks") == [(1,)]
    assert deliver(history) == Delivered(delivered=0 if noted else 1)
    assert history.execute(query) == first
    assert status(history, "b") == "active"
    assert skill("verify_ledger").document["whole"] is True


def test_between_history_and_ledger_no_transaction_is_open(
    history: History, agents: Path, skill: Skill, server: Databases, at: At
) -> None:
    known(history, "a")
    skill("delete_session", {"session_id": "a"})
    seen: list[Any] = []

    def look() -> None:
        seen.append(threading.current_thread() is not threading.main_thread())
        with server.connect(history.url) as connection:
            seen.append(
                connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid() AND xact_start IS NOT NULL AND backend_type = 'client backend'"
                ).fetchone()
            )

    at("marks sent", look)
    assert deliver(history) == Delivered(delivered=1)
    assert seen == [True, (0,)]


def test_a_database_that_fails_half_way_has_what_it_committed_noted(
    history: History, agents: Path, skill: Skill, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(history, "a", "b", "c")
    for session_id in ("a", "b", "c"):
        skill("delete_session", {"session_id": session_id})
    monkeypatch.setattr(queries, "BATCH", 1)
    history.execute(
        "ALTER TABLE agent_sessions ADD CONSTRAINT no_b"
        " CHECK (metadata->>'aria_session_id' <> 'b' OR status = 'active')"
    )
    with pytest.raises(DBAPIError, match="no_b"):
        deliver(history)
    assert [marks(agents)[session_id][1] for session_id in "abc"] == ["delivered", "pending", "pending"]
    assert [status(history, session_id) for session_id in "abc"] == ["ended", "active", "active"]
    history.execute("ALTER TABLE agent_sessions DROP CONSTRAINT no_b")
    assert deliver(history) == Delivered(delivered=2)
    assert set(history.statuses().values()) == {"ended"}


def test_what_no_database_can_have_heard_is_not_owed_back(history: History, agents: Path, skill: Skill) -> None:
    known(history, "a")
    skill("delete_session", {"session_id": "a"})

    async def work(engine: AsyncEngine) -> None:
        nobody = make_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")
        try:
            await deliver_marks(nobody, history.config)
        finally:
            await nobody.dispose()

    with pytest.raises(OperationalError):
        history.run(work)
    assert ledger_sql(agents, "SELECT state, sent FROM marks") == [("pending", 0)]
    assert skill("restore_session", {"session_id": "a"}).exit_code == 0
    assert deliver(history) == Delivered()
    assert marks(agents) == {"a": ("ended", "cancelled")}


def test_cut_off_while_the_database_is_silent_it_leaves_the_mark_and_no_lock(
    history: History, agents: Path, skill: Skill, server: Databases
) -> None:
    known(history, "a")
    skill("delete_session", {"session_id": "a"})
    with server.connect(history.url) as holder, holder.transaction():
        holder.execute("SELECT pg_advisory_xact_lock(%s)", (WRITERS,))

        async def work(engine: AsyncEngine) -> None:
            task = asyncio.create_task(deliver_marks(engine, history.config))
            await asyncio.to_thread(wait_until, lambda: waiting(server, history.url) == 1)
            task.cancel()

        history.run(work)
    assert marks(agents) == {"a": ("ended", "pending")}
    assert status(history, "a") == "active"
    assert deliver(history) == Delivered(delivered=1)


# Beside calls of the skill


def test_while_a_call_of_the_skill_delivers_this_does_not(
    history: History, agents: Path, skill: Skill, aria: SmallAria
) -> None:
    known(history, "a")
    aria.add("a")
    hanging = Hanging()
    aria.prepared = [hanging]
    call = skill.start("delete_session", {"session_id": "a"}, ARIA_API_URL=aria.url)
    assert hanging.asked.wait(30)
    assert deliver(history) == Delivered(pending=1, busy=True)
    assert status(history, "a") == "active"
    hanging.free.set()
    call.communicate(timeout=30)
    assert call.returncode == 0
    assert marks(agents) == {"a": ("ended", "delivered")}


def test_what_a_call_of_the_skill_leaves_to_this_is_taken_at_once(
    history: History, agents: Path, skill: Skill, aria: SmallAria, at: At
) -> None:
    known(history, "a", "b")
    skill("delete_session", {"session_id": "a"})
    left: list[Any] = []
    at("marks sent", lambda: left.append(skill("delete_session", {"session_id": "b"}, ARIA_API_URL=aria.url).document))
    assert deliver(history) == Delivered(delivered=2)
    assert (left[0]["pg_pending"], left[0]["pg_error"], aria.requests) == (True, ELSEWHERE, [])
    assert set(history.statuses().values()) == {"ended"}


# Ledgers that nobody can use


def damaged(ledger: Path) -> None:
    ledger.write_bytes(b"no database at all" * 100)


def newer(ledger: Path) -> None:
    ledger_sql(ledger.parents[1], "PRAGMA user_version = 99")


def no_file(ledger: Path) -> None:
    ledger.unlink()
    ledger.mkdir()


@pytest.mark.parametrize(
    ("spoil", "code"), [(damaged, "ledger_damaged"), (newer, "ledger_unsupported"), (no_file, "ledger_damaged")]
)
def test_a_ledger_that_cannot_be_used_is_said_in_a_sentence_and_nothing_changes(
    history: History, agents: Path, skill: Skill, spoil: Callable[[Path], None], code: str
) -> None:
    known(history, "a")
    skill("delete_session", {"session_id": "a"})
    spoil(agents / ".session_manager" / "ledger.sqlite")
    before = picture(agents, without_state=False)
    with pytest.raises(SessionManagerError) as caught:
        deliver(history)
    assert caught.value.code == code
    job = next(job for job in jobs(history.config) if job.name == "delivery")

    async def turn(engine: AsyncEngine) -> Any:
        await take_turn(engine, history.config, job)
        return await last_run(engine, job)

    noted = history.run(turn)
    assert (noted.outcome, noted.failures, noted.result) == ("failed", 1, None)
    assert caught.value.message in noted.error
    assert picture(agents, without_state=False) == before
    assert status(history, "a") == "active"


def test_a_volume_that_is_read_only_gets_nothing_noted_and_history_nothing_told(
    database: str, skill: Skill, server: Databases, tmp_path: Path
) -> None:
    with small_file_system(tmp_path / "volume", "4m") as agents:
        history, there = History(database, agents, server), Skill(agents)
        known(history, "a")
        there("delete_session", {"session_id": "a"})
        subprocess.run(["mount", "-o", "remount,ro", str(agents)], check=True)
        with pytest.raises(SessionManagerError) as caught:
            deliver(history)
        assert caught.value.code == "not_writable"
        assert status(history, "a") == "active"
        subprocess.run(["mount", "-o", "remount,rw", str(agents)], check=True)
        assert deliver(history) == Delivered(delivered=1)
        subprocess.run(["mount", "-o", "remount,ro", str(agents)], check=True)
        assert deliver(history) == Delivered(), "nothing waits, so nothing need be written"


# The service


def test_two_replicas_take_what_was_left_while_none_ran_and_what_comes_later(
    history: History, agents: Path, skill: Skill, tmp_path: Path
) -> None:
    known(history, "a", "b")
    assert skill("delete_session", {"session_id": "a"}).document["pg_pending"] is True
    env = {"DATABASE_URL": history.url, "ARIA_AGENTS_DIR": str(agents)}
    env |= {"ARIA_SYNC_SECONDS": "0", "ARIA_DELIVERY_SECONDS": "1", "ARIA_API_URL": ""}
    with running(tmp_path / "log1", **env) as one, running(tmp_path / "log2", **env) as two:
        replicas: list[Service] = [one, two]
        wait_until(lambda: skill("get_session_stats").document["pending_history_marks"] == 0)
        assert history.statuses() == {("main", "a"): "ended", ("main", "b"): "active"}
        skill("delete_session", {"session_id": "b"})
        wait_until(lambda: skill("get_session_stats").document["pending_history_marks"] == 0)
        assert status(history, "b") == "ended"
        told = "delivery: 1 status updates delivered, 0 superseded, 0 given up, 0 pending"
        wait_until(lambda: sum(replica.log.count(told) for replica in replicas) == 2)
        assert ledger_sql(agents, "SELECT count(*) FROM events WHERE kind = 'heard'") == [(2,)]
        shown = items(one)["delivery"]
        assert (shown["volume"], shown["enabled"], shown["outcome"]) == ("default", True, "ok")
        metrics = "".join(replica.client.get("/metrics").text for replica in replicas)
        assert 'aria_job_seconds_count{job="delivery"}' in metrics
        damaged(agents / ".session_manager" / "ledger.sqlite")
        wait_until(lambda: items(two)["delivery"]["outcome"] == "failed")
        assert "cannot be read" in items(one)["delivery"]["error"]
        assert [replica.client.get("/readyz").status_code for replica in replicas] == [200, 200]
