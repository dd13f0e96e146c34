"""An MCP server as a process, spoken to in bytes, where the SDK's client is too well-behaved."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any


class Wire:
    """The server as a process, spoken to line by line."""

    def __init__(self, *command: str | Path, env: dict[str, str]) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=env)
        who = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        self.send(method="initialize", id=1, params=who)
        assert self.answer()["id"] == 1
        self.send(method="notifications/initialized")

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def send(self, line: bytes | None = None, **message: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((line or json.dumps({"jsonrpc": "2.0", **message}).encode()) + b"\n")
        self.process.stdin.flush()

    def call(self, number: int, name: str, **arguments: Any) -> None:
        self.send(method="tools/call", id=number, params={"name": name, "arguments": arguments})

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found = json.loads(self.process.stdout.readline())
        assert isinstance(found, dict)
        return found
