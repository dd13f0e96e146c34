"""One call of a mutating function: its name, time and caller."""

from __future__ import annotations

import os
import sqlite3

import msgspec

from session_manager.files.liveness import now_ms
from session_manager.ledger import chain


def new_run_id() -> str:
    """Returns a fresh run id: time first, so that ids sort by age."""
    return f"{now_ms():012x}-{os.urandom(5).hex()}"


def run_started_at(run_id: str) -> int | None:
    """Returns the time (epoch ms) that a run id begins with, or None when it is no run id."""
    time, dash, rest = run_id.partition("-")
    try:
        return int(time, 16) if dash and len(time) == 12 and len(bytes.fromhex(rest)) == 5 else None
    except ValueError:
        return None


class Run(msgspec.Struct):
    """One call of a mutating function. ``noted`` is True once the ledger has it, that is, once it changed something."""

    run_id: str
    started_at: int
    function: str
    asked_by: str | None
    user: str
    host: str
    history: bool
    keep_days: int
    noted: bool = False

    @property
    def shown_id(self) -> str | None:
        """The run's id for its result, or None when it changed nothing."""
        return self.run_id if self.noted else None


def note_run(sql: sqlite3.Connection, run: Run) -> None:
    """Writes a run's row in the caller's transaction, unless it has one."""
    row = (run.run_id, run.started_at, run.function, run.asked_by, run.user, run.host, os.getpid())
    if sql.execute("INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)", row).rowcount == 1:
        chain.append(sql, "run", {"run": run.run_id, "digest": chain.digest(row).hex()})
