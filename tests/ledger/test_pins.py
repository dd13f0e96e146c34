"""Pins set one by one, and the days in which a prune leaves alone what was brought back."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from service import cli
from support import Skill, StoreBuilder, ledger_sql, now_ms, picture

DAY_MS = 86_400_000
PRUNE = {"max_age_minutes": 60}


def kept_file(agents: Path) -> Path:
    return agents / ".session_manager" / "kept.json"


def days_pass(agents: Path, days: float) -> None:
    """What was brought back was brought back so long ago."""
    kept = json.loads(kept_file(agents).read_text())
    kept["restored"] = {name: at - int(days * DAY_MS) for name, at in kept["restored"].items()}
    kept_file(agents).write_text(json.dumps(kept))


@pytest.fixture
def store(agents: Path) -> StoreBuilder:
    store = StoreBuilder(agents)
    store.add("cron:a", 300, "old")
    store.add("subagent:b", 300, "child")
    store.add("cron:c", 5, "young")
    return store.write()


def test_what_an_undo_brought_back_stays_at_the_next_prune(store: StoreBuilder, agents: Path, skill: Skill) -> None:
    run_id = skill("prune_sessions", PRUNE).document["run_id"]
    assert skill("restore_run", {"run_id": run_id}).document["restored_count"] == 2
    before = picture(agents)
    for arguments in (PRUNE, {}, {**PRUNE, "session_type": "cron"}, {**PRUNE, "include_durable": True}):
        for dry_run in (True, False):
            document = skill("prune_sessions", {**arguments, "dry_run": dry_run}).document
            assert document["pruned_count"] == 0
            assert ("old", "restored") in {(k["id"], k["reason"]) for k in document["kept"]}
    assert skill("get_session_stats").document["prunable_sessions"] == 0
    assert skill("check_policy").document["keep_reasons"]["restored"] == 2
    assert picture(agents) == before
    days_pass(agents, 6.9)
    assert skill("prune_sessions", PRUNE).document["pruned_count"] == 0
    days_pass(agents, 0.2)
    assert set(skill("prune_sessions", PRUNE).document["deleted_ids"]) == {"old", "child"}


def test_how_long_is_the_time_in_which_an_undo_works(store: StoreBuilder, agents: Path, skill: Skill) -> None:
    skill("delete_session", {"session_id": "old"})
    skill("restore_session", {"session_id": "old"})
    days_pass(agents, 1.5)
    assert skill("prune_sessions", {**PRUNE, "dry_run": True}, ARIA_KEEP_DAYS="1").document["deleted_ids"] == [
        "old",
        "child",
    ]
    assert skill("prune_sessions", PRUNE, ARIA_KEEP_DAYS="2").document["deleted_ids"] == ["child"]


def test_a_policy_leaves_it_alone_too_and_a_delete_does_not(store: StoreBuilder, agents: Path, skill: Skill) -> None:
    (agents / ".session_manager").mkdir()
    (agents / ".session_manager" / "session-manager.toml").write_text(
        '[types.cron]\nmax_age = "1h"\nkeep_newest = 1\nbudget = "1 B"\n[types.subagent]\nmax_age = "1h"\n'
    )
    run_id = skill("prune_sessions").document["run_id"]
    skill("restore_run", {"run_id": run_id})
    document = skill("prune_sessions").document
    assert {k["reason"] for k in document["kept"] if k["id"] in ("old", "child")} == {"restored"}
    assert "old" not in document["deleted_ids"]
    gone = skill("delete_sessions", {"older_than_minutes": 60, "dry_run": False}).document
    assert {"old", "child"} <= set(gone["deleted_ids"])


def test_a_family_waits_for_its_member_that_was_brought_back(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("subagent:p", 300, "parent")
    store.add("subagent:p:subagent:c", 300, "child")
    store.write()
    skill("delete_session", {"session_id": "child"})
    skill("restore_session", {"session_id": "child"})
    kept = {k["id"]: k["reason"] for k in skill("prune_sessions", PRUNE).document["kept"]}
    assert kept == {"parent": "family", "child": "restored"}


def test_an_orphan_and_a_ghost_that_were_brought_back_stay(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:g", 300, "ghost")
    path = store.dir / "ghost.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    store.add("cron:x", 5, "other")
    store.add("cron:y", 5, "another")
    store.transcript("lost.jsonl", "lost", now_ms() - 3 * DAY_MS)
    store.write()
    for function, reason in (("cleanup_orphans", "lost"), ("cleanup_ghosts", "ghost")):
        run_id = skill(function, {"dry_run": False}).document["run_id"]
        assert skill("restore_run", {"run_id": run_id}).document["restored_ids"] == [reason]
        document = skill(function, {"dry_run": False}).document
        assert {(k["id"], k["reason"]) for k in document["kept"]} == {(reason, "restored")}


def test_a_namesake_in_another_agent_is_not_spared(store: StoreBuilder, agents: Path, skill: Skill) -> None:
    other = StoreBuilder(agents, "other")
    other.add("cron:a", 300, "old")
    other.write()
    skill("delete_session", {"session_id": "old", "agent": "main"})
    skill("restore_session", {"session_id": "old"})
    assert set(skill("prune_sessions", PRUNE).document["deleted_ids"]) == {"child", "old"}
    assert (len(other.read()), "agent:main:cron:a" in store.read()) == (0, True)


def test_a_pin_holds_in_every_remover(store: StoreBuilder, agents: Path, skill: Skill) -> None:
    first = skill("pin_session", {"session_id": "agent:main:cron:a"})
    assert (first.exit_code, first.document["pinned"], first.document["already_pinned"]) == (0, "old", False)
    assert skill("pin_session", {"session_id": "old"}, ARIA_AGENT_ID="x").document["already_pinned"] is True
    assert {s["id"]: s["protected"] for s in skill("list_sessions").document["sessions"]}["old"] == "pinned"
    assert skill("show_session", {"session_id": "old"}).document["live"][0]["pinned"] is True
    kept = {k["id"]: k["reason"] for k in skill("prune_sessions", PRUNE).document["kept"]}
    assert kept["old"] == "pinned"
    for function in ("delete_session", "cleanup_after_delegation"):
        answer = skill(function, {"session_id": "old"})
        assert (answer.exit_code, answer.document["reason"]) == (4, "pinned")
    erased = skill("erase_session", {"session_id": "old", "confirm": "old"}, ARIA_ALLOW_ERASE="1")
    assert (erased.exit_code, erased.document["reason"]) == (4, "pinned")
    many = skill("delete_sessions", {"session_type": "cron", "dry_run": False}).document
    assert {k["id"]: k["reason"] for k in many["kept"]} == {"old": "pinned"}
    (pin,) = skill("check_policy").document["pinned"]
    assert (pin["id"], pin["pinned_by"]) == ("old", None)
    assert skill("check_policy").document["unused_pins"] == {}
    # Removed on purpose it stays pinned: its archives are not purged.
    assert skill("delete_session", {"session_id": "old", "force": True}).exit_code == 0
    ledger_sql(agents, "UPDATE attempts SET created_at = ?", now_ms() - 40 * DAY_MS)
    purged = skill("purge_archives", {"dry_run": False}).document
    assert purged["pinned_count"] == 1
    assert any(name.startswith("old.jsonl.deleted.") for name in store.names())
    unpinned = skill("unpin_session", {"session_id": "old"}).document
    assert (unpinned["unpinned"], unpinned["was_pinned"], unpinned["still_pinned_by"]) == ("old", True, None)
    assert skill("purge_archives", {"dry_run": False}).document["purged_count"] == 1
    assert not any(name.startswith("old.jsonl.deleted.") for name in store.names())


def test_a_removed_session_can_be_pinned(store: StoreBuilder, skill: Skill) -> None:
    skill("delete_session", {"session_id": "old"})
    for named in ("old", "agent:main:cron:A"):
        document = skill("pin_session", {"session_id": named}).document
        assert (document["pinned"], document["live"], document["agents"]) == ("old", False, ["main"])
    unknown = skill("pin_session", {"session_id": "nobody"})
    assert (unknown.exit_code, unknown.document["code"]) == (5, "session_not_found")
    assert skill("unpin_session", {"session_id": "nobody"}).exit_code == 5


def test_an_unpin_says_who_else_pins_it(store: StoreBuilder, agents: Path, skill: Skill) -> None:
    store.add("cron:g", 300, "gateways", pinnedAt=1)
    store.write()
    policy = agents / ".session_manager" / "session-manager.toml"
    policy.parent.mkdir()
    policy.write_text("# mine\n[pins]\nkeys = ['agent:main:cron:a']\n")
    before = policy.read_bytes()
    skill("pin_session", {"session_id": "old"})
    for session_id, by in (("old", "policy"), ("gateways", "gateway"), ("young", None)):
        document = skill("unpin_session", {"session_id": session_id}).document
        assert (document["was_pinned"], document["still_pinned_by"]) == (session_id == "old", by)
        assert (by or "not pinned") in document["message"]
    assert policy.read_bytes() == before


@pytest.mark.parametrize("again", [False, True])
def test_a_restore_can_pin(store: StoreBuilder, skill: Skill, again: bool) -> None:
    run_id = skill("prune_sessions", PRUNE).document["run_id"]
    if again:
        skill("restore_run", {"run_id": run_id})
    assert skill("restore_run", {"run_id": run_id, "pin": True}).document["pinned"] is True
    assert {pin["id"] for pin in skill("check_policy").document["pinned"]} == {"old", "child"}
    skill("unpin_session", {"session_id": "old"})
    if not again:
        skill("delete_session", {"session_id": "old"})
    assert skill("restore_session", {"session_id": "agent:main:cron:a", "pin": True}).document["pinned"] is True
    assert {pin["id"] for pin in skill("check_policy").document["pinned"]} == {"old", "child"}


def test_an_erasure_forgets_the_pin(store: StoreBuilder, agents: Path, skill: Skill) -> None:
    skill("delete_session", {"session_id": "old"})
    skill("restore_session", {"session_id": "old", "pin": True})
    given = {"session_id": "old", "confirm": "old", "force": True}
    assert skill("erase_session", given, ARIA_ALLOW_ERASE="1").exit_code == 0
    assert b"old" not in kept_file(agents).read_bytes()


def test_nothing_is_removed_while_the_pins_cannot_be_read(store: StoreBuilder, agents: Path, skill: Skill) -> None:
    skill("pin_session", {"session_id": "old"})
    whole = kept_file(agents).read_bytes()
    calls: list[tuple[str, Any]] = [
        ("prune_sessions", PRUNE), ("prune_sessions", {"dry_run": True}), ("delete_session", {"session_id": "old"}),
        ("delete_sessions", {"session_type": "cron", "dry_run": False}), ("cleanup_orphans", {"dry_run": False}),
        ("cleanup_ghosts", {"dry_run": False}), ("purge_archives", {"dry_run": False}),
        ("pin_session", {"session_id": "child"}), ("unpin_session", {"session_id": "old"}), ("check_policy", {}),
    ]  # fmt: skip
    for text in (b"", whole[:-3], b"[]", b'{"pins": {"old": 5}}', b"\xff"):
        kept_file(agents).write_bytes(text)
        before = picture(agents, without_state=False)
        for function, arguments in calls:
            answer = skill(function, arguments)
            assert (answer.exit_code, answer.document["code"]) == (7, "pins_damaged"), (function, text)
        for function in ("list_sessions", "get_session_stats"):
            answer = skill(function)
            assert (answer.exit_code, "kept.json" in answer.document["policy_error"]) == (0, True)
        assert picture(agents, without_state=False) == before
    doctor = skill("doctor", ARIA_API_URL="")
    assert (doctor.exit_code, doctor.document["code"]) == (7, "pins_damaged")
    kept_file(agents).unlink()
    kept_file(agents).mkdir()
    assert skill("prune_sessions", PRUNE).document["code"] == "pins_damaged"


def test_what_a_killed_call_left_is_no_obstacle(store: StoreBuilder, agents: Path, skill: Skill) -> None:
    skill("pin_session", {"session_id": "old"})
    kept_file(agents).with_name("kept.json.tmp").write_text("{")
    assert skill("pin_session", {"session_id": "child"}).exit_code == 0
    assert kept_file(agents).stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in kept_file(agents).parent.iterdir()) == ["kept.json", "kept.json.lock"]
    assert {pin["id"] for pin in skill("check_policy").document["pinned"]} == {"old", "child"}


def test_pins_that_are_set_at_once_are_all_set(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    for i in range(8):
        store.add(f"cron:{i}", 300, f"s{i}")
    store.write()
    calls = [skill.start("pin_session", {"session_id": f"s{i}"}) for i in range(8)]
    assert [call.wait(120) for call in calls] == [0] * 8
    for call in calls:
        call.communicate()
    assert len(skill("check_policy").document["pinned"]) == 8


def test_the_commands(store: StoreBuilder, agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARIA_AGENTS_DIR", str(agents))
    assert cli("pin", "old").stdout == "Session old is pinned\n"
    assert "pinned: old\n" in cli("policy", "check").stdout
    assert cli("unpin", "old").stdout == "Session old is no longer pinned\n"
    cli("delete", "old", "child")
    assert cli("restore", "old", "--pin").returncode == 0
    run_id = json.loads(cli("deleted", "--json").stdout)["deleted"][0]["run_id"]
    assert json.loads(cli("undo", run_id, "--pin", "--json").stdout)["pinned"] is True
    assert {pin["id"] for pin in json.loads(cli("policy", "check", "--json").stdout)["pinned"]} == {"old", "child"}
    assert os.path.exists(kept_file(agents))
