"""Sidecars and temporary files of sessions that are gone: classes of cleanup_orphans, archived like the rest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from forks import Forks
from support import Skill, StoreBuilder, now_ms
from test_faults import in_process

from session_manager.stores.openclaw_files import gateways

CLEANUP = "cleanup_orphans"
REAL = {"dry_run": False}
UUID = "6513270e-0b3c-4b8e-9a55-0123456789ab"
DEAD = 2**22 - 7
SIDECARS = [
    "{}.trajectory.jsonl",
    "{}.trajectory-path.json",
    f"{{}}.checkpoint.{UUID}.jsonl",
    f"{{}}.checkpoint.{UUID}.trajectory.jsonl",
    "{}.jsonl.codex-app-server.json",
    "{}.jsonl.bak-12-1771180200000",
    "{}-topic-7.trajectory.jsonl",
    f"{{}}.jsonl.repair-{DEAD}-1771180200000.tmp",
    "{}.jsonl.truncate-tmp",
    "{}.jsonl.manual-compaction-tmp",
]
TEMP = f"sessions.json.{DEAD}.{UUID}.tmp"


def leave(store: StoreBuilder, name: str, age_minutes: float = 5 * 1440) -> Path:
    path = store.dir / name
    path.write_text("left " + name)
    at = now_ms() / 1000 - age_minutes * 60
    os.utime(path, (at, at))
    return path


@pytest.fixture
def store(agents: Path) -> StoreBuilder:
    store = StoreBuilder(agents)
    store.add("cron:live", 300, "live", usageFamilySessionIds=["earlier"])
    return store.write()


def kept(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {k["id"]: (k["class"], k["reason"]) for k in document["kept"]}


def live_names(store: StoreBuilder) -> set[str]:
    return {name for name in store.names() if ".deleted." not in name}


@pytest.mark.parametrize("name", SIDECARS)
def test_a_sidecar_goes_when_its_session_is_gone(store: StoreBuilder, skill: Skill, name: str) -> None:
    gone, stays, earlier = (leave(store, name.format(whose)) for whose in ("gone", "live", "earlier"))
    content = gone.read_bytes()
    plan, done = skill(CLEANUP).document, skill(CLEANUP, REAL).document
    for document in (plan, done):
        assert [a["id"] for a in document["archived"]] == ["gone"]
        assert document["classes"]["sidecar"]["count"] + document["classes"]["partial"]["count"] >= 2
    assert not gone.exists()
    assert stays.exists()
    assert earlier.exists()
    (target,) = done["archived"][0]["files"]
    assert (store.dir / target).read_bytes() == content
    skill("restore_run", {"run_id": done["run_id"]})
    assert gone.read_bytes() == content


def test_the_young_and_what_lies_beside_its_transcript_stay(store: StoreBuilder, skill: Skill) -> None:
    leave(store, "young.trajectory.jsonl", 60)
    leave(store, "fresh.trajectory.jsonl")
    store.transcript("fresh.jsonl", "fresh", now_ms() - 60_000)
    leave(store, "topical.trajectory.jsonl")
    leave(store, "topical-topic-7.jsonl")
    before = live_names(store)
    document = skill(CLEANUP, REAL).document
    assert live_names(store) == before
    assert kept(document) == {"young": ("sidecar", "young"), "fresh": ("true_orphan", "young")}


def test_what_belongs_to_an_orphan_goes_and_comes_back_with_it(store: StoreBuilder, skill: Skill) -> None:
    store.transcript("lost.jsonl", "lost", now_ms() - 5 * 86_400_000)
    leave(store, "lost.trajectory.jsonl")
    assert [len(a["files"]) for a in skill(CLEANUP, REAL).document["archived"]] == [2]
    assert skill("restore_session", {"session_id": "lost"}).document["restored_files"] == [
        "lost.jsonl", "lost.trajectory.jsonl",
    ]  # fmt: skip


def test_a_leftover_is_in_the_way_of_no_conversation(store: StoreBuilder, skill: Skill) -> None:
    assert skill("delete_session", {"session_id": "live"}).exit_code == 0
    leave(store, "live.trajectory.jsonl")
    done = skill(CLEANUP, REAL).document
    assert [a["id"] for a in done["archived"]] == ["live"]
    restored = skill("restore_session", {"session_id": "live"}).document
    assert (restored["restored_keys"], restored["restored_files"]) == (["agent:main:cron:live"], ["live.jsonl"])


@pytest.mark.parametrize("name", [TEMP, f"sessions.json.{UUID}.tmp"])
def test_a_dead_writers_file_goes_and_history_hears_nothing(store: StoreBuilder, skill: Skill, name: str) -> None:
    path = leave(store, name)
    document = skill(CLEANUP, REAL).document
    assert [a["id"] for a in document["archived"]] == [name]
    assert not path.exists()
    assert (document["pg_pending"], skill("get_session_stats").document["pending_history_marks"]) == (0, 0)
    assert skill("purge_archives", {"dry_run": True}).exit_code == 0
    assert skill("restore_session", {"session_id": name}).document["restored_files"] == [name]


def test_a_running_writers_file_stays(store: StoreBuilder, agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "began", lambda pid: 0)
    alive = f"sessions.json.{os.getpid()}.{UUID}.tmp"
    leave(store, alive)
    leave(store, TEMP, 10)
    leave(store, f"gone.jsonl.repair-{os.getpid()}-1771180200000.tmp")
    before = live_names(store)
    document = in_process(agents, CLEANUP, {**REAL, "older_than_minutes": 1}).document
    assert live_names(store) == before
    assert kept(document) == {
        alive: ("partial", "busy"), TEMP: ("partial", "young"), "gone": ("partial", "busy"),
    }  # fmt: skip


@pytest.mark.parametrize("pid", ["1", "the caller's"])
def test_a_pid_that_another_process_has_by_now_keeps_nothing(store: StoreBuilder, skill: Skill, pid: str) -> None:
    """Each container has a pid 1, and a gateway that is started again often has the pid of the one before."""
    pid = str(os.getpid()) if pid != "1" else pid
    names = {f"sessions.json.{pid}.{UUID}.tmp", f"gone.jsonl.repair-{pid}-1771180200000.tmp"}
    for name in names:
        os.utime(leave(store, name), (1_700_000_000, 1_700_000_000))
    assert skill(CLEANUP, REAL).document["archived_count"] == 2
    assert names.isdisjoint(store.names())


@pytest.mark.parametrize("name", [".session_manager.12.0a1b2c3d4e5f.0123456789abcdef.index",
                                  ".session_manager.12.0a1b2c3d4e5f.part"])  # fmt: skip
def test_our_own_leftovers_are_counted_and_go(store: StoreBuilder, skill: Skill, name: str) -> None:
    path = leave(store, name)
    assert skill(CLEANUP).document["classes"]["own_temp"]["count"] == 1
    assert skill(CLEANUP, REAL).exit_code == 0
    assert not path.exists()


def test_an_index_that_was_lost_makes_no_leftovers(store: StoreBuilder, skill: Skill) -> None:
    leave(store, "live.trajectory.jsonl")
    store.index.write_text("{}")
    before = live_names(store)
    assert skill(CLEANUP, {**REAL, "older_than_minutes": 60}).document["code"] == "too_many_orphans"
    assert live_names(store) == before


BARE: dict[str, Any] = {"label": "nobody's", "note": "\u00e9"}


@pytest.fixture
def bare(store: StoreBuilder) -> StoreBuilder:
    """Entries without a session id: old ones, one of a person's main session, a young one, one of unknown age."""
    old = now_ms() - 5 * 86_400_000
    store.entries["agent:main:cron:bare"] = {**BARE, "updatedAt": old}
    store.entries["agent:main:hook:blank"] = {**BARE, "sessionId": "  ", "updatedAt": old}
    store.entries["agent:main:hook:null"] = {**BARE, "sessionId": None, "updatedAt": old}
    store.entries["agent:main:main"] = {**BARE, "updatedAt": old}
    store.entries["agent:main:cron:young"] = {**BARE, "updatedAt": now_ms()}
    store.entries["agent:main:cron:whenever"] = BARE
    store.entries["agent:main:cron:file"] = {**BARE, "updatedAt": old, "sessionFile": "live.jsonl"}
    return store.write()


