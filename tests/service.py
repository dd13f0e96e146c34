"""The service as a real process on a real PostgreSQL, and databases to run it on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import postgres
import psycopg
from service_forks import ServiceForks
from sqlalchemy.engine import make_url

from session_manager.service.db.migrate import migrate

ROOT = Path(__file__).resolve().parents[1]
READY_S = 60.0
# What runs by itself would get in the way of tests that are about something else.
QUIET = dict.fromkeys(
    (
        "ARIA_DELIVERY_SECONDS",
        "ARIA_CLOSING_SECONDS",
        "ARIA_GHOST_PURGE_SECONDS",
        "ARIA_EXPIRY_SECONDS",
        "ARIA_IDLE_ARCHIVE_SECONDS",
    ),
    "0",
)


class Databases:
    """One server; each database is a copy of a template that was migrated once.

    ``admin_url`` goes straight to the server where ``url`` goes through a pooler: a template that a pooler keeps a
    connection to cannot be copied.
    """

    def __init__(self, url: str, admin_url: str, template: str) -> None:
        self._server = make_url(url)
        self._admin = make_url(admin_url)
        self._template = template
        with self.connect(None) as connection:
            connection.execute(f"CREATE DATABASE {template}")
        migrate(self._admin.set(database=template).render_as_string(hide_password=False))

    def url(self, name: str) -> str:
        """Returns the SQLAlchemy URL of a database."""
        return self._server.set(database=name).render_as_string(hide_password=False)

    def connect(self, url: str | None) -> psycopg.Connection[Any]:
        """Connects to a database by its SQLAlchemy URL, or to the server itself, in autocommit mode."""
        target = self._admin if url is None else make_url(url)
        return psycopg.connect(target.set(drivername="postgresql").render_as_string(False), autocommit=True)

    def create(self, *, migrated: bool = True) -> str:
        """Makes a database and returns its URL."""
        name = f"test_{uuid.uuid4().hex}"
        source = self._template if migrated else "template1"
        with self.connect(None) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {source}")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Drops a database, whoever is still connected."""
        statement = f"DROP DATABASE IF EXISTS {make_url(url).database} WITH (FORCE)"
        with self.connect(None) as connection:
            wait_until(lambda: _is_done(connection, statement))


def _is_done(connection: psycopg.Connection[Any], statement: str) -> bool:
    try:
        connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        # The server's own vacuum is at work there, which only a superuser may end.
        return False
    return True


@contextlib.contextmanager
def databases() -> Iterator[Databases]:
    """A server for this worker: an embedded one, or the one that SM_TEST_DATABASE_URL names.

    SM_TEST_ADMIN_DATABASE_URL is needed beside it where that is a pooler's address.
    """
    named = os.environ.get("SM_TEST_DATABASE_URL")
    template = f"template_{uuid.uuid4().hex}"
    if named:
        yield Databases(named, os.environ.get("SM_TEST_ADMIN_DATABASE_URL", named), template)
        return
    with postgres.server() as server:
        yield Databases(server.url, server.url, template)


class Service:
    """`session-manager serve --port 0` as a process of its own, started and answering.

    Standard error goes to a file, so that a full pipe cannot stop the service.
    """

    forks: ClassVar[ServiceForks] = ServiceForks()

    def __init__(self, log: Path, *arguments: str, **env: str | None) -> None:
        self._log = log
        self.database_url = env.get("DATABASE_URL")
        merged = {**os.environ, **QUIET, **env}
        environ = {name: value for name, value in merged.items() if value is not None}
        out = log.with_name(f"{log.name}.{uuid.uuid4().hex}.out")
        self.process = self.forks.start(["serve", "--port", "0", *arguments], environ, out, log)
        self.url = self._announced(out)
        token = env.get("ARIA_API_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.client = httpx.Client(base_url=self.url, headers=headers, timeout=60.0, trust_env=False)

    def _announced(self, out: Path) -> str:
        deadline = time.monotonic() + READY_S
        while not (line := out.read_text() if out.exists() else "").endswith("\n"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"the service did not start: {line!r}\n{self.log}")
            time.sleep(0.01)
        return line.split()[-1]

    @property
    def log(self) -> str:
        """What the service wrote to standard error so far."""
        return self._log.read_text(errors="replace")

    @property
    def api(self) -> str:
        """The value of ARIA_API_URL for this service."""
        return f"{self.url}/api"

    def stop(self) -> int:
        """Ends it as an operator does, and returns its exit code."""
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def kill(self) -> None:
        """Ends it at once (SIGKILL)."""
        self.process.kill()
        self.stop()


def cli(*arguments: str, **env: str | None) -> subprocess.CompletedProcess[str]:
    """Runs `session-manager` to its end; ``env`` adds to (or, with None, removes from) its environment."""
    merged = {**os.environ, **env}
    environ = {name: value for name, value in merged.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code = Service.forks.start(list(arguments), environ, out, err).wait(180)
        said = [path.read_text() if path.exists() else "" for path in (out, err)]
    return subprocess.CompletedProcess(arguments, code, *said)


@contextlib.contextmanager
def running(log: Path, *arguments: str, **env: str | None) -> Iterator[Service]:
    """A service that is stopped at the end."""
    service = Service(log, *arguments, **env)
    try:
        yield service
    finally:
        service.stop()


def refused(client: httpx.Client, method: str, path: str, body: Any, status: int, field: str | None) -> None:
    """Sends a bad body, as JSON or (bytes) as it is, and checks that the answer says what is wrong with it."""
    content = body if isinstance(body, bytes) else None
    answer = client.request(
        method,
        path,
        content=content,
        json=None if content is not None else body,
        headers={"content-type": "application/json"},
    )
    document = answer.json()
    assert answer.status_code == status, document
    assert isinstance(document["error"], str)
    assert isinstance(document["code"], str)
    if field:
        assert document["field"] == field


def wait_until(condition: Any, timeout_s: float = 30.0) -> None:
    """Waits until ``condition()`` holds; fails when it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
