"""The pages /sessions and /conversations: with 1,000 rows and with 1,000,000, as a browser asks for them."""

from __future__ import annotations

import time
from statistics import median

import httpx

from benchmarks import conversations
from benchmarks.aria_api import Database, server
from benchmarks.report import beside, say

SMALL, LARGE = 1_000, 1_000_000
SMALLEST = (100, 1_000)
ROUNDS = 9
# The last row began last, and all of them within the month that the charts show.
_LATELY = """
    UPDATE agent_sessions SET started_at = at, last_activity_at = at
    FROM (SELECT id AS row, now() - ({rows} - seq) * interval '2.5 seconds' AS at FROM agent_sessions) AS made
    WHERE id = row
"""
REQUESTS = 5
# What only a script asks for: the rows, without totals and charts.
PART = {"HX-Request": "true", "HX-Target": "history"}


def run(small: int, large: int, rounds: int | None) -> None:
    """Measures and prints."""
    rounds = rounds or ROUNDS
    found: dict[tuple[str, int], list[float]] = {}
    with server() as running:
        databases = {rows: Database(running, f"dashboard_{rows}") for rows in (small, large)}
        for rows, database in databases.items():
            say(f"building {rows:,} rows and as many conversations")
            database.fill(rows)
            database.ask(_LATELY.format(rows=rows))
            database.tidy()
            conversations.fill(database, rows)
        say(f"the dashboard, {rounds} rounds of {REQUESTS} requests each")
        with databases[small].served() as few, databases[large].served() as many:
            clients = {small: few, large: many}
            for number in range(-1, rounds):
                for rows, client in clients.items():
                    for what, (path, headers) in _asked(rows).items():
                        seconds = median(_one(client, path, headers) for _ in range(REQUESTS))
                        if number >= 0:
                            found.setdefault((what, rows), []).append(seconds)
            charts = {span: _charts(many, span, min(rounds, 3)) for span in ("24h", "7d", "30d")}
    print(f"the dashboard of {large:,} rows beside one of {small:,}")
    for what in _asked(large):
        print(f"  {what}: {beside(f'among {large:,}', found[what, large], f'among {small:,}', found[what, small])}")
    drawn = ", ".join(f"{span} {seconds * 1000:.0f} ms" for span, seconds in charts.items())
    print(f"  the first page whose charts are drawn anew, among {large:,}: {drawn}")
    print(
        "expected: a search, and a second filter, look at 50,000 rows at most, charts drawn anew at all of theirs;\n"
        "nothing else grows with the rows\n",
        flush=True,
    )


def _asked(rows: int) -> dict[str, tuple[str, dict[str, str]]]:
    return {
        "first page, whole": ("/sessions", {}),
        "first page, its rows alone": ("/sessions", PART),
        "a page in the middle": (f"/sessions?before={rows // 2}", PART),
        "the page before it": (f"/sessions?after={rows // 2}", PART),
        "an agent's": ("/sessions?agent_id=agent-7", PART),
        "an agent's active ones": ("/sessions?agent_id=agent-7&status=active", PART),
        "a type's that ended": ("/sessions?session_type=cron&status=ended", PART),
        "stale ones": ("/sessions?status=stale", PART),
        "a search that finds little": ("/sessions?search=report+77", PART),
        "a search that finds nothing": ("/sessions?search=nowhere", PART),
        "conversations": ("/conversations", {}),
        "conversations without a message": ("/conversations?empty=true", {}),
        "conversations by title": ("/conversations?search=number+77", {}),
    }


def _one(client: httpx.Client, path: str, headers: dict[str, str]) -> float:
    begin = time.perf_counter()
    answer = client.get(path, headers=headers)
    seconds = time.perf_counter() - begin
    answer.raise_for_status()
    assert 'id="history"' in answer.text, path
    return seconds


def _charts(client: httpx.Client, span: str, times: int) -> float:
    """Returns the median time of a first page for which the service counts what started in that time."""
    seconds = []
    for number in range(times):
        # Charts are drawn once in ten seconds; only those of a day have been drawn before.
        if number or span == "24h":
            time.sleep(10.5)
        seconds.append(_one(client, f"/sessions?span={span}", {}))
    return median(seconds)
