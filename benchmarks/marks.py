"""A tenth of 100,000 rows marked by one request, beside the bare ``UPDATE`` of these rows in psql."""

from __future__ import annotations

import json

from benchmarks.aria_api import Database, server, timed
from benchmarks.report import beside, say

ROWS, SMALLEST = 100_000, 1_000
ROUNDS = 9
EXPECTED = 3.0
_SET = {
    "ended": "status = 'ended', ended_at = now(), ended_by = 'request', status_at = now()",
    "active": "status = 'active', ended_at = NULL, ended_by = 'request', status_at = now()",
}


def run(total: int, rounds: int | None) -> None:
    """Measures and prints. One side ends what the other one makes active again, so that each writes every row."""
    rounds, marked = rounds or ROUNDS, total // 10
    say(f"{marked:,} marks among {total:,} rows, {rounds} rounds")
    with server() as running:
        database = Database(running, "marks")
        database.fill(total)
        database.ask(f"UPDATE agent_sessions SET agent_id = 'main' WHERE seq <= {marked}")
        rows = database.ask("SELECT metadata->>'aria_session_id' FROM agent_sessions WHERE agent_id = 'main'")
        sessions = [{"agent_id": "main", "aria_session_id": sid} for (sid,) in rows]
        bodies = {status: json.dumps({"status": status, "sessions": sessions}) for status in _SET}
        requests, updates = [], []
        with database.served() as client:
            timed(client, "PATCH", "/api/sessions", content=bodies["active"])
            for number in range(rounds):
                ours, theirs = ("ended", "active") if number % 2 else ("active", "ended")
                database.tidy()
                updates.append(database.psql(f"UPDATE agent_sessions SET {_SET[theirs]} WHERE agent_id = 'main'"))
                database.tidy()
                seconds, answer = timed(client, "PATCH", "/api/sessions", content=bodies[ours])
                assert answer == {"updated": marked, "missing": []}, str(answer)[:500]
                requests.append(seconds)
    print(f"{marked:,} sessions marked, of {total:,} rows: {beside('PATCH', requests, 'UPDATE in psql', updates)}")
    print(f"expected: at most {EXPECTED:.0f}\n", flush=True)
