"""A summary of the volume's ledger for the dashboard. Read-only."""

from __future__ import annotations

import os

import msgspec

from session_manager.core.errors import SessionManagerError, printable
from session_manager.ledger import Ledger
from session_manager.ledger.runs import RunSummary, recent_runs
from session_manager.settings import Settings

RUNS = 10
# A page does not wait long for a ledger that is being written.
_PATIENCE_S = 1.0


class LedgerView(msgspec.Struct, frozen=True):
    """The last runs, and how many marks are pending; or why the ledger cannot be read."""

    runs: list[RunSummary] = []
    pending: int = 0
    problem: str | None = None


def read_ledger(settings: Settings) -> LedgerView:
    """Reads the ledger; without one, nothing was ever removed."""
    root = settings.place.layout.root or settings.agents_dir
    if not os.path.isdir(root):
        return LedgerView(problem=printable(f"the agents directory {root} does not exist"))
    try:
        ledger = Ledger.open_existing(msgspec.structs.replace(settings, lock_timeout=_PATIENCE_S), "ro")
        if ledger is None:
            return LedgerView()
        with ledger:
            view = LedgerView(recent_runs(ledger, RUNS), ledger.pending_count())
            # SQLite stores values of any type in any column.
            return msgspec.convert(msgspec.to_builtins(view), LedgerView)
    except SessionManagerError as error:
        return LedgerView(problem=error.message)
    except (TypeError, ValueError):
        return LedgerView(problem="it contains data that this tool never writes; restore it from a backup")
