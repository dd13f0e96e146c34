"""cleanup_after_delegation: a delete that may be called twice, and a moment too early."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from support import CLOSED_API, Skill, StoreBuilder, picture

from session_manager.core.errors import Refused
from session_manager.files.liveness import now_ms
from session_manager.functions import cleanup_after_delegation, load
from session_manager.functions.context import Context
from session_manager.settings import read_settings
from session_manager.stores.openclaw_files.volume import Volume

CLEANUP = "cleanup_after_delegation"


def hold(path: Path) -> Path:
    """A transcript lock of a living process: this one."""
    path.write_text(json.dumps({"pid": os.getpid(), "createdAt": "2026-02-15T18:00:00.000Z"}, indent=2))
    return path


def delegation(agents: Path) -> StoreBuilder:
    store = StoreBuilder(agents)
    store.add("main", 1, "parent")
    store.add("subagent:u", 0, "delegation-xyz", spawnedBy="agent:main:main")
    return store.write()


def in_process(agents: Path, **arguments: Any) -> dict[str, Any]:
    context = Context(
        read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": CLOSED_API}), Volume(str(agents)), now_ms
    )
    return load(CLEANUP).run(context, cleanup_after_delegation.Arguments("delegation-xyz", **arguments))


@pytest.mark.parametrize("named", ["delegation-xyz", "agent:main:subagent:u"])
def test_it_deletes_and_may_be_called_again(agents: Path, skill: Skill, named: str) -> None:
    store = delegation(agents)
    first = skill(CLEANUP, {"session_id": named})
    assert first.exit_code == 0
    assert first.document["deleted"] == "delegation-xyz"
    assert first.document["removed_keys"] == ["agent:main:subagent:u"]
    assert first.document["transcript_archived"] is True
    assert list(store.read()) == ["agent:main:main"]
    before = picture(agents)
    second = skill(CLEANUP, {"session_id": named})
    assert second.exit_code == 0
    assert (second.document["deleted"], second.document["removed_keys"]) == ("delegation-xyz", [])
    assert second.document["already_deleted"] is True
    assert picture(agents) == before
    assert skill("get_session_stats").document["pending_history_marks"] == 1


def test_it_waits_for_the_run_to_end(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = delegation(agents)
    lock = hold(store.dir / "delegation-xyz.jsonl.lock")
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            lock.unlink()

    monkeypatch.setattr(time, "sleep", nap)
    document = in_process(agents, wait_seconds=60)
    assert (document["deleted"], document["transcript_archived"]) == ("delegation-xyz", True)
    assert len(naps) >= 3
    assert not (store.dir / "delegation-xyz.jsonl").exists()


def running(store: StoreBuilder, **fields: Any) -> None:
    """What gateway 2026.6.11 writes when a run begins: there need not be a transcript yet, nor a lock."""
    at = now_ms()
    entry = {"updatedAt": at, "status": "running", "startedAt": at, **fields}
    store.entries["agent:main:subagent:u"].update({k: v for k, v in entry.items() if v is not None})
    store.write()


@pytest.mark.parametrize("transcript", [True, False])
def test_it_waits_for_a_run_that_only_the_entry_shows(
    agents: Path, monkeypatch: pytest.MonkeyPatch, transcript: bool
) -> None:
    store = delegation(agents)
    running(store)
    if not transcript:
        (store.dir / "delegation-xyz.jsonl").unlink()
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            running(store, status="done", endedAt=now_ms())

    monkeypatch.setattr(time, "sleep", nap)
    document = in_process(agents, wait_seconds=60)
    assert (document["deleted"], document["transcript_archived"]) == ("delegation-xyz", transcript)
    assert len(naps) >= 3


def test_it_refuses_a_run_that_began_while_it_waited(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = delegation(agents)
    lock = hold(store.dir / "delegation-xyz.jsonl.lock")
    clock = [0.0]

    def nap(seconds: float) -> None:
        clock[0] += seconds
        if lock.exists():
            running(store)
            lock.unlink()

    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", nap)
    with pytest.raises(Refused) as refused:
        in_process(agents)
    assert (refused.value.code, refused.value.details["reason"]) == ("session_busy", "running")
    assert "agent:main:subagent:u" in store.read()


@pytest.mark.parametrize("function", [CLEANUP, "delete_session", "erase_session"])
def test_a_run_that_only_the_entry_shows_is_refused_unless_forced(agents: Path, skill: Skill, function: str) -> None:
    store = delegation(agents)
    running(store)
    before = picture(agents)
    wait = {"wait_seconds": 0} if function == CLEANUP else {}
    sure = {"confirm": "delegation-xyz"} if function == "erase_session" else {}
    call = {"session_id": "delegation-xyz", **wait, **sure}
    answer = skill(function, call, ARIA_ALLOW_ERASE="1")
    assert (answer.exit_code, answer.document["code"], answer.document["reason"]) == (4, "session_busy", "running")
    assert picture(agents) == before
    assert skill(function, {**call, "force": True}, ARIA_ALLOW_ERASE="1").exit_code == 0
    assert list(store.read()) == ["agent:main:main"]


def test_a_run_that_died_long_ago_holds_nothing(agents: Path, skill: Skill) -> None:
    store = delegation(agents)
    old = now_ms() - 31 * 60_000
    running(store, updatedAt=old, startedAt=old)
    store.transcript("delegation-xyz.jsonl", "delegation-xyz", old, mtime_ms=now_ms())
    assert skill(CLEANUP, {"session_id": "delegation-xyz", "wait_seconds": 0}).exit_code == 0


def test_a_long_run_is_seen_by_what_it_writes(agents: Path, skill: Skill) -> None:
    store = delegation(agents)
    old = now_ms() - 300 * 60_000
    running(store, updatedAt=old, startedAt=old)
    store.transcript("delegation-xyz.jsonl", "delegation-xyz", now_ms() - 60_000)
    answer = skill(CLEANUP, {"session_id": "delegation-xyz", "wait_seconds": 0})
    assert (answer.exit_code, answer.document["reason"]) == (4, "running")


def test_it_waits_as_a_process_too(agents: Path, skill: Skill) -> None:
    store = delegation(agents)
    lock = hold(store.dir / "delegation-xyz.jsonl.lock")
    process = skill.start(CLEANUP, {"session_id": "delegation-xyz", "wait_seconds": 60})
    try:
        time.sleep(0.5)
        assert process.poll() is None
        assert "agent:main:subagent:u" in store.read()
        lock.unlink()
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert json.loads(output)["removed_keys"] == ["agent:main:subagent:u"]


def test_it_waits_no_longer_than_it_was_told(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = delegation(agents)
    hold(store.dir / "delegation-xyz.jsonl.lock")
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    before = picture(agents)
    with pytest.raises(Refused) as refused:
        in_process(agents)
    assert refused.value.code == "session_busy"
    assert 5 <= clock[0] < 6
    assert picture(agents) == before


@pytest.mark.parametrize("wait", [0, "0", 0.2, "0.2"])
def test_it_refuses_a_busy_session(agents: Path, skill: Skill, wait: Any) -> None:
    store = delegation(agents)
    hold(store.dir / "delegation-xyz.jsonl.lock")
    before = picture(agents)
    answer = skill(CLEANUP, {"session_id": "delegation-xyz", "wait_seconds": wait})
    assert (answer.exit_code, answer.document["code"]) == (4, "session_busy")
    assert "again" in answer.document["error"]
    assert picture(agents) == before
    assert skill("get_session_stats").document["pending_history_marks"] == 0


@pytest.mark.parametrize("wait", [-1, "-0.1", 61, 10**9, None, True, "soon", "nan", "inf", "-inf", [], "1e400"])
def test_wait_seconds_is_checked(agents: Path, skill: Skill, wait: Any) -> None:
    delegation(agents)
    before = picture(agents, without_state=False)
    answer = skill(CLEANUP, {"session_id": "delegation-xyz", "wait_seconds": wait})
    assert answer.exit_code == 2
    assert "wait_seconds" in answer.document["error"]
    assert picture(agents, without_state=False) == before


def test_delete_does_not_know_wait_seconds(agents: Path, skill: Skill) -> None:
    delegation(agents)
    answer = skill("delete_session", {"session_id": "delegation-xyz", "wait_seconds": 5})
    assert answer.exit_code == 2
    assert "wait_seconds" in answer.document["error"]


def test_main_is_protected_here_as_well(agents: Path, skill: Skill) -> None:
    delegation(agents)
    before = picture(agents)
    answer = skill(CLEANUP, {"session_id": "parent"})
    assert (answer.exit_code, answer.document["code"], answer.document["reason"]) == (4, "session_protected", "main")
    assert picture(agents) == before


def test_unknown(agents: Path, skill: Skill) -> None:
    delegation(agents)
    answer = skill(CLEANUP, {"session_id": "delegation-abc"})
    assert (answer.exit_code, answer.document["code"]) == (5, "session_not_found")


def test_children_of_a_finished_sub_agent_stay(agents: Path, skill: Skill) -> None:
    store = delegation(agents)
    store.add("subagent:u:subagent:v", 0, "child")
    store.write()
    assert skill(CLEANUP, {"session_id": "delegation-xyz"}).exit_code == 0
    assert set(store.read()) == {"agent:main:main", "agent:main:subagent:u:subagent:v"}
