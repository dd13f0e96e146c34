"""What the file system, zlib and SQLite cost by themselves: no implementation can be faster than its floor."""

from __future__ import annotations

import os
import sqlite3
import zlib
from pathlib import Path

from benchmarks.stores import MODE, YOUNG_EVERY

SMALL = 16 * 1024


def read(agents: Path) -> None:
    """Reads the index."""
    (agents / "main/sessions/sessions.json").read_bytes()


def prune(agents: Path) -> None:
    """Reads the index; writes the survivors' share durably and renames it into place; archives the transcripts.

    An archive is a rename and a second name elsewhere.
    """
    folder = agents / "main/sessions"
    data = (folder / "sessions.json").read_bytes()
    fd = os.open(folder / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
    with open(fd, "wb", buffering=0) as file:
        file.write(memoryview(data)[: len(data) // YOUNG_EVERY])
        os.fsync(fd)
    os.rename(folder / "new", folder / "sessions.json")
    names = [found.name for found in os.scandir(folder) if found.name.endswith(".jsonl")]
    elsewhere = agents / "archives"
    elsewhere.mkdir()
    for name in names[len(names) // YOUNG_EVERY :]:
        archive = f"{name}.deleted.2026-01-01T00-00-00.000Z"
        os.rename(f"{folder}/{name}", f"{folder}/{archive}")
        os.link(f"{folder}/{archive}", f"{elsewhere}/{archive}")


class Ledger:
    """One zlib pass over the removed bytes, one durable transaction with as many rows."""

    def __init__(self, agents: Path) -> None:
        data = (agents / "main/sessions/sessions.json").read_bytes()
        names = os.listdir(agents / "main/sessions")
        sessions = sum(name.endswith(".jsonl") for name in names)
        size = len(data) // sessions
        self._entries = [data[i * size : (i + 1) * size] for i in range(sessions // YOUNG_EVERY, sessions)]
        self._path = agents / "floor.sqlite"

    def __call__(self, agents: Path) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE removed (id INTEGER PRIMARY KEY, entry BLOB)")
        connection.execute("BEGIN")
        rows = ((i, _compressed(entry)) for i, entry in enumerate(self._entries))
        connection.executemany("INSERT INTO removed VALUES (?, ?)", rows)
        connection.execute("COMMIT")
        connection.close()
        self._path.unlink()


def _compressed(entry: bytes) -> bytes:
    if len(entry) > SMALL:
        return zlib.compress(entry, 1)
    # zlib's usual 256 KB of state goes back to the system after every entry, or not, by the luck of the heap.
    small = zlib.compressobj(1, zlib.DEFLATED, 12, 5)
    return small.compress(entry) + small.flush()
