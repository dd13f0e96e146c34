"""A real gateway from the npm registry, as a process of its own on loopback, and a client that drives it.

``make test-system`` installs the versions below ``CACHE`` (see install.sh). A gateway gets a home of its own, a model
endpoint of ours, no channels, no updates and no discovery: it talks to nobody but this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

VERSIONS = ("2026.2.17", "2026.6.11")
CACHE = Path(os.environ.get("SM_GATEWAYS") or Path("~/.cache").expanduser() / "aria-sessionmanager-tests/gateways")
PATH = f"{CACHE}/node/bin:/usr/local/bin:/usr/bin:/bin"
TOKEN = "of-this-test"
# Becomes the program behind it, which ends with us on Linux, however we end (PR_SET_PDEATHSIG).
ENDING_WITH_US = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])
"""
READY_S = 120.0
QUIET = {
    "OPENCLAW_SKIP_CHANNELS": "1",
    "OPENCLAW_SKIP_CRON": "1",
    "OPENCLAW_SKIP_BROWSER_CONTROL_SERVER": "1",
    "OPENCLAW_SKIP_CANVAS_HOST": "1",
    "OPENCLAW_SKIP_GMAIL_WATCHER": "1",
    "OPENCLAW_DISABLE_BONJOUR": "1",
    "OPENCLAW_NO_RESPAWN": "1",
}


