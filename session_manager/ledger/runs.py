"""The last runs, and what each of them did."""

from __future__ import annotations

from collections import Counter

import msgspec

from session_manager.ledger.connection import Connection, clear_sqlite_errors
from session_manager.ledger.rows import ERASE, KEPT, REMOVE

SHOWN = 20


class Gone(msgspec.Struct, frozen=True):
    """One session that a run removed; ``state`` is its present state."""

    agent_id: str
    session_id: str
    reason: str
    state: str


class RunSummary(msgspec.Struct, frozen=True):
    """One run. ``removed`` counts the sessions that it removed, ``by_state`` counts them by their present state.

    ``sessions`` are the first SHOWN of them. ``took_up`` counts the earlier removals that it acted on, by kind of
    attempt (restore, purge, erase). ``open``: it is at work, or was killed.
    """

    run_id: str
    started_at: int
    function: str
    asked_by: str | None
    user: str | None
    host: str | None
    agents: list[str]
    removed: int
    by_state: dict[str, int]
    sessions: list[Gone]
    took_up: dict[str, int]
    open: bool


_RUNS = """
    SELECT run_id, started_at, function, asked_by, user, host FROM runs u
    WHERE EXISTS (SELECT 1 FROM attempts a WHERE a.run_id = u.run_id) ORDER BY run_id DESC LIMIT ?
"""
_ATTEMPTS = f"""
    SELECT agent_id, kind, state, CASE kind
      WHEN '{ERASE}' THEN (SELECT count(*) FROM removals r WHERE r.attempt_id = a.attempt_id)
      ELSE json_array_length(restores) END
    FROM attempts a WHERE run_id = ? ORDER BY attempt_id
"""
_REMOVALS = f"""
    FROM attempts a JOIN removals r USING (attempt_id)
    WHERE a.run_id = ? AND a.kind = '{REMOVE}' AND a.state <> 'undone' AND r.state <> '{KEPT}'
"""


def recent_runs(ledger: Connection, limit: int) -> list[RunSummary]:
    """Returns the last runs that touched a store, newest first."""
    with clear_sqlite_errors(ledger.path):
        return [_summary(ledger, row) for row in ledger.sql.execute(_RUNS, (limit,)).fetchall()]


def _summary(ledger: Connection, row: tuple[str, int, str, str | None, str | None, str | None]) -> RunSummary:
    run = (row[0],)
    attempts = ledger.sql.execute(_ATTEMPTS, run).fetchall()
    took_up: Counter[str] = Counter()
    for _, kind, state, removals in attempts:
        if kind != REMOVE and state != "undone":
            took_up[kind] += removals
    by_state = dict(ledger.sql.execute(f"SELECT r.state, count(*) {_REMOVALS} GROUP BY 1 ORDER BY 1", run).fetchall())
    some = f"SELECT a.agent_id, r.session_id, r.reason, r.state {_REMOVALS} ORDER BY r.removal_id LIMIT {SHOWN}"
    return RunSummary(
        *row,
        agents=sorted({agent_id for agent_id, *_ in attempts}),
        removed=sum(by_state.values()),
        by_state=by_state,
        sessions=[Gone(*each) for each in ledger.sql.execute(some, run).fetchall()],
        took_up={kind: n for kind, n in took_up.items() if n},
        open=any(state == "intent" for _, _, state, _ in attempts),
    )
