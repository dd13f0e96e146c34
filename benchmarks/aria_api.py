"""aria-api as it runs for people: a process of its own, asked over a socket, on a PostgreSQL that forgets nothing."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
from psycopg.conninfo import make_conninfo

from session_manager.service.config import INTERVALS
from session_manager.service.db.migrate import migrate
from session_manager.service.embedded import EmbeddedPostgres
from session_manager.service.embedded.cluster import NAME
from session_manager.service.embedded.programs import shipped

ROOT = Path(__file__).resolve().parents[1]
# Dead rows are cleared away between the measurements, and never during one.
SETTINGS = {"autovacuum": "off"}
# Nothing runs by itself.
QUIET = {variable: "0" for variable, _ in INTERVALS.values()}
_FILL = """
    INSERT INTO agent_sessions (agent_id, session_type, started_at, last_activity_at, ended_at, status, volume,
                                messages_count, tokens_used, cost_usd, metadata)
    SELECT agent, kind, at, at + interval '5 minutes', CASE WHEN ended THEN at + interval '1 hour' END,
           CASE WHEN ended THEN 'ended' ELSE 'active' END, 'default', mod(n, 90), mod(n, 110000), mod(n, 700) / 100.0,
           jsonb_build_object('aria_session_id', sid, 'key', concat_ws(':', 'agent', agent, kind, sid),
                              'label', 'daily report ' || n, 'model', 'gpt-4o', 'context_tokens', 128000)
    FROM generate_series(1, {rows}) AS n, LATERAL (
      SELECT 'agent-' || mod(n, 100) AS agent, (ARRAY['cron', 'subagent', 'hook', 'direct'])[1 + mod(n, 4)] AS kind,
             md5(n::text)::uuid::text AS sid, now() - n * interval '1 minute' AS at, mod(n, 10) > 0 AS ended
    ) AS made
"""


class Database:
    """A migrated database of the benchmarks' server, or a copy of one; ``url`` is SQLAlchemy's."""

    def __init__(self, server: EmbeddedPostgres, name: str, copied: Database | None = None) -> None:
        self.name = name
        self.url = server.url.replace(f"/{NAME}?", f"/{name}?")
        self._conninfo = make_conninfo(host=server.folder, port=5432, user=NAME, dbname=name)
        with psycopg.connect(self._conninfo, dbname=NAME, autocommit=True) as connection:
            # Files are copied between two checkpoints, so that each copy begins like the one before it.
            how = "" if copied is None else f"TEMPLATE {copied.name} STRATEGY FILE_COPY"
            connection.execute(f"CREATE DATABASE {name} {how}")
        if copied is None:
            migrate(self.url)

    def drop(self) -> None:
        """Deletes the database."""
        with psycopg.connect(self._conninfo, dbname=NAME, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {self.name} WITH (FORCE)")

    def ask(self, *statements: str) -> list[tuple[Any, ...]]:
        """Runs statements, each in a transaction of its own; returns the rows of the last one."""
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def fill(self, rows: int) -> None:
        """Adds rows of 100 agents, such as the sync makes them, one in ten active."""
        self.ask(_FILL.format(rows=rows))
        self.tidy()

    def tidy(self) -> None:
        """Clears away dead rows, and lets the planner know what there is."""
        self.ask("VACUUM ANALYZE agent_sessions", "VACUUM ANALYZE volume_indexes")

    def psql(self, statement: str) -> float:
        """Runs a statement in psql; returns its time in seconds, as psql tells it."""
        done = subprocess.run(
            [
                shipped().path("psql"),
                "-X",
                "-v",
                "ON_ERROR_STOP=1",
                "-c",
                r"\timing on",
                "-c",
                statement,
                self._conninfo,
            ],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={"LC_ALL": "C"},
        )
        found = re.search(r"^Time: ([\d.]+) ms", done.stdout, re.MULTILINE)
        assert found, done.stdout
        return float(found[1]) / 1000

    @contextlib.contextmanager
    def served(self, **variables: str) -> Iterator[httpx.Client]:
        """Runs the service on this database, with these environment variables, and gives a client of it."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ARIA_", "OPENCLAW_", "PG"))}
        with subprocess.Popen(
            [sys.executable, "-m", "session_manager.faces.cli", "serve", "--port", "0"],
            cwd=ROOT,
            env={**inherited, "DATABASE_URL": self.url, **QUIET, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                announced = process.stdout.readline()
                assert announced, "aria-api did not start"
                headers = {"Content-Type": "application/json"}
                with httpx.Client(
                    base_url=announced.split()[-1], headers=headers, timeout=600.0, trust_env=False
                ) as client:
                    yield client
            finally:
                process.terminate()


@contextlib.contextmanager
def server() -> Iterator[EmbeddedPostgres]:
    """A server that writes as durably as people's own, in a folder that PostgreSQL's account can reach."""
    with tempfile.TemporaryDirectory(prefix="session-manager-bench-") as folder:
        os.chmod(folder, 0o711)
        with EmbeddedPostgres.start(f"{folder}/base", None, SETTINGS) as running:
            yield running


def timed(client: httpx.Client, method: str, path: str, **parts: Any) -> tuple[float, Any]:
    """Returns how many seconds a request took, and the document of its answer, which must be a success."""
    begin = time.perf_counter()
    answer = client.request(method, path, **parts)
    seconds = time.perf_counter() - begin
    answer.raise_for_status()
    return seconds, answer.json()
