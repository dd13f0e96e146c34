"""A PostgreSQL of our own, for a service that is told of no other: it starts and stops with this process.

What it rests on:

- One service has a base at a time: the lock ``service.lock`` is held for the service's whole life. The lock
  ``server.lock`` is inherited by every process of the server, so whoever gets it knows that none of them is left.
- The data appears whole or not at all: it is made in ``data.new`` and renamed.
- Only its owner gets in: no TCP, a private socket folder, and the kernel's word for who is at the other end.
- The server ends with the thread that started it, however that ends; so that thread lives as long as the server.
- As root, what the server may write (data, log, socket) is the system user's, and all else in the base is root's.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import IO
from urllib.parse import quote

import psycopg

from session_manager.core.errors import Refused, SessionManagerError
from session_manager.service.embedded import cluster, places
from session_manager.service.embedded.accounts import Account, database_account, start_as
from session_manager.service.embedded.programs import usable

_SERVICE_LOCK = "service.lock"
_SERVER_LOCK = "server.lock"
_LOCK_PATIENCE_S = 0.2
# Recovery after a crash replays at most ``max_wal_size``.
_START_PATIENCE_S = 120.0
_FAST_SHUTDOWN_S = 30.0
_IMMEDIATE_SHUTDOWN_S = 10.0
_POLL_S = 0.01
_LOG_CHECK_S = 60.0


class EmbeddedPostgres:
    """A running server; make one with ``start``. A context manager that stops it.

    ``url`` is for SQLAlchemy with psycopg; ``folder`` is what a plain client calls the host.
    """

    def __init__(self, base: str, account: Account, folder: str, keeper: _Keeper, locks: contextlib.ExitStack) -> None:
        self.url = _url(folder)
        self.folder = folder
        self._base = base
        self._account = account
        self._keeper = keeper
        self._locks = locks

    @classmethod
    def start(cls, base: str, agents_dir: str | None, settings: Mapping[str, str] | None = None) -> EmbeddedPostgres:
        """Starts the server of ``base``, which is made at the first start, and waits until it answers.

        ``settings`` are server settings on top of ours. Settings of PostgreSQL clients (``PGHOST``, ``PGOPTIONS`` and
        the like) are removed from this process's environment: they would reach every connection to this server.

        Raises Refused (``database_in_agents_dir``, ``database_in_use``, ``database_version``, ``database_not_owned``,
        ``database_not_private``, ``database_unreachable``, ``database_account``, ``not_writable``, ``not_a_folder``,
        ``disk_full``) and Failed (``database_programs_missing``, ``database_failed``, ``io_error``).
        """
        forget_client_settings()
        base = os.path.realpath(base)
        if agents_dir is not None:
            places.check_apart(base, os.path.realpath(agents_dir))
        account = database_account()
        with contextlib.ExitStack() as undo, places.clear_errors(base):
            cluster.check_reach(base, account)
            places.make_base(base, account)
            _take_service_lock(base, undo)
            server_lock = _take_server_lock(base, undo)
            places.drop_record(base, account)
            programs = usable(account, base)
            chosen = dict(settings or {})
            durable = chosen.get("fsync") != "off"
            data = cluster.data_folder(base, account, programs, server_lock, durable=durable)
            folder = places.socket_folder(base, account)
            places.write_record(base, folder, 0)
            undo.callback(places.drop_record, base, account)
            arguments = cluster.server_arguments(base, data, folder, account, chosen)
            argv = [programs.path("postgres"), *arguments]
            with _scratch() as output:
                keeper = _Keeper(account, argv, base, data, server_lock, output)
                undo.callback(keeper.stop)
                places.write_record(base, folder, keeper.process.pid)
                _wait_until_ready(base, folder, keeper.process, output)
            return cls(base, account, folder, keeper, undo.pop_all())
        raise AssertionError("unreachable")

    def stop(self) -> None:
        """Shuts the server down (clients are disconnected, data is safe) and waits for its end. Safe to call twice."""
        self._locks.close()

    def __enter__(self) -> EmbeddedPostgres:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def attach(base: str) -> str | None:
    """Returns the URL of the server that runs on ``base`` now, None when none answers.

    Like ``EmbeddedPostgres.start`` it removes client settings from the environment. Raises Refused (``not_writable``:
    the base is somebody else's) and Failed (``io_error``).
    """
    forget_client_settings()
    base = os.path.realpath(base)
    with places.clear_errors(base):
        found = places.read_record(base)
    if found is None:
        return None
    try:
        psycopg.connect(_conninfo(found[0]), connect_timeout=3).close()
    except psycopg.OperationalError:
        return None
    return _url(found[0])


def forget_client_settings() -> None:
    """Removes what libpq reads from the environment: there is one server for this process, and its URL says it all.

    Not every variable can be outdone by the URL: ``PGSERVICE`` and ``PGOPTIONS`` come on top of it.
    """
    known = {option.envvar.decode() for option in psycopg.pq.Conninfo.parse(b"") if option.envvar}
    for name in known | {"PGDATESTYLE", "PGTZ", "PGGEQO"}:
        os.environ.pop(name, None)


class _Keeper:
    """The thread that starts the server, and lives as long as it: the kernel ends the server with this thread."""

    def __init__(
        self, account: Account, argv: list[str], base: str, data: str, server_lock: int, output: IO[bytes]
    ) -> None:
        self._base = base
        self._stopped = threading.Event()
        started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()

        def live() -> None:
            try:
                process = start_as(account, argv, cwd=data, output=output, signal=signal.SIGINT, keep=(server_lock,))
            except OSError as error:
                started.put(error)
                return
            started.put(process)
            self._live()

        self._thread = threading.Thread(target=live, name="embedded PostgreSQL", daemon=True)
        self._thread.start()
        process = started.get()
        if isinstance(process, OSError):
            raise process
        self.process = process

    def _live(self) -> None:
        ended = False
        while not ended:
            with contextlib.suppress(OSError):
                cluster.prune_logs(self._base)
            ended = self._stopped.wait(_LOG_CHECK_S)

    def stop(self) -> None:
        """Ends the server, gently at first, and waits for its end."""
        for number, patience_s in (
            (signal.SIGINT, _FAST_SHUTDOWN_S),
            (signal.SIGQUIT, _IMMEDIATE_SHUTDOWN_S),
            (signal.SIGKILL, None),
        ):
            self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)
                break
        self._stopped.set()
        self._thread.join()


def _take_service_lock(base: str, undo: contextlib.ExitStack) -> None:
    path = os.path.join(base, _SERVICE_LOCK)
    fd = places.lock(path, _LOCK_PATIENCE_S)
    if fd is None:
        with open(path, encoding="ascii", errors="replace") as file:
            raise _in_use(base, file.read(32).strip())
    undo.callback(os.close, fd)
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())


def _take_server_lock(base: str, undo: contextlib.ExitStack) -> int:
    """Waits until nothing is left of the server of a service that was killed; it is told to end again."""
    path = os.path.join(base, _SERVER_LOCK)
    fd = places.lock(path, 0)
    for number, patience_s in ((signal.SIGINT, _FAST_SHUTDOWN_S), (signal.SIGQUIT, _IMMEDIATE_SHUTDOWN_S)):
        if fd is None:
            pid = _left_over(base)
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            fd = places.lock(path, patience_s)
    if fd is None:
        raise _in_use(base, str(_left_over(base) or ""))
    undo.callback(os.close, fd)
    return fd


def _left_over(base: str) -> int | None:
    """Returns the process id of the server that was left behind, when that is provably what has it."""
    found = places.read_record(base)
    if found is None or found[1] <= 1:
        return None
    with contextlib.suppress(OSError):
        if os.path.samefile(f"/proc/{found[1]}/cwd", os.path.join(base, "data")):
            return found[1]
    return None


def _in_use(base: str, pid: str) -> Refused:
    who = f"process {pid}" if pid else "another process"
    return Refused(
        f"the database in {base} is in use by {who}; stop that service, or set DATABASE_URL",
        code="database_in_use",
        pid=int(pid) if pid.isdecimal() else None,
    )


def _scratch() -> IO[bytes]:
    """A file for what the server says before its log begins; in memory where that exists, the disk may be full."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("server output"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _wait_until_ready(base: str, folder: str, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    end = time.monotonic() + _START_PATIENCE_S
    while True:
        try:
            psycopg.connect(_conninfo(folder), connect_timeout=10).close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None:
                what = f"the server ended with code {process.returncode}"
                raise _not_ready(base, what, output) from None
            if time.monotonic() > end or "authentication failed" in str(error):
                raise _not_ready(base, str(error), output) from None
        time.sleep(_POLL_S)


def _not_ready(base: str, what: str, output: IO[bytes]) -> SessionManagerError:
    output.seek(0)
    said = output.read().decode(errors="replace")
    return cluster.failure(base, what, f"{cluster.last_words(base)}\n{said}")


def _conninfo(folder: str) -> str:
    return psycopg.conninfo.make_conninfo(host=folder, port=places.PORT, user=cluster.NAME, dbname=cluster.NAME)


def _url(folder: str) -> str:
    return f"postgresql+psycopg://{cluster.NAME}@/{cluster.NAME}?host={quote(folder, safe='/')}&port={places.PORT}"
