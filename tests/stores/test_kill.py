"""Killed at any step, or at any moment: after one more ordinary call every session is wholly live or wholly removed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from forks import Forks
from scene import Scene
from support import ROOT, Skill

RANDOM_KILLS = 300 if os.environ.get("SOAK") else 25
KILL_AT = [sys.executable, str(ROOT / "tests/kill_at.py")]
STEPS = [
    "index prepared",
    "intent written",
    "index swapped",
    "index verified",
    "second name kept",
    "second name kept",
    "second name kept",
    "second names kept",
    "file archived",
    "file archived",
    "file archived",
    "files archived",
    "second names checked",
    "displaced index removed",
    "folder synced",
    "end noted",
    "store let go",
    "marks sent",
]
RECOVERY_STEPS = ["index recovered", "archives recovered", "files recovered", "recovery noted"]
CALLS = {"prune_sessions": {"session_type": "cron"}, "delete_session": {"session_id": "old-0"}}


def run_until(skill: Skill, limit: int, log: Path, function: str, arguments: dict[str, Any]) -> tuple[int, list[str]]:
    log.unlink(missing_ok=True)
    log.touch()
    done = subprocess.run(
        [*KILL_AT, str(limit), str(log), function, json.dumps(arguments)],
        env=skill.environment(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode, log.read_text().splitlines()


def test_the_named_steps_are_those_that_occur(agents: Path, skill: Skill, tmp_path: Path) -> None:
    Scene(agents, 2)
    code, steps = run_until(skill, 0, tmp_path / "steps", "prune_sessions", CALLS["prune_sessions"])
    assert code == 0
    assert steps == STEPS


@pytest.mark.parametrize("follow_up", ["prune_sessions", "delete_session"])
@pytest.mark.parametrize("function", CALLS)
@pytest.mark.parametrize("limit", range(1, len(STEPS) + 1))
def test_killed_at_a_step(
    limit: int, function: str, follow_up: str, agents: Path, skill: Skill, tmp_path: Path
) -> None:
    scene = Scene(agents, 2)
    code, steps = run_until(skill, limit, tmp_path / "steps", function, CALLS[function])
    if code != -signal.SIGKILL:
        assert code == 0, "a delete of one session has a step less"
        assert len(steps) < limit
    # An ordinary call that removes nothing itself: what it finds half done is all its work.
    arguments = {"session_id": "not-there"} if follow_up == "delete_session" else {"max_age_minutes": 1_000_000}
    answer = skill(follow_up, arguments)
    assert answer.exit_code in (0, 5), answer.document
    removed = scene.assert_whole()
    if code == -signal.SIGKILL and steps[-1] in ("index prepared", "intent written"):
        assert removed == set()
    if "index swapped" in steps:
        assert removed == ({"old-0"} if function == "delete_session" else {"old-0", "old-1"})


@pytest.mark.parametrize("limit", range(1, len(STEPS) + 1))
def test_killed_at_a_step_and_no_call_before_the_gateway_deletes_archives(
    limit: int, agents: Path, fork: Forks
) -> None:
    """Gateways 2026.4 to 2026.6 delete every archive in the folder after a day; what was said is kept all the same."""
    scene = Scene(agents, 2)
    fork("prune_sessions", CALLS["prune_sessions"], kill_at=limit)
    scene.reap()
    assert fork("prune_sessions", {"max_age_minutes": 1_000_000}).exit_code == 0
    if scene.assert_whole():
        run_id = fork("list_deleted").document["deleted"][0]["run_id"]
        assert fork("restore_run", {"run_id": run_id}).exit_code == 0
    assert scene.assert_whole() == set()


@pytest.mark.parametrize("second", range(1, 12))
@pytest.mark.parametrize("first", [2, 3, 6, 10])
def test_killed_again_while_recovering(first: int, second: int, agents: Path, skill: Skill, tmp_path: Path) -> None:
    scene = Scene(agents, 2)
    assert run_until(skill, first, tmp_path / "steps", "prune_sessions", CALLS["prune_sessions"])[0] == -signal.SIGKILL
    code, steps = run_until(skill, second, tmp_path / "steps", "prune_sessions", {"max_age_minutes": 1_000_000})
    assert code in (0, -signal.SIGKILL)
    if code == 0:
        assert set(RECOVERY_STEPS) <= set(steps)
    assert skill("prune_sessions", {"max_age_minutes": 1_000_000}).exit_code == 0
    scene.assert_whole()


def test_recovery_is_reported(agents: Path, skill: Skill, tmp_path: Path) -> None:
    scene = Scene(agents, 2)
    run_until(skill, 3, tmp_path / "steps", "prune_sessions", CALLS["prune_sessions"])
    recovered = skill("prune_sessions", {"max_age_minutes": 1_000_000}).document["recovered"]
    assert [(r["agentId"], sorted(r["finished"]), r["undone"]) for r in recovered] == [("main", ["old-0", "old-1"], [])]
    assert scene.assert_whole() == {"old-0", "old-1"}


def test_a_displaced_version_that_only_a_temporary_file_holds_is_merged(
    agents: Path, skill: Skill, tmp_path: Path
) -> None:
    """A gateway that takes no lock wrote just before the swap, and we died just after it."""
    scene = Scene(agents, 2)
    run_until(skill, 3, tmp_path / "steps", "prune_sessions", CALLS["prune_sessions"])
    (temp,) = scene.store.dir.glob(".session_manager.*.index")
    theirs = {**scene.entries, "agent:main:telegram:direct:new": {"sessionId": "new", "updatedAt": 1}}
    theirs["agent:main:cron:job-1"] = {**theirs["agent:main:cron:job-1"], "updatedAt": int(time.time() * 1000)}
    fresh = temp.with_suffix(".other")
    fresh.write_text(json.dumps(theirs, indent=2))
    fresh.rename(temp)
    assert skill("prune_sessions", {"max_age_minutes": 1_000_000}).exit_code == 0
    left = scene.store.read()
    assert left["agent:main:telegram:direct:new"] == {"sessionId": "new", "updatedAt": 1}
    assert left["agent:main:cron:job-1"] == theirs["agent:main:cron:job-1"], "a sign of life is lost"
    assert scene.assert_whole(foreign=True) == {"old-0"}


def test_killed_at_random_moments_beside_a_writing_gateway(agents: Path, skill: Skill, tmp_path: Path) -> None:
    scene = Scene(agents, 40)
    log = tmp_path / "log"
    log.touch()
    writer = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "tests/gateway_writer.py"),
            "locking",
            str(scene.store.dir),
            "0",
            "100000",
            str(log),
        ]
    )
    chance = random.Random(os.urandom(8))
    try:
        for _ in range(RANDOM_KILLS):
            call = skill.start("prune_sessions", {"limit": 2}, ARIA_LOCK_TIMEOUT="60")
            time.sleep(chance.uniform(0.03, 0.25))
            call.kill()
            call.communicate()
    finally:
        # Between two writes: the writer has no recovery of its own.
        lines = len(log.read_text().splitlines())
        while len(log.read_text().splitlines()) == lines and writer.poll() is None:
            time.sleep(0.001)
        writer.kill()
        writer.wait()
    marker = scene.store.dir / "sessions.json.lock"
    marker.unlink(missing_ok=True)
    assert skill("prune_sessions", {"max_age_minutes": 1_000_000}).exit_code == 0
    committed = {key: int(value) for key, value in (line.split() for line in log.read_text().splitlines())}
    left = scene.store.read()
    for key, value in committed.items():
        assert left[key]["values"][-1] >= value
    for name in scene.store.names():
        if name.endswith(".tmp"):
            (scene.store.dir / name).unlink()
    scene.assert_whole(foreign=True)


def test_a_displaced_version_survives_the_loss_of_the_ledger(agents: Path, skill: Skill, tmp_path: Path) -> None:
    """Nobody knows the temporary file any more, and it holds more than what we wrote: it is kept in plain sight."""
    scene = Scene(agents, 2)
    run_until(skill, 3, tmp_path / "steps", "prune_sessions", CALLS["prune_sessions"])
    (temp,) = scene.store.dir.glob(".session_manager.*.index")
    theirs = json.dumps({**scene.entries, "agent:main:telegram:direct:new": {"sessionId": "new"}}, indent=2)
    temp.write_text(theirs)
    (agents / ".session_manager").rename(agents / ".moved-away")
    recovered = skill("prune_sessions", {"max_age_minutes": 1_000_000}).document["recovered"]
    (found,) = [r["found"] for r in recovered]
    assert (scene.store.dir / found).read_text() == theirs
    assert not temp.exists()


def test_of_two_versions_with_unknown_origin_the_newer_entry_wins(agents: Path, skill: Skill, tmp_path: Path) -> None:
    scene = Scene(agents, 2)
    run_until(skill, 3, tmp_path / "steps", "prune_sessions", CALLS["prune_sessions"])
    (temp,) = scene.store.dir.glob(".session_manager.*.index")
    now = int(time.time() * 1000)
    reset = {"sessionId": "after-reset", "updatedAt": now}
    fresh = temp.with_suffix(".other")
    fresh.write_text(json.dumps({**scene.entries, "agent:main:main": reset}, indent=2))
    fresh.rename(temp)
    later = {**scene.store.read(), "agent:main:telegram:direct:y": {"sessionId": "y", "updatedAt": now}}
    other = scene.store.dir / "sessions.json.1.tmp"
    other.write_text(json.dumps(later, indent=2))
    other.rename(scene.store.index)
    assert skill("prune_sessions", {"max_age_minutes": 1_000_000}).exit_code == 0
    left = scene.store.read()
    assert left["agent:main:main"] == reset
    assert "agent:main:telegram:direct:y" in left
    assert not {k for k in left if ":cron:" in k}
