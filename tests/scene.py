"""A store with old sessions, and the means to judge what calls that were killed made of it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from support import StoreBuilder

# What history may have been told of a session, or has still to hear: (status, state).
OF_REMOVED = {("ended", "pending"), ("ended", "delivered")}
OF_LIVING = {None, ("ended", "cancelled"), ("ended", "superseded"), ("active", "pending"), ("active", "delivered")}


def query(agents: Path, sql: str) -> list[Any]:
    """Asks the ledger; nothing when there is none, or none but the file."""
    path = agents / ".session_manager" / "ledger.sqlite"
    if not path.exists():
        return []
    connection = sqlite3.connect(path)
    try:
        made = connection.execute("PRAGMA user_version").fetchone()[0]
        return connection.execute(sql).fetchall() if made else []
    finally:
        connection.close()


def marks(agents: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """Every mark: (agent id, session id) -> (status, state). There is one a session at most."""
    rows = query(agents, "SELECT agent_id, session_id, status, state FROM marks")
    found = {(agent_id, session_id): (status, state) for agent_id, session_id, status, state in rows}
    assert len(found) == len(rows)
    return found


def second_names(agents: Path) -> dict[str, Path]:
    """The second names of archived files, by base name."""
    paths = [p for p in (agents / ".session_manager" / "archives").rglob("*") if not p.is_dir()]
    found = {p.name: p for p in paths}
    assert len(found) == len(paths)
    return found


class Scene:
    """Old sessions ``old-0`` …, the first of them with two keys and a topic file, and the main session."""

    def __init__(self, agents: Path, count: int) -> None:
        self.agents = agents
        self.store = StoreBuilder(agents)
        self.ids = [self.store.add(f"cron:job-{i}", 300, session_id=f"old-{i}") for i in range(count)]
        self.store.add("main", 300, session_id="the-main")
        self.store.add("cron:job-0:run:old-0", 300, session_id="old-0")
        self.store.transcript("old-0-topic-7.jsonl", "old-0", 1_700_000_000_000)
        self.store.write()
        self.entries = dict(self.store.entries)
        self.files = {p.name: p.read_bytes() for p in self.store.dir.glob("*.jsonl")}
        self.reaped: set[str] = set()
        self.has_links = True

    def reap(self) -> None:
        """Deletes all archives in the sessions folder, as the gateway's cron reaper does after a day."""
        for path in self.store.dir.glob("*.deleted.*"):
            self.reaped.add(path.name)
            path.unlink()

    def keys_of(self, session_id: str) -> set[str]:
        return {k for k, e in self.entries.items() if e["sessionId"] == session_id}

    def files_of(self, session_id: str) -> set[str]:
        return {n for n in self.files if n.startswith((f"{session_id}.", f"{session_id}-"))}

    def assert_whole(self, *, foreign: bool = False) -> set[str]:
        """Checks the invariant; returns the ids of the removed sessions. ``foreign``: a gateway wrote meanwhile."""
        left = self.store.read()
        names = self.store.names()
        removed = set()
        for session_id in [*self.ids, "the-main"]:
            present = self.keys_of(session_id) & set(left)
            assert present in (set(), self.keys_of(session_id)), f"{session_id} is half there"
            if not present:
                removed.add(session_id)
            for name in self.files_of(session_id):
                self._assert_file(name, [n for n in names if n == name or n.startswith(f"{name}.")], bool(present))
        kept = {k: e for k, e in self.entries.items() if e["sessionId"] not in removed}
        if not foreign:
            assert self.store.index.read_text() == json.dumps(kept, indent=2)
        self.assert_second_names(removed)
        self.assert_marks(removed)
        assert [n for n in names if n.startswith(".session_manager.") or n == "sessions.json.lock"] == []
        return removed

    def _assert_file(self, name: str, found: list[str], lives: bool) -> None:
        if not found and not lives:
            assert any(n.startswith(f"{name}.deleted.") for n in self.reaped), f"{name} has gone"
            return
        assert len(found) == 1, (name, found)
        assert (found[0] == name) == lives, (name, found)
        assert (self.store.dir / found[0]).read_bytes() == self.files[name]

    def assert_second_names(self, removed: set[str]) -> None:
        """Every archive has one second name, with the same bytes, and nothing else is kept."""
        found = second_names(self.agents)
        archived = {p.name: p for p in self.store.dir.glob("*.deleted.*")}
        assert set(archived) <= set(found)
        assert set(found) - set(archived) <= self.reaped
        assert all(found[name].samefile(path) == self.has_links for name, path in archived.items())
        assert all(found[name].read_bytes() == path.read_bytes() for name, path in archived.items())
        originals = {name.partition(".deleted.")[0]: path.read_bytes() for name, path in found.items()}
        assert originals == {n: self.files[n] for i in removed for n in self.files_of(i)}
        assert len(found) == len(originals)

    def assert_marks(self, removed: set[str]) -> None:
        """History has heard, or has still to hear, of every removed session, and of no living one that it ended."""
        found = marks(self.agents)
        for session_id in [*self.ids, "the-main"]:
            allowed = OF_REMOVED if session_id in removed else OF_LIVING
            assert found.get(("main", session_id)) in allowed, (session_id, found)
        assert query(self.agents, "SELECT * FROM attempts WHERE state = 'intent'") == []
