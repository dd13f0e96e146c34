"""cleanup_orphans on whole stores: what goes, what stays, races, kills, refusals."""

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
from support import CLOSED_API, ROOT, Skill, StoreBuilder, now_ms, picture

from session_manager.archives.names import parse_archive
from session_manager.faces import runner
from session_manager.functions import load
from session_manager.functions.cleanup_orphans import Arguments
from session_manager.functions.context import Context
from session_manager.settings import read_settings
from session_manager.stores.openclaw_files.volume import Volume

CLEANUP = "cleanup_orphans"
REAL = {"dry_run": False}
DAYS = 1440
STAMP = "2026-11-20T23-29-08.931Z"


def build(agents: Path, agent: str = "main", living: int = 4, orphans: int = 2) -> StoreBuilder:
    """A store with living sessions and old orphans named ``lost-0`` …"""
    store = StoreBuilder(agents, agent)
    for i in range(living):
        store.add(f"cron:job-{i}", 300, f"{agent}-live-{i}")
    for i in range(orphans):
        lose(store, f"lost-{i}")
    return store.write()


def lose(store: StoreBuilder, session_id: str, age_minutes: float = 3 * DAYS, name: str | None = None) -> Path:
    return store.transcript(name or f"{session_id}.jsonl", session_id, now_ms() - int(age_minutes * 60_000))


def archived(store: StoreBuilder) -> set[str]:
    """Names that files had before they were archived as deleted."""
    found = [parse_archive(n) for n in store.names()]
    return {a[0] for a in found if a is not None and a[1] == "deleted"}


def reasons(document: dict[str, Any]) -> dict[str, str]:
    return {k["id"]: k["reason"] for k in document["kept"]}


def in_process(agents: Path, **arguments: Any) -> dict[str, Any]:
    settings = read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": ""})
    return load(CLEANUP).run(Context(settings, Volume(str(agents)), now_ms), Arguments(dry_run=False, **arguments))


# What goes.


def test_a_dry_run_is_the_default_and_changes_nothing(agents: Path, skill: Skill) -> None:
    build(agents)
    before = picture(agents, without_state=False)
    document = skill(CLEANUP).document
    assert (document["dry_run"], document["archived_count"], document["errors"]) == (True, 2, [])
    assert "run_id" not in document
    assert picture(agents, without_state=False) == before


@pytest.mark.parametrize("name", ["sixteen", "mixed"])
def test_real_stores(request: pytest.FixtureRequest, skill: Skill, name: str) -> None:
    agents: Path = request.getfixturevalue(name)
    folders = [p.parent for p in agents.glob("*/sessions/sessions.json")]
    texts = {f: (f / "sessions.json").read_bytes() for f in folders}
    owned = {e["sessionId"] for text in texts.values() for e in json.loads(text).values()}
    orphans = {p.name: p.read_bytes() for f in folders for p in f.glob("*.jsonl") if p.stem not in owned}
    orphans = {n: c for n, c in orphans.items() if not any(n.startswith(i) for i in owned)}
    assert len(orphans) == {"sixteen": 0, "mixed": 3}[name]
    plan, done = skill(CLEANUP).document, skill(CLEANUP, REAL).document
    assert plan["classes"] == done["classes"]
    assert {a["id"] for a in plan["archived"]} == {a["id"] for a in done["archived"]} == {n[:-6] for n in orphans}
    assert done["archived_bytes"] == sum(map(len, orphans.values()))
    for row in done["archived"]:
        (target,) = row["files"]
        (path,) = agents.glob(f"*/sessions/{target}")
        assert path.read_bytes() == orphans[f"{row['id']}.jsonl"]
    assert {f: (f / "sessions.json").read_bytes() for f in folders} == texts
    assert sum(c["bytes"] for c in plan["classes"].values()) == sum(
        len(content) for n, (kind, content) in picture(agents).items() if kind.startswith("file") and "/sessions/" in n
    )
    again = skill(CLEANUP, REAL).document
    assert (again["archived_count"], again["classes"]["true_orphan"]["count"]) == (0, 0)
    assert again["classes"]["deleted_archive"]["count"] == plan["classes"]["deleted_archive"]["count"] + len(orphans)


