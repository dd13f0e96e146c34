"""Background jobs: each in one replica at a time, when it is due, noted for all, and never the service's end."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from service import Databases, Service, cli, running, wait_until
from sqlalchemy.ext.asyncio import AsyncEngine
from support import StoreBuilder
from test_service_process import waiting
from test_service_security import asks, created
from test_service_sync import History

from session_manager.core.errors import Failed, NotFound, Refused
from session_manager.service.config import Config, read_config
from session_manager.service.db import jobs as queries
from session_manager.service.db import sessions
from session_manager.service.db.engine import JOBS, WRITERS, make_engine
from session_manager.service.db.sync import TYPES
from session_manager.service.db.tables import metadata
from session_manager.service.jobs import cleanups as closing
from session_manager.service.jobs.cleanups import Closed, close_idle
from session_manager.service.jobs.loop import AT_ONCE, LONGEST_PAUSE_S, Runner, Turn, pause_s, take_turn
from session_manager.service.jobs.quiet import QuietRuns
from session_manager.service.jobs.registry import Job, jobs

CONFIG = read_config({"HOME": "/nonexistent"})


class Done(msgspec.Struct):
    """What a step of these tests did."""

    number: int


@pytest.fixture
def history(database: str, agents: Path, server: Databases) -> History:
    return History(database, agents, server)


def on(url: str, work: Callable[[AsyncEngine], Awaitable[Any]]) -> Any:
    """Runs ``work`` on an engine of its own."""

    async def main() -> Any:
        engine = make_engine(url)
        try:
            return await work(engine)
        finally:
            await engine.dispose()

    return asyncio.run(main())


async def last_run(engine: AsyncEngine, job: Job) -> queries.Run:
    async with engine.connect() as connection:
        (found,) = await queries.runs(connection, [job.key])
    return found


def counting(interval_s: float = 600.0, volume: str = "") -> tuple[Job, list[int]]:
    """A job that counts its runs."""
    done: list[int] = []

    async def step(engine: AsyncEngine, config: Config) -> Done:
        done.append(len(done) + 1)
        return Done(done[-1])

    return Job("counting", step, interval_s, volume), done


def items(service: Service) -> dict[str, dict[str, Any]]:
    answer = service.client.get("/api/jobs")
    assert answer.status_code == 200, answer.text
    return {item["name"]: item for item in answer.json()["items"]}


# The loop


def test_while_one_replica_runs_a_job_another_does_not_and_afterwards_it_is_not_due(database: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        entered, leave = asyncio.Event(), asyncio.Event()
        runs: list[str] = []

        async def slow(engine: AsyncEngine, config: Config) -> Done:
            runs.append("first")
            entered.set()
            await leave.wait()
            return Done(7)

        async def quick(engine: AsyncEngine, config: Config) -> Done:
            runs.append("second")
            return Done(8)

        other = make_engine(database)
        slow_job, quick_job = Job("same", slow, 600.0), Job("same", quick, 600.0)
        first = asyncio.create_task(take_turn(engine, CONFIG, slow_job))
        await entered.wait()
        assert (await last_run(other, quick_job)).running
        for asked in (False, True):
            turn = await take_turn(other, CONFIG, quick_job, asked=asked)
            assert (turn.ran, turn.busy) == (False, True)
        leave.set()
        assert (await first).ran
        turn = await take_turn(other, CONFIG, quick_job)
        assert (turn.ran, turn.busy, runs) == (False, False, ["first"])
        noted = await last_run(other, quick_job)
        assert (noted.outcome, noted.result, noted.error, noted.failures) == ("ok", {"number": 7}, None, 0)
        assert not noted.running
        assert (await take_turn(other, CONFIG, quick_job, asked=True)).ran
        assert runs == ["first", "second"]
        await other.dispose()

    on(database, work)


# What changes nothing is written nowhere


def stored(history: History) -> list[Any]:
    """Every row of every table, as its version says."""
    return [
        history.execute(f"SELECT '{name}', ctid::text, xmin::text FROM {name} ORDER BY 2") for name in metadata.tables
    ]


def ask(history: History, job: Job, quiet: QuietRuns) -> Turn:
    config = read_config({"HOME": "/nonexistent", "ARIA_AGENTS_DIR": str(history.agents)})
    turn = history.run(lambda engine: take_turn(engine, config, job, quiet, asked=True))
    assert isinstance(turn, Turn)
    assert (turn.ran, turn.failed) == (True, None), job.name
    return turn


def test_no_job_writes_anything_when_nothing_has_changed(history: History) -> None:
    store = StoreBuilder(history.agents)
    store.add("cron:1", 5, session_id="first")
    store.write()
    # The second run has still to say that there was nothing more to do.
    for job in jobs(history.config):
        for _ in range(2):
            ask(history, job, QuietRuns())
    before, files = stored(history), sorted(history.agents.rglob("*"))
    changed = [path.stat().st_mtime_ns for path in files]
    quiet = QuietRuns()
    for job in jobs(history.config):
        for _ in range(2):
            ask(history, job, quiet)
    assert stored(history) == before
    assert sorted(history.agents.rglob("*")) == files
    assert [path.stat().st_mtime_ns for path in files] == changed


def test_a_run_that_changed_nothing_is_known_to_its_replica_and_not_due_there(database: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        found = [0]

        async def step(engine: AsyncEngine, config: Config) -> Closed:
            return Closed(found[0])

        job, here, there = Job("watching", step, 600.0), QuietRuns(), QuietRuns()

        async def known(quiet: QuietRuns) -> queries.Run:
            return quiet.latest(job.key, await last_run(engine, job))

        assert (await take_turn(engine, CONFIG, job, here)).ran
        first = await last_run(engine, job)
        assert (first.outcome, first.result) == ("ok", {"closed": 0}), "the first run is noted for all"
        assert (await take_turn(engine, CONFIG, job, here, asked=True)).ran
        assert (await last_run(engine, job)).next_run_at == first.next_run_at
        own = await known(here)
        assert own.started_at is not None
        assert own.ended_at is not None
        assert own.next_run_at is not None
        assert first.ended_at is not None
        assert first.ended_at < own.started_at <= own.ended_at
        assert timedelta(seconds=599) < own.next_run_at - own.ended_at < timedelta(seconds=601)
        assert (own.outcome, own.result, own.failures, own.running) == ("ok", {"closed": 0}, 0, False)
        assert (await known(there)).ended_at == first.ended_at

        async with engine.begin() as connection:
            await connection.exec_driver_sql("UPDATE job_runs SET next_run_at = now() - interval '1 second'")
        assert not (await take_turn(engine, CONFIG, job, here)).ran, "this replica has looked just now"
        assert (await take_turn(engine, CONFIG, job, there)).ran, "that one has not"
        assert not (await take_turn(engine, CONFIG, job, there)).ran

        found[0] = 1
        ends = []
        for _ in range(2):
            assert (await take_turn(engine, CONFIG, job, here, asked=True)).ran
            noted = await known(there)
            assert noted.result == {"closed": 1}
            ends.append(noted.ended_at)
        assert ends[0] != ends[1], "what did something is noted each time"
        found[0] = 0
        assert (await take_turn(engine, CONFIG, job, here, asked=True)).ran
        assert (await last_run(engine, job)).result == {"closed": 0}, "so is that there is nothing more to do"

    on(database, work)


def test_a_failure_and_the_end_of_failures_are_noted_each_time(database: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        broken = [False, False, True, True, False, False]

        async def step(engine: AsyncEngine, config: Config) -> Closed:
            if broken.pop(0):
                raise ValueError("no")
            return Closed(0)

        job, quiet = Job("brittle", step, 30.0), QuietRuns()
        seen = []
        while broken:
            await take_turn(engine, CONFIG, job, quiet, asked=True)
            noted = await last_run(engine, job)
            seen.append((noted.outcome, noted.failures, noted.ended_at))
        assert [what[:2] for what in seen] == [("ok", 0), ("ok", 0), ("failed", 1), ("failed", 2), ("ok", 0), ("ok", 0)]
        assert len({what[2] for what in seen}) == 4

    on(database, work)


def test_a_sync_that_is_asked_for_writes_nothing_when_nothing_has_changed(history: History, tmp_path: Path) -> None:
    store = StoreBuilder(history.agents)
    store.add("cron:1", 5, session_id="first")
    store.write()
    env = {"DATABASE_URL": history.url, "ARIA_AGENTS_DIR": str(history.agents), "ARIA_SYNC_SECONDS": "0"}
    with running(tmp_path / "log", **env) as service:
        for _ in range(2):
            service.client.post("/api/sessions/sync").raise_for_status()
        before, shown = stored(history), items(service)["volume_sync"]
        answer = service.client.post("/api/sessions/sync").json()
        assert (answer["unchanged"], answer["created"]) == (1, 0)
        assert stored(history) == before
        assert items(service)["volume_sync"]["ended_at"] > shown["ended_at"], "this replica knows of it"
        assert items(service)["volume_sync"]["result"] == {"ran": True, **answer}


def test_jobs_of_two_volumes_and_of_two_names_do_not_wait_for_each_other(database: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        here, done_here = counting(volume="here")
        there, done_there = counting(volume="there")

        async def nested(engine: AsyncEngine, config: Config) -> Done:
            assert (await take_turn(engine, config, here)).ran
            assert (await take_turn(engine, config, there)).ran
            return Done(0)

        turn = await take_turn(engine, CONFIG, Job("counting", nested, 600.0))
        assert (turn.ran, turn.failed, done_here, done_there) == (True, None, [1], [1])

    on(database, work)


def test_a_restart_does_not_bring_the_next_run_forward_and_a_shorter_interval_does(database: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        job, done = counting(3600.0)
        assert (await take_turn(engine, CONFIG, job)).ran
        assert (await take_turn(engine, CONFIG, job)).wait_s == LONGEST_PAUSE_S
        noted = await last_run(engine, job)
        assert noted.next_run_at is not None
        assert noted.ended_at is not None
        assert timedelta(seconds=3599) < noted.next_run_at - noted.ended_at < timedelta(seconds=3601)
        soon = await take_turn(engine, CONFIG, msgspec.structs.replace(job, interval_s=3600.5))
        assert (soon.ran, done) == (False, [1])
        assert (await take_turn(engine, CONFIG, msgspec.structs.replace(job, interval_s=60.0))).ran
        assert done == [1, 2]

    on(database, work)


def test_a_failing_job_is_noted_backs_off_and_recovers(database: str, caplog: pytest.LogCaptureFixture) -> None:
    async def work(engine: AsyncEngine) -> None:
        broken = True

        async def step(engine: AsyncEngine, config: Config) -> Done:
            if broken:
                raise ValueError("half \ud83d of an emoji and \0")
            return Done(1)

        job = Job("brittle", step, 30.0)
        for failures in (1, 2, 3):
            turn = await take_turn(engine, CONFIG, job, asked=True)
            assert turn.failed == "ValueError: half \ufffd of an emoji and \ufffd"
            noted = await last_run(engine, job)
            assert (noted.outcome, noted.failures, noted.error, noted.result) == ("failed", failures, turn.failed, None)
            assert noted.next_run_at is not None
            assert noted.ended_at is not None
            assert abs((noted.next_run_at - noted.ended_at).total_seconds() - 30 * 2**failures) < 1
            assert not (await take_turn(engine, CONFIG, job)).ran, "it waits longer after a failure"
        broken = False
        assert (await take_turn(engine, CONFIG, job, asked=True)).failed is None
        noted = await last_run(engine, job)
        assert (noted.outcome, noted.failures, noted.error) == ("ok", 0, None)

    on(database, work)
    assert "brittle failed (3 in a row): ValueError" in caplog.text


def test_pauses_double_up_to_five_minutes_or_the_interval() -> None:
    assert [pause_s(30.0, n) for n in (0, 1, 2, 3, 4, 5, 1000)] == [30, 60, 120, 240, 300, 300, 300]
    assert [pause_s(21_600.0, n) for n in (0, 1, 1000)] == [21_600] * 3


def test_an_error_of_the_database_in_a_step_shows_no_values(database: str, caplog: pytest.LogCaptureFixture) -> None:
    async def work(engine: AsyncEngine) -> str | None:
        async def step(engine: AsyncEngine, config: Config) -> Done:
            async with engine.begin() as connection:
                await connection.exec_driver_sql("SELECT 'secret value'::int")
            return Done(1)

        return (await take_turn(engine, CONFIG, Job("brittle", step, 30.0))).failed

    failed = on(database, work)
    assert "SELECT" not in failed + caplog.text
    assert "DataError" in failed


def test_a_loop_survives_failures_and_a_database_that_is_not_there(
    database: str, server: Databases, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(engine: AsyncEngine) -> None:
        reached = asyncio.Event()
        runs = 0

        async def step(engine: AsyncEngine, config: Config) -> Done:
            nonlocal runs
            runs += 1
            if runs == 1:
                raise RuntimeError("first")
            if runs == 2:
                # Its own transaction ends with the connections: the run cannot be noted.
                await asyncio.to_thread(cut)
            if runs == 4:
                reached.set()
            return Done(runs)

        def cut() -> None:
            with server.connect(database) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )

        runner = Runner(engine, CONFIG, [Job("hardy", step, 0.01)])
        runner.start()
        await asyncio.wait_for(reached.wait(), 60)
        await runner.stop()
        noted = await last_run(engine, runner.jobs[0])
        assert (noted.outcome, noted.failures, noted.result) == ("ok", 0, {"number": runs})

    on(database, work)
    assert "hardy failed (1 in a row): RuntimeError: first" in caplog.text
    assert "hardy could not be run or recorded (1 in a row)" in caplog.text


def test_the_end_waits_for_the_step_in_hand_asked_for_or_due(database: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        entered, leave = asyncio.Semaphore(0), asyncio.Event()
        finished: list[str] = []

        def slow(name: str) -> Job:
            async def step(engine: AsyncEngine, config: Config) -> Done:
                entered.release()
                await leave.wait()
                finished.append(name)
                return Done(1)

            return Job(name, step, 600.0 if name == "due" else 0.0)

        runner = Runner(engine, CONFIG, [slow("due"), slow("asked")])
        runner.start()
        asking = asyncio.create_task(runner.run_now("asked"))
        await entered.acquire()
        await entered.acquire()
        asking.cancel()
        ending = asyncio.create_task(runner.stop())
        done, _ = await asyncio.wait([ending], timeout=0.3)
        assert not done
        leave.set()
        await ending
        assert sorted(finished) == ["asked", "due"]
        assert [(await last_run(engine, job)).outcome for job in runner.jobs] == ["ok", "ok"]

    on(database, work)


def test_few_jobs_run_at_once_and_those_that_wait_do_not_begin_after_the_end(database: str) -> None:
    """Each run takes two connections; if all jobs began together, a small pooler would have none for their steps."""

    async def work(engine: AsyncEngine) -> None:
        leave = asyncio.Event()
        begun: list[str] = []

        def job(name: str) -> Job:
            async def step(engine: AsyncEngine, config: Config) -> Done:
                begun.append(name)
                await leave.wait()
                return Done(1)

            return Job(name, step, 600.0)

        runner = Runner(engine, CONFIG, [job(f"job{n}") for n in range(AT_ONCE + 3)])
        runner.start()
        async with asyncio.timeout(30):
            while len(begun) < AT_ONCE:
                await asyncio.sleep(0.01)
        async with engine.connect() as connection:
            for _ in range(20):
                await connection.exec_driver_sql("SELECT 1")
        assert len(begun) == AT_ONCE
        stopping = asyncio.create_task(runner.stop())
        await asyncio.sleep(0)
        leave.set()
        await stopping
        assert len(begun) == AT_ONCE

    on(database, work)


def test_a_volume_that_hangs_keeps_no_job_of_the_database_waiting(database: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        leave, hanging = asyncio.Event(), asyncio.Event()
        begun: list[str] = []

        def hung(name: str) -> Job:
            async def step(engine: AsyncEngine, config: Config) -> Done:
                begun.append(name)
                hanging.set()
                await leave.wait()
                return Done(1)

            return Job(name, step, 600.0, "default")

        quick, done = counting()
        volume = [hung(f"job{n}") for n in range(AT_ONCE + 1)]
        runner = Runner(engine, CONFIG, [*volume, msgspec.structs.replace(quick, interval_s=0.0)])
        runner.start()
        try:
            async with asyncio.timeout(30):
                await hanging.wait()
                for _ in range(20):
                    await runner.run_now("counting")
        finally:
            leave.set()
            first = list(begun)
            await runner.stop()
        assert (len(first), len(done)) == (1, 20)

    on(database, work)


def test_what_is_switched_off_runs_on_request_only_and_leaves_the_plan_of_others_alone(database: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        job, done = counting()
        await take_turn(engine, CONFIG, job)
        planned = (await last_run(engine, job)).next_run_at
        runner = Runner(engine, CONFIG, [msgspec.structs.replace(job, interval_s=0.0)])
        runner.start()
        await runner.run_now("counting")
        await runner.stop()
        assert done == [1, 2]
        assert (await last_run(engine, job)).next_run_at == planned

    on(database, work)


def test_a_request_for_a_job_that_is_not_there_cannot_run_or_fails_says_so(database: str) -> None:
    async def work(engine: AsyncEngine) -> None:
        async def step(engine: AsyncEngine, config: Config) -> Done:
            raise ValueError("no")

        runner = Runner(engine, CONFIG, [Job("brittle", step, 30.0), Job("lacking", step, 30.0, possible=False)])
        with pytest.raises(NotFound, match="/api/jobs"):
            await runner.run_now("nothing")
        with pytest.raises(Refused) as refused:
            await runner.run_now("lacking")
        assert refused.value.code == "job_not_possible"
        assert (await last_run(engine, runner.jobs[1])).outcome is None
        with pytest.raises(Failed, match="ValueError: no"):
            await runner.run_now("brittle")

    on(database, work)


# The service


def test_every_replica_shows_the_same_runs_and_refuses_one_that_is_under_way(
    history: History, tmp_path: Path, server: Databases
) -> None:
    store = StoreBuilder(history.agents)
    store.add("cron:1", 5, session_id="first")
    store.write()
    env = {"DATABASE_URL": history.url, "ARIA_AGENTS_DIR": str(history.agents)}
    with running(tmp_path / "log1", **env) as one, running(tmp_path / "log2", **env) as two:
        wait_until(lambda: items(two)["volume_sync"]["outcome"] == "ok")
        (shown, same), quiet = (items(service)["volume_sync"] for service in (one, two)), items(one)["closing"]
        assert shown == same
        assert (shown["volume"], shown["enabled"], shown["interval_seconds"]) == ("default", True, 30)
        assert (shown["result"]["created"], shown["failures"], shown["error"]) == (1, 0, None)
        started, ended, following = (
            datetime.fromisoformat(shown[name]) for name in ("started_at", "ended_at", "next_run_at")
        )
        assert started <= ended < following
        assert abs(datetime.now(UTC) - ended) < timedelta(minutes=5)
        created_lines = [service.log.count(" created, ") for service in (one, two)]
        assert sorted(created_lines) == [0, 1], "one of the two ran it"
        assert (quiet["enabled"], quiet["outcome"], quiet["next_run_at"]) == (False, None, None)
        with server.connect(history.url) as holder, holder.transaction():
            holder.execute("SELECT pg_advisory_xact_lock(%s, hashtext('closing:'))", (JOBS,))
            assert [items(service)["closing"]["running"] for service in (one, two)] == [True, True]
            assert not items(one)["volume_sync"]["running"]
            answer = one.client.post("/api/jobs/closing/run")
            assert (answer.status_code, answer.json()["code"]) == (409, "job_running")
        answer = two.client.post("/api/jobs/closing/run")
        assert (answer.status_code, answer.json()["result"]) == (200, {"closed": 0})
        assert items(one)["closing"]["ended_at"] == answer.json()["ended_at"]

        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(two.client.post("/api/sessions/sync")))
        with server.connect(history.url) as holder, holder.transaction():
            holder.execute("SELECT pg_advisory_xact_lock(%s, hashtext('volume_sync:default'))", (JOBS,))
            store.add("cron:2", 5, session_id="second")
            store.write()
            asking.start()
            wait_until(lambda: waiting(server, history.url) == 1)
        asking.join(30)
        assert (answers[0].status_code, answers[0].json()["created"]) == (200, 1), "it waited for the other run"
        noted = items(one)["volume_sync"]
        assert noted["result"] == {"ran": True, **answers[0].json()}
        assert datetime.fromisoformat(noted["started_at"]) > ended
        history.agents.rename(tmp_path / "elsewhere")
        answer = two.client.post("/api/sessions/sync")
        assert (answer.status_code, answer.json()["code"]) == (503, "io_error")
        noted = items(one)["volume_sync"]
        assert (noted["outcome"], answer.json()["error"] in noted["error"]) == ("failed", True)


def test_who_may_see_jobs_and_who_may_run_them(database: str, tmp_path: Path, server: Databases) -> None:
    reader, writer, admin = (created(database, "--scope", scope) for scope in ("read", "read,write,delete", "admin"))
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        for token, see, run in ((None, 401, 401), (reader, 200, 403), (writer, 200, 403), (admin, 200, 200)):
            assert asks(service, token, path="/api/jobs") == see
            assert asks(service, token, "POST", "/api/jobs/closing/run") == run
        assert asks(service, admin, "POST", "/api/jobs/nothing/run") == 404
        assert asks(service, admin, "POST", "/api/jobs/volume_sync/run") == 409
        assert asks(service, admin, "POST", "/api/sessions/sync") == 409
        with server.connect(database) as connection:
            assert connection.execute("SELECT name FROM job_runs").fetchall() == [("closing",)]


@pytest.mark.parametrize("value", ["0.5", "-1", "often", "nan", "86401"])
def test_an_interval_that_is_none_is_refused(database: str, value: str) -> None:
    done = cli("serve", "--port", "0", DATABASE_URL=database, ARIA_CLOSING_SECONDS=value)
    assert (done.returncode, done.stdout) == (2, "")
    assert "ARIA_CLOSING_SECONDS" in done.stderr


def test_jobs_have_names_for_addresses_and_fit_their_settings() -> None:
    names = [job.name for job in jobs(CONFIG)]
    assert len(set(names)) == len(names)
    assert set(names) == set(CONFIG.intervals)
    assert all(name.isidentifier() and name.islower() for name in names)


def test_a_sync_in_hand_is_finished_before_the_service_ends(
    history: History, tmp_path: Path, server: Databases
) -> None:
    store = StoreBuilder(history.agents)
    store.add("cron:1", 5, session_id="first")
    store.write()
    with server.connect(history.url) as holder, holder.transaction():
        holder.execute("SELECT pg_advisory_xact_lock(%s)", (WRITERS,))
        service = Service(tmp_path / "log", DATABASE_URL=history.url, ARIA_AGENTS_DIR=str(history.agents))
        wait_until(lambda: waiting(server, history.url) == 1)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert service.process.poll() is None
    assert service.stop() == 0
    assert history.statuses() == {("main", "first"): "active"}
    assert history.execute("SELECT outcome, result->>'created' FROM job_runs") == [("ok", "1")]


def test_killed_in_a_run_the_job_is_taken_over(history: History, tmp_path: Path, server: Databases) -> None:
    store = StoreBuilder(history.agents)
    store.add("cron:1", 5, session_id="first")
    store.write()
    env = {"DATABASE_URL": history.url, "ARIA_AGENTS_DIR": str(history.agents)}
    with server.connect(history.url) as holder, holder.transaction():
        holder.execute("SELECT pg_advisory_xact_lock(%s)", (WRITERS,))
        service = Service(tmp_path / "log", **env)
        wait_until(lambda: waiting(server, history.url) == 1)
        service.kill()
        assert history.execute("SELECT * FROM job_runs") == []
    with running(tmp_path / "log2", **env):
        wait_until(lambda: history.statuses() == {("main", "first"): "active"})


# Closing

_ROWS = """
    INSERT INTO agent_sessions (agent_id, session_type, status, started_at, last_activity_at, metadata)
    SELECT 'main', kind, status, now() - interval '3 hours', now() - make_interval(mins => minutes),
           jsonb_build_object('aria_session_id', sid)
    FROM (VALUES
      ('old cron', 'cron', 'active', 121), ('old delegation', 'subagent', 'active', 179),
      ('young cron', 'cron', 'active', 119), ('young delegation', 'subagent', 'active', 1),
      ('old talk', 'direct', 'active', 170), ('failed', 'cron', 'error', 170), ('ended', 'cron', 'ended', 170),
      ('never active', 'cron', 'active', NULL)
    ) AS r (sid, kind, status, minutes)
