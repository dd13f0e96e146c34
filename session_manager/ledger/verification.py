"""Verifies the ledger: the chain is unbroken, and all rows agree with it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from session_manager.ledger import chain
from session_manager.ledger.connection import Connection, clear_sqlite_errors
from session_manager.ledger.rows import ERASED, KEPT, PURGED, REMOVED, RESTORED

_LATER = (RESTORED, PURGED, ERASED)


class Break(msgspec.Struct, frozen=True):
    """The first place where the ledger is damaged. ``run_id`` is None if unknown."""

    place: str
    reason: str
    run_id: str | None = None


class Verdict(msgspec.Struct):
    """The result of a verification. ``head`` is the hash of the newest event, None without any."""

    runs: int
    attempts: int
    removals: int
    events: int
    head: str | None
    broken: Break | None


class _Broken(Exception):
    """Carries the first break found."""

    def __init__(self, place: str, reason: str, run_id: object = None) -> None:
        super().__init__(place)
        self.found = Break(place, reason, None if run_id is None else str(run_id))


class _Said(msgspec.Struct):
    """The content of the events. A removal's seal in the intent is ``sealed``, its present one is ``now``."""

    runs: dict[str, str] = msgspec.field(default_factory=dict)
    intents: dict[int, str] = msgspec.field(default_factory=dict)
    ends: dict[int, str] = msgspec.field(default_factory=dict)
    states: dict[int, tuple[str, int]] = msgspec.field(default_factory=dict)
    sealed: dict[int, str] = msgspec.field(default_factory=dict)
    now: dict[int, str] = msgspec.field(default_factory=dict)


class Verification(Connection):
    """The part of the ledger that verifies the rest of it."""

    def verify(self) -> Verdict:
        """Checks everything, and returns the first break."""
        with clear_sqlite_errors(self.path):
            # One consistent view: other processes write meanwhile.
            self.sql.execute("BEGIN")
            try:
                runs, attempts, removals, events = (
                    int(self.sql.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
                    for table in ("runs", "attempts", "removals", "events")
                )
                head = self.sql.execute("SELECT hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
                broken = None
                try:
                    said = _walk(self.sql)
                    _check_runs(self.sql, said)
                    _check_attempts(self.sql, said)
                except _Broken as error:
                    broken = error.found
            finally:
                self.sql.execute("ROLLBACK")
        newest = head[0].hex() if head is not None and isinstance(head[0], bytes) else None
        return Verdict(runs, attempts, removals, events, newest, broken)


def _walk(sql: sqlite3.Connection) -> _Said:
    """Walks the chain and collects the content of its events. Raises _Broken."""
    said, before = _Said(), b""
    for number, row in enumerate(sql.execute("SELECT seq, at, kind, body, hash FROM events ORDER BY seq"), 1):
        seq, at, kind, text, sealed = row
        if seq != number:
            raise _Broken(f"event {number}", "it is missing")
        try:
            whole = chain.link(before, seq, at, kind, text) == sealed
        except (TypeError, ValueError):
            whole = False
        if not whole:
            raise _Broken(f"event {number}", "its hash does not match the event and those before it")
        try:
            _hear(said, kind, msgspec.json.decode(text), at)
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise _Broken(f"event {number}", "it cannot be read") from error
        before = sealed
    return said


def _hear(said: _Said, kind: str, body: dict[str, Any], at: int) -> None:
    if kind == "run":
        said.runs[body["run"]] = body["digest"]
    elif kind == "intent":
        said.intents[body["attempt"]] = body["digest"]
    elif kind == "end":
        said.ends[body["attempt"]] = body["state"]
        said.states.update((removal_id, (KEPT, at)) for removal_id in body.get("kept", ()))
    elif kind == "file":
        said.sealed.setdefault(body["removal"], body["was"])
        said.now[body["removal"]] = body["is"]
    elif kind in _LATER:
        said.states.update((removal_id, (kind, at)) for removal_id in body["removals"])


def _check_runs(sql: sqlite3.Connection, said: _Said) -> None:
    left = set(said.runs)
    for row in sql.execute("SELECT run_id, started_at, function, asked_by, user, host, pid FROM runs ORDER BY run_id"):
        if _hex(row) != said.runs.get(row[0]):
            raise _Broken(f"run {row[0]}", "its row differs from the chain", row[0])
        left.discard(row[0])
    for run_id in sorted(left):
        raise _Broken(f"run {run_id}", "its row is missing", run_id)


def _hex(row: Sequence[object]) -> str | None:
    try:
        return chain.digest(row).hex()
    except (TypeError, ValueError):
        return None


def _check_attempts(sql: sqlite3.Connection, said: _Said) -> None:
    left = set(said.intents)
    removals = _by_attempt(sql)
    loose = next(removals, None)
    for *columns, state in sql.execute(
        "SELECT attempt_id, run_id, store_id, agent_id, created_at, history, temps, expected, kind, restores, state"
        " FROM attempts ORDER BY attempt_id"
    ).fetchall():
        attempt_id, run_id = columns[0], columns[1]
        place = f"attempt {attempt_id}"
        if run_id not in said.runs or said.ends.get(attempt_id, "intent") != state:
            raise _Broken(place, "its row differs from the chain", run_id)
        rows = []
        if loose is not None and loose[0] == attempt_id:
            rows, loose = loose[1], next(removals, None)
        try:
            digest = chain.AttemptDigest(columns)
            for removal in rows:
                _check_removal(removal, said, run_id)
                digest.add(removal[0], removal[1], removal[2], _first_seal(removal, said))
        except (TypeError, ValueError, AttributeError) as error:
            raise _Broken(place, "one of its rows cannot be read", run_id) from error
        if digest.hex() != said.intents.get(attempt_id):
            raise _Broken(place, "its rows differ from the chain", run_id)
        left.discard(attempt_id)
    if loose is not None:
        raise _Broken(f"removal {loose[1][0][0]}", "it belongs to no attempt")
    for attempt_id in sorted(left):
        raise _Broken(f"attempt {attempt_id}", "its row is missing")


def _by_attempt(sql: sqlite3.Connection) -> Iterator[tuple[object, list[tuple[Any, ...]]]]:
    """Yields each attempt's removals, in order: id, session, reason, state, changed at, details, seal."""
    attempt_id: object = None
    rows: list[tuple[Any, ...]] = []
    for owner, *row in sql.execute(
        "SELECT attempt_id, removal_id, session_id, reason, state, changed_at, details, digest FROM removals"
        " ORDER BY attempt_id, removal_id"
    ):
        if rows and owner != attempt_id:
            yield attempt_id, rows
            rows = []
        attempt_id = owner
        rows.append(tuple(row))
    if rows:
        yield attempt_id, rows


def _check_removal(row: tuple[Any, ...], said: _Said, run_id: object) -> None:
    removal_id, _, _, state, changed_at, details, sealed = row
    place = f"removal {removal_id}"
    if (state, changed_at) != said.states.get(removal_id, (REMOVED, None)):
        raise _Broken(place, "its state differs from the chain", run_id)
    if removal_id in said.now and sealed.hex() != said.now[removal_id]:
        raise _Broken(place, "its digest differs from the chain", run_id)
    if details is None and state != ERASED:
        raise _Broken(place, "its keys, files and details are gone, and nobody erased them", run_id)
    if details is not None and not chain.is_sealed(details.encode(), sealed):
        raise _Broken(place, "its keys, files or details were changed", run_id)


def _first_seal(row: tuple[Any, ...], said: _Said) -> bytes:
    was = said.sealed.get(row[0])
    return bytes(row[6]) if was is None else bytes.fromhex(was)
