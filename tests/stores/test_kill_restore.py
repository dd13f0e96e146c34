"""Killed at any step of a restore: after one more ordinary call every session is wholly live or wholly removed."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forks import Call, Forks
from scene import Scene, marks
from small_aria import SmallAria
from support import now_ms

from session_manager.ledger import new_run_id

NOTHING_OLD = {"max_age_minutes": 1_000_000}
SOAK = "SOAK" in os.environ
STEPS = [
    "restore intended",
    "restored index prepared",
    "file brought back",
    "file brought back",
    "file brought back",
    "files back",
    "files back synced",
    "index swapped",
    "restored index in place",
    "index recovered",
    "file brought back",
    "file brought back",
    "file brought back",
    "archives recovered",
    "files recovered",
    "recovery noted",
]
HEARD = ["marks sent", "marks noted"]
ALL = {"old-0", "old-1"}
FOLLOW_UPS = ["prune_sessions", "restore_session", "restore_run"]
GOING = {"restore_run": ALL, "restore_session": {"old-0"}}


class Stage:
    """A scene whose old sessions were pruned; history heard of it (``aria``), or could not be reached (None)."""

    def __init__(self, fork: Forks, scene: Scene, aria: SmallAria | None, *, reaped: bool = False) -> None:
        self.fork, self.scene, self.aria = fork, scene, aria
        if aria is not None:
            fork.environ["ARIA_API_URL"] = aria.url
            aria.add_all([*scene.ids, "the-main"])
        done = fork("prune_sessions", {"session_type": "cron"})
        assert set(done.document["deleted_ids"]) == set(scene.ids)
        self.run_id = done.document["run_id"]
        if reaped:
            scene.reap()

    def call(self, function: str, **rest: Any) -> Call:
        """Makes a call that needs no arguments but the obvious ones."""
        arguments = {
            "restore_run": {"run_id": self.run_id},
            "restore_session": {"session_id": "old-0"},
            "prune_sessions": NOTHING_OLD,
        }
        return self.fork(function, arguments[function], **rest)

    def assert_whole(self, *, foreign: bool = False) -> set[str]:
        """Checks the invariant, also of what history heard; returns the removed sessions."""
        removed = self.scene.assert_whole(foreign=foreign)
        found = marks(self.scene.agents)
        touched = {session_id for _, session_id in found}
        assert touched == set(self.scene.ids)
        if self.aria is None:
            assert {state for _, state in found.values()} <= {"pending", "cancelled"}
            return removed
        assert {state for _, state in found.values()} == {"delivered"}
        assert self.aria.ended() == removed
        return removed


@pytest.fixture(params=["history out of reach", "history", "archives reaped"])
def stage(request: pytest.FixtureRequest, fork: Forks, agents: Path, aria: SmallAria) -> Callable[[], Stage]:
    """Sets the stage, once a call."""

    def build() -> Stage:
        fresh = agents / new_run_id()
        fresh.mkdir()
        fork.environ["ARIA_AGENTS_DIR"] = str(fresh)
        aria.rows.clear()
        aria.requests.clear()
        history = None if request.param == "history out of reach" else aria
        return Stage(fork, Scene(fresh, 2), history, reaped=request.param == "archives reaped")

    return build


def some_of_them(case: int) -> range:
    """Steps to be killed at: each third, another third in the next case; a soak takes all."""
    return range(1, 100) if SOAK else range(1 + case % 3, 100, 3)


def test_the_named_steps_are_those_that_occur(stage: Callable[[], Stage]) -> None:
    here = stage()
    done = here.call("restore_run")
    assert (done.exit_code, done.document["restored_count"]) == (0, 2)
    assert done.steps == STEPS + (HEARD if here.aria else [])
    assert here.assert_whole() == set()


@pytest.mark.parametrize(("function", "follow_up"), list(itertools.product(GOING, FOLLOW_UPS))[:: 1 if SOAK else 2])
def test_killed_at_a_step(function: str, follow_up: str, stage: Callable[[], Stage]) -> None:
    for limit in range(1, 100):
        here = stage()
        first = here.call(function, kill_at=limit)
        done = here.call(follow_up)
        assert done.exit_code == 0, (first.steps, done)
        removed = here.assert_whole()
        back = GOING[function] if "index swapped" in first.steps else set()
        assert removed == ALL - back - GOING.get(follow_up, set()), first.steps
        assert here.call("restore_run").exit_code == 0
        assert here.assert_whole() == set()
        assert here.fork("verify_ledger").document["whole"] is True
        if not first.killed:
            assert limit > len(STEPS) - 1
            return
    pytest.fail("it never ends")


@pytest.mark.parametrize("first", range(1, len(STEPS) + 1, 1 if SOAK else 4))
def test_killed_again_while_recovering(first: int, stage: Callable[[], Stage]) -> None:
    for second in some_of_them(first // 4):
        here = stage()
        assert here.call("restore_run", kill_at=first).killed
        recovering = here.call("prune_sessions" if second % 2 else "restore_run", kill_at=second)
        assert here.call("prune_sessions").exit_code == 0
        assert here.assert_whole() in (set(), ALL)
        assert here.call("restore_run").exit_code == 0
        assert here.assert_whole() == set()
        if not recovering.killed:
            return
    pytest.fail("it never ends")


@pytest.mark.parametrize(
    ("case", "moment"), list(enumerate(["restore intended", "restored index prepared", "file brought back"]))
)
def test_killed_while_undoing(case: int, moment: str, stage: Callable[[], Stage]) -> None:
    """Another file takes the name of the last one in the middle of the restore, which is undone."""
    for limit in some_of_them(case):
        here = stage()
        path = here.scene.store.dir / "old-1.jsonl"
        call = here.call("restore_run", kill_at=limit, meanwhile={moment: (path, "another\n")})
        if not call.killed:
            assert (call.exit_code, call.document["code"]) == (4, "file_exists")
        if path.exists() and path.read_text() == "another\n":
            refused = here.call("restore_run")
            assert (refused.exit_code, refused.document["code"]) == (4, "file_exists")
            assert here.call("prune_sessions").exit_code == 0
            assert path.read_text() == "another\n"
            path.unlink()
        else:
            assert here.call("prune_sessions").exit_code == 0
        assert here.assert_whole() == ALL
        assert here.call("restore_run").exit_code == 0
        assert here.assert_whole() == set()
        if not call.killed:
            return
    pytest.fail("it never ends")


@pytest.mark.parametrize(
    ("case", "moment"),
    list(enumerate(["restore intended", "restored index prepared", "files back", "files back synced"])),
)
def test_killed_when_a_gateway_took_a_key(case: int, moment: str, stage: Callable[[], Stage]) -> None:
    """A gateway that asks for no lock gives a key away in the middle of the restore: that session stays removed."""
    for limit in some_of_them(case):
        here = stage()
        scene = here.scene
        theirs = {"sessionId": "theirs", "updatedAt": now_ms()}
        key = "agent:main:cron:job-1"
        text = json.dumps({**scene.store.read(), key: theirs}, indent=2)
        call = here.call("restore_run", kill_at=limit, meanwhile={moment: (scene.store.index, text)})
        if not call.killed:
            assert call.document["restored_ids"] == ["old-0"]
            assert [e["code"] for e in call.document["errors"]] == ["key_taken"]
        assert here.call("prune_sessions").exit_code == 0
        left = scene.store.read()
        if moment in call.steps:
            assert left.pop(key) == theirs
            scene.store.index.write_text(json.dumps(left, indent=2))
        assert here.assert_whole(foreign=True) in (ALL, {"old-1"})
        assert here.call("restore_run").exit_code == 0
        assert here.assert_whole(foreign=True) == set()
        if not call.killed:
            return
    pytest.fail("it never ends")
