"""readopt_orphans: transcripts that lost their entry get a new one, and an index that cannot be read is replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, Skill, StoreBuilder, now_ms, picture

from session_manager.core.jsonscan import scan_beginning, scan_object
from session_manager.core.keys import parse_key
from session_manager.functions import load
from session_manager.functions.context import Context
from session_manager.functions.readopt_orphans import Arguments
from session_manager.settings import read_settings
from session_manager.stores.openclaw_files.volume import Volume

READOPT = "readopt_orphans"
REAL = {"dry_run": False}
REBUILD = {"dry_run": False, "rebuild": True}
UUID = "6513270E-0b3c-4b8e-9a55-0123456789ab"
OLD = 90 * 60_000


def build(agents: Path, agent: str = "main") -> StoreBuilder:
    store = StoreBuilder(agents, agent)
    store.add("main", 300, f"{agent}-m", label="schön 📈", big=12345678901234567890)
    store.add("telegram:direct:1", 300, f"{agent}-d")
    store.transcript(f"{UUID}.jsonl", UUID, now_ms() - OLD)
    return store.write()


def damaged(store: StoreBuilder) -> list[Path]:
    return sorted(store.dir.glob("sessions.json.damaged.*"))


def in_process(agents: Path, **arguments: Any) -> dict[str, Any]:
    settings = read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": ""})
    return load(READOPT).run(Context(settings, Volume(str(agents)), now_ms), Arguments(dry_run=False, **arguments))


def test_a_dry_run_is_the_default_and_changes_nothing(agents: Path, skill: Skill) -> None:
    store = build(agents)
    before = picture(agents, without_state=False)
    document = skill(READOPT).document
    assert [(a["id"], a["file"]) for a in document["adopted"]] == [(UUID, f"{UUID}.jsonl")]
    assert picture(agents, without_state=False) == before
    store.index.write_bytes(b"")
    before = picture(agents, without_state=False)
    assert skill(READOPT, {"rebuild": True}).document["adopted_count"] == 3
    assert picture(agents, without_state=False) == before


def test_a_transcript_gets_its_entry_back(agents: Path, skill: Skill) -> None:
    store = build(agents)
    text = store.index.read_bytes()
    plan = skill(READOPT).document["adopted"]
    document = skill(READOPT, REAL).document
    assert document["adopted"] == plan
    assert "run_id" in document
    key = f"agent:main:dashboard:{UUID.lower()}"
    entry = store.read()[key]
    at = int((store.dir / f"{UUID}.jsonl").stat().st_mtime * 1000)
    assert entry["sessionId"] == UUID
    assert abs(entry["updatedAt"] - at) < 5
    assert abs(entry["sessionStartedAt"] - at) < 5
    assert store.index.read_bytes().startswith(text[:-2])
    assert store.index.read_text() == json.dumps(store.read(), indent=2, ensure_ascii=False)
    assert (store.index.stat().st_mode & 0o777) == 0o600
    rows = {r["id"]: r for r in skill("list_sessions").document["sessions"]}
    assert rows[UUID]["session_type"] == "ui"
    assert skill("prune_sessions", {"dry_run": True}).document["deleted_ids"] == []
    assert skill(READOPT, REAL).document["adopted_count"] == 0
    assert store.names() == {"sessions.json", "main-m.jsonl", "main-d.jsonl", f"{UUID}.jsonl"}


def test_which_transcripts_get_none(agents: Path, skill: Skill) -> None:
    store = build(agents)
    (store.dir / "headless.jsonl").write_bytes(b'{"type":"message"}\n')
    (store.dir / "garbage.jsonl").write_bytes(b"\xff\xfe\n")
    (store.dir / "empty.jsonl").write_bytes(b"")
    store.transcript("hostile.jsonl", "../../etc/passwd", now_ms() - OLD)
    store.transcript("busy.jsonl", "busy", now_ms() - OLD)
    lock = {"pid": os.getpid(), "createdAt": "2026-02-15T18:00:00.000Z"}
    (store.dir / "busy.jsonl.lock").write_text(json.dumps(lock))
    store.transcript(f"2026-11-20T23-29-08-931Z_{UUID}.jsonl", UUID, now_ms() - OLD)
    (store.dir / "linked.jsonl").symlink_to("/etc/passwd")
    document = skill(READOPT, REAL).document
    assert [a["file"] for a in document["adopted"]] == [f"{UUID}.jsonl"]
    assert {s["file"]: s["reason"] for s in document["skipped"]} == {
        "headless.jsonl": "no header",
        "garbage.jsonl": "no header",
        "empty.jsonl": "no header",
        "hostile.jsonl": "unsafe id",
        "busy.jsonl": "busy",
        f"2026-11-20T23-29-08-931Z_{UUID}.jsonl": "another file of the session was taken",
    }
    assert len(store.read()) == 3


def test_other_names_are_written_down_and_keys_are_never_taken_twice(agents: Path, skill: Skill) -> None:
    store = build(agents)
    store.entries["agent:main:dashboard:topical"] = {"sessionId": "main-d"}
    store.write()
    store.transcript("topical-topic-7.jsonl", "topical", now_ms() - OLD)
    store.transcript("2026-11-20T23-29-08-931Z_stamped.jsonl", "stamped", now_ms() - OLD)
    adopted = {a["id"]: a for a in skill(READOPT, REAL).document["adopted"]}
    assert adopted["topical"]["key"] == "agent:main:dashboard:topical-2"
    entries = store.read()
    assert entries["agent:main:dashboard:topical"] == {"sessionId": "main-d"}
    assert entries["agent:main:dashboard:topical-2"]["sessionFile"] == "topical-topic-7.jsonl"
    assert entries["agent:main:dashboard:stamped"]["sessionFile"] == "2026-11-20T23-29-08-931Z_stamped.jsonl"
    assert all(parse_key(a["key"]).agent_id == "main" for a in adopted.values())
    assert skill(READOPT).document["adopted_count"] == 0
    assert skill("cleanup_orphans").document["classes"]["topic_file"]["count"] == 0


def test_one_session_only(agents: Path, skill: Skill) -> None:
    store = build(agents)
    store.transcript("two.jsonl", "two", now_ms() - OLD)
    assert [a["id"] for a in skill(READOPT, {**REAL, "session_id": "two"}).document["adopted"]] == ["two"]
    for missing in ("two", "main-m", "nobody"):
        answer = skill(READOPT, {**REAL, "session_id": missing})
        assert (answer.exit_code, answer.document["code"]) == (5, "session_not_found")
    assert skill(READOPT, {"session_id": "../x"}).exit_code == 2
    assert len(store.read()) == 3


# Damaged indexes.


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\0" * 50, b'{"a": 1'])
def test_without_rebuild_a_damaged_index_is_left_alone(agents: Path, skill: Skill, text: bytes) -> None:
    store, other = build(agents), build(agents, "other")
    store.index.write_bytes(text)
    before = picture(agents / "main")
    answer = skill(READOPT, {**REAL, "agent": "main"})
    assert (answer.exit_code, answer.document["code"]) == (7, "index_damaged")
    assert "rebuild: true" in answer.document["error"]
    assert skill(READOPT, REAL).exit_code == 3
    assert picture(agents / "main") == before
    assert len(other.read()) == 3


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\0" * 50])
def test_a_rebuilt_index_knows_every_transcript(agents: Path, skill: Skill, text: bytes) -> None:
    store = build(agents)
    store.index.write_bytes(text)
    store.index.chmod(0o640)
    document = skill(READOPT, REBUILD).document
    (kept,) = damaged(store)
    assert document["damaged_kept_as"] == [{"agentId": "main", "file": kept.name}]
    assert kept.read_bytes() == text
    assert {e["sessionId"] for e in store.read().values()} == {UUID, "main-m", "main-d"}
    assert (store.index.stat().st_mode & 0o777) == 0o640
    assert skill("list_sessions").document["session_count"] == 3
    assert skill("cleanup_orphans", REAL).document["classes"]["true_orphan"]["count"] == 0
    assert store.names() == {"sessions.json", kept.name, "main-m.jsonl", "main-d.jsonl", f"{UUID}.jsonl"}


def test_a_missing_index_is_rebuilt_for_its_owner_alone(agents: Path, skill: Skill) -> None:
    store = build(agents)
    store.index.unlink()
    assert skill(READOPT, REBUILD).document["adopted_count"] == 3
    assert damaged(store) == []
    assert (store.index.stat().st_mode & 0o777) == 0o600
    assert len(store.read()) == 3


def test_what_is_whole_before_the_damage_comes_back_byte_for_byte(agents: Path, skill: Skill) -> None:
    store = build(agents)
    text = store.index.read_bytes()
    cut = text.index(b"telegram:direct:1") + 30
    store.index.write_bytes(text[:cut])
    document = skill(READOPT, REBUILD).document
    assert (document["salvaged_entries"], document["adopted_count"]) == (1, 2)
    whole = text[: text.index(b',\n  "agent:main:telegram')]
    assert store.index.read_bytes().startswith(whole)
    assert store.read()["agent:main:main"] == store.entries["agent:main:main"]


@pytest.mark.parametrize("cut", range(0, 60, 3))
def test_the_beginning_of_an_object_is_a_part_of_it(cut: int) -> None:
    text = b'{"a": {"x": [1, "}"]}, "b\\"": {}, "a": {"y": 2}, "n": 12}'
    whole = [(text[m.key_start : m.key_end], text[m.value_start : m.value_end]) for m in scan_object(text)]
    found = [(text[m.key_start : m.key_end], text[m.value_start : m.value_end]) for m in scan_beginning(text[:cut])]
    assert [m for m in found if m[1].startswith(b"{")] == [m for m in whole[: len(found)] if m[1].startswith(b"{")]


def test_a_healthy_index_is_not_rebuilt(agents: Path, skill: Skill) -> None:
    store = build(agents)
    text = store.index.read_bytes()
    skill(READOPT, REBUILD)
    assert store.index.read_bytes().startswith(text[:-2])
    assert damaged(store) == []


# Races and kills.


@pytest.mark.parametrize("when", ["index prepared", "intent written", "index swapped"])
def test_a_gateway_that_writes_meanwhile_loses_nothing(
    agents: Path, at: Callable[[str, Callable[[], object]], None], when: str
) -> None:
    store = build(agents)
    theirs = {**store.entries, "agent:main:direct:new": {"sessionId": "new", "updatedAt": now_ms()}}
    at(when, lambda: store.replace(theirs))
    assert in_process(agents)["adopted_count"] == 1
    assert store.read() == {**theirs, f"agent:main:dashboard:{UUID.lower()}": store.read().get(
        f"agent:main:dashboard:{UUID.lower()}")}  # fmt: skip
    assert store.read()[f"agent:main:dashboard:{UUID.lower()}"]["sessionId"] == UUID


def test_a_gateway_that_adopts_it_meanwhile_wins(agents: Path, at: Callable[[str, Callable[[], object]], None]) -> None:
    store = build(agents)
    theirs = {**store.entries, "agent:main:direct:back": {"sessionId": UUID, "updatedAt": now_ms()}}
    at("intent written", lambda: store.replace(theirs))
    assert in_process(agents)["adopted_count"] == 0
    assert store.read() == theirs


@pytest.mark.parametrize("when", ["rebuilt index prepared", "damaged index kept"])
def test_an_index_that_heals_meanwhile_is_not_replaced(
    agents: Path, at: Callable[[str, Callable[[], object]], None], when: str
) -> None:
    store = build(agents)
    store.index.write_bytes(b"{")
    at(when, lambda: store.replace(store.entries))
    document = in_process(agents, rebuild=True)
    assert [a["id"] for a in document["adopted"]] == [UUID]
    left = store.read()
    assert {k: left[k] for k in store.entries} == store.entries


KILL_AT = [sys.executable, str(ROOT / "tests/kill_at.py")]


def run_until(skill: Skill, limit: int, log: Path, arguments: dict[str, Any]) -> tuple[int, list[str]]:
    log.unlink(missing_ok=True)
    log.touch()
    done = subprocess.run(
        [*KILL_AT, str(limit), str(log), READOPT, json.dumps(arguments)],
        env=skill.environment(), capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, log.read_text().splitlines()


@pytest.mark.parametrize("broken", [None, b"{", b""])
@pytest.mark.parametrize("limit", range(1, 6))
def test_killed_at_a_step(agents: Path, skill: Skill, tmp_path: Path, limit: int, broken: bytes | None) -> None:
    store = build(agents)
    if broken is not None:
        store.index.write_bytes(broken)
    code, seen = run_until(skill, limit, tmp_path / "steps", REBUILD)
    assert code in (0, -signal.SIGKILL)
    assert code == -signal.SIGKILL or limit > len(seen)
    again = skill(READOPT, REBUILD)
    assert again.exit_code == 0, again.document
    assert skill("prune_sessions", {"max_age_minutes": 10**6}).exit_code == 0
    left = store.read()
    assert {e["sessionId"] for e in left.values()} == {UUID, "main-m", "main-d"}
    assert len(left) == 3
    kept = damaged(store)
    assert {p.read_bytes() for p in kept} == ({broken} if broken is not None else set())
    assert store.names() - {p.name for p in kept} == {"sessions.json", "main-m.jsonl", "main-d.jsonl", f"{UUID}.jsonl"}


def test_an_open_attempt_and_a_damaged_index(agents: Path, skill: Skill, tmp_path: Path) -> None:
    """A cleanup was killed, then the index broke: rebuilding comes first, then the files get their names back."""
    store = build(agents)
    text = store.index.read_bytes()
    log = tmp_path / "steps"
    log.touch()
    store.transcript("lost.jsonl", "lost", now_ms() - 3 * 86_400_000)
    subprocess.run(
        [*KILL_AT, "4", str(log), "cleanup_orphans", json.dumps(REAL)],
        env=skill.environment(), capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert log.read_text().splitlines()[-1] == "file archived"
    store.index.write_bytes(text[:-3])
    assert skill(READOPT, {**REAL, "agent": "main"}).exit_code == 7
    document = skill(READOPT, REBUILD).document
    assert document["recovered"][0]["undone"] == ["lost"]
    assert (store.dir / "lost.jsonl").exists()
    assert [a["id"] for a in skill(READOPT, REAL).document["adopted"]] == ["lost"]
