"""Marks: status updates for history."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence

from session_manager.files.liveness import now_ms
from session_manager.ledger import chain
from session_manager.ledger.connection import Connection, as_json, clear_sqlite_errors
from session_manager.ledger.rows import Mark
from session_manager.ledger.run import Run, note_run

_THE_SAME = (
    " WHERE agent_id = ? AND session_id = ? AND status = ? AND run_id = ? AND changed_at = ? AND state = 'pending'"
)
# An erased session stays erased, even if it ends again: history must also erase what it may have received since.
ENDED_OR_ERASED = "status = CASE WHEN status = 'erased' THEN 'erased' ELSE 'ended' END"
# For a mark that becomes pending again: keeps ``sent`` if history may already know that the session ended.
STILL_HEARD = "sent = CASE WHEN state = 'delivered' THEN status = 'ended' WHEN status = 'active' THEN 1 ELSE sent END"


class Marks(Connection):
    """The part of the ledger that holds the marks for history."""

    def owe_mark(self, run: Run, agent_id: str, session_id: str, *, again: bool = False) -> str:
        """Records the mark of a session that another program removed, once; returns the mark's state.

        A mark that was given up or withdrawn becomes pending again; with ``again`` also a delivered one.
        """
        with self.transaction() as c:
            changed = c.execute(
                "INSERT INTO marks VALUES (?, ?, 'ended', 'pending', ?, ?, 0) ON CONFLICT (agent_id, session_id)"
                f" DO UPDATE SET {ENDED_OR_ERASED}, state = 'pending', run_id = excluded.run_id,"
                f" changed_at = excluded.changed_at, {STILL_HEARD}"
                " WHERE ? OR status = 'active' OR state IN ('missing', 'refused', 'cancelled', 'superseded')",
                (agent_id, session_id, run.run_id, now_ms(), again),
            ).rowcount
            if changed:
                note_run(c, run)
                chain.append(c, "owed", {"run": run.run_id, "agent": agent_id, "session": session_id})
            row = c.execute(
                "SELECT state FROM marks WHERE agent_id = ? AND session_id = ?", (agent_id, session_id)
            ).fetchone()
        run.noted = run.noted or bool(changed)
        return str(row[0])

    def owe_unknown(self, run: Run, sessions: Iterable[tuple[str, str]]) -> None:
        """Records pending end marks for the sessions (agent id, session id) that never had a mark."""
        with self.transaction() as c:
            changed = c.executemany(
                "INSERT INTO marks VALUES (?, ?, 'ended', 'pending', ?, ?, 0)"
                " ON CONFLICT (agent_id, session_id) DO NOTHING",
                [(agent_id, session_id, run.run_id, now_ms()) for agent_id, session_id in sessions],
            ).rowcount
            if changed:
                note_run(c, run)
                chain.append(c, "owed", {"run": run.run_id, "marks": changed})
        run.noted = run.noted or changed > 0

    def knows_history(self) -> bool:
        """Returns True if history was ever reached: it has answered for a mark, or may have received one."""
        with clear_sqlite_errors(self.path):
            row = self.sql.execute(
                "SELECT EXISTS (SELECT 1 FROM marks WHERE sent OR state IN ('delivered', 'missing', 'refused'))"
            ).fetchone()
            return bool(row[0])

    def note_sent(self, marks: Sequence[Mark]) -> list[Mark]:
        """Records, before marks are sent, that history may have received them from now on.

        Returns the marks that it cannot have received before.
        """
        with self.transaction() as c:
            sql = f"UPDATE marks SET sent = 1{_THE_SAME} AND NOT sent"
            return [mark for mark in marks if c.execute(sql, _key(mark)).rowcount]

    def note_unsent(self, marks: Sequence[Mark]) -> None:
        """Records that history has not received marks after all."""
        with self.transaction() as c:
            c.executemany(f"UPDATE marks SET sent = 0{_THE_SAME}", [_key(m) for m in marks])

    def note_marks(self, run: Run, marks: Sequence[Mark], state: str) -> None:
        """Records the results of pending marks; one that was changed since it was read stays pending."""
        if not marks:
            return
        with self.transaction() as c:
            note_run(c, run)
            c.executemany(f"UPDATE marks SET state = ?{_THE_SAME}", [(state, *_key(m)) for m in marks])
            sealed = chain.digest(_key(m) for m in marks).hex()
            chain.append(c, "heard", {"run": run.run_id, "state": state, "marks": len(marks), "digest": sealed})
        run.noted = True

    def cancel_ends(self, run: Run, agent_id: str, sessions: Collection[str]) -> None:
        """Cancels the marks of sessions that turned out to be live."""
        with clear_sqlite_errors(self.path):
            owed = self.sql.execute(
                "SELECT session_id FROM marks WHERE agent_id = ? AND status = 'ended'"
                " AND state IN ('pending', 'delivered') AND session_id IN (SELECT value FROM json_each(?))",
                (agent_id, as_json(sorted(sessions))),
            ).fetchall()
        if owed:
            with self.transaction() as c:
                note_run(c, run)
                cancel_or_reverse(c, run.run_id, agent_id, [session_id for (session_id,) in owed])
            run.noted = True

    def pending(self) -> list[Mark]:
        """Returns the pending marks, oldest first."""
        with clear_sqlite_errors(self.path):
            rows = self.sql.execute(
                "SELECT agent_id, session_id, status, run_id, changed_at FROM marks WHERE state = 'pending'"
                " ORDER BY changed_at, agent_id, session_id"
            )
            return [Mark(str(a), str(s), str(status), str(run_id), int(at)) for a, s, status, run_id, at in rows]

    def pending_count(self, agent_id: str | None = None) -> int:
        """Returns the number of pending marks, of one agent or of all."""
        with clear_sqlite_errors(self.path):
            return int(
                self.sql.execute(
                    "SELECT count(*) FROM marks WHERE state = 'pending' AND (? IS NULL OR agent_id = ?)",
                    (agent_id, agent_id),
                ).fetchone()[0]
            )


def cancel_or_reverse(sql: sqlite3.Connection, run_id: str, agent_id: str, session_ids: Iterable[str]) -> None:
    """Withdraws the marks of sessions that are live again, in the caller's transaction.

    Marks that history cannot have received are cancelled; for all others an ``active`` mark becomes pending.
    """
    now = now_ms()
    sql.executemany(
        "UPDATE marks SET state = CASE WHEN state = 'delivered' OR sent THEN 'pending' ELSE 'cancelled' END,"
        " status = CASE WHEN state = 'delivered' OR sent THEN 'active' ELSE status END,"
        " run_id = ?, changed_at = ?, sent = 0 WHERE agent_id = ? AND session_id = ? AND status = 'ended'",
        [(run_id, now, agent_id, session_id) for session_id in session_ids],
    )


def _key(mark: Mark) -> tuple[str, str, str, str, int]:
    return (mark.agent_id, mark.session_id, mark.status, mark.run_id, mark.changed_at)
