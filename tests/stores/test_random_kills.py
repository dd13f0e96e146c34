"""Killed at random moments, beside a gateway that writes and with a history that fails: nothing is lost or left."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forks import Forks
from scene import OF_LIVING, OF_REMOVED, Scene, marks, query, second_names
from small_aria import Prepared, SmallAria
from support import ROOT, StoreBuilder

from session_manager.archives.names import parse_archive

KILLS = 300 if os.environ.get("SOAK") else 25
LOOK_EVERY = 10
# What a call at work takes, about; with two processors and much else to do.
SPAN_S = 0.06
OLD = 40
ORPHANS = 6
NOTHING_OLD = {"max_age_minutes": 1_000_000}
# A third of the requests fails.
ANSWERS: list[Prepared | None] = [None, None, None, None, (500, {}, b"oh"), "die"]


class Everything(Scene):
    """Old sessions and old orphans beside the entries of a gateway that goes on writing."""

    def __init__(self, agents: Path, log: Path) -> None:
        super().__init__(agents, OLD)
        self.log = log
        self.orphans = {f"lost-{i}.jsonl" for i in range(ORPHANS)}
        for name in self.orphans:
            path = self.store.transcript(name, name.removesuffix(".jsonl"), 1_700_000_000_000)
            self.files[name] = path.read_bytes()

    def judge(self, committed: dict[str, list[int]]) -> set[str]:
        """Checks the invariant beside a gateway that stands still; returns the removed sessions and orphans."""
        left, names = self.store.read(), self.store.names()
        removed = set()
        for session_id in [*self.ids, "the-main"]:
            present = {k for k in self.keys_of(session_id) if left.get(k) == self.entries[k]}
            assert present in (set(), self.keys_of(session_id)), f"{session_id} is half there"
            assert present or not self.keys_of(session_id) & set(left)
            if not present:
                removed.add(session_id)
        names_of = {name: [n for n in names if n == name or n.startswith(f"{name}.")] for name in self.files}
        for name, found in names_of.items():
            assert len(found) == 1, (name, found)
            assert (self.store.dir / found[0]).read_bytes() == self.files[name]
            if name in self.orphans:
                removed |= {name.removesuffix(".jsonl")} - ({name.removesuffix(".jsonl")} if found == [name] else set())
        for session_id in self.ids:
            assert {names_of[n] == [n] for n in self.files_of(session_id)} == {session_id not in removed}
        assert {k: e["values"] for k, e in left.items() if "values" in e} == committed, "an update is lost"
        ours = [n for n in names if n.startswith(".session_manager.") or n == "sessions.json.lock"]
        assert ours == []
        archived = {n for n in names if (a := parse_archive(n)) is not None and a[1] == "deleted"}
        assert set(second_names(self.agents)) == archived
        return removed

    def judge_marks(self, removed: set[str], *, delivered: bool) -> None:
        """Checks that history has heard, or has still to hear, what is so now."""
        found = marks(self.agents)
        for session_id in [*self.ids, *(n.removesuffix(".jsonl") for n in self.orphans)]:
            mark = found.get(("main", session_id))
            assert mark in (OF_REMOVED if session_id in removed else OF_LIVING), (session_id, mark)
            assert not delivered or mark is None or mark[1] != "pending"
        assert query(self.agents, "SELECT * FROM attempts WHERE state = 'intent'") == []


class Gateway:
    """The writer as a process: it can be made to stand still between two writes."""

    def __init__(self, mode: str, store: StoreBuilder, log: Path) -> None:
        log.touch()
        program = [
            sys.executable,
            str(ROOT / "tests/gateway_writer.py"),
            mode,
            str(store.dir),
            "0",
            "1000000",
            str(log),
        ]
        self._process = subprocess.Popen(program)
        self._log, self._pause = log, Path(f"{log}.pause")

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[dict[str, list[int]]]:
        """Yields what it has written so far: key -> values."""
        self._pause.touch()
        deadline = time.monotonic() + 30
        while not Path(f"{self._log}.paused").exists():
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        committed: dict[str, list[int]] = {}
        for key, value in (line.split() for line in self._log.read_text().splitlines()):
            committed.setdefault(key, []).append(int(value))
        yield committed
        self._pause.unlink()
        while Path(f"{self._log}.paused").exists():
            time.sleep(0.002)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def a_call(chance: random.Random, runs: list[str]) -> tuple[str, dict[str, Any]]:
    """Picks what is called next."""
    anyone = f"old-{chance.randrange(OLD)}"
    calls: list[tuple[str, dict[str, Any]]] = [
        ("prune_sessions", {"limit": chance.randint(1, 8)}),
        ("delete_session", {"session_id": anyone}),
        ("restore_session", {"session_id": anyone}),
        ("cleanup_orphans", {"dry_run": False, "force": True}),
    ]
    if runs:
        calls += [("restore_run", {"run_id": chance.choice(runs)})] * 2
    return chance.choice(calls)


@pytest.mark.parametrize("mode", ["locking", "lockless"])
def test_killed_at_random_moments(mode: str, agents: Path, fork: Forks, aria: SmallAria, tmp_path: Path) -> None:
    scene = Everything(agents, tmp_path / "log")
    aria.add_all([*scene.ids, "the-main", *(n.removesuffix(".jsonl") for n in scene.orphans)])
    fork.environ |= {"ARIA_API_URL": aria.url, "ARIA_LOCK_TIMEOUT": "60", "ARIA_API_TIMEOUT": "2"}
    seed = os.urandom(8).hex()
    print(f"seed {seed}")
    chance = random.Random(seed)
    aria.mood = lambda: chance.choice(ANSWERS)
    gateway = Gateway(mode, scene.store, tmp_path / "log")
    kills = 0
    try:
        while kills < KILLS:
            runs = [r for (r,) in query(agents, "SELECT DISTINCT run_id FROM attempts WHERE kind = 'remove'")]
            at_work = chance.random() < 0.9
            call = fork(*a_call(chance, runs), kill_after=chance.uniform(0, SPAN_S), at_work=at_work)
            kills += call.killed
            if call.killed and kills % LOOK_EVERY == 0:
                with gateway.standing_still() as committed:
                    done = fork("prune_sessions", NOTHING_OLD)
                    assert done.exit_code == 0, done
                    scene.judge_marks(scene.judge(committed), delivered=False)
        with gateway.standing_still() as committed:
            aria.mood = None
            assert fork("prune_sessions", NOTHING_OLD).exit_code == 0
            removed = scene.judge(committed)
            settle(scene, fork, aria, removed)
            for run_id in reversed(runs_that_removed(agents)):
                done = fork("restore_run", {"run_id": run_id})
                assert done.exit_code == 0, done
            assert scene.judge(committed) == set()
            settle(scene, fork, aria, set())
            assert fork("verify_ledger").document["whole"] is True
    finally:
        gateway.stop()


def settle(scene: Everything, fork: Forks, aria: SmallAria, removed: set[str]) -> None:
    """Delivers all that waits, and checks that history says what the files say."""
    assert fork("deliver_history").exit_code == 0
    scene.judge_marks(removed, delivered=True)
    assert aria.ended() == removed


def runs_that_removed(agents: Path) -> list[str]:
    """Runs of which something is still removed, oldest first."""
    rows = query(
        agents,
        "SELECT run_id FROM removals r JOIN attempts a USING (attempt_id) WHERE a.kind = 'remove' AND a.state = 'done'"
        " AND r.state = 'removed' GROUP BY run_id ORDER BY max(removal_id)",
    )
    return [run_id for (run_id,) in rows]
