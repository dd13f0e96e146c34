"""Attempts: an intent, durable before anything is touched, and its end."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Iterable, Sequence

import msgspec

from session_manager.core.session import DAY_MS
from session_manager.files.liveness import now_ms
from session_manager.files.versions import Identity
from session_manager.ledger import chain
from session_manager.ledger.clock import Clock, Clocks
from session_manager.ledger.connection import as_json, clear_sqlite_errors
from session_manager.ledger.entries import packed, read_members
from session_manager.ledger.marks import ENDED_OR_ERASED, STILL_HEARD, cancel_or_reverse
from session_manager.ledger.rows import (
    ERASE,
    KEPT,
    PURGE,
    REMOVE,
    REMOVED,
    RESTORE,
    RESTORED,
    Attempt,
    Details,
    Removal,
    Removed,
    Temp,
)
from session_manager.ledger.run import Run, note_run

# Old entries are dropped in small batches, but faster than new ones arrive: 256 chunks are about 64 MB of entries.
_LEAST_DROPPED = 256


class Attempts(Clocks):
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
        """Writes an intent durably, before any of it is carried out. Also drops old entries' raw bytes."""
        with self.transaction() as c:
            clock = self.clock(now_ms())
            note_run(c, run)
            attempt_id, seal = _begin(c, run, store_id, agent_id, temps, expected, REMOVE, ())
            written = _write_removals(c, attempt_id, removals, seal)
            chain.append(c, "intent", {"attempt": attempt_id, "digest": seal.hex()})
            _drop_old(c, clock, run.keep_days, max(_LEAST_DROPPED, 2 * written))
        run.noted = True
        return Attempt(attempt_id, run.run_id, agent_id, temps, expected, removals)

    def intend_restore(
        self,
        run: Run,
        store_id: str,
        agent_id: str,
        temps: list[Temp],
        expected: list[Identity],
        removed: Iterable[Removed],
    ) -> Attempt:
        """Writes the intent to restore removals of one store durably, before any of it is carried out.

        Until ``finish`` the next call that takes the store's lock ends it like an attempt to remove: sessions whose
        key is in the index get all their keys and files back, and are then ``restored``; the others stay removed.
        """
        with self.transaction() as c:
            note_run(c, run)
            ids = [r.removal_id for r in removed]
            attempt_id, seal = _begin(c, run, store_id, agent_id, temps, expected, RESTORE, ids)
            chain.append(c, "intent", {"attempt": attempt_id, "digest": seal.hex()})
            removals, runs = _load(c, "removal_id IN (SELECT value FROM json_each(?))", as_json(ids))
        run.noted = True
        # The members are slices of a text in memory: SQLite must not keep a second copy.
        with contextlib.suppress(sqlite3.Error):
            self.sql.execute("PRAGMA shrink_memory")
        return Attempt(attempt_id, run.run_id, agent_id, temps, expected, removals, RESTORE, runs)

    def intend_purge(self, run: Run, store_id: str, agent_id: str, removal_ids: Sequence[int]) -> Attempt:
        """Writes the intent to purge removals of one store durably, before the first of their files is removed.

        Until ``finish_purge`` the next call that takes the store's lock removes the rest of them.
        """
        with self.transaction() as c:
            note_run(c, run)
            attempt_id, seal = _begin(c, run, store_id, agent_id, [], [], PURGE, removal_ids)
            chain.append(c, "intent", {"attempt": attempt_id, "digest": seal.hex()})
        run.noted = True
        return Attempt(attempt_id, run.run_id, agent_id, [], [], [], PURGE)

    def intend_erasure(self, run: Run, store_id: str, agent_id: str, session_id: str, spared: Sequence[str]) -> Attempt:
        """Writes the intent to erase a session durably, before the first of its files is removed.

        Its one removal is the receipt, without keys, files or facts; files named ``spared`` stay. Until
        ``finish_erasure`` the next call that takes the store's lock erases what is left.
        """
        receipt = Removal(session_id, "erased", [], [], [])
        with self.transaction() as c:
            note_run(c, run)
            attempt_id, seal = _begin(c, run, store_id, agent_id, [], [], ERASE, spared)
            _write_removals(c, attempt_id, [receipt], seal)
            chain.append(c, "intent", {"attempt": attempt_id, "digest": seal.hex()})
        run.noted = True
        return Attempt(attempt_id, run.run_id, agent_id, [], [], [receipt], ERASE, spared=list(spared))

    def note_files(self, removal: Removal) -> None:
        """Records new archive names before they are used."""
        with self.transaction() as c:
            chain.reseal(c, removal.removal_id, _details(removal))

    def finish(self, attempt: Attempt, alive: Collection[str], *, complete: bool = True) -> None:
        """Ends an attempt: sessions in ``alive`` live, all others are removed.

        An attempt to remove records a mark for each removed session; one to restore cancels or reverses the marks of
        the live ones. With ``complete`` false the attempt stays open because a file could not be moved.
        """
        living = [r for r in attempt.removals if r.session_id in alive]
        state = "intent" if not complete else ("undone" if living and len(living) == len(attempt.removals) else "done")
        if attempt.kind == RESTORE and complete:
            state = "done" if living else "undone"
        with self.transaction() as c:
            body = {"attempt": attempt.attempt_id, "state": state}
            if attempt.kind == RESTORE:
                chain.append(c, "end", body)
                restored = {"run": attempt.run_id, "removals": [r.removal_id for r in living]}
                at = chain.append(c, RESTORED, restored) if living else 0
                _set_state(c, RESTORED, living, at)
                cancel_or_reverse(c, attempt.run_id, attempt.agent_id, [r.session_id for r in living])
            else:
                at = chain.append(c, "end", body | {"kept": [r.removal_id for r in living]})
                _set_state(c, KEPT, living, at)
                _owe(c, attempt.attempt_id)
                cancel_or_reverse(c, attempt.run_id, attempt.agent_id, _owed(c, attempt, living))
            c.execute("UPDATE attempts SET state = ? WHERE attempt_id = ?", (state, attempt.attempt_id))
            if attempt.kind == REMOVE and state == "undone":
                c.execute("DELETE FROM chunks WHERE attempt_id = ?", (attempt.attempt_id,))

    def drop_old_entries(self, clock: Clock, keep_days: int) -> None:
        """Drops a batch of raw entries past their time, if there are any."""
        with clear_sqlite_errors(self.path):
            due = self.sql.execute(_OLD, _old(clock, keep_days, 1)).fetchone()
        if due is not None:
            with self.transaction() as c:
                _drop_old(c, clock, keep_days, _LEAST_DROPPED)

    def is_past(self, run_id: str, clock: Clock, keep_days: int) -> bool:
        """Returns True if every part of a run is old, or if the ledger does not know the run."""
        with clear_sqlite_errors(self.path):
            newest = self.sql.execute(_NEWEST_OLD, _old(clock, keep_days, 1)).fetchone()[0] or 0
            row = self.sql.execute("SELECT max(attempt_id) FROM attempts WHERE run_id = ?", (run_id,)).fetchone()
        return (row[0] or 0) <= newest

    def open_attempts(self, store_id: str, agent_id: str, names: Collection[str]) -> list[Attempt]:
        """Returns the unfinished attempts of a store whose folder holds ``names``, oldest first.

        A folder that was copied, moved between file systems or restored from a backup has another id: an attempt of
        the agent belongs to the folder that holds its file names.
        """
        with clear_sqlite_errors(self.path):
            rows = self.sql.execute(
                "SELECT store_id, attempt_id, run_id, agent_id, temps, expected, kind, restores FROM attempts"
                " WHERE (store_id = ? OR agent_id = ?) AND state = 'intent' ORDER BY attempt_id",
                (store_id, agent_id),
            ).fetchall()
            found = []
            for made_in, attempt_id, run_id, agent, temps, expected, kind, restores in rows:
                if kind in (RESTORE, PURGE):
                    removals, runs = _load(self.sql, "removal_id IN (SELECT value FROM json_each(?))", restores)
                else:
                    removals, runs = _load(self.sql, "attempt_id = ?", attempt_id)
                decoded = msgspec.json.decode(temps, type=list[Temp])
                versions = msgspec.json.decode(expected, type=list[Identity])
                spared = msgspec.json.decode(restores, type=list[str]) if kind == ERASE else []
                attempt = Attempt(attempt_id, run_id, agent, decoded, versions, removals, kind, runs, spared)
                if made_in == store_id or not set(names).isdisjoint(attempt.file_names()):
                    found.append(attempt)
            return found

    def has_open_attempts(self, store_id: str, agent_id: str, names: Collection[str]) -> bool:
        """Returns True if a killed process left an unfinished attempt in a store."""
        with clear_sqlite_errors(self.path):
            rows = self.sql.execute(
                "SELECT DISTINCT store_id FROM attempts WHERE (store_id = ? OR agent_id = ?) AND state = 'intent'",
                (store_id, agent_id),
            ).fetchall()
        made_in = {row[0] for row in rows}
        return store_id in made_in or bool(made_in and self.open_attempts(store_id, agent_id, names))


