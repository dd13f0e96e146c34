"""An embedded PostgreSQL, for a service without a configured one: it starts and stops with this process.

Invariants:

- One service uses a base at a time: it holds the lock ``service.lock`` for its whole life. Every process of the server
  inherits the lock ``server.lock``, so a process that gets it knows that none of them is left.
- The data appears whole or not at all: it is created in ``data.new`` and renamed.
- Only its owner can connect: no TCP, a private socket folder, and peer authentication by the kernel.
- The server ends with the thread that started it, however that ends; so that thread lives as long as the server.
- As root, the files that the server writes (data, log, socket) belong to the system user, and all else in the base to
  root.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from urllib.parse import quote

import psycopg

from session_manager.core.errors import Refused
from session_manager.service.embedded import cluster, places
from session_manager.service.embedded.accounts import database_account
from session_manager.service.embedded.keeper import SHUTDOWNS, Keeper, Told, connect, server_lock
from session_manager.service.embedded.programs import usable

_SERVICE_LOCK = "service.lock"
_LOCK_PATIENCE_S = 0.2


class EmbeddedPostgres:
    """A running server, made by ``start``. A context manager that stops it.

    ``url`` is for SQLAlchemy with psycopg; ``folder`` is the host for a plain client.
    """

    def __init__(self, folder: str, locks: contextlib.ExitStack) -> None:
        self.url = _url(folder)
        self.folder = folder
        self._locks = locks

    @classmethod
    def start(
        cls,
        base: str,
        agents_dir: str | None,
        settings: Mapping[str, str] | None = None,
        told: Told = lambda standing: None,
    ) -> EmbeddedPostgres:
        """Starts the server of ``base``, creating it at the first start, and waits until it answers.

        A server that ends before ``stop`` is restarted; ``told`` is called then, in another thread. ``settings`` are
        server settings that override ours. Settings of PostgreSQL clients (``PGHOST``, ``PGOPTIONS`` and the like) are
        removed from this process's environment: they would reach every connection to this server.

        Raises Refused (``database_in_agents_dir``, ``database_in_use``, ``database_version``, ``database_not_owned``,
        ``database_not_private``, ``database_unreachable``, ``database_account``, ``not_writable``, ``not_a_folder``,
        ``disk_full``) and Failed (``database_programs_missing``, ``database_failed``, ``io_error``).
        """
        _forget_client_settings()
        base = os.path.realpath(base)
        if agents_dir is not None:
            places.check_apart(base, os.path.realpath(agents_dir))
        account = database_account()
        chosen = settings or {}
        with contextlib.ExitStack() as undo, places.clear_errors(base):
            places.make_base(base, account)
            _take_service_lock(base, undo)
            with _nothing_left(base) as lock:
                places.drop_record(base, account)
                programs = usable(account, base)
                cluster.ensure_data(base, account, programs, lock, chosen)
            folder = places.socket_folder(base, account)
            places.write_record(base, folder, 0)
            undo.callback(places.drop_record, base, account)
            arguments = cluster.server_arguments(base, folder, account, chosen)
            keeper = Keeper(base, folder, account, [programs.path("postgres"), *arguments], told)
            undo.callback(keeper.stop)
            keeper.start()
            locks = undo.pop_all()
        return cls(folder, locks)

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
    the base belongs to another user) and Failed (``io_error``).
    """
    _forget_client_settings()
    base = os.path.realpath(base)
    with places.clear_errors(base):
        found = places.read_record(base)
    if found is None:
        return None
    try:
        connect(found[0], 3)
    except psycopg.OperationalError:
        return None
    return _url(found[0])


def _forget_client_settings() -> None:
    """Removes libpq's variables from the environment: this process has one server, and its URL is complete.

    The URL cannot override every variable: ``PGSERVICE`` and ``PGOPTIONS`` add to it.
    """
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def _take_service_lock(base: str, undo: contextlib.ExitStack) -> None:
    path = os.path.join(base, _SERVICE_LOCK)
    fd = places.lock(path, _LOCK_PATIENCE_S)
    if fd is None:
        with open(path, encoding="ascii", errors="replace") as file:
            raise _in_use(base, file.read(32).strip())
    undo.callback(os.close, fd)
    os.ftruncate(fd, 0)
    os.write(fd, f"{os.getpid()}\n".encode())


@contextlib.contextmanager
def _nothing_left(base: str) -> Iterator[int]:
    """Holds the server's lock; waits until no process of a killed service's server is left, telling it to end again."""
    # Signal 0 is none.
    for number, patience_s in ((0, 0.0), *SHUTDOWNS):
        if (pid := _left_over(base)) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        with server_lock(base, patience_s) as lock:
            if lock is not None:
                yield lock
                return
    raise _in_use(base, str(_left_over(base) or ""))


def _left_over(base: str) -> int | None:
    """Returns the process id of the server left behind, if the process is provably that server."""
    found = places.read_record(base)
    if found is None or found[1] <= 1:
        return None
    with contextlib.suppress(OSError):
        if os.path.samefile(f"/proc/{found[1]}/cwd", os.path.join(base, cluster.DATA)):
            return found[1]
    return None


def _in_use(base: str, pid: str) -> Refused:
    who = f"process {pid}" if pid else "another process"
    return Refused(
        f"the database in {base} is in use by {who}; stop that service, or set DATABASE_URL",
        code="database_in_use",
        pid=int(pid) if pid.isdecimal() else None,
    )


def _url(folder: str) -> str:
    return f"postgresql+psycopg://{cluster.NAME}@/{cluster.NAME}?host={quote(folder, safe='/')}&port={places.PORT}"
