"""Filters narrow list, prune and delete in the same way; show_session tells all of one session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_aria import SmallAria
from support import Skill, StoreBuilder, ledger_sql, picture

FILTERS: list[tuple[dict[str, Any], set[str]]] = [
    ({"label": "Heartbeat"}, {"beat"}),
    ({"label": "heart*"}, {"beat", "hearty"}),
    ({"label": "[x] *"}, {"boxed"}),
    ({"label": "eart"}, set()),
    ({"model": "gpt-?o"}, {"beat", "talk"}),
    ({"model": "GPT-4O", "session_type": "cron"}, {"beat"}),
    ({"min_bytes": 5000}, {"hearty"}),
    ({"empty": True}, {"boxed"}),
    ({"session_type": "direct"}, {"talk"}),
    ({"older_than_minutes": 60}, {"beat", "hearty", "boxed", "talk"}),
    ({"older_than_minutes": 60, "agent": "other"}, set()),
]


@pytest.fixture
def store(agents: Path) -> StoreBuilder:
    store = StoreBuilder(agents)
    store.add("cron:a", 120, "beat", label="heartbeat", model="gpt-4o")
    store.add("cron:b", 120, "hearty", label="Hearty", model="sonnet")
    store.add("subagent:c", 120, "boxed", label="[x] done", model="sonnet")
    store.add("direct:d", 120, "talk", model="gpt-4o")
    store.add("cron:e", 5, "young")
    store.add("main", 500, "mine", transcript=False)
    with (store.dir / "hearty.jsonl").open("a") as transcript:
        transcript.write('{"type":"custom"}\n' * 400)
    path = store.dir / "boxed.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    other = StoreBuilder(agents, "other")
    other.add("cron:o", 5, "elsewhere")
    other.write()
    return store.write()


@pytest.mark.parametrize(("given", "covered"), FILTERS)
def test_list_prune_and_delete_take_the_same_filters(
    store: StoreBuilder, skill: Skill, given: dict[str, Any], covered: set[str]
) -> None:
    listed = skill("list_sessions", given).document
    assert {s["id"] for s in listed["sessions"]} - {"mine"} == covered
    assert listed["session_count"] == len(listed["sessions"])
    deletion = skill("delete_sessions", given).document
    assert set(deletion["deleted_ids"]) == covered
    assert deletion["dry_run"] is True
    filters = {name: value for name, value in given.items() if name != "older_than_minutes"}
    prune = {**filters, "include_durable": True, "max_age_minutes": 60}
    would = skill("prune_sessions", {**prune, "dry_run": True}).document
    assert set(would["deleted_ids"]) == covered
    before = set(store.read())
    done = skill("prune_sessions", prune).document
    assert set(done["deleted_ids"]) == covered
    assert len(before) - len(store.read()) == len(covered)


def test_a_bulk_delete_removes_what_it_showed_and_can_be_taken_back(store: StoreBuilder, skill: Skill) -> None:
    before = picture(store.dir)
    given = {"label": "*", "agent": "main"}
    would = skill("delete_sessions", {**given, "details": True}).document
    assert picture(store.dir) == before
    assert {(r["id"], r["prune"], r["reason"]) for r in would["plan"]} == {
        (name, True, "asked for") for name in ("beat", "hearty", "boxed")
    }
    assert all(r["bytes"] > 0 for r in would["plan"])
    done = skill("delete_sessions", {**given, "dry_run": False})
    assert done.exit_code == 0
    assert (done.document["deleted_count"], set(done.document["deleted_ids"])) == (3, set(would["deleted_ids"]))
    assert len(ledger_sql(store.dir.parents[1], "SELECT 1 FROM attempts WHERE kind = 'remove'")) == 1
    back = skill("restore_run", {"run_id": done.document["run_id"]})
    assert back.document["restored_count"] == 3
    assert {n: v for n, v in picture(store.dir).items() if n != "sessions.json"} == {
        n: v for n, v in before.items() if n != "sessions.json"
    }


def test_a_bulk_delete_spares_what_is_protected_and_says_why(store: StoreBuilder, skill: Skill) -> None:
    given = {"agent": "main", "dry_run": False}
    done = skill("delete_sessions", given, ARIA_SESSION_ID="beat").document
    assert {(k["id"], k["reason"]) for k in done["kept"]} == {("mine", "main"), ("beat", "current")}
    assert done["total_sessions"] == done["deleted_count"] + done["kept_count"] == 6
    forced = skill("delete_sessions", {**given, "force": True}, ARIA_SESSION_ID="beat").document
    assert forced["deleted_ids"] == ["mine"]
    assert set(store.read()) == {"agent:main:cron:a"}


def test_a_bulk_delete_without_any_filter_is_refused(store: StoreBuilder, skill: Skill) -> None:
    before = picture(store.dir)
    for given in ({}, {"dry_run": False}, {"dry_run": False, "force": True, "limit": 3}):
        answer = skill("delete_sessions", given)
        assert (answer.exit_code, answer.document["code"]) == (2, "no_filter")
    assert picture(store.dir) == before


def test_named_sessions_go_in_one_call(store: StoreBuilder, skill: Skill, aria: SmallAria) -> None:
    other = StoreBuilder(store.dir.parents[1], "other")
    other.add("cron:o", 5, "elsewhere")
    other.add("cron:b", 5, "beat")
    other.write()
    aria.add_all(["beat", "hearty"])
    aria.add("beat", "other")
    aria.add("only-there")
    given = {"session_ids": ["main/beat", " 'AGENT:main:cron:B' ", "elsewhere", "hearty", "only-there"]}
    would = skill("delete_sessions", given)
    assert (would.exit_code, set(would.document["deleted_ids"])) == (3, {"beat", "hearty", "elsewhere"})
    done = skill("delete_sessions", {**given, "dry_run": False}, ARIA_API_URL=aria.url)
    assert (done.exit_code, set(done.document["deleted_ids"])) == (0, {"beat", "hearty", "elsewhere"})
    assert done.document["only_in_history"] == ["only-there"]
    assert {(row["agent_id"], row["metadata"]["aria_session_id"]) for row in aria.rows if row["status"] == "ended"} == {
        ("main", "beat"),
        ("main", "hearty"),
        ("main", "only-there"),
    }
    assert aria.count()["PATCH"] == 1
    assert len(ledger_sql(store.dir.parents[1], "SELECT 1 FROM attempts WHERE kind = 'remove'")) == 2
    assert {e["sessionId"] for e in other.read().values()} == {"beat"}
    again = skill("delete_sessions", {**given, "dry_run": False}, ARIA_API_URL=aria.url).document
    assert set(again["already_deleted"]) == {"beat", "hearty", "elsewhere", "only-there"} - {"only-there"}
    assert (again["deleted_count"], again["only_in_history"]) == (0, ["only-there"])


def test_of_named_sessions_each_that_stays_is_an_error(store: StoreBuilder, skill: Skill) -> None:
    given = {"session_ids": ["beat", "mine", "nobody", "hearty"], "dry_run": False}
    part = skill("delete_sessions", given, ARIA_SESSION_ID="hearty")
    assert (part.exit_code, part.document["deleted_ids"]) == (3, ["beat"])
    assert {(e["agentId"], e["id"], e["code"]) for e in part.document["errors"]} == {
        ("main", "mine", "session_protected"),
        ("main", "hearty", "session_protected"),
        (None, "nobody", "session_not_found"),
    }
    nothing = skill("delete_sessions", {"session_ids": ["mine"], "dry_run": False})
    assert (nothing.exit_code, nothing.document["reason"]) == (4, "main")
    unknown = skill("delete_sessions", {"session_ids": ["nobody", "noone"], "dry_run": False})
    assert (unknown.exit_code, unknown.document["code"], len(unknown.document["errors"])) == (5, "session_not_found", 2)
    forced = skill("delete_sessions", {"session_ids": ["mine"], "dry_run": False, "force": True})
    assert (forced.exit_code, forced.document["deleted_ids"]) == (0, ["mine"])


@pytest.mark.parametrize("function", ["list_sessions", "prune_sessions", "delete_sessions", "cleanup_orphans"])
def test_an_empty_list_is_neither_all_nor_none(store: StoreBuilder, skill: Skill, function: str) -> None:
    before = picture(store.dir)
    lists = ["session_ids", "agent"] if function == "cleanup_orphans" else ["session_ids", "session_type", "agent"]
    for argument in lists:
        answer = skill(function, {argument: []})
        assert (answer.exit_code, answer.document["argument"]) == (2, argument)
    assert skill("delete_sessions", {"session_ids": ["../x"]}).document["code"] == "bad_argument"
    assert picture(store.dir) == before


def test_several_types_and_agents_are_a_union(store: StoreBuilder, skill: Skill) -> None:
    given = {"session_type": ["cron", "direct"], "agent": ["other", "main", "other"]}
    listed = skill("list_sessions", given).document
    assert {s["id"] for s in listed["sessions"]} == {"beat", "hearty", "young", "talk", "elsewhere"}
    assert skill("list_sessions", {"session_type": ["cron", "corn"]}).exit_code == 2
    assert skill("get_session_stats", {"agent": ["other", "main"]}).document["by_agent"] == {"other": 1, "main": 6}
    pruned = skill("prune_sessions", given).document
    assert set(pruned["deleted_ids"]) == {"beat", "hearty", "talk"}
    rows = skill("list_deleted", {"agent": ["main", "other"], "limit": 2}).document
    assert (rows["deleted_count"], len(rows["deleted"])) == (3, 2)
    assert skill("list_deleted", {"agent": ["main", "gone"]}).document["code"] == "agent_not_found"


def test_a_limit_spares_the_newest_over_all_agents(store: StoreBuilder, skill: Skill) -> None:
    done = skill("delete_sessions", {"session_type": "cron", "limit": 2, "dry_run": False}).document
    assert (done["deleted_count"], done["total_sessions"]) == (2, 4)
    assert {k["reason"] for k in done["kept"]} == {"limit"}
    assert set(done["deleted_ids"]) == {"beat", "hearty"}


def test_one_damaged_agent_does_not_keep_the_others(store: StoreBuilder, skill: Skill, agents: Path) -> None:
    (agents / "other" / "sessions" / "sessions.json").write_text("{")
    answer = skill("delete_sessions", {"session_type": "cron", "dry_run": False})
    assert (answer.exit_code, answer.document["deleted_count"]) == (3, 3)
    assert [e["code"] for e in answer.document["errors"]] == ["index_damaged"]
    named = skill("delete_sessions", {"agent": "other", "dry_run": False})
    assert (named.exit_code, named.document["code"]) == (7, "index_damaged")


def test_sizes_are_there_when_asked_for(store: StoreBuilder, skill: Skill) -> None:
    assert all("bytes" not in s for s in skill("list_sessions").document["sessions"])
    sizes = {s["id"]: s["bytes"] for s in skill("list_sessions", {"sizes": True}).document["sessions"]}
    assert sizes["beat"] == (store.dir / "beat.jsonl").stat().st_size
    assert sizes["mine"] == 0


def test_the_plan_of_a_prune_says_what_goes_and_what_stays(store: StoreBuilder, skill: Skill) -> None:
    document = skill("prune_sessions", {"dry_run": True, "details": True}).document
    rows = {r["id"]: r for r in document["plan"]}
    assert {i for i, r in rows.items() if r["prune"]} == set(document["deleted_ids"])
    assert {(i, r["reason"]) for i, r in rows.items() if not r["prune"]} == {
        (k["id"], k["reason"]) for k in document["kept"]
    }
    assert (rows["talk"]["reason"], rows["beat"]["reason"]) == ("durable", "older than 60 min")
    assert rows["beat"]["bytes"] == (store.dir / "beat.jsonl").stat().st_size


def test_one_session_is_shown_live_and_removed(store: StoreBuilder, skill: Skill) -> None:
    by_key = skill("show_session", {"session_id": "agent:main:cron:a"}).document
    (live,) = by_key["live"]
    assert (live["id"], live["keys"], by_key["removed"]) == ("beat", ["agent:main:cron:a"], [])
    size = (store.dir / "beat.jsonl").stat().st_size
    assert (live["files"], live["bytes"]) == ({"beat.jsonl": size}, size)
    assert live["last_activity"] >= live["updatedAt"]
    run_id = skill("delete_session", {"session_id": "beat"}).document["run_id"]
    before = picture(store.dir.parents[1], without_state=False)
    gone = skill("show_session", {"session_id": "beat"}).document
    assert gone["live"] == []
    assert [(r["run_id"], r["state"], r["restorable"]) for r in gone["removed"]] == [(run_id, "removed", True)]
    assert {n: v for n, v in picture(store.dir.parents[1], without_state=False).items() if "-shm" not in n} == before
    unknown = skill("show_session", {"session_id": "nobody"})
    assert (unknown.exit_code, unknown.document["code"]) == (5, "session_not_found")


def test_a_session_shows_when_its_transcript_was_last_written(store: StoreBuilder, skill: Skill) -> None:
    store.transcript("beat.jsonl", "beat", 1_767_323_045_000)
    store.entries["agent:main:cron:a"]["updatedAt"] = 1_700_000_000_000
    store.write()
    (live,) = skill("show_session", {"session_id": "beat"}).document["live"]
    assert live["last_activity"] == "2026-01-02T03:04:05+00:00"