def test_only_true_orphans_past_the_age_go(agents: Path, skill: Skill) -> None:
    store = build(agents, living=12)
    store.entries["agent:main:cron:job-0"]["usageFamilySessionIds"] = ["earlier"]
    store.write()
    for name in ("earlier.jsonl", "topic-one-topic-7.jsonl", f"lost-0.jsonl.reset.{STAMP}", "lost-0.trajectory.jsonl",
                 "lost-0.jsonl.truncate-tmp", f"gone.jsonl.deleted.{STAMP}"):  # fmt: skip
        lose(store, "x", name=name)
    lose(store, "young", 60)
    store.transcript("fresh.jsonl", "fresh", now_ms() - 3 * DAYS * 60_000, mtime_ms=now_ms())
    store.transcript("talking.jsonl", "talking", now_ms(), mtime_ms=now_ms() - 3 * DAYS * 60_000)
    names = store.names()
    document = skill(CLEANUP, REAL).document
    assert {k: v["count"] for k, v in document["classes"].items() if v["count"]} == {
        "live": 12, "previous_generation": 1, "reset_archive": 1, "deleted_archive": 1, "topic_file": 1, "sidecar": 1,
        "partial": 1, "true_orphan": 5, "other": 1,
    }  # fmt: skip
    assert {a["id"] for a in document["archived"]} == {"lost-0", "lost-1"}
    assert reasons(document) == {"young": "young", "fresh": "young", "talking": "young"}
    # What belongs to a transcript goes with it.
    assert names - store.names() == {
        "lost-0.jsonl", "lost-1.jsonl", "lost-0.trajectory.jsonl", "lost-0.jsonl.truncate-tmp",
    }  # fmt: skip


def test_the_age_is_an_argument(agents: Path, skill: Skill) -> None:
    store = build(agents, orphans=0)
    lose(store, "lost", 5)
    for minutes, count in ((10, 0), (4, 1), ("4", 1)):
        assert skill(CLEANUP, {"older_than_minutes": minutes}).document["archived_count"] == count
    for bad in (0, -1, 1.5, "soon", None):
        assert skill(CLEANUP, {"older_than_minutes": bad}).exit_code == 2


def test_a_held_lock_keeps_an_orphan(agents: Path, skill: Skill) -> None:
    store = build(agents, orphans=4)
    alive = {"pid": os.getpid(), "createdAt": "2026-02-15T18:00:00.000Z"}
    (store.dir / "lost-0.jsonl.lock").write_text(json.dumps(alive))
    (store.dir / "lost-1-topic-7.jsonl.lock").write_text(json.dumps(alive))
    (store.dir / "lost-2.jsonl.lock").write_bytes(b"")
    dead = store.dir / "lost-3.jsonl.lock"
    dead.write_text(json.dumps({**alive, "pid": 2**22 + 1}))
    os.utime(dead, (1, 1))
    document = skill(CLEANUP, REAL).document
    assert reasons(document) == {"lost-0": "busy", "lost-1": "busy", "lost-2": "busy"}
    assert archived(store) == {"lost-3.jsonl"}


def test_the_calling_session_stays(agents: Path, skill: Skill) -> None:
    build(agents)
    document = skill(CLEANUP, REAL, ARIA_SESSION_ID="lost-0").document
    assert reasons(document) == {"lost-0": "current"}
    assert [a["id"] for a in document["archived"]] == ["lost-1"]


@pytest.mark.parametrize("damaged", [False, True])
def test_what_another_agent_refers_to_is_no_orphan(agents: Path, skill: Skill, damaged: bool) -> None:
    store = build(agents, orphans=3)
    other = StoreBuilder(agents, "other")
    other.add("cron:a", 300, "a", sessionFile=str(store.dir / "lost-0.jsonl"))
    other.add("cron:b", 300, "b", sessionFile="/home/node/.openclaw/agents/main/sessions/lost-1.jsonl")
    other.write()
    if damaged:
        other.index.write_bytes(other.index.read_bytes()[:-5])
    answer = skill(CLEANUP, {**REAL, "agent": "main"})
    assert (answer.exit_code, archived(store)) == (0, {"lost-2.jsonl"})


