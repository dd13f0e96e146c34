"""The service as a process: how it starts, what it says, and what is left when it dies."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import postgres
import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from service import Databases, Service, cli, running, wait_until
from sqlalchemy import create_engine
from support import StoreBuilder

from session_manager.service.db.migrate import VERSION_TABLE, head, migrate
from session_manager.service.db.sessions import Filter, page_query
from session_manager.service.db.tables import metadata


def fill(server: Databases, url: str, rows: int) -> None:
    with server.connect(url) as connection:
        connection.execute(
            "INSERT INTO agent_sessions (agent_id, session_type, status, ended_at, metadata)"
            " SELECT 'agent-' || n %% 1000, 'cron', CASE WHEN n %% 100 = 0 THEN 'active' ELSE 'ended' END,"
            " CASE WHEN n %% 100 > 0 THEN now() END, jsonb_build_object('aria_session_id', 's' || n, 'label', 'l' || n)"
            " FROM generate_series(1, %s) AS n",
            (rows,),
        )
        connection.execute("ANALYZE agent_sessions")


def explain(server: Databases, url: str, statement: str) -> str:
    with server.connect(url) as connection:
        return "\n".join(row[0] for row in connection.execute(f"EXPLAIN {statement}".encode()).fetchall())


def sql(wanted: Filter, limit: int = 50) -> str:
    from sqlalchemy.dialects import postgresql

    compiled = page_query(wanted, "asc", limit, 0).compile(
        dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}
    )
    return str(compiled)


def test_queries_use_the_indexes(server: Databases, database: str) -> None:
    fill(server, database, 20_000)
    for wanted, index in (
        (Filter(aria_session_id="s77"), "idx_agent_sessions_aria_sid"),
        (Filter(status="active"), "idx_agent_sessions_status"),
        (Filter(agent_id="agent-3"), "idx_agent_sessions_agent_seq"),
        (Filter(), "uq_agent_sessions_seq"),
    ):
        plan = explain(server, database, sql(wanted))
        assert index in plan, plan
        assert "Seq Scan" not in plan, plan
    one_session = "SELECT id FROM agent_sessions WHERE agent_id = 'agent-3' AND metadata->>'aria_session_id' = 's3'"
    assert "agent_sessions_session" in explain(server, database, one_session) or "aria_sid" in explain(
        server, database, one_session
    )


def test_the_bulk_mark_reads_no_whole_table(server: Databases, database: str, tmp_path: Path) -> None:
    fill(server, database, 20_000)
    with running(tmp_path / "log", DATABASE_URL=database) as service:

        def scans() -> int:
            with server.connect(database) as connection:
                row = connection.execute(
                    "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'agent_sessions'"
                ).fetchone()
            assert row is not None
            return int(row[0])

        before = scans()
        sessions = [{"agent_id": f"agent-{n % 1000}", "aria_session_id": f"s{n}"} for n in range(1, 1001)]
        answer = service.client.patch("/api/sessions", json={"status": "ended", "sessions": sessions})
        assert answer.json() == {"updated": 1000, "missing": []}
        time.sleep(1.5)
        assert scans() == before


def test_the_tables_are_what_the_code_believes(server: Databases, database: str) -> None:
    engine = create_engine(database)
    with engine.connect() as connection:
        found = compare_metadata(
            MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}), metadata
        )
    engine.dispose()
    assert [difference for difference in found if difference[0] not in ("remove_index", "modify_default")] == []


def test_a_rolling_start_migrates_once(server: Databases) -> None:
    url = server.create(migrated=False)
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda _: cli("migrate", DATABASE_URL=url), range(6)))
    assert [(d.returncode, d.stdout) for d in done] == [(0, f"the schema is at revision {head()}\n")] * 6
    with server.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM session_manager_version").fetchone() == (1,)
    server.drop(url)


def test_three_replicas_start_at_once_on_an_empty_database(server: Databases, tmp_path: Path) -> None:
    url = server.create(migrated=False)
    with ThreadPoolExecutor(3) as pool:
        services = list(pool.map(lambda n: Service(tmp_path / f"log{n}", DATABASE_URL=url), range(3)))
    assert [service.client.get("/readyz").status_code for service in services] == [200] * 3
    assert [service.stop() for service in services] == [0] * 3
    server.drop(url)


OLDER = """
    CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);
    INSERT INTO alembic_version VALUES ('0001');
    CREATE TABLE agent_sessions (
      id varchar(36) PRIMARY KEY, agent_id varchar(100), session_type varchar(50) DEFAULT 'interactive',
      started_at timestamp DEFAULT now(), ended_at timestamptz, messages_count integer DEFAULT 0,
      cost_usd numeric(10, 6) DEFAULT 0, status varchar(50) DEFAULT 'active', metadata json DEFAULT '{}'
    );
    CREATE INDEX idx_agent_sessions_status ON agent_sessions (status);
    INSERT INTO agent_sessions (id, agent_id, started_at, status, metadata) VALUES
      ('00000000-0000-4000-8000-000000000001', 'main', '2026-01-01', 'active', '{"aria_session_id": "twice"}'),
      ('00000000-0000-4000-8000-000000000002', 'main', '2026-02-01', 'active', '{"aria_session_id": "twice"}'),
      ('00000000-0000-4000-8000-000000000003', 'other', '2026-01-01', 'active', '{"aria_session_id": "twice"}'),
      ('00000000-0000-4000-8000-000000000004', 'main', NULL, NULL, NULL),
      ('00000000-0000-4000-8000-000000000005', NULL, '2025-06-01 12:00', 'completed', 'null'),
      ('00000000-0000-4000-8000-000000000006', 'main', '0001-01-01 BC', 'ended', '[1]');
