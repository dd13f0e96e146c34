"""Marks: what history has still to hear."""

from __future__ import annotations

from collections.abc import Iterable

from session_manager.live.ledger.connection import Connection, clear_sqlite_errors
from session_manager.live.ledger.rows import Mark
from session_manager.live.ledger.run import Run
from session_manager.live.liveness import now_ms


class Marks(Connection):
    """The part of the ledger that history is told from."""

    def owe_mark(self, run: Run, agent_id: str, session_id: str, *, again: bool = False) -> str:
        """Owes history the end of a session that somebody else removed, once; returns the mark's state.

        One that was given up is owed anew; with ``again`` that goes for a delivered one, too.
        """
        with self.transaction() as c:
            c.execute(
                "INSERT INTO marks VALUES (?, ?, 'ended', 'pending', ?, ?) ON CONFLICT (agent_id, session_id)"
                " DO UPDATE SET status = 'ended', state = 'pending', run_id = excluded.run_id,"
                " changed_at = excluded.changed_at WHERE ? OR state IN ('missing', 'refused')",
                (agent_id, session_id, run.run_id, now_ms(), again),
            )
            row = c.execute(
                "SELECT state FROM marks WHERE agent_id = ? AND session_id = ?", (agent_id, session_id)
            ).fetchone()
        return str(row[0])

    def note_marks(self, marks: Iterable[Mark], state: str) -> None:
        """Notes what became of pending marks; one that was changed since it was read stays pending."""
        with self.transaction() as c:
            c.executemany(
                "UPDATE marks SET state = ? WHERE agent_id = ? AND session_id = ? AND status = ? AND run_id = ?"
                " AND changed_at = ? AND state = 'pending'",
                [(state, m.agent_id, m.session_id, m.status, m.run_id, m.changed_at) for m in marks],
            )

    def pending(self) -> list[Mark]:
        """Returns the marks that history has still to hear, oldest first."""
        with clear_sqlite_errors(self.path):
            rows = self.sql.execute(
                "SELECT agent_id, session_id, status, run_id, changed_at FROM marks WHERE state = 'pending'"
                " ORDER BY changed_at, agent_id, session_id"
            )
            return [Mark(str(a), str(s), str(status), str(run_id), int(at)) for a, s, status, run_id, at in rows]

    def pending_count(self, agent_id: str | None = None) -> int:
        """Returns how many marks wait, of one agent or of all."""
        with clear_sqlite_errors(self.path):
            return int(
                self.sql.execute(
                    "SELECT count(*) FROM marks WHERE state = 'pending' AND (? IS NULL OR agent_id = ?)",
                    (agent_id, agent_id),
                ).fetchone()[0]
            )
