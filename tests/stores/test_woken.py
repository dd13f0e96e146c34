"""A session that a message wakes while it is removed, or that lives by half, is one conversation afterwards."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from forks import Forks
from scene import marks
from support import Skill, StoreBuilder, ledger_sql, now_ms

KEY = "agent:main:explicit:x"
OLD, NEW = "MONTHS OF TALK", "THE NEW TURN"


def line(identifier: str, parent: str | None, text: str) -> str:
    at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    message = {"role": "user", "content": text}
    entry = {"type": "message", "id": identifier, "parentId": parent, "timestamp": at, "message": message}
    return json.dumps(entry, separators=(",", ":")) + "\n"


def header(session_id: str) -> str:
    return json.dumps({"type": "session", "version": 3, "id": session_id, "cwd": "/"}) + "\n"


def build(agents: Path) -> StoreBuilder:
    store = StoreBuilder(agents)
    store.add("main", 1, "m")
    store.add("explicit:x", 120, "s1", label="x")
    (store.dir / "s1.jsonl").write_text(header("s1") + line("a1", None, OLD) + line("a2", "a1", "old answer"))
    os.utime(store.dir / "s1.jsonl", (1, 1))
    return store.write()


def gateway_writes(store: StoreBuilder, *, transcript: str | None = None, **changes: Any) -> None:
    """A gateway that read the entry before writes it back with a new time, then begins a new transcript."""
    store.replace({**store.read(), KEY: {**store.entries[KEY], "updatedAt": now_ms(), **changes}})
    if transcript is not None:
        (store.dir / "s1.jsonl").write_text(transcript)


def new_turn() -> str:
    return header("s1") + line("b1", None, NEW) + line("b2", "b1", "new answer")


def told(path: Path) -> list[str]:
    """What a gateway reads: from the last entry up to the one without a parent, told from the first one on."""
    entries = {}
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    assert [i for i, entry in enumerate(lines) if entry["type"] == "session"] == [0]
    for entry in lines[1:]:
        assert entry["id"] not in entries
        entries[entry["id"]] = entry
        last = entry
    found = [last]
    while (parent := found[-1]["parentId"]) is not None:
        found.append(entries[parent])
    assert len(found) == len(entries)
    return [entry["message"]["content"] for entry in reversed(found)]


def assert_one_conversation(store: StoreBuilder) -> None:
    assert told(store.dir / "s1.jsonl") == [OLD, "old answer", NEW, "new answer"]
    assert not [name for name in store.names() if ".deleted." in name and name.startswith("s1")]
    second = store.dir.parents[1] / ".session_manager" / "archives"
    assert not list(second.rglob("s1*"))
    assert not [name for name in store.names() if name.startswith(".session_manager.") or name.endswith(".lock")]


def pruned(agents: Path, skill: Skill) -> StoreBuilder:
    store = build(agents)
    assert skill("prune_sessions").document["deleted_ids"] == ["s1"]
    return store


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("prune_sessions", {}),
        ("delete_sessions", {"session_type": "cron", "dry_run": False}),
        ("cleanup_orphans", {"dry_run": False}),
    ],
)
def test_a_later_call_joins_what_was_split(
    agents: Path, skill: Skill, function: str, arguments: dict[str, Any]
) -> None:
    store = pruned(agents, skill)
    gateway_writes(store, transcript=new_turn())
    document = skill(function, arguments).document
    (woken,) = document["woken"]
    assert (woken["agentId"], woken["id"], woken["whole"]) == ("main", "s1", True)
    assert_one_conversation(store)
    assert KEY in store.read()
    assert [r["state"] for r in skill("list_deleted").document["deleted"]] == ["restored"]
    assert "woken" not in skill("prune_sessions").document
    assert skill("verify_ledger").document["whole"] is True


def test_the_call_itself_looks_once_more(agents: Path, fork: Forks) -> None:
    store = build(agents)
    left = {**store.entries, KEY: {**store.entries[KEY], "updatedAt": now_ms()}}
    index = {"store let go": (store.index, json.dumps(left))}
    done = fork("prune_sessions", meanwhile=index)
    assert done.document["deleted_ids"] == []
    assert done.document["kept"] == [{"id": "s1", "agentId": "main", "reason": "active"}]
    # Its run may be about to begin.
    assert [w["whole"] for w in done.document["woken"]] == [False]
    assert [state for _, state in marks(agents).values()] == ["cancelled"]


def test_a_delete_whose_session_woke_up_is_refused(agents: Path, fork: Forks) -> None:
    store = build(agents)
    left = {**store.entries, KEY: {**store.entries[KEY], "updatedAt": now_ms()}}
    done = fork("delete_session", {"session_id": "s1"}, meanwhile={"store let go": (store.index, json.dumps(left))})
    assert (done.exit_code, done.document["code"]) == (4, "session_busy")
    assert [w["id"] for w in done.document["woken"]] == ["s1"]
    assert KEY in store.read()


def test_what_came_out_of_a_cache_goes_once_more_before_the_call_ends(agents: Path, fork: Forks) -> None:
    store = build(agents)
    written = {"store let go": (store.index, json.dumps(store.entries))}
    document = fork("prune_sessions", meanwhile=written).document
    assert (document["deleted_ids"], [r["id"] for r in document["reappeared"]]) == (["s1"], ["s1"])
    assert KEY not in store.read()


def test_before_its_run_shows_nothing_comes_back(agents: Path, skill: Skill) -> None:
    """Gateway 2026.6.11 ends a run that finds another transcript than before, and the message is lost."""
    store = pruned(agents, skill)
    gateway_writes(store)
    assert [w["whole"] for w in skill("prune_sessions").document["woken"]] == [False]
    assert "s1.jsonl" not in store.names()
    gateway_writes(store, updatedAt=now_ms() - 10_000)
    assert [w["whole"] for w in skill("prune_sessions").document["woken"]] == [True]
    assert told(store.dir / "s1.jsonl") == [OLD, "old answer"]


@pytest.mark.parametrize("how", ["locked", "about to run"])
def test_nothing_is_moved_under_a_run(agents: Path, skill: Skill, how: str) -> None:
    store = pruned(agents, skill)
    lock = store.dir / "s1.jsonl.lock"
    gateway_writes(store, transcript=new_turn())
    if how == "locked":
        lock.write_text(json.dumps({"pid": os.getpid(), "createdAt": "2026-02-15T18:00:00Z"}))
    else:
        gateway_writes(store, status="done", updatedAt=now_ms() + 60_000)
    before = (store.dir / "s1.jsonl").read_bytes()
    assert [w["whole"] for w in skill("prune_sessions").document["woken"]] == [False]
    assert (store.dir / "s1.jsonl").read_bytes() == before
    doctor = skill("doctor", ARIA_API_URL="").document
    (check,) = [c for c in doctor["checks"] if c["name"] == "woken main"]
    assert not check["ok"]
    assert "s1" in check["what"]
    lock.unlink(missing_ok=True)
    gateway_writes(store, updatedAt=now_ms() - 60_000)
    skill("prune_sessions")
    assert_one_conversation(store)


def test_restore_joins_it_when_asked(agents: Path, skill: Skill) -> None:
    store = pruned(agents, skill)
    gateway_writes(store, transcript=new_turn())
    answer = skill("restore_session", {"session_id": "s1"})
    assert (answer.exit_code, answer.document["transcript_restored"]) == (0, True)
    assert_one_conversation(store)


def test_a_headerless_transcript_goes_on_where_the_archive_ends(agents: Path, skill: Skill) -> None:
    """A run that was under way appends by path: its first entry names the archive's last one."""
    store = pruned(agents, skill)
    gateway_writes(store, transcript=line("b1", "a2", NEW) + line("b2", "b1", "new answer"))
    skill("prune_sessions")
    assert_one_conversation(store)