"""


def test_idle_cron_and_delegated_rows_end_as_of_their_last_activity(history: History) -> None:
    history.execute(_ROWS)
    assert history.run(lambda engine: close_idle(engine, CONFIG)) == Closed(3)
    assert {sid: status for (_, sid), status in history.statuses().items()} == {
        "old cron": "ended",
        "old delegation": "ended",
        "never active": "ended",
        "young cron": "active",
        "young delegation": "active",
        "old talk": "active",
        "failed": "error",
        "ended": "ended",
    }
    assert history.execute(
        "SELECT bool_and(ended_at = coalesce(last_activity_at, started_at)), bool_and(status_at > now() - interval"
        " '1 minute'), count(*) FROM agent_sessions WHERE ended_by = 'closing'"
    ) == [(True, True, 3)]
    assert history.run(lambda engine: close_idle(engine, CONFIG)) == Closed(0)


def test_the_sync_revives_what_was_only_silent_and_leaves_the_rest_ended(history: History) -> None:
    store = StoreBuilder(history.agents)
    ids = {store.add(f"{kind}:{name}", 180, session_id=f"{kind}-{name}") for kind in TYPES for name in ("a", "b")}
    store.write()
    history.sync()
    assert history.run(lambda engine: close_idle(engine, CONFIG)) == Closed(4)
    store.entries["agent:main:cron:b"]["label"] = "changed, and no sign of life"
    store.entries["agent:main:cron:a"]["updatedAt"] = int(time.time() * 1000)
    store.write()
    assert history.sync().revived == 1
    active = {sid for (_, sid), status in history.statuses().items() if status == "active"}
    assert (active, len(ids)) == ({"cron-a"}, 4)
    assert history.execute("SELECT ended_at, ended_by FROM agent_sessions WHERE status = 'active'") == [(None, None)]
    assert history.run(lambda engine: close_idle(engine, CONFIG)) == Closed(0)


def test_what_a_request_has_made_active_or_changed_is_left_alone_for_two_hours(history: History) -> None:
    history.execute(_ROWS)
    ids = dict(history.execute("SELECT metadata->>'aria_session_id', id FROM agent_sessions"))
    began = datetime.now(UTC) - timedelta(hours=5)
    metadata = {"aria_session_id": "begun long ago"}

    async def ask(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            assert await sessions.change(connection, ids["old cron"], {"status": "active"})
            assert await sessions.change(connection, ids["never active"], {"messages_count": 3})
            new = {"agent_id": "main", "session_type": "cron", "started_at": began, "metadata": metadata}
            assert (await sessions.create(connection, new))[1]

    history.run(ask)
    history.mark("active", "main", "old delegation")
    asked = {("main", name) for name in ("old cron", "old delegation", "never active", "begun long ago")}
    assert history.run(lambda engine: close_idle(engine, CONFIG)) == Closed(0)
    assert {history.statuses()[name] for name in asked} == {"active"}
    history.execute("UPDATE agent_sessions SET status_at = now() - interval '121 minutes'")
    assert history.run(lambda engine: close_idle(engine, CONFIG)) == Closed(2)
    history.execute(
        "UPDATE agent_sessions SET last_activity_at = now() - interval '121 minutes' WHERE last_activity_at > now() -"
        " interval '1 minute' AND session_type = 'cron'"
    )
    assert history.run(lambda engine: close_idle(engine, CONFIG)) == Closed(2)
    assert {history.statuses()[name] for name in asked} == {"ended"}


def test_a_change_of_an_ended_row_neither_revives_it_nor_hides_a_sign_of_life(history: History) -> None:
    store = StoreBuilder(history.agents)
    for name in ("silent", "alive"):
        store.add(f"cron:{name}", 180, session_id=name)
    store.write()
    history.sync()
    assert history.run(lambda engine: close_idle(engine, CONFIG)) == Closed(2)
    history.execute("UPDATE agent_sessions SET status_at = now() - interval '1 hour'")

    async def count(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            for (row_id,) in ids:
                assert await sessions.change(connection, row_id, {"messages_count": 3})

    ids = history.execute("SELECT id FROM agent_sessions")
    history.run(count)
    assert set(history.statuses().values()) == {"ended"}
    store.entries["agent:main:cron:silent"]["label"] = "changed, and no sign of life"
    store.entries["agent:main:cron:alive"]["updatedAt"] = int(time.time() * 1000) - 30 * 60_000
    store.write()
    assert history.sync().revived == 1
    assert history.statuses() == {("main", "silent"): "ended", ("main", "alive"): "active"}


def test_many_idle_rows_are_closed_in_batches_each_committed(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closing, "BATCH", 10)
    history.execute(
        "INSERT INTO agent_sessions (agent_id, session_type, started_at)"
        " SELECT 'main', CASE n % 3 WHEN 0 THEN 'direct' ELSE 'cron' END, now() - interval '1 day'"
        " FROM generate_series(1, 36) AS n"
    )
    assert history.run(lambda engine: close_idle(engine, CONFIG)) == Closed(24)
    assert history.execute("SELECT status, count(*) FROM agent_sessions GROUP BY 1 ORDER BY 1") == [
        ("active", 12),
        ("ended", 24),
    ]
    assert history.execute("SELECT count(DISTINCT xmin::text) FROM agent_sessions WHERE status = 'ended'") == [(3,)]


def test_a_row_that_somebody_changes_is_not_waited_for(history: History, server: Databases) -> None:
    history.execute(_ROWS)
    with server.connect(history.url) as holder, holder.transaction():
        holder.execute(
            "UPDATE agent_sessions SET last_activity_at = now() WHERE metadata->>'aria_session_id' = 'old cron'"
        )
        closed: list[Closed] = []
        thread = threading.Thread(target=lambda: closed.append(history.run(lambda engine: close_idle(engine, CONFIG))))
        thread.start()
        thread.join(30)
        assert closed == [Closed(2)]
    assert history.run(lambda engine: close_idle(engine, CONFIG)) == Closed(0)
    assert history.statuses()[("main", "old cron")] == "active"
