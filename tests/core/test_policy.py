"""The retention policy through the skill: what a prune takes by it, what it says beforehand, and pins everywhere."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import Skill, StoreBuilder, ledger_sql, now_ms, picture

from session_manager.functions import check_policy, prune_sessions
from session_manager.functions.context import Context
from session_manager.settings import read_settings
from session_manager.stores.openclaw_files.volume import Volume

REMOVERS: list[tuple[str, dict[str, Any]]] = [
    ("prune_sessions", {}),
    ("prune_sessions", {"max_age_minutes": 60}),
    ("prune_sessions", {"dry_run": True}),
    ("delete_session", {"session_id": "s"}),
    ("delete_sessions", {"session_type": "cron"}),
    ("delete_sessions", {"session_type": "cron", "dry_run": False, "force": True}),
    ("delete_session", {"session_id": "s", "force": True}),
    ("cleanup_after_delegation", {"session_id": "s"}),
    ("cleanup_orphans", {"older_than_minutes": 60}),
    ("cleanup_orphans", {"older_than_minutes": 60, "dry_run": False}),
    ("cleanup_ghosts", {"dry_run": False}),
    ("erase_session", {"session_id": "s", "confirm": "s"}),
    ("purge_archives", {}),
    ("purge_archives", {"dry_run": False}),
    ("check_policy", {}),
]


def write_policy(agents: Path, text: str) -> Path:
    path = agents / ".session_manager" / "session-manager.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def reasons(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in rows}


def sized(store: StoreBuilder, rest: str, age: float, session_id: str, size: int) -> None:
    """Adds a session whose transcript has so many bytes, and no time inside."""
    store.add(rest, age, session_id, transcript=False)
    (store.dir / f"{session_id}.jsonl").write_bytes(b"x" * size)


@pytest.fixture
def jobs(agents: Path) -> StoreBuilder:
    """Two cron jobs with runs, sub-agents and a conversation."""
    store = StoreBuilder(agents)
    for age in (1, 20, 300):
        sized(store, f"cron:a:run:a{age}", age, f"a{age}", 1000)
    sized(store, "cron:b:run:b5", 5, "b5", 1000)
    sized(store, "subagent:old", 90, "old", 3000)
    sized(store, "subagent:new", 2, "new", 5000)
    sized(store, "direct:ann", 99_999, "talk", 500)
    return store.write()


RULES = """
[types.cron]
max_age = "4h"
keep_newest = 1
keep_per = "job"