def test_a_removal_that_a_later_one_hides_is_found(agents: Path, skill: Skill, fork: Forks) -> None:
    """A gateway writes the key back twice: the second removal comes to nothing, the first has the files."""
    store = pruned(agents, skill)
    store.replace({**store.read(), KEY: store.entries[KEY]})
    alive = {**store.entries, KEY: {**store.entries[KEY], "updatedAt": now_ms() - 10_000}}
    written = {"index swapped": (store.index, json.dumps(alive))}
    document = fork("prune_sessions", {"max_age_minutes": 1_000_000}, meanwhile=written).document
    assert KEY in store.read()
    assert [w["whole"] for w in document["woken"]] == [True]
    assert told(store.dir / "s1.jsonl") == [OLD, "old answer"]


@pytest.mark.parametrize("age_ms", [10_000, 0])
def test_what_went_twice_comes_back_at_once(agents: Path, skill: Skill, age_ms: int) -> None:
    store = build(agents)
    runs = [skill("delete_session", {"session_id": "s1"}).document["run_id"]]
    store.replace({**store.read(), KEY: store.entries[KEY]})
    again = skill("prune_sessions", {"max_age_minutes": 10**6}).document
    assert [one["id"] for one in again["reappeared"]] == ["s1"]
    gateway_writes(store, transcript=new_turn(), updatedAt=now_ms() - age_ms)
    assert [one["id"] for one in skill("prune_sessions", {"max_age_minutes": 10**6}).document["woken"]] == ["s1"]
    for run_id in (*runs, again["run_id"]):
        answer = skill("restore_run", {"run_id": run_id})
        assert answer.exit_code == 0, answer.document


