"""How removals end permanently: purged, or erased with all that is known of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence

import msgspec

from session_manager.files.liveness import now_ms
from session_manager.ledger import chain
from session_manager.ledger.connection import Connection, as_json, clear_sqlite_errors
from session_manager.ledger.entries import forget
from session_manager.ledger.removals import change_state
from session_manager.ledger.rows import ERASED, PURGED, REMOVE, REMOVED, Archived, Attempt, Details
from session_manager.ledger.run import Run, note_run

_OWED = (
    " ON CONFLICT (agent_id, session_id) DO UPDATE SET status = 'erased', state = 'pending',"
    " run_id = excluded.run_id, changed_at = excluded.changed_at, sent = 0"
)


class Endings(Connection):
    """The part of the ledger for permanent ends of removals."""

    def archived(self, agent_id: str | None) -> list[Archived]:
        """Returns the removals of an agent, or of all, that were not undone, purged or erased, oldest first."""
        with clear_sqlite_errors(self.path):
            rows = self.sql.execute(
                "SELECT r.removal_id, r.session_id, a.run_id, a.store_id, a.created_at, a.state <> 'intent', r.details"
                " FROM removals r JOIN attempts a USING (attempt_id) WHERE (? IS NULL OR a.agent_id = ?)"
                " AND a.kind = ? AND r.state = ? AND r.details IS NOT NULL ORDER BY r.removal_id",
                (agent_id, agent_id, REMOVE, REMOVED),
            )
            decode = msgspec.json.Decoder(Details).decode
            return [_archived(decode(text), *row) for *row, text in rows]

    def holds(self, agent_id: str, session_id: str) -> bool:
        """Returns True if the ledger still has details of a session's removals."""
        with clear_sqlite_errors(self.path):
            return bool(_known(self.sql, agent_id, session_id))

    def finish_purge(self, attempt: Attempt, removal_ids: Sequence[int], counts: Mapping[str, int]) -> None:
        """Ends a purge: these removals can never be restored; their raw entries are dropped."""
        with self.transaction() as c:
            change_state(c, attempt.run_id, PURGED, removal_ids, counts)
            forget(c, removal_ids)
            _end(c, attempt)

    def forget_session(self, attempt: Attempt, session_id: str, counts: Mapping[str, int]) -> int:
        """Deletes keys, files, facts and raw entries of all removals of a session, and records the erasure mark.

        Call it after its files are removed: afterwards the ledger no longer knows where they were. Returns how many
        removals there were; called again, it changes nothing. ``counts`` go into the receipt's event.
        """
        with self.transaction() as c:
            ids = _known(c, attempt.agent_id, session_id)
            receipt = c.execute(
                "SELECT removal_id FROM removals WHERE attempt_id = ? AND state = ?", (attempt.attempt_id, REMOVED)
            ).fetchall()
            if ids or receipt:
                counted = {**counts, "ledger_entries": len(ids)}
                change_state(c, attempt.run_id, ERASED, [*ids, *(i for (i,) in receipt)], counted)
                _forget_all(c, ids)
            c.execute(
                "INSERT INTO marks SELECT agent_id, ?, 'erased', 'pending', run_id, ?, 0 FROM attempts"
                f" WHERE attempt_id = ? AND history{_OWED}"
                " WHERE status <> 'erased' OR run_id <> excluded.run_id",
                (session_id, now_ms(), attempt.attempt_id),
            )
        return len(ids)

    def forget_lost_session(self, run: Run, agent_id: str, session_id: str) -> int:
        """Does what ``forget_session`` does for an agent without a store, and records no mark."""
        with self.transaction() as c:
            ids = _known(c, agent_id, session_id)
            if ids:
                note_run(c, run)
                change_state(c, run.run_id, ERASED, ids, {"ledger_entries": len(ids)})
                _forget_all(c, ids)
        run.noted = run.noted or bool(ids)
        return len(ids)

    def compact(self) -> None:
        """Rewrites the whole file: SQLite zeroes deleted content, but not older copies of content that it moved."""
        with clear_sqlite_errors(self.path):
            # Not in a temporary file, which could be on any disk.
            self.sql.execute("PRAGMA temp_store = MEMORY")
            self.sql.execute("VACUUM")

    def finish_erasure(self, attempt: Attempt) -> None:
        """Ends an erasure."""
        with self.transaction() as c:
            _end(c, attempt)

    def owe_erasure(self, run: Run, agent_id: str, session_id: str) -> None:
        """Records the erasure mark of a session, unless it is pending or was delivered."""
        with self.transaction() as c:
            changed = c.execute(
                f"INSERT INTO marks VALUES (?, ?, 'erased', 'pending', ?, ?, 0){_OWED}"
                " WHERE status <> 'erased' OR state NOT IN ('pending', 'delivered')",
                (agent_id, session_id, run.run_id, now_ms()),
            ).rowcount
            if changed:
                note_run(c, run)
                body = {"run": run.run_id, "agent": agent_id, "session": session_id, "status": ERASED}
                chain.append(c, "owed", body)
        run.noted = run.noted or bool(changed)


def _archived(
    details: Details, removal_id: int, session_id: str, run_id: str, store_id: str, at: int, ended: int
) -> Archived:
    archives = [name for _, name in details.files]
    return Archived(
        removal_id, session_id, run_id, store_id, at, bool(ended), archives, details.keys, details.facts.label
    )


def _known(c: sqlite3.Connection, agent_id: str, session_id: str) -> list[int]:
    """Returns the removals of a session of which the ledger still has details."""
    rows = c.execute(
        "SELECT removal_id FROM removals r JOIN attempts a USING (attempt_id) WHERE r.session_id = ? AND a.agent_id = ?"
        " AND a.kind = ? AND r.details IS NOT NULL",
        (session_id, agent_id, REMOVE),
    )
    return [removal_id for (removal_id,) in rows]


def _forget_all(c: sqlite3.Connection, removal_ids: Collection[int]) -> None:
    forget(c, removal_ids)
    c.execute(
        "UPDATE removals SET details = NULL WHERE removal_id IN (SELECT value FROM json_each(?))",
        (as_json(list(removal_ids)),),
    )


def _end(c: sqlite3.Connection, attempt: Attempt) -> None:
    chain.append(c, "end", {"attempt": attempt.attempt_id, "state": "done"})
    c.execute("UPDATE attempts SET state = 'done' WHERE attempt_id = ?", (attempt.attempt_id,))
