"""Calls of the runner in forked children: a process for each, that can be killed, without a new interpreter for each.

The parent, started once, has imported everything and runs one thread. It gets one line of JSON a call,
the arguments of ``_call``, and answers with one line. What a call reads and prints is text in Latin-1, byte by byte.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).resolve().parents[1]
# The user that an ordinary call runs as where the tests are run by root, who may do anything.
NOBODY = 65534
sys.path.insert(0, str(ROOT))


class Call(NamedTuple):
    """What became of a call: its document (None when it was killed), its exit code, and the steps it completed."""

    document: dict[str, Any]
    exit_code: int
    steps: list[str]
    stderr: str

    @property
    def killed(self) -> bool:
        return self.exit_code == -signal.SIGKILL


class Forks:
    """The parent of the calls. ``environ`` is the whole environment of every call."""

    def __init__(self, **environ: str) -> None:
        self.environ = environ
        self._free = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def __call__(
        self,
        function: str,
        arguments: dict[str, Any] | None = None,
        *,
        kill_at: int = 0,
        kill_after: float | None = None,
        at_work: bool = False,
        meanwhile: dict[str, tuple[Path, str]] | None = None,
        **environ: str,
    ) -> Call:
        """Makes one call; kills it when the ``kill_at``-th step has been completed, or after so many seconds.

        With ``at_work`` they are counted from the first step on: what comes before that is mostly waiting.
        ``meanwhile`` maps a step to a file that a gateway puts in place as soon as it has been completed.
        """
        argv = ["session_manager", function, json.dumps(arguments or {})]
        writes = {step: (str(path), text) for step, (path, text) in (meanwhile or {}).items()}
        with self._free:
            asked = [argv, {**self.environ, **environ}, "", kill_at, kill_after, at_work, writes, False]
            code, out, err, steps = self._ask(asked)
        killed = code == -signal.SIGKILL
        assert out.count(b"\n") == 1 or killed, (code, out, err)
        return Call({} if killed else json.loads(out), code, steps.decode().splitlines(), err.decode(errors="replace"))

    def run(
        self, argv: list[str], environ: dict[str, str], stdin: bytes, *, ordinary: bool = False
    ) -> subprocess.CompletedProcess[bytes] | None:
        """Makes one call as ``subprocess.run`` would, in exactly this environment; None while another one is made."""
        if not self._free.acquire(blocking=False):
            return None
        try:
            code, out, err, _ = self._ask([argv, environ, stdin.decode("latin-1"), 0, None, False, {}, ordinary])
        finally:
            self._free.release()
        return subprocess.CompletedProcess(argv, code, out, err)

    def _ask(self, asked: list[Any]) -> tuple[int, bytes, bytes, bytes]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        code, *texts = json.loads(self._process.stdout.readline())
        out, err, steps = (text.encode("latin-1") for text in texts)
        return code, out, err, steps


def _import_everything() -> None:
    for room in ("archives", "core", "files", "functions", "gateway", "history", "ledger", "stores"):
        package = importlib.import_module(f"session_manager.{room}")
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    # A child that is an ordinary user may not be able to read the interpreter's own folder.
    for name in ("datetime", "difflib", "encodings.ascii", "encodings.utf_8_sig", "httpx", "platform", "pwd", "sqlite3",
                 "tomllib", "traceback", "urllib.parse"):  # fmt: skip
        importlib.import_module(name)


Writes = dict[str, tuple[str, str]]


def _child(
    argv: list[str], environ: dict[str, str], kill_at: int, writes: Writes, ordinary: bool, files: list[Any]
) -> None:
    from session_manager.faces import runner
    from session_manager.files import steps

    given, out, err, log = (file.fileno() for file in files)
    seen = 0

    def watch(name: str) -> None:
        nonlocal seen
        seen += 1
        os.write(log, name.encode() + b"\n")
        if name in writes:
            path, text = writes.pop(name)
            Path(path + ".tmp").write_text(text)
            os.rename(path + ".tmp", path)
        if seen == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    os.dup2(given, 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.clear()
    os.environ.update(environ)
    steps.watcher = watch
    if ordinary and os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    code = runner.main(argv, os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _call(
    argv: list[str],
    environ: dict[str, str],
    stdin: str,
    kill_at: int,
    kill_after: float | None,
    at_work: bool,
    writes: Writes,
    ordinary: bool,
) -> list[Any]:
    with contextlib.ExitStack() as stack:
        given, out, err, log = files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(4)]
        given.write(stdin.encode("latin-1"))
        given.seek(0)
        pid = os.fork()
        if pid == 0:
            try:
                _child(argv, environ, kill_at, writes, ordinary, files)
            finally:
                os._exit(99)
        if kill_after is not None:
            while at_work and not os.fstat(log.fileno()).st_size and not _ended(pid):
                time.sleep(0.0005)
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        texts = []
        for file in (out, err, log):
            file.seek(0)
            texts.append(file.read().decode("latin-1"))
        return [code, *texts]


def main() -> None:
    """Answers until standard input ends."""
    _import_everything()
    from session_manager.stores.openclaw_files import removal

    # No test's gateway takes its time: what it writes meanwhile, it writes at a step.
    removal.SECOND_LOOK_S = 0.0
    # The children leave it as it is, shared.
    gc.freeze()
    # The children's standard input is another file: nothing may be left of this one in sys.stdin's buffer.
    for line in os.fdopen(os.dup(0)):
        sys.stdout.write(json.dumps(_call(*json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
