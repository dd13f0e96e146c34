"""restore_session and restore_run: what was removed comes back exactly as it was, or nothing is changed at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from scene import second_names
from small_aria import SmallAria
from support import Skill, StoreBuilder, ledger_sql, now_ms, picture

NOTHING = {"max_age_minutes": 1_000_000}
LONG_AGO = "UPDATE attempts SET created_at = 1"


def build(agents: Path, agent: str = "main") -> StoreBuilder:
    """Two old cron sessions, the first with two keys and a topic file, around two that stay."""
    store = StoreBuilder(agents, agent)
    store.add("main", 5, f"{agent}-main")
    store.add("cron:a", 300, f"{agent}-a", label="Ärger 😀", model="gpt-4o")
    store.add("telegram:direct:1", 5, f"{agent}-direct")
    store.add("cron:a:run:1", 300, f"{agent}-a", transcript=False)
    store.transcript(f"{agent}-a-topic-7.jsonl", f"{agent}-a", 1_700_000_000_000)
    store.add("cron:b", 400, f"{agent}-b", odd=[1.50, "\u2028", {"x": None}])
    return store.write()


def times(store: StoreBuilder) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in store.dir.glob("*.jsonl")}


def pruned(skill: Skill, **arguments: Any) -> str:
    document = skill("prune_sessions", arguments).document
    assert document["pruned_count"] > 0, document
    return str(document["run_id"])


# --- everything comes back ------------------------------------------------------------------------------------------


def test_a_run_is_undone_byte_for_byte_in_all_agents(agents: Path, skill: Skill) -> None:
    stores = [build(agents, "main"), build(agents, "other")]
    # What JavaScript makes of an emoji that was cut in half, and a number that no float holds.
    text = stores[0].index.read_bytes().replace(b'"gpt-4o"', b'"\\ud83d", "n": 1e400')
    stores[0].index.write_bytes(text)
    before, mtimes = picture(agents), [times(store) for store in stores]
    run_id = pruned(skill)
    assert picture(agents) != before
    answer = skill("restore_run", {"run_id": run_id})
    assert answer.exit_code == 0
    document = answer.document
    assert (document["restored_run"], document["restored_count"], document["skipped"]) == (run_id, 4, [])
    assert sorted(document["restored_ids"]) == ["main-a", "main-b", "other-a", "other-b"]
    assert document["run_id"] not in (None, run_id)
    assert picture(agents) == before
    assert [times(store) for store in stores] == mtimes
    assert second_names(agents) == {}
    assert {r["state"] for r in skill("list_deleted").document["deleted"]} == {"restored"}
    assert skill("verify_ledger").document["whole"] is True


@pytest.mark.parametrize("name", ["main-a", "agent:main:cron:a:run:1"])
def test_a_session_comes_back_alone(agents: Path, skill: Skill, name: str) -> None:
    store = build(agents)
    before = store.index.read_bytes()
    for session_id in ("main-b", "main-a"):
        assert skill("delete_session", {"session_id": session_id}).exit_code == 0
    document = skill("restore_session", {"session_id": name}).document
    assert document["restored"] == "main-a"
    assert document["restored_keys"] == ["agent:main:cron:a", "agent:main:cron:a:run:1"]
    assert sorted(document["restored_files"]) == ["main-a-topic-7.jsonl", "main-a.jsonl"]
    assert (document["transcript_restored"], document["agents"]) == (True, ["main"])
    assert "agent:main:cron:b" not in store.read()
    skill("restore_session", {"session_id": "main-b"})
    assert store.index.read_bytes() == before


def test_what_came_since_stays(agents: Path, skill: Skill) -> None:
    store = build(agents)
    run_id = pruned(skill)
    left = store.read()
    left["agent:main:main"]["updatedAt"] = now_ms()
    store.replace({**left, "agent:main:cron:new": {"sessionId": "new", "updatedAt": now_ms()}})
    assert skill("restore_run", {"run_id": run_id}).exit_code == 0
    expected = {**store.entries, "agent:main:main": left["agent:main:main"]}
    new = store.read()
    assert new.pop("agent:main:cron:new")["sessionId"] == "new"
    assert new == expected
    assert list(new) == list(store.entries)


def test_a_session_that_several_agents_have_comes_back_in_all_or_in_the_named_one(agents: Path, skill: Skill) -> None:
    stores = [StoreBuilder(agents, agent) for agent in ("main", "other")]
    for store in stores:
        store.add("cron:x", 300, "shared")
        store.write()
    before = picture(agents)
    skill("delete_session", {"session_id": "shared"})
    assert skill("restore_session", {"session_id": "shared", "agent": "other"}).document["agents"] == ["other"]
    assert (stores[0].read(), len(stores[1].read())) == ({}, 1)
    assert skill("restore_session", {"session_id": "shared"}).document["agents"] == ["main"]
    assert picture(agents) == before


def test_archives_that_the_gateway_reaped_come_back_by_their_second_names(agents: Path, skill: Skill) -> None:
    store = build(agents)
    before, mtimes = picture(agents), times(store)
    run_id = pruned(skill)
    for archive in store.dir.glob("*.deleted.*"):
        archive.unlink()
    assert skill("restore_run", {"run_id": run_id}).exit_code == 0
    assert (picture(agents), times(store)) == (before, mtimes)
    assert second_names(agents) == {}


def test_what_reappeared_and_was_removed_once_more_comes_back_whole(agents: Path, skill: Skill) -> None:
    store = build(agents)
    before = picture(agents)
    run_id = pruned(skill)
    store.replace({**store.read(), "agent:main:cron:a": store.entries["agent:main:cron:a"]})
    assert skill("prune_sessions", NOTHING).document["reappeared"]
    assert skill("restore_run", {"run_id": run_id}).document["restored_count"] == 2
    assert {k: picture(agents)[k][1] for k in before if k.endswith(".jsonl")} == {
        k: v[1] for k, v in before.items() if k.endswith(".jsonl")
    }
    assert store.read() == store.entries
    assert "reappeared" not in skill("prune_sessions", NOTHING).document
    assert store.read() == store.entries


def test_two_lives_of_one_session_are_one_conversation(agents: Path, skill: Skill) -> None:
    store = build(agents)
    skill("delete_session", {"session_id": "main-b"})
    store.transcript("main-b.jsonl", "main-b", now_ms() - 50 * 60_000)
    entry = {"sessionId": "main-b", "updatedAt": now_ms() - 50 * 60_000, "label": "second life"}
    store.replace({**store.read(), "agent:main:cron:b": entry})
    skill("delete_session", {"session_id": "main-b"})
    assert skill("restore_session", {"session_id": "main-b"}).exit_code == 0
    assert store.read()["agent:main:cron:b"] == entry
    lines = (store.dir / "main-b.jsonl").read_text().splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["session", "message", "message"]
    assert json.loads(lines[2])["parentId"] == json.loads(lines[1])["id"] != json.loads(lines[2])["id"]
    assert not list(store.dir.glob("main-b.jsonl.deleted.*"))
    states = [r["state"] for r in skill("list_deleted").document["deleted"]]
    assert states == ["restored", "restored"]


def test_archived_orphans_get_their_names_back(agents: Path, skill: Skill) -> None:
    store = build(agents)
    store.transcript("lost.jsonl", "lost", 1_700_000_000_000)
    before = picture(agents)
    done = skill("cleanup_orphans", {"dry_run": False}).document
    assert picture(agents) != before
    assert skill("restore_run", {"run_id": done["run_id"]}).document["restored_ids"] == ["lost"]
    assert picture(agents) == before


def test_it_can_be_removed_and_restored_again(agents: Path, skill: Skill) -> None:
    build(agents)
    before = picture(agents)
    runs = []
    for _ in range(3):
        # Days after the last restore.
        (agents / ".session_manager" / "kept.json").unlink(missing_ok=True)
        runs.append(pruned(skill))
        assert skill("restore_run", {"run_id": runs[-1]}).exit_code == 0
        assert picture(agents) == before
    document = skill("restore_run", {"run_id": runs[0]}).document
    assert (document["restored_count"], document["already_restored"], document["run_id"]) == (0, 2, None)


@pytest.mark.parametrize("function", ["restore_run", "restore_session"])
def test_a_key_that_a_gateway_wrote_away_after_the_restore_comes_back(
    agents: Path, skill: Skill, function: str
) -> None:
    store = build(agents)
    before = picture(agents)
    run_id = pruned(skill)
    stale = store.read()
    skill("restore_run", {"run_id": run_id})
    store.replace(stale)
    arguments = {"run_id": run_id} if function == "restore_run" else {"session_id": "main-a"}
    assert skill(function, arguments).exit_code == 0
    skill("restore_session", {"session_id": "main-b"})
    assert {n: v[1] for n, v in picture(agents).items()} == {n: v[1] for n, v in before.items()}


def test_what_a_gateway_deleted_after_the_restore_stays_deleted(agents: Path, skill: Skill) -> None:
    store = build(agents)
    run_id = pruned(skill)
    stale = store.read()
    skill("restore_run", {"run_id": run_id})
    store.replace(stale)
    for path in store.dir.glob("main-[ab]*.jsonl"):
        path.rename(f"{path}.deleted.2026-02-15T18-00-00.123Z")
    refused(skill, agents, "restore_session", {"session_id": "main-a"}, "not_restorable")
    before = picture(agents)
    document = skill("restore_run", {"run_id": run_id}).document
    assert (document["restored_count"], document["already_restored"]) == (0, 2)
    assert picture(agents) == before


def test_a_restored_session_that_was_reset_since_is_no_conflict(agents: Path, skill: Skill) -> None:
    """It had reappeared and been removed once more: one of its two removals has no file."""
    store = build(agents)
    run_id = pruned(skill)
    store.replace({**store.read(), "agent:main:cron:b": store.entries["agent:main:cron:b"]})
    again = skill("prune_sessions", NOTHING).document["run_id"]
    skill("restore_run", {"run_id": run_id})
    (store.dir / "main-b.jsonl").rename(store.dir / "main-b.jsonl.reset.2026-02-15T18-00-00.123Z")
    store.replace({**store.read(), "agent:main:cron:b": {"sessionId": "next", "updatedAt": now_ms()}})
    before = picture(agents)
    for run in (run_id, again):
        document = skill("restore_run", {"run_id": run}).document
        assert (document["restored_count"], document["skipped"]) == (0, [])
    assert picture(agents) == before


# --- history --------------------------------------------------------------------------------------------------------


def test_a_mark_that_waits_is_cancelled_and_a_delivered_one_reversed(
    agents: Path, skill: Skill, aria: SmallAria
) -> None:
    build(agents)
    aria.add_all(("main-a", "main-b"))
    heard = Skill(agents, ARIA_API_URL=aria.url)
    assert heard("delete_session", {"session_id": "main-a"}).document["pg_status_updated"] is True
    assert skill("delete_session", {"session_id": "main-b"}).document["pg_pending"] is True
    for session_id in ("main-b", "main-a"):
        document = heard("restore_session", {"session_id": session_id}).document
        assert document["pg_status_updated"] is True, document
        assert "pg_pending" not in document
    assert aria.ended() == set()
    # The end of main-b was never told, so neither is its return.
    assert aria.sent() == [("main", "main-a", "ended"), ("main", "main-a", "active")]
    assert ledger_sql(agents, "SELECT state FROM marks ORDER BY session_id") == [("delivered",), ("cancelled",)]


def test_a_reversed_mark_waits_for_a_service_that_is_down(agents: Path, skill: Skill, aria: SmallAria) -> None:
    build(agents)
    aria.add_all(("main-a", "main-b"))
    heard = Skill(agents, ARIA_API_URL=aria.url)
    run_id = pruned(heard)
    assert aria.ended() == {"main-a", "main-b"}
    document = skill("restore_run", {"run_id": run_id}).document
    assert (document["pg_updated"], document["pg_pending"], document["pg_status_updated"]) == (0, 2, False)
    assert document["pg_error"]
    assert heard("deliver_history").exit_code == 0
    assert aria.ended() == set()


# --- refused, and nothing changed -----------------------------------------------------------------------------------


def refused(skill: Skill, agents: Path, function: str, arguments: dict[str, Any], code: str, exit_code: int = 4) -> Any:
    before = picture(agents)
    ledger_before = ledger_sql(agents, "SELECT removal_id, state FROM removals ORDER BY 1")
    answer = skill(function, arguments)
    assert (answer.exit_code, answer.document["code"]) == (exit_code, code), answer.document
    assert picture(agents) == before
    assert ledger_sql(agents, "SELECT removal_id, state FROM removals ORDER BY 1") == ledger_before
    return answer.document


def test_a_key_that_another_session_has_by_now_is_named(agents: Path, skill: Skill) -> None:
    store = build(agents)
    run_id = pruned(skill)
    theirs = {"sessionId": "other-one", "updatedAt": now_ms()}
    store.replace({**store.read(), "agent:main:cron:a:run:1": theirs})
    document = refused(skill, agents, "restore_session", {"session_id": "main-a"}, "key_taken")
    assert "agent:main:cron:a:run:1" in document["error"]
    assert "other-one" in document["error"]
    document = refused(skill, agents, "restore_run", {"run_id": run_id}, "key_taken")
    assert [(c["id"], c["code"]) for c in document["conflicts"]] == [("main-a", "key_taken")]
    document = skill("restore_run", {"run_id": run_id, "skip_conflicts": True}).document
    assert document["restored_ids"] == ["main-b"]
    assert [(s["id"], s["code"]) for s in document["skipped"]] == [("main-a", "key_taken")]
    assert store.read()["agent:main:cron:a:run:1"] == theirs


def test_a_conflict_in_one_agent_changes_nothing_in_another(agents: Path, skill: Skill) -> None:
    build(agents, "main")
    other = build(agents, "other")
    run_id = pruned(skill)
    other.replace({**other.read(), "agent:other:cron:b": {"sessionId": "x", "updatedAt": now_ms()}})
    refused(skill, agents, "restore_run", {"run_id": run_id}, "key_taken")


def test_no_file_is_overwritten(agents: Path, skill: Skill) -> None:
    store = build(agents)
    run_id = pruned(skill)
    (store.dir / "main-a.jsonl").write_text("somebody's\n")
    assert "main-a.jsonl" in refused(skill, agents, "restore_session", {"session_id": "main-a"}, "file_exists")["error"]
    refused(skill, agents, "restore_run", {"run_id": run_id}, "file_exists")


def test_an_archive_that_is_gone_everywhere(agents: Path, skill: Skill) -> None:
    store = build(agents)
    pruned(skill)
    for path in (*store.dir.glob("main-a.jsonl.deleted.*"), *(agents / ".session_manager").rglob("main-a.jsonl.*")):
        path.unlink()
    document = refused(skill, agents, "restore_session", {"session_id": "main-a"}, "not_restorable")
    assert "is gone" in document["error"]


def test_an_entry_past_its_time(agents: Path, skill: Skill) -> None:
    build(agents)
    pruned(skill)
    ledger_sql(agents, LONG_AGO)
    ledger_sql(agents, "DELETE FROM chunks")
    document = refused(skill, agents, "restore_session", {"session_id": "main-a"}, "not_restorable")
    assert "ARIA_KEEP_DAYS" in document["error"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]"])
def test_a_damaged_index_is_left_alone(agents: Path, skill: Skill, damage: bytes) -> None:
    store = build(agents)
    run_id = pruned(skill)
    store.index.write_bytes(damage)
    refused(skill, agents, "restore_run", {"run_id": run_id}, "index_damaged", 7)
    refused(skill, agents, "restore_session", {"session_id": "main-a"}, "index_damaged", 7)


def test_of_several_agents_one_damaged_the_others_are_restored(agents: Path, skill: Skill) -> None:
    main, other = build(agents, "main"), build(agents, "other")
    run_id = pruned(skill)
    other.index.write_bytes(b"{")
    answer = skill("restore_run", {"run_id": run_id})
    assert (answer.exit_code, answer.document["code"]) == (3, "partial")
    assert [(e["agentId"], e["code"]) for e in answer.document["errors"]] == [("other", "index_damaged")]
    assert sorted(answer.document["restored_ids"]) == ["main-a", "main-b"]
    assert main.read() == main.entries


def test_a_folder_without_an_index(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", 300, "a")
    store.write()
    run_id = pruned(skill)
    store.index.unlink()
    refused(skill, agents, "restore_run", {"run_id": run_id}, "not_restorable")


def test_an_agent_that_is_gone(agents: Path, skill: Skill) -> None:
    store = build(agents)
    run_id = pruned(skill)
    store.dir.rename(agents / "elsewhere")
    refused(skill, agents, "restore_run", {"run_id": run_id}, "not_restorable")


# --- nothing to restore ---------------------------------------------------------------------------------------------


def test_what_lives_is_a_success_that_says_so(agents: Path, skill: Skill) -> None:
    build(agents)
    before = picture(agents)
    for session_id in ("main-a", "agent:main:cron:a"):
        document = skill("restore_session", {"session_id": session_id}).document
        assert (document["already_live"], document["restored_keys"], document["run_id"]) == (True, [], None)
    pruned(skill)
    skill("restore_session", {"session_id": "main-a"})
    assert skill("restore_session", {"session_id": "main-a"}).document["already_live"] is True
    skill("restore_session", {"session_id": "main-b"})
    assert picture(agents) == before


@pytest.mark.parametrize(
    ("function", "arguments", "code", "exit_code"),
    [
        ("restore_session", {"session_id": "nobody"}, "session_not_found", 5),
        ("restore_session", {"session_id": "agent:main:nobody"}, "session_not_found", 5),
        ("restore_session", {"session_id": "main-direct", "agent": "nobody"}, "agent_not_found", 5),
        ("restore_session", {"session_id": "../main-a"}, "bad_argument", 2),
        ("restore_session", {}, "bad_argument", 2),
        ("restore_run", {"run_id": "nothing"}, "run_not_found", 5),
        ("restore_run", {"run_id": 7}, "bad_argument", 2),
        ("restore_run", {}, "bad_argument", 2),
        ("restore_run", {"run": "x"}, "unknown_argument", 2),
    ],
)
@pytest.mark.parametrize("with_ledger", [True, False])
def test_bad_input(
    agents: Path,
    skill: Skill,
    with_ledger: bool,
    function: str,
    arguments: dict[str, Any],
    code: str,
    exit_code: int,
) -> None:
    build(agents)
    if with_ledger:
        pruned(skill)
    before = picture(agents, without_state=with_ledger)
    answer = skill(function, arguments)
    assert (answer.exit_code, answer.document["code"]) == (exit_code, code), answer.document
    # What waits is delivered by a call that fails, too; without a ledger there is nothing, and none is made.
    assert picture(agents, without_state=with_ledger) == before


def test_the_restored_run_can_be_told_from_the_restoring_one(agents: Path, skill: Skill) -> None:
    build(agents)
    restoring = skill("restore_run", {"run_id": pruned(skill)}).document["run_id"]
    document = refused(skill, agents, "restore_run", {"run_id": restoring}, "run_not_found", 5)
    assert restoring in document["error"]


def test_who_restored_is_in_the_ledger(agents: Path, skill: Skill) -> None:
    build(agents)
    run_id = pruned(skill)
    restoring = skill("restore_run", {"run_id": run_id}, ARIA_AGENT_ID="planner").document["run_id"]
    assert ledger_sql(agents, "SELECT function, asked_by FROM runs WHERE run_id = ?", restoring) == [
        ("restore_run", "planner")
    ]
    assert os.environ.get("ARIA_AGENT_ID") is None
