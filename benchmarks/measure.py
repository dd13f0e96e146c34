"""Runs one measurement in a process of its own: time, and peak memory above the bare start.

usage: python -m benchmarks.measure <what> <agents dir>; prints one JSON line.
"""

from __future__ import annotations

import json
import os
import resource
import sqlite3
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from session_manager.functions import load
from session_manager.functions.context import Context
from session_manager.live.liveness import now_ms
from session_manager.live.volume import Volume
from session_manager.settings import read_settings


def _call(agents: Path, function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    settings = read_settings({"ARIA_AGENTS_DIR": str(agents)})
    loaded = load(function)
    return loaded.run(Context(settings, Volume(settings.agents_dir), now_ms), loaded.arguments(**arguments))


def list_sessions(agents: Path) -> None:
    _call(agents, "list_sessions", {})


def dry_run(agents: Path) -> None:
    _call(agents, "prune_sessions", {"dry_run": True})


def prune(agents: Path) -> None:
    document = _call(agents, "prune_sessions", {})
    assert document["pruned_count"] == document["total_sessions"] * 9 // 10, document["pruned_count"]


def read_floor(agents: Path) -> None:
    (agents / "main/sessions/sessions.json").read_bytes()


def prune_floor(agents: Path) -> None:
    """Read the file, write the survivors' tenth, one fsync, N renames."""
    folder = agents / "main/sessions"
    data = (folder / "sessions.json").read_bytes()
    fd = os.open(folder / "new", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(fd, data[: len(data) // 10])
    os.fsync(fd)
    os.close(fd)
    os.rename(folder / "new", folder / "sessions.json")
    names = [e.name for e in os.scandir(folder) if e.name.endswith(".jsonl")]
    for name in names[: len(names) * 9 // 10]:
        os.rename(folder / name, folder / f"{name}.deleted.2026-01-01T00-00-00.000Z")


def ledger_floor(agents: Path) -> None:
    """One zlib pass over the removed bytes, one durable transaction with as many rows."""
    folder = agents / "main/sessions"
    data = (folder / "sessions.json").read_bytes()
    count = sum(1 for e in os.scandir(folder) if ".jsonl" in e.name) * 9 // 10
    size = len(data) * 9 // 10 // count
    connection = sqlite3.connect(agents / "floor.sqlite", isolation_level=None)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE removed (id INTEGER PRIMARY KEY, entry BLOB)")
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO removed VALUES (?, ?)",
        ((i, zlib.compress(data[i * size : (i + 1) * size], 1)) for i in range(count)),
    )
    connection.execute("COMMIT")
    connection.close()


WHAT: dict[str, Callable[[Path], None]] = {
    f.__name__: f for f in (list_sessions, dry_run, prune, read_floor, prune_floor, ledger_floor)
}


def main(what: str, agents: Path) -> None:
    if what == "prune":
        # The skill's imports are measured by the start benchmark, not here.
        import session_manager.live.removal  # noqa: F401
    os.sync()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    WHAT[what](agents)
    seconds = time.perf_counter() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
