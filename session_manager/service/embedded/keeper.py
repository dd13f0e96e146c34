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
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import IO

import msgspec
import psycopg

from session_manager.core.errors import Failed, SessionManagerError
from session_manager.service.embedded import cluster, places
from session_manager.service.embedded.accounts import Account, start_as

# Recovery after a crash replays at most ``max_wal_size``.
_START_PATIENCE_S = 120.0
# A fast shutdown, then an immediate one, each with the seconds that it may take.
SHUTDOWNS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0))
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


class _Stopped(Exception):
    """The service is stopping; there is nothing more to start."""


class Keeper:
    """The thread that starts, restarts and ends a server; it calls ``told`` with the server's state.

    ``folder`` is the socket's, ``argv`` the program with its arguments.
    """

    def __init__(self, base: str, folder: str, account: Account, argv: list[str], told: Told) -> None:
        self._base = base
        self._folder = folder
        self._account = account
        self._argv = argv
        self._told = told
        self._stopping = threading.Event()
        self._restarts = 0
        self._attempts = 0
        self._started: Future[None] = Future()
        self._thread = threading.Thread(target=self._live, name="embedded PostgreSQL", daemon=True)

    def start(self) -> None:
        """Starts the server, and waits until it answers. Raises OSError, and the errors of ``cluster.failure``."""
        self._thread.start()
        self._started.result()

    def stop(self) -> None:
        """Ends the server, gently at first, and waits for its end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _live(self) -> None:
        try:
            process = self._start()
        except BaseException as error:
            self._started.set_exception(error)
            return
        self._told(Standing(up=True))
        self._started.set_result(None)
        with contextlib.suppress(_Stopped):
            while True:
                self._watch(process)
                process = self._bring_back(process)

    def _start(self) -> subprocess.Popen[bytes]:
        """Returns the server once it answers. When this raises, it has ended."""
        with _scratch() as output, server_lock(self._base, _REST_PATIENCE_S) as lock:
            if lock is None:
                raise _lost(self._base, "has ended, except for some of its processes", None)
            process = start_as(
                self._account,
                self._argv,
                cwd=os.path.join(self._base, cluster.DATA),
                output=output,
                signal=signal.SIGINT,
                keep=(lock,),
            )
            try:
                places.write_record(self._base, self._folder, process.pid)
                self._wait_until_ready(process, output)
            except BaseException:
                _end(process)
                raise
        return process

    def _wait_until_ready(self, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
        end = time.monotonic() + _START_PATIENCE_S
        while True:
            try:
                connect(self._folder, 10)
                return
            except psycopg.OperationalError as error:
                if self._stopping.is_set():
                    raise _Stopped from None
                ended = process.poll() is not None
                if ended or time.monotonic() > end or "authentication failed" in str(error):
                    output.seek(0)
                    said = f"{cluster.last_words(self._base)}\n{output.read().decode(errors='replace')}"
                    what = f"the server {_ending(process)}" if ended else str(error)
                    raise cluster.failure(self._base, what, said) from None
            time.sleep(_POLL_S)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        """Waits for the server's end, and keeps its log small until then. Raises _Stopped."""
        began, pruned = time.monotonic(), float("-inf")
        while process.poll() is None:
            if time.monotonic() - pruned >= _LOG_CHECK_S:
                pruned = time.monotonic()
                with contextlib.suppress(OSError):
                    cluster.prune_logs(self._base)
            if self._stopping.wait(_LOOK_S):
                _end(process)
                raise _Stopped
        if time.monotonic() - began > _STEADY_S:
            self._attempts = 0

    def _bring_back(self, ended: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
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
                process = self._start()
            except (SessionManagerError, OSError) as error:
                failed = error
                _log.warning("the embedded PostgreSQL cannot be started (attempt %d): %s", self._attempts, error)
            else:
                self._restarts += 1
                took_s = time.monotonic() - began
                _log.warning("the embedded PostgreSQL has recovered its data and answers again, after %.1f s", took_s)
                self._told(Standing(up=True, restarts=self._restarts))
                return process
        why = gone or failed
        lost = why if isinstance(why, SessionManagerError) else _lost(self._base, reason, why)
        _log.error("%s", lost)
        self._told(Standing(up=False, restarts=self._restarts, reason=reason, lost=lost))
        raise _Stopped

    def _missing(self) -> Exception | None:
        """Returns why no attempt can help, None if one may."""
        try:
            cluster.check_data(self._base, self._account)
        except (SessionManagerError, FileNotFoundError, NotADirectoryError) as error:
            return error
        except OSError:
            pass
        return None


@contextlib.contextmanager
def server_lock(base: str, patience_s: float) -> Iterator[int | None]:
    """Holds the lock that every process of the server inherits: whoever gets it knows that none of them is left.

    Yields None when some remain after ``patience_s``. Raises OSError.
    """
    fd = places.lock(os.path.join(base, "server.lock"), patience_s)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def connect(folder: str, patience_s: int) -> None:
    """Connects once to the server that has its socket in ``folder``. Raises psycopg.OperationalError."""
    name = cluster.NAME
    psycopg.connect(host=folder, port=places.PORT, user=name, dbname=name, connect_timeout=patience_s).close()


def _end(process: subprocess.Popen[bytes]) -> None:
    for number, patience_s in (*SHUTDOWNS, (signal.SIGKILL, math.inf)):
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
