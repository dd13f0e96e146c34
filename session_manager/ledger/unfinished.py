"""Calls that the ledger knows to be unfinished."""

from __future__ import annotations

import msgspec

from session_manager.ledger.connection import Connection, clear_sqlite_errors


class Unfinished(msgspec.Struct, frozen=True):
    """One open attempt: one agent's part of a run. ``begun_at`` is in epoch milliseconds."""

    run_id: str
    function: str
    pid: int
    agent_id: str
    kind: str
    begun_at: int


class Openness(Connection):
    """The part of the ledger that lists unfinished attempts, of any store."""

    def unfinished(self) -> list[Unfinished]:
        """Returns all open attempts, oldest first: those of killed calls, or of calls still at work."""
        with clear_sqlite_errors(self.path):
            rows = self.sql.execute(
                "SELECT run_id, function, pid, agent_id, kind, created_at FROM attempts JOIN runs USING (run_id)"
                " WHERE state = 'intent' ORDER BY attempt_id"
            )
            return [Unfinished(str(r), str(f), int(p), str(a), str(k), int(at)) for r, f, p, a, k, at in rows]
