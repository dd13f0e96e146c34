"""The embedded PostgreSQL ends before its service: it is brought back with its data, or the service ends, too."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import postgres
import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families
from service import Service, cli, wait_until
from test_embedded_postgres import ask, refused, start, wait_for_end

from session_manager.core.errors import Failed, Refused
from session_manager.service.embedded import EmbeddedPostgres, attach, keeper, places
from session_manager.service.embedded.keeper import Standing


class Heard(list[Standing]):
    """What the keeper told, in its order."""

    def ends_with(self, **facts: object) -> bool:
        return bool(self) and all(getattr(self[-1], name) == value for name, value in facts.items())


@pytest.fixture
def base() -> Iterator[str]:
    with postgres.reachable_folder() as path:
        yield str(path / "base")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr(keeper, "_PAUSES_S", (0.0,) * 8)
    monkeypatch.setattr(keeper, "_LOOK_S", 0.01)


@contextlib.contextmanager
def started(base: str, heard: Heard, durable: bool = False) -> Iterator[EmbeddedPostgres]:
    settings = None if durable else postgres.FAST
    with EmbeddedPostgres.start(base, None, settings, heard.append) as running:
        assert heard == [Standing(up=True)]
        yield running


def pid_of(base: str) -> int:
    _, pid = places.read_record(base) or ("", 0)
    assert pid > 1
    return pid


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGQUIT])
def test_it_comes_back_with_all_its_data(
    base: str, soon: None, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()
    with started(base, heard, durable=True) as running, caplog.at_level(logging.INFO):
        ask(running, "CREATE TABLE kept AS SELECT n FROM generate_series(1, 10000) AS n")
        for restarts in (1, 2):
            before = pid_of(base)
            os.kill(before, number)
            wait_until(lambda restarts=restarts: heard.ends_with(up=True, restarts=restarts))
            assert pid_of(base) != before
            assert ask(running, "SELECT count(*) FROM kept") == 10000
            ask(running, f"INSERT INTO kept VALUES (-{restarts})")
            ask(running, f"DELETE FROM kept WHERE n = -{restarts}")
            assert attach(base) == running.url
        assert [(standing.up, standing.restarts) for standing in heard[1:]] == [
            (False, 0),
            (True, 1),
            (False, 1),
            (True, 2),
        ]
        assert {standing.lost for standing in heard} == {None}
        if number == signal.SIGKILL:
            assert heard[1].reason == "was ended by signal 9"
    assert "it is being restarted" in caplog.text
    assert "has recovered its data and answers again, after" in caplog.text
    wait_for_end(base)
    with start(base) as again:
        assert ask(again, "SELECT count(*) FROM kept") == 10000


def test_it_is_not_started_beside_what_is_left_of_it(
    base: str, soon: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeper, "_REST_PATIENCE_S", 0.1)
    monkeypatch.setattr(keeper, "_PAUSES_S", (0.0,) * 10_000)
    heard = Heard()
    with started(base, heard) as running:
        to_it = {"host": running.folder, "port": 5432, "user": "session_manager", "dbname": "session_manager"}
        client = psycopg.connect(**to_it)
        left = client.info.backend_pid
        os.kill(left, signal.SIGSTOP)
        try:
            os.kill(pid_of(base), signal.SIGKILL)
            wait_until(lambda: "(attempt 3)" in caplog.text)
            assert heard.ends_with(up=False)
            assert "except for some of its processes" in caplog.text
        finally:
            os.kill(left, signal.SIGCONT)
        wait_until(lambda: heard.ends_with(up=True, restarts=1))
        assert ask(running, "SELECT 1") == 1
        with contextlib.suppress(psycopg.Error):
            client.close()
    wait_for_end(base)


def test_it_comes_back_when_nothing_is_in_its_way_any_more(
    base: str, soon: None, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()
    with started(base, heard) as running:
        config = Path(base, "config", "pg_hba.conf")
        right = config.read_text()
        config.write_text("nonsense\n")
        with pytest.MonkeyPatch.context() as patience:
            patience.setattr(keeper, "_PAUSES_S", (0.0,) * 10_000)
            os.kill(pid_of(base), signal.SIGKILL)
            wait_until(lambda: "(attempt 2)" in caplog.text)
            config.write_text(right)
            wait_until(lambda: heard.ends_with(up=True, restarts=1))
        assert ask(running, "SELECT 1") == 1
    assert "could not load" in caplog.text


@pytest.mark.parametrize("what", ["data", "data/PG_VERSION", "data/pg_wal", "config/pg_hba.conf"])
def test_what_cannot_be_brought_back_is_told_once(base: str, soon: None, what: str) -> None:
    heard = Heard()
    with started(base, heard):
        path = Path(base, what)
        path.rename(path.with_name("elsewhere"))
        os.kill(pid_of(base), signal.SIGKILL)
        wait_until(lambda: heard[-1].lost is not None)
        assert [standing.up for standing in heard] == [True, False, False]
        lost = heard[-1].lost
        assert isinstance(lost, Failed)
        assert lost.code == "database_failed"
        assert "DATABASE_URL" in lost.message
        if what.startswith("data"):
            assert os.path.basename(what) in lost.message
        path.with_name("elsewhere").rename(path)
    wait_for_end(base)
    with start(base) as again:
        assert ask(again, "SELECT 1") == 1


def test_data_of_another_version_is_not_tried(base: str, soon: None) -> None:
    heard = Heard()
    with started(base, heard):
        Path(base, "data", "PG_VERSION").write_text("16\n")
        os.kill(pid_of(base), signal.SIGKILL)
        wait_until(lambda: heard[-1].lost is not None)
        assert isinstance(heard[-1].lost, Refused)
        assert heard[-1].lost.code == "database_version"


def test_one_that_ends_again_and_again_is_lost(base: str, soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_PAUSES_S", (0.0,) * 3)
    heard = Heard()
    with started(base, heard):
        for restarts in (1, 2, 3):
            os.kill(pid_of(base), signal.SIGKILL)
            wait_until(lambda restarts=restarts: heard.ends_with(up=True, restarts=restarts))
        os.kill(pid_of(base), signal.SIGKILL)
        wait_until(lambda: heard[-1].lost is not None)
        assert "was ended by signal 9" in str(heard[-1].lost)


def test_one_that_was_steady_in_between_is_not(base: str, soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_PAUSES_S", (0.0,))
    monkeypatch.setattr(keeper, "_STEADY_S", -1.0)
    heard = Heard()
    with started(base, heard):
        for restarts in (1, 2, 3):
            os.kill(pid_of(base), signal.SIGKILL)
            wait_until(lambda restarts=restarts: heard.ends_with(up=True, restarts=restarts))


@pytest.mark.parametrize("moment", ["noticed", "in a pause", "starting"])
def test_a_service_that_stops_meanwhile_leaves_no_server(
    base: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    heard = Heard()

    def told(standing: Standing) -> None:
        heard.append(standing)
        if not standing.up and moment == "noticed":
            reached.set()
            go_on.wait(30)

    if moment == "in a pause":
        monkeypatch.setattr(keeper, "_PAUSES_S", (600.0,))
    elif moment == "starting":
        real = keeper.start_as

        def slow(*arguments: object, **rest: object) -> object:
            if heard and not heard[-1].up:
                reached.set()
                go_on.wait(30)
            return real(*arguments, **rest)  # type: ignore[arg-type]

        monkeypatch.setattr(keeper, "start_as", slow)
    running = EmbeddedPostgres.start(base, None, postgres.FAST, told)
    os.kill(pid_of(base), signal.SIGKILL)
    if moment == "in a pause":
        wait_until(lambda: heard.ends_with(up=False))
    else:
        assert reached.wait(30)
    stopping = threading.Thread(target=running.stop)
    stopping.start()
    go_on.set()
    stopping.join(30)
    assert not stopping.is_alive()
    wait_for_end(base)
    assert attach(base) is None
    with start(base) as again:
        assert ask(again, "SELECT 1") == 1


def test_while_it_is_down_nobody_else_gets_its_base(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_PAUSES_S", (600.0,))
    heard = Heard()
    with started(base, heard):
        os.kill(pid_of(base), signal.SIGKILL)
        wait_until(lambda: heard.ends_with(up=False))
        assert refused(base).code == "database_in_use"


# The service


def figures(service: Service) -> dict[str, float]:
    families = text_string_to_metric_families(service.client.get("/metrics").text)
    return {sample.name: sample.value for family in families for sample in family.samples if "embedded" in sample.name}


def test_the_service_goes_on_when_its_database_was_killed(tmp_path: Path) -> None:
    with postgres.reachable_folder() as folder:
        base = str(folder / "session-manager")
        service = Service(tmp_path / "log", XDG_STATE_HOME=str(folder), DATABASE_URL=None)
        try:
            assert service.client.get("/readyz").json() == {"status": "ok", "database_restarts": 0}
            assert figures(service)["aria_embedded_database_up"] == 1
            for restarts in (1, 2):
                row = service.client.post("/api/sessions", json={"agent_id": "a"}).json()["id"]
                os.kill(pid_of(base), signal.SIGKILL)
                codes: set[str] = set()

                def is_back(restarts: int = restarts, codes: set[str] = codes) -> bool:
                    answer = service.client.get("/readyz")
                    codes.add(answer.json().get("code", "none"))
                    assert answer.status_code in (200, 503)
                    return bool(answer.json().get("database_restarts") == restarts)

                wait_until(is_back)
                assert codes <= {"none", "database_unavailable", "database_restarting"}
                assert row in [item["id"] for item in service.client.get("/api/sessions").json()["items"]]
            assert figures(service)["aria_embedded_database_up"] == 1
            assert figures(service)["aria_embedded_database_restarts_total"] == 2
            assert service.log.count("the embedded PostgreSQL was ended by signal 9; it is being restarted") == 2
            assert service.log.count("has recovered its data and answers again, after") == 2
            assert "Traceback" not in service.log
            service.process.kill()
            service.process.wait(30)
            wait_for_end(base)
        finally:
            service.process.kill()
            service.client.close()


def test_the_service_ends_with_a_code_when_its_database_is_lost(tmp_path: Path) -> None:
    with postgres.reachable_folder() as folder:
        base = folder / "session-manager"
        env = {"XDG_STATE_HOME": str(folder), "DATABASE_URL": None}
        service = Service(tmp_path / "log", **env)
        try:
            service.client.post("/api/sessions", json={"agent_id": "a"}).raise_for_status()
            pid = pid_of(str(base))
            (base / "data").rename(base / "elsewhere")
            os.kill(pid, signal.SIGKILL)
            assert service.process.wait(60) == 70
            assert f"error: the embedded PostgreSQL in {base} was ended by signal 9" in service.log
            assert "Traceback" not in service.log
            wait_for_end(str(base))
            assert not (base / "data").exists(), "no empty database takes the place of what was lost"
            shutil.move(base / "elsewhere", base / "data")
            assert cli("migrate", **env).returncode == 0
        finally:
            service.process.kill()
            service.client.close()