def test_links_lead_nowhere(agents: Path, skill: Skill, tmp_path: Path) -> None:
    store = build(agents, orphans=0)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.jsonl").write_text("secret")
    os.utime(outside / "secret.jsonl", (1, 1))
    (store.dir / "linked.jsonl").symlink_to(outside / "secret.jsonl")
    (store.dir / "folder.jsonl").symlink_to(outside)
    (agents / "evil").symlink_to(outside)
    before = picture(tmp_path / "outside")
    document = skill(CLEANUP, REAL).document
    assert (document["archived"], document["classes"]["true_orphan"]["count"]) == ([], 0)
    assert picture(tmp_path / "outside") == before
    assert (store.dir / "linked.jsonl").is_symlink()


def test_hostile_names_stay_and_are_counted(agents: Path, skill: Skill) -> None:
    store = build(agents, orphans=0)
    hostile = [b"-rf.jsonl", b"a b.jsonl", b"a\nb.jsonl", b"\xff\xfe.jsonl", b"..x.jsonl", b"$(id).jsonl", b"*.jsonl",
               b"a" * 240 + b".jsonl", "é.jsonl".encode(), b'"; DROP TABLE.jsonl']  # fmt: skip
    for name in hostile:
        path = os.path.join(os.fsencode(store.dir), name)
        Path(os.fsdecode(path)).write_bytes(b"{}\n")
        os.utime(path, (1, 1))
    before = picture(agents)
    document = skill(CLEANUP, REAL).document
    assert (document["archived"], document["classes"]["other"]["count"]) == ([], len(hostile) + 1)
    assert picture(agents) == before


# Entries without a transcript.


def test_entries_of_which_nothing_is_left_go(agents: Path, skill: Skill) -> None:
    store = build(agents, orphans=0)
    store.add("hook:dead", 3 * DAYS, "dead", transcript=False)
    store.add("cron:dead:run:x", 3 * DAYS, "dead", transcript=False)
    store.add("hook:new", 1, "new", transcript=False)
    store.add("hook:undated", None, "undated", transcript=False)
    store.add("hook:archived", 3 * DAYS, "archived", transcript=False)
    store.add("hook:topic", 3 * DAYS, "topic", transcript=False)
    store.add("hook:elsewhere", 3 * DAYS, "elsewhere", transcript=False, sessionFile="/data/x/elsewhere.jsonl")
    store.add("hook:owed", 3 * DAYS, "owed", transcript=False, pendingFinalDelivery=True)
    store.add("main", 3 * DAYS, "the-main", transcript=False)
    store.write()
    lose(store, "x", name=f"archived.jsonl.reset.{STAMP}")
    lose(store, "x", name="topic-topic-3.jsonl")
    text = store.index.read_text()
    plan, done = skill(CLEANUP).document, skill(CLEANUP, REAL).document
    for document in (plan, done):
        assert document["classes"]["entry_without_transcript"]["count"] == 6
        assert reasons(document) == {
            "new": "young", "undated": "unknown age", "owed": "undelivered", "the-main": "main",
            "elsewhere": "elsewhere",
        }  # fmt: skip
        assert [(e["id"], sorted(e["keys"])) for e in document["removed_entries"]] == [
            ("dead", ["agent:main:cron:dead:run:x", "agent:main:hook:dead"])
        ]
    left = {k: v for k, v in json.loads(text).items() if v["sessionId"] != "dead"}
    assert store.index.read_text() == json.dumps(left, indent=2, ensure_ascii=False)


def test_the_ledger_can_tell(agents: Path, skill: Skill) -> None:
    store = build(agents)
    store.add("hook:dead", 3 * DAYS, "dead", transcript=False)
    store.write()
    run_id = skill(CLEANUP, REAL).document["run_id"]
    rows = sorted(skill("list_deleted", {"run_id": run_id}).document["deleted"], key=lambda row: str(row["id"]))
    assert [(row["id"], row["reason"], row["keys"], row["state"]) for row in rows] == [
        ("dead", "entry without transcript", ["agent:main:hook:dead"], "removed"),
        ("lost-0", "orphan", [], "removed"),
        ("lost-1", "orphan", [], "removed"),
    ]
    for row in rows[1:]:
        (target,) = row["archived_files"]
        assert target.startswith(f"{row['id']}.jsonl.deleted.")
        assert (store.dir / target).exists()
    assert skill("get_session_stats").document["pending_history_marks"] == 3


