"""Looks up removals, with their present state."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from session_manager.ledger import chain
from session_manager.ledger.connection import Connection, as_json, clear_sqlite_errors
from session_manager.ledger.entries import read_members
from session_manager.ledger.rows import ERASE, REMOVE, REMOVED, Details, Facts, Member, Removed

_COLUMNS = (
    "SELECT r.removal_id, a.run_id, u.function, u.asked_by, u.user, u.host, a.store_id, a.agent_id, r.session_id,"
    " r.reason, r.state, a.created_at, r.changed_at, a.state <> 'intent', r.details, m.status, m.state, k.chunk_id"
)
_FROM = (
    " FROM removals r JOIN attempts a USING (attempt_id) LEFT JOIN runs u USING (run_id)"
    " LEFT JOIN marks m ON m.agent_id = a.agent_id AND m.session_id = r.session_id"
    " LEFT JOIN chunks k ON k.chunk_id = r.chunk_id"
)
_GONE = "a.state <> 'undone' AND r.state IN ('removed', 'purged', 'erased')"
_HAS_KEY = "EXISTS (SELECT 1 FROM json_each(r.details, '$.keys') WHERE value = ?)"


class Removals(Connection):
    """The part of the ledger that looks up removals."""

    def removed(self, session: str, agent_id: str | None) -> list[tuple[str, str]]:
        """Returns (agent id, session id) of sessions that are still removed, named by the id or one of the keys."""
        with clear_sqlite_errors(self.path):
            named = _HAS_KEY if ":" in session else "r.session_id = ?"
            rows = self.sql.execute(
                "SELECT DISTINCT a.agent_id, r.session_id FROM removals r JOIN attempts a USING (attempt_id)"
                f" WHERE {_GONE} AND (? IS NULL OR a.agent_id = ?) AND {named}",
                (agent_id, agent_id, session),
            )
            return [(str(a), str(s)) for a, s in rows]

    def keys_ending(self, end: str) -> list[str]:
        """Returns the keys of removed sessions that end with ``end``, ignoring case, each once."""
        with clear_sqlite_errors(self.path):
            rows = self.sql.execute(
                "SELECT DISTINCT k.value FROM removals r JOIN json_each(r.details, '$.keys') k"
                " WHERE lower(substr(k.value, -length(?1))) = lower(?1)",
                (end,),
            )
            return [str(key) for (key,) in rows]

    def agents(self) -> list[str]:
        """Returns the agents that ever had a removal."""
        with clear_sqlite_errors(self.path):
            return [str(agent_id) for (agent_id,) in self.sql.execute("SELECT DISTINCT agent_id FROM attempts")]

    def removals(
        self,
        *,
        agent_id: str | None = None,
        since: int | None = None,
        run_id: str | None = None,
        session: str | None = None,
        reason: str | None = None,
        limit: int = -1,
    ) -> list[Removed]:
        """Returns removals, newest first: of an agent, not before ``since`` (epoch ms), of a run, of a session
        (its id, or one of its keys), for a reason. Sessions that stayed (``kept``) are left out, receipts are included.
        """
        where, values = _conditions(agent_id, since, run_id, session, reason)
        with clear_sqlite_errors(self.path):
            return select_removed(self.sql, f"{where} ORDER BY r.removal_id DESC LIMIT ?", (*values, limit))

    def states(self, run_id: str, agent_id: str | None) -> list[tuple[str, str, int]]:
        """Returns (agent id, state, how many) of the removals by a run, of an agent or of all, the last agent first."""
        where, values = _conditions(agent_id, None, run_id, None, None)
        with clear_sqlite_errors(self.path):
            rows = self.sql.execute(
                "SELECT a.agent_id, r.state, count(*) FROM removals r JOIN attempts a USING (attempt_id)"
                f"{where} GROUP BY a.agent_id, r.state ORDER BY max(r.removal_id) DESC",
                values,
            )
            return [(str(agent), str(state), int(count)) for agent, state, count in rows]

    def recent_removals(self, store_id: str, since: int, sessions: Collection[str]) -> list[Removed]:
        """Returns the newest removal of each of ``sessions`` since then (epoch ms) in a store, unless it was undone
        or is not finished.
        """
        with clear_sqlite_errors(self.path):
            attempts = self.sql.execute(
                "SELECT attempt_id FROM attempts WHERE created_at >= ? AND store_id = ? AND kind = ?"
                " ORDER BY attempt_id",
                (since, store_id, REMOVE),
            ).fetchall()
            newest: dict[str, int] = {}
            for attempt in attempts:
                rows = self.sql.execute(
                    "SELECT session_id, removal_id FROM removals WHERE attempt_id = ? AND state <> 'kept'", attempt
                )
                newest.update((session_id, removal_id) for session_id, removal_id in rows if session_id in sessions)
            found = [self.removal(removal_id) for removal_id in newest.values()]
            return [r for r in found if r.state == REMOVED and r.finished]

    def standing(self, agent_id: str, sessions: Collection[str], *states: str) -> list[Removed]:
        """Returns the removals of some sessions that are in one of ``states``, oldest first.

        Ignores the store id: a folder that was copied or restored from a backup has another one.
        """
        if not sessions:
            return []
        with clear_sqlite_errors(self.path):
            rows = self.sql.execute(
                f"{_COLUMNS}{_FROM} WHERE r.session_id IN (SELECT value FROM json_each(?)) AND a.agent_id = ?"
                f" AND a.kind = '{REMOVE}' AND a.state <> 'intent' AND r.details IS NOT NULL"
                " AND r.state IN (SELECT value FROM json_each(?)) ORDER BY r.removal_id",
                (as_json(list(sessions)), agent_id, as_json(states)),
            )
            return [_removed(row) for row in rows]

    def removal(self, removal_id: int) -> Removed:
        """Returns one removal."""
        return _removed(self.sql.execute(f"{_COLUMNS}{_FROM} WHERE r.removal_id = ?", (removal_id,)).fetchone())

    def count_removals(
        self,
        *,
        agent_id: str | None = None,
        since: int | None = None,
        run_id: str | None = None,
        unfinished: bool = False,
    ) -> int:
        """Returns the number of removals, or of those that a killed call left unfinished."""
        where, values = _conditions(agent_id, since, run_id, None, None)
        if unfinished:
            where += " AND a.state = 'intent'"
        with clear_sqlite_errors(self.path):
            row = self.sql.execute(f"SELECT count(*){_FROM}{where}", values).fetchone()
            return int(row[0])

    def members(self, removed: Iterable[Removed]) -> dict[int, list[Member]]:
        """Returns raw members (key token, value) by removal id; those whose entries were dropped are left out."""
        with clear_sqlite_errors(self.path):
            return read_members(self.sql, [r.removal_id for r in removed])


def select_removed(sql: sqlite3.Connection, where: str, values: Sequence[object]) -> list[Removed]:
    """Returns removals ``r`` of attempts ``a``; ``where`` is the rest of the statement."""
    once: dict[object, object] = {}
    return [_removed(row, once) for row in sql.execute(f"{_COLUMNS}{_FROM}{where}", values)]


def change_state(
    sql: sqlite3.Connection, run_id: str, state: str, removal_ids: Collection[int], counts: Mapping[str, int]
) -> None:
    """Records a new state of removals in the caller's transaction; ``counts`` are sealed with it."""
    ids = list(removal_ids)
    at = chain.append(sql, state, {"run": run_id, "removals": ids, **counts})
    sql.execute(
        "UPDATE removals SET state = ?, changed_at = ? WHERE removal_id IN (SELECT value FROM json_each(?))",
        (state, at, as_json(ids)),
    )


