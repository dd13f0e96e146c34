"""One call of a mutating function: its name, time and caller."""

from __future__ import annotations

import contextlib
import os
import sqlite3

import msgspec

from session_manager.core.errors import SessionManagerError
from session_manager.live.ledger import chain
from session_manager.live.liveness import now_ms
from session_manager.settings import Settings


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


def start_run(function: str, settings: Settings) -> Run:
    """Describes a run that starts now; nothing is written yet."""
    import platform

    return Run(
        run_id=new_run_id(),
        started_at=now_ms(),
        function=function,
        asked_by=_plain(settings.asked_by),
        user=_plain(_user_name()) or "",
        host=_plain(platform.node()) or "",
        history=is_owed(settings),
        keep_days=settings.keep_days,
    )


def is_owed(settings: Settings) -> bool:
    """Returns True if removals are reported to history, now or once it can be reached.

    Without configuration, only if history was reached before.
    """
    if settings.api_url is None or settings.api_named or settings.api_token is not None:
        return settings.api_url is not None
    from session_manager.live.ledger import Ledger

    # The call that removes something reports a broken ledger.
    with contextlib.suppress(SessionManagerError):
        ledger = Ledger.open_existing(settings, "ro")
        if ledger is not None:
            with ledger:
                return ledger.knows_history()
    return False


def _plain(text: str | None) -> str | None:
    """Turns any bytes of the environment into text that SQLite and JSON accept."""
    return None if text is None else text.encode(errors="replace").decode()


def _user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
