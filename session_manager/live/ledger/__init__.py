"""The ledger: what was removed, by which run, how far it got, and what history has still to hear.

One SQLite file in the state directory, shared by several processes. Tables:

- ``runs``: one row a run: function, time, who asked.
- ``attempts``: one row an agent and run. ``state``: ``intent`` (durable before the index is touched), then ``done``,
  or ``undone`` when nothing came of it. An attempt that is still ``intent`` belongs to a killed process, or to one
  that holds the store's lock right now.
- ``removals``: one row a session of an attempt, with its keys, its raw entries and its files from → to.
  ``state`` is ``removed`` unless the session turned out to be alive (``kept``).
- ``marks``: what history must be told, at most one a session, whoever removed it. Marks come into being in the
  transaction that ends the attempt, so a removal without its mark cannot be. ``state`` is ``pending``, then
  ``delivered``, or ``missing`` (history has had no such row for days) or ``refused`` (nor would it take the mark).
"""

from __future__ import annotations

from session_manager.live.ledger.attempts import Attempts
from session_manager.live.ledger.marks import Marks
from session_manager.live.ledger.removals import Removals
from session_manager.live.ledger.rows import Attempt, Mark, Removal, Temp
from session_manager.live.ledger.run import Run, new_run_id, start_run

__all__ = ["Attempt", "Ledger", "Mark", "Removal", "Run", "Temp", "new_run_id", "start_run"]


class Ledger(Attempts, Marks, Removals):
    """The whole ledger, opened. A context manager; leaving it closes the file."""
