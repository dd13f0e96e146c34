"""PostgreSQL 15 and PgBouncer as Debian packages them, started for one test, and the suite to run on them.

All of it runs as the account that the embedded server would run as: neither program runs as root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from postgres import FAST, reachable_folder
from sqlalchemy.engine import make_url

from session_manager.service.embedded.accounts import Account, database_account, run_as, start_as

ROOT = Path(__file__).resolve().parents[1]
POSTGRESQL_15 = Path("/usr/lib/postgresql/15/bin")
PORT = 6432
PATIENCE_S = 60.0
NAME = "session_manager"


def program(name: str, package: str, *folders: Path) -> str:
    """Returns a program's path; a machine without it fails the test."""
    found = shutil.which(name, path=os.pathsep.join(map(str, folders)))
    if found is None:
        pytest.fail(f"{name} is not installed; install Debian's package {package}")
    return found


_ELSEWHERE = (
    "service/test_service_process",
    "history/test_two_layers",
    "project/test_recovery_page",
    "project/test_operations_page",
    "service/test_pages",
    "service/test_chat_crowd",
    "stores/test_odd_bytes",
)


def run_suite(url: str, admin_url: str) -> None:
    """Runs the tests that use the fixture ``server`` on another server; fails with what pytest said.

    Left out are those that are about processes, pages and both layers, and ask the database for nothing of their own.

    ``admin_url`` goes straight to PostgreSQL, to make databases from a template.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"SM_TEST_DATABASE_URL": url, "SM_TEST_ADMIN_DATABASE_URL": admin_url}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-m", "database and not system", "-p", "no:cacheprovider", "-n", "2"),
            *(f"--ignore=tests/{name}.py" for name in _ELSEWHERE),
        ],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:]


@contextlib.contextmanager
def postgresql_15() -> Iterator[str]:
    """Gives the SQLAlchemy URL of a role that may create databases and nothing else."""
    account = database_account()
    initdb, server = (program(name, "postgresql-15", POSTGRESQL_15) for name in ("initdb", "postgres"))
    with _folder(account) as folder:
        data = folder / "data"
        access = ["--username", "postgres", "--auth-local", "trust", "--auth-host", "reject"]
        code, said = run_as(
            account,
            [initdb, "--pgdata", str(data), "--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync", *access],
            cwd=str(folder),
        )
        assert code == 0, said
        settings = {**FAST, "listen_addresses": "", "unix_socket_directories": str(folder), "max_connections": "50"}
        argv = [
            server,
            "-D",
            str(data),
            *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
        ]
        with _running(account, argv, folder, lambda: _connect(folder, 5432, "postgres").close(), signal.SIGINT):
            with _connect(folder, 5432, "postgres") as connection:
                connection.execute(f"CREATE ROLE {NAME} LOGIN CREATEDB")
                connection.execute(f"CREATE DATABASE {NAME} OWNER {NAME}")
            yield f"postgresql+psycopg://{NAME}@/{NAME}?host={folder}&port=5432"


class Pooler:
    """PgBouncer in transaction mode in front of a server; ``url`` is SQLAlchemy's."""

    def __init__(self, folder: Path, direct_url: str) -> None:
        self._folder = folder
        self.url = (
            make_url(direct_url).update_query_dict({"host": str(folder), "port": str(PORT)}).render_as_string(False)
        )

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """Connects through the pooler, in autocommit mode."""
        return _connect(self._folder, PORT, NAME)

    def transactions(self) -> dict[str, int]:
        """Returns, by database, how many transactions the pooler has handed on."""
        with _connect(self._folder, PORT, "pgbouncer") as console, console.execute("SHOW STATS_TOTALS") as found:
            assert found.description is not None
            column = [c.name for c in found.description].index("xact_count")
            return {str(row[0]): int(str(row[column])) for row in found}


@contextlib.contextmanager
def pgbouncer(direct_url: str) -> Iterator[Pooler]:
    """Gives PgBouncer in front of the server at an SQLAlchemy URL."""
    account = database_account()
    path = program("pgbouncer", "pgbouncer", Path("/usr/sbin"), Path("/usr/local/sbin"), *map(Path, os.get_exec_path()))
    server = make_url(direct_url).query
    with _folder(account) as folder:
        settings = {
            "pool_mode": "transaction",
            "default_pool_size": "4",
            "max_client_conn": "400",
            "listen_port": PORT,
            "unix_socket_dir": folder,
            # The folder is private, and whoever reaches it is one of us.
            "auth_type": "any",
        }
        config = folder / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={server['host']} port={server['port']} user={NAME}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        config.chmod(0o644)
        pooler = Pooler(folder, direct_url)
        with _running(account, [path, str(config)], folder, lambda: pooler.connect().close(), signal.SIGKILL):
            yield pooler


@contextlib.contextmanager
def _folder(account: Account) -> Iterator[Path]:
    with reachable_folder() as outer:
        folder = outer / "own"
        folder.mkdir(0o700)
        if account.other:
            os.chown(folder, account.uid, account.gid)
        yield folder


def _connect(folder: Path, port: int, database: str) -> psycopg.Connection[tuple[object, ...]]:
    user = "postgres" if port == 5432 else NAME
    return psycopg.connect(host=str(folder), port=port, user=user, dbname=database, autocommit=True)


@contextlib.contextmanager
def _running(
    account: Account, argv: list[str], folder: Path, answers: Callable[[], None], end: signal.Signals
) -> Iterator[None]:
    log = folder / "log"
    with log.open("wb") as output:
        process = start_as(account, argv, cwd=str(folder), output=output, signal=signal.SIGKILL)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                answers()
                break
            except psycopg.OperationalError as error:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(log.read_text(errors="replace")) from error
                time.sleep(0.05)
        yield
    finally:
        process.send_signal(end)
        process.wait(timeout=PATIENCE_S)
