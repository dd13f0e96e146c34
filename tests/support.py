"""What several tests need: the runner as a subprocess, stores built to order, pictures of a tree."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from forks import Forks

ROOT = Path(__file__).resolve().parents[1]
RUNNER = ROOT / "run_skill.py"
# Bound and never listened on: connections are refused at once, and nobody else can open a service there.
_nobody = socket.socket()
_nobody.bind(("127.0.0.1", 0))
CLOSED_API = f"http://127.0.0.1:{_nobody.getsockname()[1]}/api"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def dead_pid() -> int:
    """The pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def contend(program: str, agents: Path, log: Path) -> list[str]:
    """Has four processes run a program at the same moment; returns the words that they wrote into ``log``.

    The program gets the project's root, ``agents`` and ``log``, and waits for the file ``<log>.go``.
    """
    command = [sys.executable, "-c", program, str(ROOT), str(agents), str(log)]
    contenders = [subprocess.Popen(command) for _ in range(4)]
    Path(f"{log}.go").touch()
    assert [c.wait(60) for c in contenders] == [0] * 4
    return log.read_text().split()


class Answer:
    """What one call printed: the document, the exit code, standard error."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.exit_code = done.returncode
        self.stdout = done.stdout
        self.stderr = done.stderr.decode(errors="replace")

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document; fails when standard output holds anything else."""
        assert self.stdout.endswith(b"\n"), (self.stdout, self.stderr)
        assert self.stdout.count(b"\n") == 1, (self.stdout, self.stderr)
        found = json.loads(self.stdout)
        assert isinstance(found, dict)
        return found


class Skill:
    """The real runner on one agents directory. ``env`` adds to (or, with None, removes from) its environment.

    A call is a process of its own, forked from one that has imported everything; a new interpreter runs
    run_skill.py where ``new_interpreter`` says so, where the interpreter itself reads a variable, and beside another
    call. ``ordinary``: as a user for whom permissions count (see ``forks.NOBODY``).
    """

    forks: ClassVar[Forks | None] = None

    def __init__(
        self, agents: Path, *, new_interpreter: bool = False, ordinary: bool = False, **env: str | None
    ) -> None:
        self.agents = agents
        self.env = env
        self._new_interpreter = new_interpreter
        self._ordinary = ordinary

    def environment(self, **env: str | None) -> dict[str, str]:
        merged = {**os.environ, "ARIA_AGENTS_DIR": str(self.agents), **self.env, **env}
        return {name: value for name, value in merged.items() if value is not None}

    def command(self, function: str, arguments: Any = None) -> list[str]:
        text = [] if arguments is None else [arguments if isinstance(arguments, str) else json.dumps(arguments)]
        return [sys.executable, str(RUNNER), "session_manager", function, *text]

    def __call__(self, function: str, arguments: Any = None, *, stdin: bytes = b"", **env: str | None) -> Answer:
        command, environment = self.command(function, arguments), self.environment(**env)
        read_at_start = any(name.startswith(("PYTHON", "LC_", "LANG")) for name in {**self.env, **env})
        done = None
        if not (self._new_interpreter or read_at_start or self.forks is None):
            done = self.forks.run(command[2:], environment, stdin, ordinary=self._ordinary)
        if done is None:
            assert not self._ordinary
            done = subprocess.run(command, input=stdin, capture_output=True, env=environment, timeout=120, check=False)
        return Answer(done)

    def start(self, function: str, arguments: Any = None, **env: str | None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(function, arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(**env),
        )


class StoreBuilder:
    """Builds one agent's store in the gateway's format; entries are added with an age in minutes."""

    def __init__(self, agents: Path, agent: str = "main") -> None:
        self.agent = agent
        self.dir = agents / agent / "sessions"
        self.dir.mkdir(parents=True, exist_ok=True)
        self.entries: dict[str, Any] = {}

    @property
    def index(self) -> Path:
        return self.dir / "sessions.json"

    def add(
        self,
        rest: str,
        age_minutes: float | None = 120,
        session_id: str | None = None,
        transcript: bool = True,
        **fields: Any,
    ) -> str:
        """Adds ``agent:<agent>:<rest>`` (``rest`` as it is when it starts with "=") and returns the session id."""
        session_id = session_id or str(uuid.uuid4())
        key = rest[1:] if rest.startswith("=") else f"agent:{self.agent}:{rest}"
        entry: dict[str, Any] = {"sessionId": session_id}
        at = now_ms() if age_minutes is None else now_ms() - int(age_minutes * 60_000)
        if age_minutes is not None:
            entry["updatedAt"] = at
        self.entries[key] = {**entry, **fields}
        if transcript:
            self.transcript(f"{session_id}.jsonl", session_id, at)
        return session_id

    def transcript(self, name: str, session_id: str, at_ms: int, mtime_ms: int | None = None) -> Path:
        """Writes a transcript whose only times are ``at_ms``; its mtime is the same unless given."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_ms // 1000)) + f".{at_ms % 1000:03d}Z"
        path = self.dir / name
        header = {"type": "session", "version": 3, "id": session_id, "timestamp": moment, "cwd": "/workspace"}
        message = {"type": "message", "id": "1", "parentId": None, "timestamp": moment, "message": {"role": "user"}}
        path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in (header, message)))
        at = (at_ms if mtime_ms is None else mtime_ms) / 1000
        os.utime(path, (at, at))
        return path

    def write(self) -> StoreBuilder:
        """Writes the index as the gateway does: two spaces, no final newline, 0600."""
        self.index.write_text(json.dumps(self.entries, indent=2, ensure_ascii=False))
        self.index.chmod(0o600)
        return self

    def replace(self, entries: dict[str, Any]) -> None:
        """Puts another version in the index's place, as the gateway does: a new file, renamed."""
        other = self.dir / "sessions.json.1.0b7e.tmp"
        other.write_text(json.dumps(entries, indent=2))
        other.rename(self.index)

    def read(self) -> dict[str, Any]:
        """Reads the index as the gateway would."""
        found = json.loads(self.index.read_bytes())
        assert isinstance(found, dict)
        return found

    def names(self) -> set[str]:
        """File names in the folder, without the tool's own lock file."""
        return {p.name for p in self.dir.iterdir()} - {".session_manager.lock"}


def ledger_sql(agents: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Asks or changes the ledger's file itself."""
    connection = sqlite3.connect(agents / ".session_manager" / "ledger.sqlite")
    try:
        with connection:
            return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


def picture(root: Path, *, without_state: bool = True) -> dict[str, tuple[str, bytes]]:
    """Every path below ``root`` with its kind, mode and bytes; the state directory and our lock file left out."""
    found: dict[str, tuple[str, bytes]] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        ours = name.startswith(".session_manager") or path.name == ".session_manager.lock"
        if without_state and ours:
            continue
        if path.is_symlink():
            found[name] = ("link", os.readlink(path).encode())
        elif path.is_dir():
            found[name] = (f"dir {path.stat().st_mode:o}", b"")
        elif not path.is_file():
            found[name] = (f"other {path.stat().st_mode:o}", b"")
        else:
            found[name] = (f"file {path.stat().st_mode:o}", path.read_bytes())
    return found


@contextlib.contextmanager
def small_file_system(place: Path, size: str) -> Iterator[Path]:
    """A tmpfs of its own, ``size`` as mount takes it. Skips the test without root, fails it where root may not."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"this machine does not let root mount a tmpfs, which this test needs: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