[types.subagent]
max_age = "1d"
budget = "6 KB"
"""


def test_a_prune_without_an_age_follows_the_policy(agents: Path, skill: Skill, jobs: StoreBuilder) -> None:
    path = write_policy(agents, RULES)
    checked = skill("check_policy").document
    preview = skill("prune_sessions", {"dry_run": True}).document
    document = skill("prune_sessions").document
    assert document["deleted_ids"] == preview["deleted_ids"] == ["a20", "a300", "old"]
    went = {"a20": "over count", "a300": "older than 240 min", "old": "over budget"}
    assert reasons(document["pruned"]) == reasons(preview["pruned"]) == reasons(checked["prune"]) == went
    assert (document["policy"], document["threshold_minutes"]) == (str(path), None)
    assert (document["total_sessions"], document["pruned_count"], document["kept_count"]) == (7, 3, 4)
    rows = ledger_sql(agents, "SELECT session_id, reason FROM removals")
    assert dict(rows) == went
    left = {entry["sessionId"] for entry in jobs.read().values()}
    assert left == {"a1", "b5", "new", "talk"}
    assert skill("prune_sessions").document["pruned_count"] == 0


def test_an_age_that_is_named_wins_over_the_rules(agents: Path, skill: Skill, jobs: StoreBuilder) -> None:
    write_policy(agents, RULES)
    document = skill("prune_sessions", {"max_age_minutes": 100}).document
    assert (document["deleted_ids"], document["threshold_minutes"]) == (["a300"], 100)
    assert "policy" not in document


def test_a_policy_that_only_pins_leaves_the_default_age(agents: Path, skill: Skill, jobs: StoreBuilder) -> None:
    write_policy(agents, '[pins]\nids = ["a300"]')
    document = skill("prune_sessions").document
    assert (document["deleted_ids"], document["threshold_minutes"]) == (["old"], 60)
    assert reasons(document["kept"])["a300"] == "pinned"


def test_a_type_and_a_limit_narrow_a_prune_by_policy(agents: Path, skill: Skill, jobs: StoreBuilder) -> None:
    write_policy(agents, RULES)
    document = skill("prune_sessions", {"session_type": "cron", "limit": 1}).document
    assert (document["deleted_ids"], document["total_sessions"]) == (["a300"], 4)
    assert reasons(document["kept"]) == {"a20": "limit"}
    refused = skill("prune_sessions", {"include_durable": True})
    assert (refused.exit_code, refused.document["code"]) == (2, "bad_argument")
    assert "max_age_minutes" in refused.document["error"]


def test_filters_show_a_part_of_what_the_policy_decides(agents: Path, skill: Skill, jobs: StoreBuilder) -> None:
    write_policy(agents, RULES)
    arguments = {"min_bytes": 2000, "dry_run": True, "details": True}
    plan = skill("prune_sessions", arguments).document["plan"]
    assert reasons(plan) == {"old": "over budget"}
    document = skill("prune_sessions", {"min_bytes": 2000}).document
    assert (document["deleted_ids"], document["total_sessions"]) == (["old"], 2)


def test_a_transcript_that_is_newer_than_its_entry_counts(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a:run:1", 50, "entry-newer")
    store.add("cron:a:run:2", 90, "inside-newer")
    at = store.entries["agent:main:cron:a:run:1"]["updatedAt"] + 60_000
    store.transcript("inside-newer.jsonl", "inside-newer", at)
    store.write()
    write_policy(agents, "types.cron.keep_newest = 1")
    assert skill("prune_sessions").document["deleted_ids"] == ["entry-newer"]


def test_the_check_says_what_and_why_and_writes_nothing(agents: Path, skill: Skill, jobs: StoreBuilder) -> None:
    (jobs.dir / "new.jsonl").write_bytes(b"x" * 7000)
    path = write_policy(agents, RULES + '[pins]\nids = ["new", "nowhere"]\nkeys = ["agent:main:cron:none"]')
    before = picture(agents, without_state=False)
    answer = skill("check_policy")
    document = answer.document
    assert answer.exit_code == 0
    assert picture(agents, without_state=False) == before
    assert (document["policy"], document["total_sessions"]) == (str(path), 7)
    assert (document["would_prune"], document["would_keep"], document["bytes_to_archive"]) == (3, 4, 5000)
    assert document["prune_reasons"] == {"over count": 1, "older than 240 min": 1, "over budget": 1}
    assert document["keep_reasons"] == {"within the rules": 2, "pinned": 1, "no rule": 1}
    assert reasons(document["keep"]) == {
        "a1": "within the rules", "b5": "within the rules", "new": "pinned", "talk": "no rule"
    }  # fmt: skip
    assert document["over_budget"] == [
        {
            "agentId": "main",
            "session_type": "subagent",
            "budget": 6000,
            "bytes": 7000,
            "over_by": 1000,
            "protected": 1,
            "message": "agent 'main': its subagent transcripts stay over budget by 1000 bytes because 1 session is "
            "protected",
        }
    ]
    assert document["unused_pins"] == {"ids": ["nowhere"], "keys": ["agent:main:cron:none"]}
    assert skill("check_policy", {"agent": "main"}).document["unused_pins"] is None


def test_without_a_policy_the_check_tells_of_the_default(agents: Path, skill: Skill, jobs: StoreBuilder) -> None:
    document = skill("check_policy").document
    assert (document["policy"], document["threshold_minutes"]) == (None, 60)
    assert document["prune_reasons"] == {"older than 60 min": 2}


def test_a_budget_is_each_agents_own(agents: Path, skill: Skill, jobs: StoreBuilder) -> None:
    other = StoreBuilder(agents, "other")
    sized(other, "cron:a:run:1", 500, "other-old", 6000)
    other.write()
    write_policy(agents, '[agents]\nbudget = "9 KB"')
    document = skill("prune_sessions").document
    assert reasons(document["pruned"]) == dict.fromkeys(["a300", "old"], "over budget")


@pytest.mark.parametrize("pins", ['ids = ["s"]', 'keys = ["agent:main:CRON:s"]', 'labels = ["keep me"]'])
def test_pins_hold_everywhere(agents: Path, skill: Skill, pins: str) -> None:
    store = StoreBuilder(agents)
    store.add("cron:s", 9999, "s", label="keep me")
    (store.dir / "s.jsonl").write_text('{"type":"session","version":3,"id":"s"}\n')
    store.add("cron:t", 9999, "t")
    store.write()
    write_policy(agents, f"[pins]\n{pins}")
    rows = skill("list_sessions").document["sessions"]
    assert {row["id"]: row["protected"] for row in rows} == {"s": "pinned", "t": None}
    assert skill("get_session_stats").document["prunable_sessions"] == 1
    for function in ("delete_session", "cleanup_after_delegation"):
        refused = skill(function, {"session_id": "s"})
        assert (refused.exit_code, refused.document["reason"]) == (4, "pinned")
    erasing = skill("erase_session", {"session_id": "s", "confirm": "s"}, ARIA_ALLOW_ERASE="1")
    assert (erasing.exit_code, erasing.document["reason"]) == (4, "pinned")
    ghosts = skill("cleanup_ghosts", {"dry_run": False}, ARIA_API_URL="").document
    assert reasons(ghosts["kept"]) == {"s": "pinned"}
    several = skill("delete_sessions", {"session_type": "cron", "label": "keep*", "dry_run": False}).document
    assert (several["deleted_ids"], reasons(several["kept"])) == ([], {"s": "pinned"})
    assert skill("show_session", {"session_id": "s"}).document["live"][0]["protected"] == "pinned"
    document = skill("prune_sessions", {"max_age_minutes": 1, "include_durable": True}).document
    assert (document["deleted_ids"], reasons(document["kept"])) == (["t"], {"s": "pinned"})
    assert {entry["sessionId"] for entry in store.read().values()} == {"s"}
    assert skill("delete_session", {"session_id": "s", "force": True}).exit_code == 0
    assert store.read() == {}


def test_a_pinned_id_holds_files_that_lost_their_entry(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    for session_id in ("pinned", "free", "x", "y", "z"):
        store.transcript(f"{session_id}.jsonl", session_id, 1_700_000_000_000)
    for session_id in ("x", "y", "z"):
        store.add(f"direct:{session_id}", 5, session_id, transcript=False)
    for session_id in ("dead", "pinned-dead"):
        store.add(f"cron:{session_id}", 9999, session_id, transcript=False)
    store.write()
    write_policy(agents, 'pins.ids = ["pinned", "pinned-dead"]')
    document = skill("cleanup_orphans", {"older_than_minutes": 60, "dry_run": False}).document
    assert [found["id"] for found in document["archived"]] == ["free"]
    assert [found["id"] for found in document["removed_entries"]] == ["dead"]
    assert reasons(document["kept"]) == {"pinned": "pinned", "pinned-dead": "pinned"}
    refused = skill("erase_session", {"session_id": "pinned", "confirm": "pinned"}, ARIA_ALLOW_ERASE="1")
    assert (refused.exit_code, refused.document["reason"]) == (4, "pinned")
    assert (store.dir / "pinned.jsonl").exists()


@pytest.mark.parametrize(("function", "arguments"), REMOVERS)
def test_a_bad_policy_stops_every_function_that_would_use_it(
    agents: Path, skill: Skill, function: str, arguments: dict[str, Any]
) -> None:
    store = StoreBuilder(agents)
    store.add("cron:s", 9999, "s")
    store.write()
    path = write_policy(agents, '[types.cron]\nmax_age = "0m"')
    before = picture(agents, without_state=False)
    answer = skill(function, arguments, ARIA_ALLOW_ERASE="1")
    assert (answer.exit_code, answer.document["code"]) == (2, "bad_policy")
    assert f"the retention policy {path} cannot be used: types.cron.max_age" in answer.document["error"]
    assert answer.document["path"] == str(path)
    assert picture(agents, without_state=False) == before


def test_reading_goes_on_beside_a_bad_policy_and_says_so(agents: Path, skill: Skill, jobs: StoreBuilder) -> None:
    write_policy(agents, "nonsense")
    listed, counted = skill("list_sessions"), skill("get_session_stats")
    for answer in (listed, counted, skill("show_session", {"session_id": "a1"})):
        assert answer.exit_code == 0
        assert "not valid TOML" in answer.document["policy_error"]
    assert (listed.document["session_count"], counted.document["total_sessions"]) == (7, 7)
    for function in ("list_deleted", "verify_ledger", "deliver_history"):
        assert skill(function).exit_code == 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: path.symlink_to("nowhere"), "cannot be read"),
        (lambda path: path.write_bytes(b'# \xff\n[pins]\nids = ["a"]'), "UTF-8"),
        (lambda path: path.write_bytes(b""), "empty"),
    ],
)
def test_a_file_that_is_no_policy_is_none_that_is_missing(agents: Path, skill: Skill, make: Any, says: str) -> None:
    StoreBuilder(agents).write()
    path = write_policy(agents, "")
    path.unlink()
    make(path)
    answer = skill("prune_sessions")
    assert (answer.exit_code, answer.document["code"]) == (2, "bad_policy")
    assert says in answer.document["error"]


def test_an_editor_may_begin_the_file_with_a_byte_order_mark(agents: Path, skill: Skill, jobs: StoreBuilder) -> None:
    write_policy(agents, "\ufeff" + RULES.replace("\n", "\r\n"))
    assert skill("prune_sessions", {"dry_run": True}).document["pruned_count"] == 3


def test_a_transcript_of_two_sessions_is_archived_and_counted_once(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    for name, age in (("a", 300), ("b", 200)):
        store.add(f"cron:{name}", age, name, transcript=False, sessionFile="a.jsonl")
    store.write()
    (store.dir / "a.jsonl").write_bytes(b"x" * 1000)
    for budget, count, size in (("1500 B", 0, 0), ("1000 B", 0, 0), ("999 B", 2, 1000)):
        write_policy(agents, f'[types.cron]\nbudget = "{budget}"')
        document = skill("check_policy").document
        assert (document["would_prune"], document["bytes_to_archive"], document["over_budget"]) == (count, size, [])
    write_policy(agents, '[types.cron]\nmax_age = "250m"')
    document = skill("check_policy").document
    assert (document["would_prune"], document["bytes_to_archive"]) == (1, 0)


def test_a_policy_that_somebody_named_must_be_there(
    agents: Path, skill: Skill, jobs: StoreBuilder, tmp_path: Path
) -> None:
    write_policy(agents, "nonsense")
    named = tmp_path / "other.toml"
    answer = skill("prune_sessions", ARIA_POLICY=str(named))
    assert (answer.exit_code, answer.document["code"]) == (2, "bad_policy")
    assert "ARIA_POLICY" in answer.document["error"]
    named.write_text(RULES)
    document = skill("prune_sessions", {"dry_run": True}, ARIA_POLICY=str(named)).document
    assert (document["policy"], document["pruned_count"]) == (str(named), 3)


def test_the_policy_lies_in_the_state_directory(agents: Path, skill: Skill, jobs: StoreBuilder, tmp_path: Path) -> None:
    write_policy(agents, "nonsense")
    state = tmp_path / "state"
    state.mkdir()
    (state / "session-manager.toml").write_text(RULES)
    document = skill("check_policy", ARIA_STATE_DIR=str(state)).document
    assert document["policy"] == str(state / "session-manager.toml")


def test_one_damaged_agent_does_not_keep_the_policy_from_the_others(
    agents: Path, skill: Skill, jobs: StoreBuilder
) -> None:
    broken = StoreBuilder(agents, "broken")
    broken.index.write_text("{")
    write_policy(agents, RULES)
    for function in ("check_policy", "prune_sessions"):
        answer = skill(function)
        assert (answer.exit_code, answer.document["code"]) == (3, "partial")
    assert answer.document["pruned_count"] == 3
    assert broken.index.read_text() == "{"
    assert json.dumps(answer.document)


_POLICIES = [
    RULES,
    '[types.cron]\nkeep_newest = 1\nbudget = "5 B"\n[pins]\nids = ["main-1", "other-2"]',
    '[types.subagent]\nmax_age = "2h"\nkeep_newest = 1\n[agents]\nbudget = "150 B"',
    '[types.direct]\nmax_age = "1m"\n[types.cron]\nbudget = "1 B"\n[agents]\nbudget = "100 B"',
]
_RESTS = ["main", "cron:j:run:1", "cron:j:run:2", "cron:k", "direct:p", "subagent:u", "subagent:u:subagent:v", "home"]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(_POLICIES),
    st.lists(
        st.tuples(
            st.sampled_from(["main", "other"]),
            st.sampled_from(_RESTS),
            st.sampled_from([0.1, 59, 61, 300, None]),
            st.sampled_from(
                [{}, {}, {"pinnedAt": 5}, {"spawnedBy": "agent:main:subagent:u"}, {"sessionFile": "shared.jsonl"}]
            ),
            st.integers(0, 90),
        ),
        max_size=10,
        unique_by=lambda row: row[:2],
    ),
    st.builds(
        prune_sessions.Arguments,
        agent=st.sampled_from([None, "main"]),
        session_type=st.sampled_from([None, "cron"]),
        limit=st.sampled_from([None, 1]),
    ),
)
def test_check_dry_run_and_run_agree_and_leave_nothing_to_do(
    policy: str, rows: list[tuple[Any, ...]], arguments: prune_sessions.Arguments
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        agents = Path(folder) / "agents"
        builders = {name: StoreBuilder(agents, name) for name in ("main", "other")}
        for i, (agent, rest, age, fields, size) in enumerate(rows):
            builders[agent].add(rest, age, f"{agent}-{i}", transcript=False, **fields)
            (builders[agent].dir / f"{agent}-{i}.jsonl").write_bytes(b"x" * size)
        for builder in builders.values():
            (builder.dir / "shared.jsonl").write_bytes(b"x" * 60)
            builder.write()
        write_policy(agents, policy)
        found, at = read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": ""}), now_ms()
        context = Context(found, Volume(found.agents_dir), lambda: at)
        before = picture(agents, without_state=False)
        checked = check_policy.run(context, check_policy.Arguments(agent=arguments.agent))
        would = prune_sessions.run(context, msgspec.structs.replace(arguments, dry_run=True))
        assert picture(agents, without_state=False) == before
        did = prune_sessions.run(context, arguments)
        for member in ("deleted_ids", "pruned", "kept", "total_sessions", "pruned_count", "kept_count", "errors"):
            assert did[member] == would[member]
        assert did["pruned_count"] + did["kept_count"] == did["total_sessions"]
        assert len(did["pruned"]) == did["pruned_count"]
        left = {entry["sessionId"] for builder in builders.values() for entry in builder.read().values()}
        there = {entry["sessionId"] for builder in builders.values() for entry in builder.entries.values()}
        assert there - left == set(did["deleted_ids"])
        if arguments.limit is None and arguments.session_type is None:
            assert reasons(checked["prune"]) == reasons(did["pruned"])
            assert checked["would_prune"] == did["pruned_count"]
            assert prune_sessions.run(context, arguments)["pruned_count"] == 0