def _conditions(
    agent_id: str | None, since: int | None, run_id: str | None, session: str | None, reason: str | None
) -> tuple[str, list[object]]:
    values: list[object] = []
    parts = [f" WHERE r.state <> 'kept' AND a.kind IN ('{REMOVE}', '{ERASE}')"]
    for text, value in (
        ("a.agent_id = ?", agent_id),
        ("a.created_at >= ?", since),
        ("a.run_id = ?", run_id),
        (_HAS_KEY if session is not None and ":" in session else "r.session_id = ?", session),
        ("r.reason = ?", reason),
    ):
        if value is not None:
            parts.append(text)
            values.append(value)
    return " AND ".join(parts), values


def _removed(row: Sequence[object], once: dict[object, object] | None = None) -> Removed:
    """Reads a row. Values that many rows repeat (run, user, agent) are in memory only once, in ``once``."""
    *first, changed_at, finished, details, status, state, chunk_id = row
    if once is not None:
        first = [once.setdefault(value, value) for value in first]
    known = msgspec.json.decode(details, type=Details) if isinstance(details, str) else Details([], [], Facts())
    mark = (str(status), str(state)) if status is not None else None
    rest = [changed_at, bool(finished), known.keys, known.files, known.facts, mark, chunk_id is not None, known.shares]
    return Removed(*first, *rest)  # type: ignore[arg-type]