GOING = ["agent:main:cron:bare", "agent:main:hook:blank", "agent:main:hook:null"]


def test_old_entries_without_a_session_id_go_and_come_back(bare: StoreBuilder, skill: Skill) -> None:
    before = bare.index.read_bytes()
    plan, done = skill(CLEANUP).document, skill(CLEANUP, REAL).document
    for document in (plan, done):
        assert [(e["id"], e["keys"]) for e in document["removed_entries"]] == [(key, [key]) for key in GOING]
        assert kept(document) == {
            "agent:main:main": ("entry_without_transcript", "main"),
            "agent:main:cron:young": ("entry_without_transcript", "young"),
            "agent:main:cron:whenever": ("entry_without_transcript", "unknown age"),
        }
    assert bare.read().keys() == bare.entries.keys() - GOING
    assert skill(CLEANUP, REAL).document["removed_entries_count"] == 0
    for key in GOING:
        assert skill("restore_session", {"session_id": key}).exit_code == 0
    assert bare.index.read_bytes() == before


def test_an_entry_without_a_session_id_that_is_written_meanwhile_stays(
    bare: StoreBuilder, skill: Skill, fork: Forks
) -> None:
    key = GOING[0]
    changed = bare.index.read_text().replace(f'"{key}": {{', f'"{key}": {{"n": 2, ')
    written = {"index swapped": (bare.index, changed)}
    document = fork(CLEANUP, REAL, meanwhile=written).document
    assert [e["id"] for e in document["removed_entries"]] == GOING[1:]
    assert bare.read()[key]["n"] == 2
    assert skill("verify_ledger").document["whole"] is True


@pytest.mark.parametrize("step", range(1, 16))
def test_killed_over_entries_without_a_session_id(bare: StoreBuilder, skill: Skill, fork: Forks, step: int) -> None:
    before = bare.index.read_bytes()
    fork(CLEANUP, REAL, kill_at=step)
    assert skill(CLEANUP, REAL).exit_code == 0
    assert bare.read().keys() == bare.entries.keys() - GOING
    for key in GOING:
        assert skill("restore_session", {"session_id": key}).exit_code == 0
    assert bare.index.read_bytes() == before
