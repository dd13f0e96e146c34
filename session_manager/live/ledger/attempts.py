"""Attempts: an intent, durable before anything is touched, and its end."""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec

from session_manager.live.ledger.connection import Connection, as_json, clear_sqlite_errors
from session_manager.live.ledger.entries import pack, unpack
from session_manager.live.ledger.rows import Attempt, Removal, Temp
from session_manager.live.ledger.run import Run
from session_manager.live.liveness import now_ms
from session_manager.live.volume import Identity

_DAY_MS = 86_400_000


class Attempts(Connection):
    """The part of the ledger that survives a killed process."""

    def intend(
        self,
        run: Run,
        store_id: str,
        agent_id: str,
        temps: list[Temp],
        expected: list[Identity],
        removals: list[Removal],
    ) -> Attempt:
        """Writes an intent, durably, before anything of it is done. Old entries' raw bytes are dropped on the way."""
        now = now_ms()
        with self.transaction() as c:
            c.execute(
                "INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)",
                (run.run_id, run.started_at, run.function, run.asked_by, run.user, run.host, os.getpid()),
            )
            cursor = c.execute(
                "INSERT INTO attempts (run_id, store_id, agent_id, created_at, state, history, temps, expected)"
                " VALUES (?, ?, ?, ?, 'intent', ?, ?, ?)",
                (run.run_id, store_id, agent_id, now, run.history, as_json(temps), as_json(expected)),
            )
            attempt_id = int(cursor.lastrowid or 0)
            first = int(c.execute("SELECT coalesce(max(removal_id), 0) + 1 FROM removals").fetchone()[0])
            for removal_id, removal in enumerate(removals, first):
                removal.removal_id = removal_id
            c.executemany(
                "INSERT INTO removals VALUES (?, ?, ?, ?, ?, 'removed', ?, ?, ?)",
                (
                    (
                        r.removal_id,
                        attempt_id,
                        agent_id,
                        r.session_id,
                        r.reason,
                        as_json(r.keys),
                        as_json(r.files),
                        pack(r),
                    )
                    for r in removals
                ),
            )
            c.execute(
                "UPDATE removals INDEXED BY removals_with_entries SET entries = NULL WHERE entries IS NOT NULL"
                " AND attempt_id <= (SELECT max(attempt_id) FROM attempts WHERE created_at < ?)"
                " AND attempt_id NOT IN (SELECT attempt_id FROM attempts WHERE state = 'intent')",
                (now - run.keep_days * _DAY_MS,),
            )
        return Attempt(attempt_id, run.run_id, agent_id, temps, expected, removals)

    def note_files(self, removal: Removal) -> None:
        """Writes down new archive names before they are used."""
        with self.transaction() as c:
            c.execute(
                "UPDATE removals SET files = ? WHERE removal_id = ?", (as_json(removal.files), removal.removal_id)
            )

    def finish(self, attempt: Attempt, kept: Iterable[str], *, complete: bool = True) -> None:
        """Ends an attempt: the sessions in ``kept`` stayed alive, all others are removed and owe history a mark.

        With ``complete`` false the marks are owed, but the attempt stays open because a file could not be moved.
        """
        kept = set(kept)
        with self.transaction() as c:
            c.executemany(
                "UPDATE removals SET state = 'kept', entries = NULL WHERE attempt_id = ? AND session_id = ?",
                [(attempt.attempt_id, session_id) for session_id in kept],
            )
            state = "undone" if all(r.session_id in kept for r in attempt.removals) else "done"
            if complete:
                c.execute("UPDATE attempts SET state = ? WHERE attempt_id = ?", (state, attempt.attempt_id))
            c.execute(
                "INSERT INTO marks SELECT r.agent_id, r.session_id, 'ended', 'pending', a.run_id, ? FROM removals r"
                " JOIN attempts a USING (attempt_id) WHERE a.attempt_id = ? AND a.history AND r.state = 'removed'"
                " ON CONFLICT (agent_id, session_id) DO UPDATE SET"
                " status = 'ended', state = 'pending', run_id = excluded.run_id, changed_at = excluded.changed_at"
                " WHERE run_id <> excluded.run_id",
                (now_ms(), attempt.attempt_id),
            )

    def open_attempts(self, store_id: str) -> list[Attempt]:
        """Returns a store's unfinished attempts, oldest first."""
        with clear_sqlite_errors(self.path):
            rows = self.sql.execute(
                "SELECT attempt_id, run_id, agent_id, temps, expected FROM attempts"
                " WHERE store_id = ? AND state = 'intent' ORDER BY attempt_id",
                (store_id,),
            ).fetchall()
            return [
                Attempt(
                    row[0], row[1], row[2],
                    msgspec.json.decode(row[3], type=list[Temp]),
                    msgspec.json.decode(row[4], type=list[Identity]),
                    self._removals(row[0]),
                )
                for row in rows
            ]  # fmt: skip

    def has_open_attempts(self, store_id: str) -> bool:
        """Says whether a killed process left something to finish in a store."""
        with clear_sqlite_errors(self.path):
            return bool(
                self.sql.execute(
                    "SELECT EXISTS (SELECT 1 FROM attempts WHERE store_id = ? AND state = 'intent')", (store_id,)
                ).fetchone()[0]
            )

    def _removals(self, attempt_id: int) -> list[Removal]:
        rows = self.sql.execute(
            "SELECT session_id, reason, keys, entries, files, removal_id FROM removals WHERE attempt_id = ?"
            " ORDER BY removal_id",
            (attempt_id,),
        )
        return [
            Removal(
                session_id, reason, msgspec.json.decode(keys, type=list[str]), unpack(entries),
                msgspec.json.decode(files, type=list[tuple[str, str]]), removal_id,
            )
            for session_id, reason, keys, entries, files, removal_id in rows
        ]  # fmt: skip
