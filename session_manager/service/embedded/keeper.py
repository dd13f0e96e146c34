"""Keeps the embedded server running: restarts it when it ends before its service.

The kernel ends the server with the thread that started it (see ``become``). So one thread, which lives as long as the
service, starts all servers. After a kill, PostgreSQL recovers at its next start: no committed data is lost. A new
server starts only when no process of the old one is left.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO

import msgspec
import psycopg

from session_manager.core.errors import Failed, SessionManagerError
from session_manager.service.embedded import cluster, places
from session_manager.service.embedded.accounts import Account, start_as

SERVER_LOCK = "server.lock"
# Recovery after a crash replays at most ``max_wal_size``.
_START_PATIENCE_S = 120.0
FAST_SHUTDOWN_S = 30.0
IMMEDIATE_SHUTDOWN_S = 10.0
_AGAIN_S = 0.5
_POLL_S = 0.01
_LOOK_S = 0.25
_LOG_CHECK_S = 60.0
# Pauses before each restart; after the last attempt the server is lost.
_PAUSES_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
# After running this long, a server starts with the first pause again.
_STEADY_S = 300.0
# The processes of a killed server notice that at their next wait.
_REST_PATIENCE_S = 10.0
_log = logging.getLogger(__name__)


class Standing(msgspec.Struct, frozen=True):
    """The server's state: whether it answers, and how often it was restarted.

    While it does not answer, ``reason`` says how it ended. ``lost`` is why it cannot be restarted.
    """

    up: bool
    restarts: int = 0
    reason: str = ""
    lost: SessionManagerError | None = None


Told = Callable[[Standing], None]


class Server(msgspec.Struct, frozen=True):
    """A server's start: the program with arguments, the account, the base, and the inherited lock."""

    base: str
    data: str
    folder: str
    account: Account
    argv: list[str]
    lock: int

    @property
    def conninfo(self) -> str:
        """Its connection string for psycopg."""
        return conninfo(self.folder)


class _Stopped(Exception):
    """The service is stopping; there is nothing more to start."""