"""


def test_the_table_of_an_older_service_is_taken_over_without_losing_a_row(server: Databases, tmp_path: Path) -> None:
    url = server.create(migrated=False)
    with server.connect(url) as connection:
        connection.execute(OLDER)
    with running(tmp_path / "log", DATABASE_URL=url) as service:
        items = service.client.get("/api/sessions").json()["items"]
        rows = {int(item["id"][-1]): item for item in items}
        assert list(rows) == [6, 5, 1, 3, 2, 4], "oldest first, whatever their place in the table"
        assert [rows[n]["status"] for n in (1, 2, 3, 4)] == ["ended", "active", "active", "active"]
        assert (rows[5]["agent_id"], rows[5]["started_at"]) == ("unknown", "2025-06-01T12:00:00+00:00")
        assert (rows[5]["metadata"], rows[6]["metadata"]) == ({}, {"older_metadata": [1]})
        assert service.client.get("/api/sessions/stats").json()["total_sessions"] == 6
        assert rows[1]["metadata"] == {"duplicate_of_aria_session_id": "twice"}
        assert rows[2]["metadata"] == rows[3]["metadata"] == {"aria_session_id": "twice"}
        body = {"status": "ended", "sessions": [{"agent_id": "main", "aria_session_id": "twice"}]}
        assert service.client.patch("/api/sessions", json=body).json() == {"updated": 1, "missing": []}
        assert service.client.post("/api/sessions", json={"agent_id": "new"}).status_code == 201
    server.drop(url)


def test_a_newer_schema_is_refused_at_the_start_and_served_by_who_runs_already(
    server: Databases, database: str, tmp_path: Path
) -> None:
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        with server.connect(database) as connection:
            connection.execute("UPDATE session_manager_version SET version_num = '9999'")
        assert service.client.get("/readyz").status_code == 200
        for command in (("migrate",), ("serve", "--port", "0")):
            done = cli(*command, DATABASE_URL=database)
            assert (done.returncode, done.stdout) == (4, "")
            assert "newer version" in done.stderr
        with server.connect(database) as connection:
            connection.execute("DROP TABLE session_manager_version")
        answer = service.client.get("/readyz")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert service.client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("mysql://x/y", 2, "not a PostgreSQL URL"),
        ("postgresql://", 2, "not a PostgreSQL URL"),
        ("postgresql://user:secret@host:port/x", 2, "not a PostgreSQL URL"),
        ("postgresql://user:secret@127.0.0.1:1/x", 70, "cannot be reached"),
    ],
)
def test_a_database_that_cannot_be_reached_is_said_and_no_password_with_it(url: str, code: int, words: str) -> None:
    done = cli("serve", "--port", "0", DATABASE_URL=url)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_database_is_said_at_once(server: Databases) -> None:
    done = cli("migrate", DATABASE_URL=server.url("no_such_database"))
    assert (done.returncode, done.stdout) == (70, "")
    assert "does not exist" in done.stderr


def test_a_wrong_agents_directory_is_said(database: str) -> None:
    done = cli("serve", "--port", "0", DATABASE_URL=database, ARIA_AGENTS_DIR="/no/such/folder")
    assert done.returncode == 2
    assert "ARIA_AGENTS_DIR" in done.stderr


def test_a_port_that_is_taken_is_said(database: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = cli("serve", "--port", str(taken.getsockname()[1]), DATABASE_URL=database)
    assert done.returncode == 70
    assert "--port" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_the_ordinary_end(database: str, tmp_path: Path, number: int) -> None:
    service = Service(tmp_path / "log", DATABASE_URL=database)
    service.process.send_signal(number)
    assert service.stop() == 0
    assert "Traceback" not in service.log


def test_a_request_in_hand_is_answered_before_the_end(server: Databases, database: str, tmp_path: Path) -> None:
    service = Service(tmp_path / "log", DATABASE_URL=database)
    answers: list[int] = []
    with server.connect(database) as holder, holder.transaction():
        holder.execute("LOCK TABLE agent_sessions IN ACCESS EXCLUSIVE MODE")
        asking = threading.Thread(target=lambda: answers.append(service.client.get("/api/sessions").status_code))
        asking.start()
        wait_until(lambda: waiting(server, database) == 1)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert service.process.poll() is None
    asking.join()
    assert answers == [200]
    assert service.stop() == 0


def waiting(server: Databases, url: str) -> int:
    """How many statements on this database wait for a lock."""
    with server.connect(url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_killed_in_the_middle_of_a_bulk_mark_nothing_is_half_done(
    server: Databases, database: str, tmp_path: Path
) -> None:
    fill(server, database, 3_000)
    with server.connect(database) as connection:
        connection.execute("UPDATE agent_sessions SET status = 'active', ended_at = NULL")
    body = {
        "status": "ended",
        "sessions": [{"agent_id": f"agent-{n % 1000}", "aria_session_id": f"s{n}"} for n in range(1, 3_001)],
    }
    service = Service(tmp_path / "log", DATABASE_URL=database)
    with server.connect(database) as holder:
        with holder.transaction():
            # The statement has changed some rows and stands still at this one.
            holder.execute("SELECT 1 FROM agent_sessions WHERE metadata->>'aria_session_id' = 's2999' FOR UPDATE")
            asking = threading.Thread(target=patch_in_vain, args=(service, body))
            asking.start()
            wait_until(lambda: waiting(server, database) == 1)
            service.kill()
            asking.join()
        wait_until(lambda: backends(server, database) == 0)
        counted = holder.execute("SELECT status, count(*) FROM agent_sessions GROUP BY 1").fetchall()
        assert counted in ([("active", 3_000)], [("ended", 3_000)])
    with running(tmp_path / "log2", DATABASE_URL=database) as again:
        assert patch(again, body).json() == {"updated": 3_000, "missing": []}


def patch_in_vain(service: Service, body: dict[str, Any]) -> None:
    with pytest.raises(httpx.HTTPError):
        patch(service, body)


def patch(service: Service, body: dict[str, Any]) -> httpx.Response:
    return service.client.patch("/api/sessions", json=body)


def backends(server: Databases, url: str) -> int:
    """How many of the service's statements and transactions are under way; a pooler keeps idle connections."""
    with server.connect(url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'aria-api' AND state <> 'idle'"
            " AND pid <> pg_backend_pid()"
        ).fetchone()
    assert row is not None
    return int(row[0])