def _begin(
    c: sqlite3.Connection,
    run: Run,
    store_id: str,
    agent_id: str,
    temps: list[Temp],
    expected: list[Identity],
    kind: str,
    restores: Sequence[int | str],
) -> tuple[int, chain.AttemptDigest]:
    row = (
        run.run_id, store_id, agent_id, now_ms(), int(run.history), as_json(temps), as_json(expected), kind,
        as_json(restores),
    )  # fmt: skip
    cursor = c.execute(
        "INSERT INTO attempts (run_id, store_id, agent_id, created_at, history, temps, expected, kind, restores, state)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 'intent')",
        row,
    )
    attempt_id = int(cursor.lastrowid or 0)
    return attempt_id, chain.AttemptDigest((attempt_id, *row))


def _write_removals(c: sqlite3.Connection, attempt_id: int, removals: list[Removal], seal: chain.AttemptDigest) -> int:
    """Writes the rows and their entries; returns the number of chunks."""
    removal_id = int(c.execute("SELECT coalesce(max(removal_id), 0) FROM removals").fetchone()[0])
    chunks = 0
    for blob, inside, spans in packed(removals):
        chunk_id = c.execute("INSERT INTO chunks (attempt_id, entries) VALUES (?, ?)", (attempt_id, blob)).lastrowid
        rows = []
        for removal, (start, length) in zip(inside, spans, strict=True):
            removal_id += 1
            removal.removal_id = removal_id
            details = _details(removal)
            sealed = chain.seal(details)
            seal.add(removal_id, removal.session_id, removal.reason, sealed)
            rows.append(
                (removal_id, attempt_id, removal.session_id, removal.reason, details.decode(), sealed, chunk_id, start,
                 length)
            )  # fmt: skip
        c.executemany("INSERT INTO removals VALUES (?, ?, ?, ?, 'removed', NULL, ?, ?, ?, ?, ?)", rows)
        chunks += 1
    return chunks