# Refusals.


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": {"sessionId"', None])
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_damaged_index_makes_no_orphans(agents: Path, skill: Skill, content: bytes | None, dry_run: bool) -> None:
    store, good = build(agents), build(agents, "good")
    if content is None:
        store.index.unlink()
    else:
        store.index.write_bytes(content)
    before = picture(agents / "main")
    answer = skill(CLEANUP, {"dry_run": dry_run, "force": True})
    assert (answer.exit_code, answer.document["code"]) == (3, "partial")
    assert [(e["agentId"], e["code"]) for e in answer.document["errors"]] == [("main", "index_damaged")]
    assert archived(good) == (set() if dry_run else {"lost-0.jsonl", "lost-1.jsonl"})
    named = skill(CLEANUP, {"dry_run": dry_run, "agent": "main"})
    assert (named.exit_code, named.document["code"]) == (7, "index_damaged")
    assert picture(agents / "main") == before


@pytest.mark.parametrize(("living", "orphans"), [(0, 1), (1, 2), (4, 5), (10, 90)])
@pytest.mark.parametrize("dry_run", [True, False])
def test_more_than_half_is_refused(agents: Path, skill: Skill, living: int, orphans: int, dry_run: bool) -> None:
    store = build(agents, living=living, orphans=orphans)
    before = picture(agents)
    answer = skill(CLEANUP, {"dry_run": dry_run})
    document = answer.document
    assert (answer.exit_code, document["code"]) == (4, "too_many_orphans")
    assert (document["orphans"], document["transcripts"]) == (orphans, living + orphans)
    assert document["classes"]["true_orphan"]["count"] == orphans
    assert picture(agents) == before
    assert skill(CLEANUP, {**REAL, "force": True}).document["archived_count"] == orphans
    assert len(archived(store)) == orphans


def test_half_is_not_more_than_half_and_the_young_do_not_count(agents: Path, skill: Skill) -> None:
    store = build(agents, living=2, orphans=2)
    for i in range(5):
        lose(store, f"young-{i}", 10)
    assert skill(CLEANUP, REAL).document["archived_count"] == 2


def test_one_agent_too_many_the_other_done(agents: Path, skill: Skill) -> None:
    build(agents, living=0)
    other = build(agents, "other")
    answer = skill(CLEANUP, REAL)
    assert (answer.exit_code, [e["code"] for e in answer.document["errors"]]) == (3, ["too_many_orphans"])
    assert len(archived(other)) == 2
    assert answer.document["classes"]["true_orphan"]["count"] == 4


def test_lists_are_bounded_and_counts_are_not(agents: Path, skill: Skill) -> None:
    build(agents, living=160, orphans=150)
    document = skill(CLEANUP).document
    assert (document["archived_count"], len(document["archived"])) == (150, 100)


# Races.


def take(store: StoreBuilder, session_id: str) -> Callable[[], None]:
    """A gateway without a lock writes an entry for an orphan."""

    def write() -> None:
        entries = {**store.read(), "agent:main:direct:back": {"sessionId": session_id, "updatedAt": now_ms()}}
        other = store.dir / "sessions.json.1.0b7e.tmp"
        other.write_text(json.dumps(entries, indent=2))
        other.rename(store.index)

    return write


@pytest.mark.parametrize("when", ["orphan intent written", "file archived", "orphans archived"])
def test_an_entry_that_is_written_meanwhile_keeps_the_transcript(
    agents: Path, at: Callable[[str, Callable[[], object]], None], when: str
) -> None:
    store = build(agents)
    content = (store.dir / "lost-0.jsonl").read_bytes()
    at(when, take(store, "lost-0"))
    document = in_process(agents)
    assert [a["id"] for a in document["archived"]] == ["lost-1"]
    assert reasons(document) == {"lost-0": "active"}
    assert (store.dir / "lost-0.jsonl").read_bytes() == content
    assert archived(store) == {"lost-1.jsonl"}
    assert store.read()["agent:main:direct:back"]["sessionId"] == "lost-0"


