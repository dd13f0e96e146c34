"""Converts a ledger of format 1: every row and every byte stays, and the chain begins with the rows found.

Format 1 had each removal's keys, files and compressed entries in its own row, no facts beside them, and no chain.
"""

from __future__ import annotations

import sqlite3
import zlib

import msgspec

from session_manager.ledger import chain
from session_manager.ledger.rows import KEPT, Details, Facts
from session_manager.ledger.schema import create

_TABLES = ("runs", "attempts", "removals", "marks")
_INDEXES = (
    "attempts_open", "attempts_age", "removals_session", "removals_attempt", "removals_with_entries", "marks_pending",
)  # fmt: skip


def migrate(sql: sqlite3.Connection) -> None:
    """Converts format 1 to the present one in the caller's transaction. Raises sqlite3.Error, zlib.error."""
    for index in _INDEXES:
        sql.execute(f"DROP INDEX {index}")
    for table in _TABLES:
        sql.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    create(sql)
    chain.append(sql, "migrated", {"from": 1})
    for row in sql.execute("SELECT * FROM old_runs ORDER BY run_id").fetchall():
        sql.execute("INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        chain.append(sql, "run", {"run": row[0], "digest": chain.digest(row).hex()})
    for attempt in sql.execute(
        "SELECT attempt_id, run_id, store_id, agent_id, created_at, history, temps, expected, state FROM old_attempts"
        " ORDER BY attempt_id"
    ).fetchall():
        _take_over(sql, attempt[:-1], attempt[-1])
    sql.execute("INSERT INTO marks SELECT *, 1 FROM old_marks")
    for table in reversed(_TABLES):
        sql.execute(f"DROP TABLE old_{table}")


def _take_over(sql: sqlite3.Connection, columns: tuple[object, ...], state: str) -> None:
    attempt_id = columns[0]
    row = (*columns, "remove", "[]")
    sql.execute(
        "INSERT INTO attempts (attempt_id, run_id, store_id, agent_id, created_at, history, temps, expected, kind,"
        " restores, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*row, state),
    )
    seal, kept = chain.AttemptDigest(row), []
    old = sql.execute(
        "SELECT removal_id, session_id, reason, state, keys, files, entries FROM old_removals WHERE attempt_id = ?"
        " ORDER BY removal_id",
        (attempt_id,),
    )
    for removal_id, session_id, reason, removal_state, keys, files, entries in old.fetchall():
        details = msgspec.json.encode(Details(msgspec.json.decode(keys), msgspec.json.decode(files), Facts()))
        sealed = chain.seal(details)
        seal.add(removal_id, session_id, reason, sealed)
        span: tuple[object, ...] = (None, None, None)
        if entries is not None:
            length = len(zlib.decompress(entries))
            chunk = sql.execute("INSERT INTO chunks (attempt_id, entries) VALUES (?, ?)", (attempt_id, entries))
            span = (chunk.lastrowid, 0, length)
        sql.execute(
            "INSERT INTO removals VALUES (?, ?, ?, ?, ?, NULL, ?, ?, ?, ?, ?)",
            (removal_id, attempt_id, session_id, reason, removal_state, details.decode(), sealed, *span),
        )
        if removal_state == KEPT:
            kept.append(removal_id)
    at = chain.append(sql, "intent", {"attempt": attempt_id, "digest": seal.hex()})
    if state != "intent" or kept:
        at = chain.append(sql, "end", {"attempt": attempt_id, "state": state, "kept": kept})
    sql.execute("UPDATE removals SET changed_at = ? WHERE attempt_id = ? AND state = ?", (at, attempt_id, KEPT))