class Keeper:
    """The thread that starts and restarts a server; it calls ``told`` with the server's state."""

    def __init__(self, server: Server, told: Told) -> None:
        self._server = server
        self._told = told
        self._stopping = threading.Event()
        # Held while a process is started, so that none starts after ``stop``.
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self._attempts = 0
        self._first: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live, name="embedded PostgreSQL", daemon=True)

    def start(self) -> None:
        """Starts the server, and waits until it answers. Raises OSError, and the errors of ``cluster.failure``."""
        self._thread.start()
        error = self._first.get()
        if error is not None:
            raise error

    def stop(self) -> None:
        """Ends the server, gently at first, and waits for its end."""
        with self._starting:
            self._stopping.set()
        if self._process is not None:
            _end(self._process)
        if self._thread.ident is not None:
            self._thread.join()

    def _live(self) -> None:
        try:
            self._start()
        except BaseException as error:
            self._first.put(error)
            return
        self._told(Standing(up=True))
        self._first.put(None)
        with contextlib.suppress(_Stopped):
            while True:
                self._bring_back(self._watch())

    def _start(self) -> None:
        server = self._server
        with _scratch() as output:
            with self._starting:
                if self._stopping.is_set():
                    raise _Stopped
                process = start_as(
                    server.account,
                    server.argv,
                    cwd=server.data,
                    output=output,
                    signal=signal.SIGINT,
                    keep=(server.lock,),
                )
                self._process = process
            places.write_record(server.base, server.folder, process.pid)
            self._wait_until_ready(process, output)

    def _wait_until_ready(self, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
        base, end = self._server.base, time.monotonic() + _START_PATIENCE_S
        while True:
            try:
                psycopg.connect(self._server.conninfo, connect_timeout=10).close()
                return
            except psycopg.OperationalError as error:
                if self._stopping.is_set():
                    raise _Stopped from None
                if process.poll() is not None:
                    raise _not_ready(base, f"the server {_ending(process)}", output) from None
                if time.monotonic() > end or "authentication failed" in str(error):
                    raise _not_ready(base, str(error), output) from None
            time.sleep(_POLL_S)

    def _watch(self) -> subprocess.Popen[bytes]:
        """Returns the server's process when it has ended, and keeps its log small until then. Raises _Stopped."""
        assert self._process is not None
        began, pruned = time.monotonic(), float("-inf")
        while self._process.poll() is None:
            if time.monotonic() - pruned >= _LOG_CHECK_S:
                pruned = time.monotonic()
                with contextlib.suppress(OSError):
                    cluster.prune_logs(self._server.base)
            if self._stopping.wait(_LOOK_S):
                raise _Stopped
        if time.monotonic() - began > _STEADY_S:
            self._attempts = 0
        return self._process

    def _bring_back(self, ended: subprocess.Popen[bytes]) -> None:
        """Restarts the server, after growing pauses. Raises _Stopped, also when it is lost."""
        reason, began = _ending(ended), time.monotonic()
        self._told(Standing(up=False, restarts=self._restarts, reason=reason))
        _log.warning("the embedded PostgreSQL %s; it is being restarted", reason)
        failed: Exception | None = None
        while (gone := self._missing()) is None and self._attempts < len(_PAUSES_S):
            if self._stopping.wait(_PAUSES_S[self._attempts]):
                raise _Stopped
            self._attempts += 1
            try:
                self._take_lock()
                self._start()
            except (SessionManagerError, OSError) as error:
                failed = error
                _log.warning("the embedded PostgreSQL cannot be started (attempt %d): %s", self._attempts, error)
                assert self._process is not None
                _end(self._process)
            else:
                self._restarts += 1
                took_s = time.monotonic() - began
                _log.warning("the embedded PostgreSQL has recovered its data and answers again, after %.1f s", took_s)
                self._told(Standing(up=True, restarts=self._restarts))
                return
        why = gone or failed
        lost = why if isinstance(why, SessionManagerError) else _lost(self._server.base, reason, why)
        _log.error("%s", lost)
        self._told(Standing(up=False, restarts=self._restarts, reason=reason, lost=lost))
        raise _Stopped

    def _missing(self) -> Exception | None:
        """Returns why no attempt can help, None if one may."""
        try:
            cluster.check_data(self._server.base, self._server.account)
        except (SessionManagerError, FileNotFoundError, NotADirectoryError) as error:
            return error
        except OSError:
            pass
        return None

    def _take_lock(self) -> None:
        path = os.path.join(self._server.base, SERVER_LOCK)
        if not places.take_again(path, self._server.lock, _REST_PATIENCE_S):
            raise _lost(self._server.base, "has ended, except for some of its processes", None)


def conninfo(folder: str) -> str:
    """Returns the psycopg connection string of a server with its socket in ``folder``."""
    return psycopg.conninfo.make_conninfo(host=folder, port=places.PORT, user=cluster.NAME, dbname=cluster.NAME)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, patience_s in (
        (signal.SIGINT, FAST_SHUTDOWN_S),
        (signal.SIGQUIT, IMMEDIATE_SHUTDOWN_S),
        (signal.SIGKILL, math.inf),
    ):
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            # Again and again: one that is just beginning misses a signal that its service ignores.
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_AGAIN_S)
                return


def _ending(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"


def _lost(base: str, what: str, error: Exception | None) -> Failed:
    more = f" ({error})" if error else ""
    return Failed(
        f"the embedded PostgreSQL in {base} {what}, and cannot be restarted{more}; restart the service, or set "
        f"DATABASE_URL to use a server of your own",
        code="database_failed",
    )


def _scratch() -> IO[bytes]:
    """A file for the server's output before its log starts; in memory if possible, since the disk may be full."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("server output"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _not_ready(base: str, what: str, output: IO[bytes]) -> SessionManagerError:
    output.seek(0)
    said = output.read().decode(errors="replace")
    return cluster.failure(base, what, f"{cluster.last_words(base)}\n{said}")
