"""A key that a gateway wrote back from its cache is removed once more; what was brought back on purpose stays."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from support import Skill, StoreBuilder, now_ms

KEY = "agent:main:subagent:done"
NOTHING = {"max_age_minutes": 1_000_000}


def build(agents: Path) -> StoreBuilder:
    store = StoreBuilder(agents)
    store.add("subagent:done", 2, "done")
    store.add("cron:young", 1, "young")
    return store.write()


def write_back(store: StoreBuilder, **changes: Any) -> None:
    """The gateway writes its cached index, as it does: a new file in the old one's place."""
    left = {**store.read(), KEY: {**store.entries[KEY], **changes}}
    store.replace(left)


def gone(agents: Path, skill: Skill) -> StoreBuilder:
    store = build(agents)
    assert skill("cleanup_after_delegation", {"session_id": "done"}).exit_code == 0
    return store


@pytest.mark.parametrize(
    ("function", "arguments"),
    [("prune_sessions", NOTHING), ("delete_session", {"session_id": "young"})],
)
def test_it_is_removed_once_more_and_said(agents: Path, skill: Skill, function: str, arguments: dict[str, Any]) -> None:
    store = gone(agents, skill)
    write_back(store)
    document = skill(function, arguments).document
    assert document["reappeared"] == [{"agentId": "main", "id": "done", "keys": [KEY]}]
    assert document["run_id"]
    assert KEY not in store.read()
    if function == "prune_sessions":
        assert (document["total_sessions"], document["pruned_count"], document["kept_count"]) == (1, 0, 1)
        assert document["deleted_ids"] == []
    reasons = [r["reason"] for r in skill("list_deleted").document["deleted"] if r["id"] == "done"]
    assert reasons == ["reappeared", "asked for"]
    assert "reappeared" not in skill("prune_sessions", NOTHING).document
    assert skill("verify_ledger").document["whole"] is True


def stays(store: StoreBuilder, skill: Skill, **environment: str) -> None:
    document = skill("prune_sessions", NOTHING, **environment).document
    assert "reappeared" not in document
    assert KEY in store.read()


def test_a_sign_of_life_makes_it_a_session(agents: Path, skill: Skill) -> None:
    store = gone(agents, skill)
    write_back(store, updatedAt=now_ms())
    stays(store, skill)


def test_a_transcript_makes_it_a_session(agents: Path, skill: Skill) -> None:
    store = gone(agents, skill)
    write_back(store)
    store.transcript("done.jsonl", "done", 1_700_000_000_000)
    stays(store, skill)


def test_another_session_under_the_same_key_is_another_one(agents: Path, skill: Skill) -> None:
    store = gone(agents, skill)
    write_back(store, sessionId="another")
    stays(store, skill)


def test_another_key_of_the_same_session_was_not_ours(agents: Path, skill: Skill) -> None:
    store = gone(agents, skill)
    write_back(store)
    left = store.read()
    left["agent:main:subagent:more"] = left[KEY]
    store.index.write_text(json.dumps(left))
    stays(store, skill)


def test_after_five_minutes_nobody_remembers(agents: Path, skill: Skill) -> None:
    store = gone(agents, skill)
    connection = sqlite3.connect(agents / ".session_manager" / "ledger.sqlite")
    with connection:
        connection.execute("UPDATE attempts SET created_at = created_at - 301000")
    connection.close()
    write_back(store)
    stays(store, skill)


def test_what_calls_or_is_busy_stays(agents: Path, skill: Skill) -> None:
    store = gone(agents, skill)
    write_back(store)
    stays(store, skill, ARIA_SESSION_ID="done")
    (store.dir / "done.jsonl.lock").write_text(json.dumps({"pid": os.getpid(), "createdAt": "2026-02-15T18:00:00Z"}))
    stays(store, skill)


def test_what_was_restored_stays(agents: Path, skill: Skill) -> None:
    store = gone(agents, skill)
    assert skill("restore_session", {"session_id": "done"}).exit_code == 0
    (store.dir / "done.jsonl").unlink()
    stays(store, skill)


def test_a_backup_that_was_put_back_stays(agents: Path, skill: Skill) -> None:
    """Its file is older than the removal."""
    store = gone(agents, skill)
    write_back(store)
    os.utime(store.index, (now_ms() / 1000 - 60, now_ms() / 1000 - 60))
    stays(store, skill)


def test_it_is_said_although_the_call_finds_nothing_else(agents: Path, skill: Skill, tmp_path: Path) -> None:
    store = gone(agents, skill)
    write_back(store)
    (store.dir / ".session_manager.1.aa.bb.index").write_bytes(b"cut off")
    answer = skill("delete_session", {"session_id": "never-there"})
    assert (answer.exit_code, answer.document["code"]) == (5, "session_not_found")
    assert [r["id"] for r in answer.document["reappeared"]] == ["done"]
    assert KEY not in store.read()
