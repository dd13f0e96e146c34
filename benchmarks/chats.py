"""Lists of conversations, and searches in their titles: among 1,000 sessions and among 1,000,000."""

from __future__ import annotations

import random
from statistics import median

import httpx

from benchmarks import conversations
from benchmarks.aria_api import Database, server, timed
from benchmarks.report import beside, say

SMALL, LARGE = 1_000, 1_000_000
SMALLEST = (100, 1_000)
LIMIT = 50
ROUNDS = 9
REQUESTS = 10

Query = dict[str, str | int]


def run(small: int, large: int, rounds: int | None) -> None:
    """Measures and prints."""
    rounds = rounds or ROUNDS
    found: dict[tuple[str, int], list[float]] = {}
    with server() as running:
        databases = {size: Database(running, f"chats_{size}") for size in (small, large)}
        for size, database in databases.items():
            say(f"building {size:,} conversations")
            conversations.fill(database, size)
        say(f"lists of conversations, {rounds} rounds of {REQUESTS} requests each")
        with databases[small].served() as few, databases[large].served() as many:
            clients = {small: few, large: many}
            for number in range(-1, rounds):
                for size, client in clients.items():
                    for what, queries in _queries(size).items():
                        seconds = median(_one(client, query) for query in queries)
                        if number >= 0:
                            found.setdefault((what, size), []).append(seconds)
    print(f"{large:,} conversations beside {small:,}; pages of {LIMIT}")
    for what in _queries(large):
        print(f"  {what}: {beside(f'among {large:,}', found[what, large], f'among {small:,}', found[what, small])}")
    print("expected: grows with the total, which every page counts, and with the offset; nothing else\n", flush=True)


def _queries(sessions: int) -> dict[str, list[Query]]:
    numbers = [n for n in random.sample(range(sessions // 10, sessions), 2 * REQUESTS) if n % conversations.EMPTY_EVERY]
    return {
        "first page": [{}] * REQUESTS,
        "an agent's first page": [{"agent_id": f"agent-{n % 100}"} for n in numbers[:REQUESTS]],
        "a title that is rare": [{"search": f"number {n}"} for n in numbers[:REQUESTS]],
        "a title that is common": [{"search": "report"}] * REQUESTS,
        "last page": [{"offset": sessions - LIMIT}] * REQUESTS,
    }


def _one(client: httpx.Client, query: Query) -> float:
    seconds, answer = timed(client, "GET", "/api/engine/sessions", params={"limit": LIMIT, **query})
    assert answer["sessions"], answer
    return seconds