def test_a_backup_of_the_index_brings_the_files_back(agents: Path, skill: Skill) -> None:
    store = pruned(agents, skill)
    store.replace(store.entries)
    os.utime(store.index, (now_ms() / 1000 - 3600, now_ms() / 1000 - 3600))
    document = skill("prune_sessions", {"max_age_minutes": 1_000_000}).document
    assert [w["whole"] for w in document["woken"]] == [True]
    assert told(store.dir / "s1.jsonl") == [OLD, "old answer"]


def test_who_is_old_again_comes_back_and_goes_whole(agents: Path, skill: Skill) -> None:
    store = pruned(agents, skill)
    gateway_writes(store, transcript=new_turn(), updatedAt=now_ms() - 59 * 60_000)
    document = skill("delete_session", {"session_id": "s1"}).document
    (archive,) = document["archived_files"]
    assert told(store.dir / archive) == [OLD, "old answer", NEW, "new answer"]


def test_no_archive_of_a_living_session_is_purged_or_loses_its_second_name(agents: Path, skill: Skill) -> None:
    store = pruned(agents, skill)
    (archive,) = [name for name in store.names() if ".deleted." in name]
    gateway_writes(store, status="running", startedAt=now_ms())
    (store.dir / "s1.jsonl.lock").write_text(json.dumps({"pid": os.getpid(), "createdAt": "2026-02-15T18:00:00Z"}))
    long_ago = 40 * 86_400_000
    ledger_sql(agents, "UPDATE attempts SET created_at = created_at - ?", long_ago)
    runs = agents / ".session_manager" / "archives"
    (run,) = runs.iterdir()
    run.rename(runs / f"{now_ms() - long_ago:012x}-{run.name[13:]}")
    for dry_run in (True, False):
        document = skill("purge_archives", {"dry_run": dry_run, "older_than_days": 1}).document
        assert (document["purged_count"], document["live_count"]) == (0, 1)
    skill("prune_sessions")
    assert archive in store.names()
    assert [path.name for path in runs.rglob("*.deleted.*")] == [archive]


def test_what_was_written_after_a_removal_goes_and_comes_back_with_the_session(agents: Path, skill: Skill) -> None:
    """Gateway 2026.2.17, when a session is removed between the update of its entry and its run."""
    store = pruned(agents, skill)
    (store.dir / "s1.jsonl").write_text(new_turn())
    assert "s1.jsonl" in store.names()
    doctor = skill("doctor", ARIA_API_URL="").document
    assert [c["ok"] for c in doctor["checks"] if c["name"] == "strays main"] == [False]
    skill("prune_sessions")
    assert "s1.jsonl" in store.names(), "it may still be written to"
    os.utime(store.dir / "s1.jsonl", (now_ms() / 1000 - 60, now_ms() / 1000 - 60))
    skill("prune_sessions")
    assert "s1.jsonl" not in store.names()
    assert skill("restore_session", {"session_id": "s1"}).exit_code == 0
    assert_one_conversation(store)


@pytest.mark.parametrize("where", ["here", "windows", "in another agent"])
def test_what_another_sessions_entry_names_is_not_the_removed_sessions(agents: Path, skill: Skill, where: str) -> None:
    store = pruned(agents, skill)
    path = store.dir / "s1.jsonl"
    path.write_text(new_turn())
    os.utime(path, (now_ms() / 1000 - 60, now_ms() / 1000 - 60))
    other = StoreBuilder(agents, "analyst") if where == "in another agent" else store
    names = {"here": "s1.jsonl", "windows": r"C:\.openclaw\agents\main\sessions\s1.jsonl"}
    file = names.get(where, "../../main/sessions/s1.jsonl")
    store.entries.pop(KEY)
    other.add("direct:ann", 1, "s2", transcript=False, sessionFile=file)
    other.write()
    before = path.stat()
    assert [c for c in skill("doctor", ARIA_API_URL="").document["checks"] if c["name"].startswith("strays")] == []
    for function in ("prune_sessions", "delete_session", "cleanup_orphans"):
        skill(function, {"session_id": "s1"} if function == "delete_session" else {})
        # Not even moved and given back: the gateway appends by path.
        assert path.stat().st_ctime_ns == before.st_ctime_ns, function


def test_it_comes_back_with_the_session_before_it_is_quiet(agents: Path, skill: Skill) -> None:
    store = pruned(agents, skill)
    (store.dir / "s1.jsonl").write_text(new_turn())
    assert skill("restore_session", {"session_id": "s1"}).exit_code == 0
    assert_one_conversation(store)


@pytest.mark.parametrize("limit", range(1, 25))
def test_killed_while_it_joins(agents: Path, fork: Forks, skill: Skill, limit: int) -> None:
    store = pruned(agents, skill)
    gateway_writes(store, transcript=new_turn())
    first = fork("prune_sessions", kill_at=limit)
    text = "".join(path.read_text() for path in agents.rglob("*s1.jsonl*"))
    assert OLD in text
    assert NEW in text
    for _ in range(2):
        skill("prune_sessions")
    assert_one_conversation(store), first.steps