def test_killed_in_the_middle_of_a_sync_nothing_is_half_done(
    server: Databases, database: str, agents: Path, tmp_path: Path
) -> None:
    store = StoreBuilder(agents)
    for n in range(500):
        store.add(f"cron:{n}", 50, session_id=f"s{n}", transcript=False)
    store.write()
    env = {"DATABASE_URL": database, "ARIA_AGENTS_DIR": str(agents), "ARIA_SYNC_SECONDS": "1"}
    with running(tmp_path / "log", **env):
        wait_until(lambda: rows(server, database) == {"active": 500})
    for n in range(500):
        store.entries[f"agent:main:cron:{n}"]["label"] = "new"
    for n in range(500, 600):
        store.add(f"cron:{n}", 50, session_id=f"s{n}", transcript=False)
    store.write()
    with server.connect(database) as holder, holder.transaction():
        holder.execute("SELECT 1 FROM agent_sessions WHERE metadata->>'aria_session_id' = 's499' FOR UPDATE")
        service = Service(tmp_path / "log2", **env)
        wait_until(lambda: waiting(server, database) == 1)
        service.kill()
    wait_until(lambda: backends(server, database) == 0)
    with server.connect(database) as connection:
        labels = connection.execute("SELECT count(*) FROM agent_sessions WHERE metadata->>'label' = 'new'").fetchone()
    # The server may notice the end of its client only after the statement; then all of it is there.
    assert (rows(server, database), labels) in (({"active": 500}, (0,)), ({"active": 600}, (500,)))
    with running(tmp_path / "log3", **env):
        wait_until(lambda: rows(server, database) == {"active": 600})


