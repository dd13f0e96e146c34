"""One session looked up, the first page and the last one: in a history of 1,000 rows and in one of 1,000,000."""

from __future__ import annotations

import random
from statistics import median

import httpx

from benchmarks.aria_api import Database, server, timed
from benchmarks.report import beside, say

SMALL, LARGE = 1_000, 1_000_000
SMALLEST = (100, 1_000)
LIMIT = 50
ROUNDS = 9
REQUESTS = 20
EXPECTED = 2.0


def run(small: int, large: int, rounds: int | None) -> None:
    """Measures and prints."""
    rounds = rounds or ROUNDS
    found: dict[tuple[str, int], list[float]] = {}
    with server() as running:
        databases = {rows: Database(running, f"pages_{rows}") for rows in (small, large)}
        for rows, database in databases.items():
            say(f"building {rows:,} rows")
            database.fill(rows)
        say(f"pages, {rounds} rounds of {REQUESTS} requests each")
        with databases[small].served() as few, databases[large].served() as many:
            clients = {small: few, large: many}
            known = {rows: _some_ids(database) for rows, database in databases.items()}
            for number in range(-1, rounds):
                for rows, client in clients.items():
                    for what, queries in _queries(rows, known[rows]).items():
                        seconds = median(_one(client, query) for query in queries)
                        if number >= 0:
                            found.setdefault((what, rows), []).append(seconds)
    print(f"a history of {large:,} rows beside one of {small:,}; pages of {LIMIT}")
    for what in ("look-up", "first page", "last page"):
        print(f"  {what}: {beside(f'among {large:,}', found[what, large], f'among {small:,}', found[what, small])}")
    print(f"expected: the look-up at most {EXPECTED:.0f}; every page has the total, which is counted\n", flush=True)


def _some_ids(database: Database) -> list[str]:
    rows = database.ask("SELECT metadata->>'aria_session_id' FROM agent_sessions ORDER BY 1 LIMIT 1000")
    return [row[0] for row in rows]


def _queries(rows: int, ids: list[str]) -> dict[str, list[dict[str, str | int]]]:
    chosen = random.sample(ids, REQUESTS)
    return {
        "look-up": [{"aria_session_id": sid} for sid in chosen],
        "first page": [{"limit": LIMIT}] * REQUESTS,
        "last page": [{"limit": LIMIT, "page": rows // LIMIT}] * REQUESTS,
    }


def _one(client: httpx.Client, query: dict[str, str | int]) -> float:
    seconds, answer = timed(client, "GET", "/api/sessions", params=query)
    assert len(answer["items"]) == (LIMIT if "limit" in query else 1), answer
    return seconds