def test_a_line_that_is_written_meanwhile_keeps_the_transcript(
    agents: Path, at: Callable[[str, Callable[[], object]], None]
) -> None:
    store = build(agents)
    at("orphan intent written", lambda: (store.dir / "lost-0.jsonl").write_bytes(b"{}\n"))
    document = in_process(agents)
    assert [a["id"] for a in document["archived"]] == ["lost-1"]
    assert reasons(document) == {"lost-0": "active"}


def test_an_index_that_breaks_meanwhile_brings_everything_back(
    agents: Path, skill: Skill, at: Callable[[str, Callable[[], object]], None]
) -> None:
    store = build(agents)
    text, names = store.index.read_bytes(), store.names()
    at("orphan intent written", lambda: store.index.write_bytes(b""))
    settings = {"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": CLOSED_API}
    assert runner.main(["session_manager", CLEANUP, json.dumps(REAL)], settings) == 7
    assert archived(store) == set()
    store.index.write_bytes(text)
    assert skill("prune_sessions", {"max_age_minutes": 10**6}).document["recovered"][0]["undone"] == [
        "lost-0", "lost-1",
    ]  # fmt: skip
    assert store.names() == names


# Killed.

KILL_AT = [sys.executable, str(ROOT / "tests/kill_at.py")]
STEPS = ["orphan intent written", "second name kept", "second name kept", "second names kept", "file archived",
         "file archived", "orphans archived", "orphans' folder synced", "orphans' end noted", "marks sent"]  # fmt: skip


def run_until(skill: Skill, limit: int, log: Path, arguments: dict[str, Any]) -> tuple[int, list[str]]:
    log.unlink(missing_ok=True)
    log.touch()
    done = subprocess.run(
        [*KILL_AT, str(limit), str(log), CLEANUP, json.dumps(arguments)],
        env=skill.environment(), capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, log.read_text().splitlines()


def test_the_named_steps_are_those_that_occur(agents: Path, skill: Skill, tmp_path: Path) -> None:
    build(agents)
    assert run_until(skill, 0, tmp_path / "steps", REAL) == (0, STEPS)


@pytest.mark.parametrize("limit", range(1, len(STEPS) + 1))
def test_killed_at_a_step(agents: Path, skill: Skill, tmp_path: Path, limit: int) -> None:
    store = build(agents)
    contents = {p.name: p.read_bytes() for p in store.dir.glob("*.jsonl")}
    index = store.index.read_bytes()
    code, seen = run_until(skill, limit, tmp_path / "steps", REAL)
    assert code == -signal.SIGKILL
    document = skill("prune_sessions", {"max_age_minutes": 10**6}).document
    finished = "orphans' end noted" in seen
    assert ("recovered" in document) != finished
    gone = archived(store)
    assert gone == ({"lost-0.jsonl", "lost-1.jsonl"} if finished else set())
    for name, content in contents.items():
        (path,) = (p for p in store.dir.iterdir() if p.name == name or p.name.startswith(f"{name}.deleted."))
        assert path.read_bytes() == content
    assert store.index.read_bytes() == index
    assert skill("get_session_stats").document["pending_history_marks"] == len(gone)
    assert skill(CLEANUP, REAL).document["archived_count"] == 2 - len(gone)
    assert len(archived(store)) == 2


def test_killed_between_entries_and_orphans(agents: Path, skill: Skill, tmp_path: Path) -> None:
    store = build(agents)
    store.add("hook:dead", 3 * DAYS, "dead", transcript=False)
    store.write()
    steps_seen = 0
    code = -signal.SIGKILL
    while code == -signal.SIGKILL:
        steps_seen += 1
        code, _ = run_until(skill, steps_seen, tmp_path / "steps", REAL)
        left = store.read()
        assert "agent:main:cron:job-0" in left
    assert (code, archived(store)) == (0, {"lost-0.jsonl", "lost-1.jsonl"})
    assert "agent:main:hook:dead" not in left
    assert skill("prune_sessions", {"max_age_minutes": 10**6}).document.get("recovered") is None