def configuration(port: int, model_url: str, home: Path, agents: Sequence[str] = ()) -> dict[str, Any]:
    """What makes a gateway small and quiet. An idle reset far away: without it a message to a session that was last
    used before 4 o'clock in the morning starts another one."""
    model = {"id": "small-1", "name": "small-1", "contextWindow": 200_000, "maxTokens": 4096, "input": ["text"]}
    model |= {"reasoning": False, "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0}}
    provider = {"baseUrl": model_url, "apiKey": "sk-none", "api": "openai-completions", "models": [model]}
    interface = {"enabled": False, "dangerouslyDisableDeviceAuth": True, "allowedOrigins": [f"http://127.0.0.1:{port}"]}
    return {
        "gateway": {
            "mode": "local",
            "port": port,
            "bind": "loopback",
            "auth": {"mode": "token", "token": TOKEN},
            "controlUi": interface,
        },
        "models": {"mode": "replace", "providers": {"small": provider}},
        "agents": {
            "defaults": {
                "model": {"primary": "small/small-1"},
                "skipBootstrap": True,
                "workspace": str(home / "workspace"),
                "heartbeat": {"every": "0m"},
                "maxConcurrent": 8,
            },
            "list": [{"id": agent} for agent in ("main", *agents)],
        },
        "session": {"reset": {"mode": "idle", "idleMinutes": 10_000_000}},
        "logging": {"file": str(home / "gateway.log")},
        "discovery": {"mdns": {"mode": "off"}},
        "update": {"checkOnStart": False},
        "browser": {"enabled": False},
        "cron": {"enabled": False},
        "plugins": {"enabled": False},
    }


def command(version: str, *arguments: str) -> list[str]:
    """How that version's program is called."""
    program = CACHE / version / "node_modules/openclaw/openclaw.mjs"
    assert program.exists(), f"tests/gateways/install.sh installs {program}"
    return [str(CACHE / "node/bin/node"), str(program), *arguments]


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


class Client:
    """One WebSocket connection; a thread of its own takes what comes in. Several threads may call."""

    def __init__(self, port: int) -> None:
        origin = f"http://127.0.0.1:{port}"
        self._ws = connect(f"ws://127.0.0.1:{port}", origin=origin, max_size=None, proxy=None, open_timeout=5)  # type: ignore[arg-type]
        self._news = threading.Condition()
        self._answers: dict[str, dict[str, Any]] = {}
        self._ended: dict[str, dict[str, Any]] = {}
        self._gone = False
        assert json.loads(self._ws.recv(5))["event"] == "connect.challenge"
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        client = {"id": "openclaw-control-ui", "version": "1", "platform": "linux", "mode": "ui"}
        scopes = ["operator.admin", "operator.read", "operator.write"]
        answer = self.call(
            "connect",
            minProtocol=3,
            maxProtocol=4,
            client=client,
            role="operator",
            scopes=scopes,
            auth={"token": TOKEN},
        )
        assert answer["type"] == "hello-ok"

    def _read(self) -> None:
        with contextlib.suppress(ConnectionClosed, OSError):
            for text in self._ws:
                message = json.loads(text)
                with self._news:
                    if message.get("type") == "res":
                        self._answers[message["id"]] = message
                    elif message.get("event") == "chat" and message["payload"].get("state") != "delta":
                        self._ended[message["payload"]["runId"]] = message["payload"]
                    self._news.notify_all()
        with self._news:
            self._gone = True
            self._news.notify_all()

    def _wait(self, found: Callable[[], Any], timeout_s: float, what: str) -> None:
        with self._news:
            assert self._news.wait_for(lambda: found() or self._gone, timeout_s), f"no {what} within {timeout_s} s"
            assert found(), f"the gateway closed the connection before the {what}"

    def call(self, method: str, timeout_s: float = 30.0, **params: Any) -> dict[str, Any]:
        """The payload of the answer; RefusedError with the gateway's own words when it refuses."""
        request = str(uuid.uuid4())
        self._ws.send(json.dumps({"type": "req", "id": request, "method": method, "params": params}))
        self._wait(lambda: request in self._answers, timeout_s, f"answer to {method}")
        answer = self._answers.pop(request)
        if not answer["ok"]:
            raise RefusedError(answer["error"])
        payload: dict[str, Any] = answer["payload"]
        return payload

    def say(self, key: str, text: str) -> str:
        """Sends a message and returns at once, with the run's id."""
        run = str(uuid.uuid4())
        self.call("chat.send", sessionKey=key, message=text, idempotencyKey=run)
        return run

    def end_of(self, run: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """How a run ended: its last event, whose state is final, error or aborted."""
        self._wait(lambda: run in self._ended, timeout_s, "end of a run")
        return self._ended[run]

    def history(self, key: str) -> dict[str, Any]:
        return self.call("chat.history", sessionKey=key, limit=1000)

    def close(self) -> None:
        self._ws.close()


class RefusedError(Exception):
    """The gateway's error."""


class Gateway:
    """A gateway of one version with its home in ``home``; ``started`` runs it for as long as the block lasts.

    It has these ``agents`` beside main; ``environ`` adds to its environment.
    """

    def __init__(self, version: str, home: Path, model_url: str, agents: Sequence[str] = (), **environ: str) -> None:
        self.version = version
        self.home = home
        self.port = free_port()
        self.state = home / ".openclaw"
        self.state.mkdir(parents=True, exist_ok=True)
        self.configure(configuration(self.port, model_url, home, agents))
        self._environ = environ
        self.client: Client

    def configure(self, settings: dict[str, Any]) -> None:
        (self.state / "openclaw.json").write_text(json.dumps(settings, indent=1))

    @property
    def agents(self) -> Path:
        return self.state / "agents"

    def sessions(self, agent: str) -> Path:
        return self.agents / agent / "sessions"

    def index(self, agent: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.sessions(agent) / "sessions.json").read_text())
        return found

    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "TMPDIR": str(self.home), "PATH": PATH, **QUIET, **self._environ}

    @contextlib.contextmanager
    def started(self) -> Iterator[Self]:
        with (self.home / "output").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", ENDING_WITH_US, *command(self.version, "gateway", "run")],
                env=self.environment(),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.client = self._connect(process)
            yield self
        finally:
            if hasattr(self, "client"):
                self.client.close()
            end_group(process)

    def _connect(self, process: subprocess.Popen[bytes]) -> Client:
        deadline = time.monotonic() + READY_S
        while True:
            try:
                return Client(self.port)
            except (OSError, ConnectionClosed, RefusedError, AssertionError):
                assert process.poll() is None, (self.home / "output").read_text()[-3000:]
                assert time.monotonic() < deadline, (self.home / "output").read_text()[-3000:]
                time.sleep(0.1)

    def wait_until_quiet(self, agent: str, still_s: float = 0.5, timeout_s: float = 60.0) -> None:
        """Waits until no run of an agent holds a transcript's lock, no entry says that one is on, and the index has not
        changed for so long: 2026.6.11 writes it several times after a run's end has been told."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            still = time.time() - (self.sessions(agent) / "sessions.json").stat().st_mtime > still_s
            running = any(entry.get("status") == "running" for entry in self.index(agent).values())
            if still and not running and not list(self.sessions(agent).glob("*.jsonl.lock")):
                return
            time.sleep(0.05)
        raise AssertionError("a run of the gateway did not end")


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started, the stubborn ones after 10 s."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