def rows(server: Databases, url: str) -> dict[str, int]:
    with server.connect(url) as connection:
        return dict(connection.execute("SELECT status, count(*) FROM agent_sessions GROUP BY 1").fetchall())


def test_without_the_database_it_says_so_and_comes_back_by_itself(tmp_path: Path) -> None:
    with postgres.reachable_folder() as folder:
        from session_manager.service.embedded import EmbeddedPostgres

        base = str(folder / "base")
        first = EmbeddedPostgres.start(base, None, postgres.FAST)
        with running(tmp_path / "log", DATABASE_URL=first.url) as service:
            assert service.client.post("/api/sessions", json={"agent_id": "a"}).status_code == 201
            first.stop()
            for path in ("/readyz", "/api/sessions", "/sessions"):
                answer = service.client.get(path)
                assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable"), path
                assert answer.headers["retry-after"] == "2"
            assert service.client.get("/healthz").status_code == 200
            with EmbeddedPostgres.start(base, None, postgres.FAST):
                wait_until(lambda: service.client.get("/readyz").status_code == 200)
                assert service.client.get("/api/sessions").json()["total"] == 1


def test_the_embedded_database_keeps_its_data_and_serves_tools_beside_the_service(agents: Path, tmp_path: Path) -> None:
    store = StoreBuilder(agents)
    store.add("cron:1", 50, session_id="kept")
    store.write()
    with postgres.reachable_folder() as folder:
        env = {"XDG_STATE_HOME": str(folder), "ARIA_AGENTS_DIR": str(agents), "DATABASE_URL": None}
        with running(tmp_path / "log", **env) as service:
            assert service.client.post("/api/sessions/sync").json()["errors"] == []
            made = cli("token", "create", "--name", "beside", "--json", **env)
            assert made.returncode == 0, made.stderr
            token = json.loads(made.stdout)["token"]
            assert service.client.get("/api/sessions").status_code == 401
            headers = {"Authorization": f"Bearer {token}"}
            found = service.client.get("/api/sessions", headers=headers).json()["items"]
            assert [item["metadata"]["aria_session_id"] for item in found] == ["kept"]
            assert cli("migrate", **env).returncode == 0
            second = cli("serve", "--port", "0", **env)
            assert second.returncode == 4, second.stderr
            assert str(service.process.pid) in second.stderr
        alone = cli("token", "list", "--json", **env)
        assert [t["name"] for t in json.loads(alone.stdout)["tokens"]] == ["beside"]
        with running(tmp_path / "log2", **env) as again:
            assert again.client.get("/api/sessions", headers=headers).json()["total"] == 1


def test_the_embedded_database_never_lies_below_the_agents_directory(agents: Path) -> None:
    done = cli("serve", "--port", "0", XDG_STATE_HOME=str(agents / "state"), ARIA_AGENTS_DIR=str(agents))
    assert (done.returncode, done.stdout) == (4, "")
    assert not (agents / "state").exists()


def test_killed_it_leaves_no_database_running(tmp_path: Path) -> None:
    with postgres.reachable_folder() as folder:
        service = Service(tmp_path / "log", XDG_STATE_HOME=str(folder), DATABASE_URL=None)
        service.client.post("/api/sessions", json={"agent_id": "a"})
        service.kill()
        with running(tmp_path / "log2", XDG_STATE_HOME=str(folder), DATABASE_URL=None) as again:
            assert again.client.get("/api/sessions").json()["total"] == 1


def test_libpq_s_variables_do_not_lead_elsewhere(tmp_path: Path) -> None:
    astray = {
        "PGHOST": "/nowhere",
        "PGUSER": "nobody",
        "PGDATABASE": "none",
        "PGOPTIONS": "-c work_mem=x",
        "PGPORT": "1",
    }
    with (
        postgres.reachable_folder() as folder,
        running(tmp_path / "log", XDG_STATE_HOME=str(folder), DATABASE_URL=None, **astray) as service,
    ):
        assert service.client.get("/readyz").status_code == 200


def test_the_server_is_postgresql_15_or_newer(server: Databases) -> None:
    with server.connect(None) as connection:
        assert isinstance(connection, psycopg.Connection)
        assert connection.info.server_version >= 150000


def test_migrating_twice_is_no_work(server: Databases, database: str) -> None:
    assert migrate(database) == head()
    assert migrate(database) == head()
