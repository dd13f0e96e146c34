"""Processes of `session-manager`, forked from one that has imported everything: no new interpreter for each service.

The parent, started once, runs one thread. It gets one line of JSON a request, ``["start", argv, environ, stdout,
stderr]`` (paths) or ``["poll", pid]``, and answers with one line: a process id; an exit code, or null.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


class Process:
    """One process, with the part of ``subprocess.Popen`` that tests use."""

    def __init__(self, parent: ServiceForks, pid: int) -> None:
        self.pid = pid
        self._parent = parent

    def poll(self) -> int | None:
        """Returns the exit code, negative for a signal; None while it runs."""
        code = self._parent.ask("poll", self.pid)
        assert code is None or isinstance(code, int)
        return code

    def wait(self, timeout: float) -> int:
        """Waits for the end, and returns the exit code."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ServiceForks:
    """The parent of the processes; it is started when the first one is wanted."""

    def __init__(self) -> None:
        self._free = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def start(self, argv: list[str], environ: dict[str, str], stdout: Path, stderr: Path) -> Process:
        """Starts `session-manager` with these arguments, in exactly this environment; what it prints is appended."""
        pid = self.ask("start", argv, environ, str(stdout), str(stderr))
        assert isinstance(pid, int)
        return Process(self, pid)

    def ask(self, *request: Any) -> Any:
        """Puts one request to the parent, and returns its answer."""
        with self._free:
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
                )
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the parent."""
        if self._process is not None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait(timeout=60)
            self._process.stdout.close()


def _import_everything() -> None:
    import session_manager

    for module in pkgutil.walk_packages(session_manager.__path__, "session_manager."):
        if ".migrations." not in module.name and not module.name.endswith(("__main__", "mcp_server")):
            importlib.import_module(module.name)
    for name in (
        "psycopg_binary",
        "sqlalchemy.dialects.postgresql.psycopg",
        "uvicorn.lifespan.on",
        "uvicorn.loops.auto",
        "uvicorn.protocols.http.auto",
        "uvicorn.protocols.websockets.auto",
    ):
        importlib.import_module(name)


def _become(argv: list[str], environ: dict[str, str], stdout: str, stderr: str) -> None:
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["session-manager", *argv]
    from session_manager.faces import cli

    code: object = 1
    try:
        cli.main()
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    # As at any program's end, but for taking apart all that was imported, which copies it first.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


def main() -> None:
    """Answers until standard input ends."""
    _import_everything()
    # The children leave it as it is, shared.
    gc.freeze()
    ended: dict[int, int] = {}
    for line in os.fdopen(os.dup(0)):
        what, *rest = json.loads(line)
        answer: int | None
        if what == "start":
            answer = os.fork()
            if answer == 0:
                _become(*rest)
        else:
            (pid,) = rest
            if pid not in ended:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    ended[pid] = os.waitstatus_to_exitcode(status)
            answer = ended.get(pid)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
