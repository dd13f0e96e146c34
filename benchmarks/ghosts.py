"""100,000 empty sessions among 1,000,000 purged by one request, beside the bare ``DELETE`` in psql on an equal copy.

Meanwhile people write first messages, some to sessions that are about to be purged.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Sequence
from statistics import median

from benchmarks import conversations
from benchmarks.aria_api import Database, server, timed
from benchmarks.report import beside, say
from benchmarks.writer import writing

SESSIONS, SMALLEST = 1_000_000, 1_000
YOUNG = 10_000
WARM_S = 1.0
ALONE_S = 2.0
ROUNDS = 5
EXPECTED = 2.0
_OLD = "message_count = 0 AND created_at < now() - interval '15 minutes'"
# However long the run takes, they do not grow old.
_MAKE_YOUNG = f"""
    INSERT INTO chat_sessions (created_at) SELECT now() + interval '1 day' FROM generate_series(1, {YOUNG}) RETURNING id
"""
PURGE, DELETE, ALONE = "purge", "DELETE", "alone"
GHOST, OTHER = "a ghost", "another session"

Latencies = dict[tuple[str, str], list[float]]


def run(sessions: int, rounds: int | None) -> None:
    """Measures and prints."""
    rounds = rounds or ROUNDS
    seconds: dict[str, list[float]] = {PURGE: [], DELETE: []}
    latencies: Latencies = {}
    with server() as running:
        say(f"building {sessions:,} conversations")
        base = Database(running, "ghosts")
        conversations.fill(base, sessions)
        young = [row[0] for row in base.ask(_MAKE_YOUNG)]
        base.ask("VACUUM ANALYZE chat_sessions")
        ((ghosts,),) = base.ask(f"SELECT count(*) FROM chat_sessions WHERE {_OLD}")
        for number in range(rounds):
            say(f"  round {number + 1} of {rounds}")
            for what in (PURGE, DELETE) if number % 2 else (DELETE, PURGE):
                copy = Database(running, "ghosts_copy", base)
                seconds[what].append(_once(copy, what, young, latencies))
                copy.drop()
    name = f"{ghosts:,} ghosts among {sessions:,} sessions"
    print(f"{name}: {beside(PURGE, seconds[PURGE], 'DELETE in psql', seconds[DELETE])}")
    for kind in (GHOST, OTHER):
        cells = ", ".join(f"{what} {_spread(latencies.get((what, kind), []))}" for what in (ALONE, PURGE, DELETE))
        print(f"  a first message to {kind}, median, 99th in 100, longest: {cells}")
    print(f"expected: at most {EXPECTED:.0f}\n", flush=True)


def _once(database: Database, what: str, young: Sequence[uuid.UUID], latencies: Latencies) -> float:
    """Returns how long one of them took; no ghost may be left, and no message may be lost."""
    old = [row[0] for row in database.ask(f"SELECT id FROM chat_sessions WHERE {_OLD}")]
    random.shuffle(old)
    ((before,),) = database.ask("SELECT count(*) FROM chat_messages")
    with database.served() as client:
        acts: dict[str, Callable[[], float]] = {
            PURGE: lambda: timed(client, "DELETE", "/api/engine/sessions/ghosts")[0],
            DELETE: lambda: database.psql(f"DELETE FROM chat_sessions WHERE {_OLD}"),
        }
        with writing(database.url, {GHOST: old, OTHER: young}) as written:
            time.sleep(WARM_S)
            warm = time.perf_counter()
            time.sleep(ALONE_S)
            begin = time.perf_counter()
            seconds = acts[what]()
            end = time.perf_counter()
    for group, at, took in written:
        if warm <= at and at + took < begin:
            latencies.setdefault((ALONE, group), []).append(took)
        elif begin <= at + took and at < end:
            latencies.setdefault((what, group), []).append(took)
    ((left, after),) = database.ask(
        f"SELECT (SELECT count(*) FROM chat_sessions WHERE {_OLD}), (SELECT count(*) FROM chat_messages)"
    )
    assert (left, after) == (0, before + len(written)), (left, before, after, len(written))
    return seconds


def _spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "no message"
    in_order = sorted(seconds)
    shown = (median(in_order), in_order[(len(in_order) - 1) * 99 // 100], in_order[-1])
    return " / ".join(f"{value * 1000:.0f}" for value in shown) + f" ms of {len(in_order)}"