def _details(removal: Removal) -> bytes:
    return msgspec.json.encode(Details(removal.keys, removal.files, removal.facts, removal.places, removal.shares))


def _load(c: sqlite3.Connection, where: str, value: object) -> tuple[list[Removal], dict[int, str]]:
    """Returns removals that can still be used, and the run of each."""
    rows = c.execute(
        "SELECT removal_id, session_id, reason, details, run_id FROM removals JOIN attempts USING (attempt_id)"
        f" WHERE {where} AND details IS NOT NULL ORDER BY removal_id".replace("attempt_id =", "removals.attempt_id ="),
        (value,),
    ).fetchall()
    members = read_members(c, (row[0] for row in rows))
    removals = []
    for removal_id, session_id, reason, text, _ in rows:
        details = msgspec.json.decode(text, type=Details)
        removals.append(
            Removal(
                session_id,
                reason,
                details.keys,
                members.get(removal_id, []),
                details.files,
                removal_id,
                details.facts,
                details.places,
                details.shares,
            )
        )
    return removals, {row[0]: row[4] for row in rows}


def _set_state(c: sqlite3.Connection, state: str, removals: Iterable[Removal], at: int) -> None:
    c.executemany(
        "UPDATE removals SET state = ?, changed_at = ? WHERE removal_id = ?",
        [(state, at, r.removal_id) for r in removals],
    )


def _owe(c: sqlite3.Connection, attempt_id: int) -> None:
    """Records a mark for each session that an attempt removed: once, even if the attempt is ended repeatedly."""
    c.execute(
        "INSERT INTO marks SELECT a.agent_id, r.session_id, 'ended', 'pending', a.run_id, ?, 0 FROM removals r"
        " JOIN attempts a USING (attempt_id) WHERE a.attempt_id = ? AND a.history AND r.state = ?"
        f" ON CONFLICT (agent_id, session_id) DO UPDATE SET {ENDED_OR_ERASED}, state = 'pending',"
        f" run_id = excluded.run_id, changed_at = excluded.changed_at, {STILL_HEARD}"
        # A run that undid an earlier removal before it removed the session has also withdrawn the earlier mark.
        " WHERE run_id <> excluded.run_id OR status = 'active' OR state = 'cancelled'",
        (now_ms(), attempt_id, REMOVED),
    )


def _owed(c: sqlite3.Connection, attempt: Attempt, living: Iterable[Removal]) -> list[str]:
    """Returns the live sessions for which a half-done attempt has recorded an end mark."""
    found = c.execute(
        "SELECT session_id FROM marks WHERE agent_id = ? AND run_id = ?"
        " AND session_id IN (SELECT value FROM json_each(?))",
        (attempt.agent_id, attempt.run_id, as_json([r.session_id for r in living])),
    )
    return [session_id for (session_id,) in found.fetchall()]


# An attempt is never older than one before it, whatever the clock said: a young one keeps those after it.
_NEWEST_OLD = (
    "SELECT max(attempt_id) FROM attempts WHERE created_at < :cutoff AND attempt_id < coalesce("
    "(SELECT min(attempt_id) FROM attempts WHERE created_at BETWEEN :cutoff AND :now), 9223372036854775807)"
)
_OLD = (
    f"SELECT chunk_id FROM chunks WHERE attempt_id <= ({_NEWEST_OLD})"
    " AND attempt_id NOT IN (SELECT attempt_id FROM attempts WHERE state = 'intent') ORDER BY attempt_id LIMIT :limit"
)


def _old(clock: Clock, keep_days: int, limit: int) -> dict[str, int]:
    return {"cutoff": clock.trusted - keep_days * DAY_MS, "now": clock.now, "limit": limit}


def _drop_old(c: sqlite3.Connection, clock: Clock, keep_days: int, limit: int) -> None:
    c.execute(f"DELETE FROM chunks WHERE chunk_id IN ({_OLD})", _old(clock, keep_days, limit))
