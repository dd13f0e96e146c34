"""The volume sync of 20,000 sessions: the first one, one with nothing new, and one after 1 in 100 has changed.

Each beside what cannot be saved: reading the changed indexes, and writing the rows that differ.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import httpx

from benchmarks import stores
from benchmarks.aria_api import Database, server, timed
from benchmarks.report import beside, say

AGENTS = ("main", "analyst", "aria-talk", "aria-memeothy")
# Of each agent.
SESSIONS, SMALLEST = 5_000, 100
ENTRY_BYTES = 3_000
CHANGED_EVERY = 100
ROUNDS = 5
_COPY = "CREATE TABLE copy (LIKE agent_sessions INCLUDING ALL)"
_INSERT = "INSERT INTO copy SELECT * FROM agent_sessions"
_UPDATE = """
    UPDATE copy SET metadata = s.metadata, last_activity_at = s.last_activity_at FROM agent_sessions s
    WHERE s.id = copy.id AND s.last_activity_at > copy.last_activity_at
"""


def run(folder: Path, sessions: int, rounds: int | None) -> None:
    """Measures and prints."""
    rounds = rounds or ROUNDS
    agents = folder / "sync"
    say(f"building {len(AGENTS)} agents with {sessions:,} sessions of {ENTRY_BYTES:,} bytes")
    for agent in AGENTS:
        stores.build(agents, sessions, ENTRY_BYTES, agent)
    total = len(AGENTS) * sessions
    found: dict[str, list[float]] = {}
    with server() as running:
        database = Database(running, "syncs")
        database.ask(_COPY)
        with database.served(ARIA_AGENTS_DIR=str(agents)) as client:
            for number in range(-1, rounds):
                say(f"  round {number + 1} of {rounds}" if number >= 0 else "  warming up")
                for name, seconds in _round(database, client, agents, total).items():
                    if number >= 0:
                        found.setdefault(name, []).append(seconds)
    print(f"volume sync of {total:,} sessions, {len(AGENTS)} agents")
    print(f"  first: {beside('sync', found['first'], 'reading and INSERT', found['first floor'])}")
    print(f"  1 in {CHANGED_EVERY} changed: {beside('sync', found['some'], 'reading and UPDATE', found['some floor'])}")
    print(f"  nothing changed: {beside('sync', found['none'], 'GET /readyz', found['none floor'])}")
    print("  nothing changed: no transaction wrote\n", flush=True)


def _round(database: Database, client: httpx.Client, agents: Path, total: int) -> dict[str, float]:
    database.ask("TRUNCATE agent_sessions, volume_indexes, copy")
    found = {"first": _sync(client, created=total)}
    database.tidy()
    found["first floor"] = _read(agents) + database.psql(_INSERT)

    # What a first look at fresh rows leaves to do for the next one is done.
    _sync(client)
    before = _last_writer(database)
    found["none"] = _sync(client)
    assert _last_writer(database) == before, "a sync wrote although nothing had changed"
    found["none floor"] = timed(client, "GET", "/readyz")[0]

    for agent in AGENTS:
        _change(agents / agent / "sessions" / "sessions.json")
    database.ask("VACUUM ANALYZE copy")
    found["some"] = _sync(client, updated=total // CHANGED_EVERY)
    found["some floor"] = _read(agents) + database.psql(_UPDATE)
    return found


def _sync(client: httpx.Client, created: int = 0, updated: int = 0) -> float:
    seconds, document = timed(client, "POST", "/api/sessions/sync")
    assert (document["created"], document["updated"], document["ended"]) == (created, updated, 0), document
    assert not document["errors"], document
    return seconds


def _read(agents: Path) -> float:
    begin = time.perf_counter()
    for agent in AGENTS:
        (agents / agent / "sessions" / "sessions.json").read_bytes()
    return time.perf_counter() - begin


def _last_writer(database: Database) -> int:
    """Returns the number that the next transaction to write will get; whoever only reads gets none."""
    return int(database.ask("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")[0][0])


def _change(index: Path) -> None:
    """Gives sessions a newer activity, as a gateway does: the whole index is written anew and renamed into place."""
    document = json.loads(index.read_bytes())
    for entry in list(document.values())[::CHANGED_EVERY]:
        entry["updatedAt"] += 1_000
    new = index.with_name("new")
    new.write_text(json.dumps(document, indent=2), encoding="utf-8")
    os.rename(new, index)
