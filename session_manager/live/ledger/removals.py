"""Removals: what went, looked up afterwards."""

from __future__ import annotations

from session_manager.live.ledger.connection import Connection, clear_sqlite_errors


class Removals(Connection):
    """The part of the ledger that says what was removed."""

    def removed(self, session: str, agent_id: str | None) -> list[tuple[str, str]]:
        """Returns (agent id, session id) of every removal of a session, named by its id or by one of its keys."""
        with clear_sqlite_errors(self.path):
            by_key = ":" in session
            rows = self.sql.execute(
                "SELECT DISTINCT r.agent_id, r.session_id FROM removals r JOIN attempts a USING (attempt_id)"
                " WHERE a.state <> 'undone' AND r.state = 'removed' AND (? IS NULL OR r.agent_id = ?)"
                + (
                    " AND EXISTS (SELECT 1 FROM json_each(r.keys) WHERE value = ?)"
                    if by_key
                    else " AND r.session_id = ?"
                ),
                (agent_id, agent_id, session),
            )
            return [(str(a), str(s)) for a, s in rows]
