"""cleanup_ghosts: what was begun and never used goes, in both layers, and nothing else."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chats import Chats, create, say
from service import Databases, Service, running
from small_aria import SmallAria
from support import Skill, StoreBuilder, now_ms, picture
from test_service_security import created

from session_manager.archives.names import parse_archive
from session_manager.functions import load
from session_manager.functions.cleanup_ghosts import Arguments
from session_manager.functions.context import Context
from session_manager.settings import read_settings
from session_manager.stores.openclaw_files.emptiness import LONGEST
from session_manager.stores.openclaw_files.volume import Volume

GHOSTS = "cleanup_ghosts"
REAL = {"dry_run": False}
CHANGE = {"type": "model_change", "id": "1", "provider": "openai", "modelId": "gpt-4o"}
SNAPSHOT = {"type": "custom", "customType": "model-snapshot", "id": "2", "data": {"note": "\ud83d"}}
SYSTEM = {"type": "message", "id": "3", "message": {"role": "system", "content": "be brief"}}
USER = {"type": "message", "id": "4", "message": {"role": "user", "content": "hello"}}
OFF = {"ARIA_API_URL": ""}
MAYBE = "conversations may have been deleted: run this again"


def rewrite(store: StoreBuilder, name: str, *lines: object, age: float = 60) -> Path:
    """Gives a transcript other lines behind its header: JSON values, or bytes as they are."""
    path = store.dir / name
    header = path.read_bytes().split(b"\n")[0] if path.exists() else b'{"type":"session","version":3,"id":"x"}'
    written = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in (header, *written)))
    at = (now_ms() - age * 60_000) / 1000
    os.utime(path, (at, at))
    return path


def haunt(store: StoreBuilder, rest: str, age: float = 60, *lines: object, **fields: Any) -> str:
    """Adds a session whose transcript has a header and ``lines``, and returns its id."""
    session_id = store.add(rest, age, **fields)
    rewrite(store, f"{session_id}.jsonl", *lines, age=age)
    return session_id


def reasons(document: dict[str, Any]) -> dict[str, str]:
    return {kept["id"]: kept["reason"] for kept in document["kept"]}


def archived(store: StoreBuilder) -> set[str]:
    found = [parse_archive(name) for name in store.names()]
    return {a[0] for a in found if a is not None and a[1] == "deleted"}


# The live layer.


def test_only_old_sessions_of_prunable_types_without_a_message_go(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    going = {
        haunt(store, "cron:a", 16),
        haunt(store, "subagent:b", 60, CHANGE, SNAPSHOT),
        haunt(store, "hook:c", 60, SYSTEM, b""),
        haunt(store, "explicit:d", 60),
    }
    used, young = store.add("cron:used", 60), haunt(store, "cron:young", 14)
    person, main, pinned = (haunt(store, rest) for rest in ("telegram:direct:ann", "main", "cron:pinned"))
    store.entries["agent:main:cron:pinned"]["pinnedAt"] = now_ms()
    undated = haunt(store, "cron:undated", 60)
    del store.entries["agent:main:cron:undated"]["updatedAt"]
    store.write()
    kept = {person: "durable", main: "main", pinned: "pinned", undated: "unknown age"}
    before = picture(agents)
    dry = skill(GHOSTS, **OFF)
    assert (dry.exit_code, dry.document["dry_run"], dry.document["older_than_minutes"]) == (0, True, 15)
    assert set(dry.document["deleted_ids"]) == going
    assert (dry.document["live_ghosts"], dry.document["kept_count"], reasons(dry.document)) == (4, 4, kept)
    assert picture(agents) == before
    assert not (agents / ".session_manager").exists()
    real = skill(GHOSTS, REAL, **OFF)
    assert (real.exit_code, real.document["live_ghosts"], reasons(real.document)) == (0, 4, kept), real.document
    assert set(real.document["deleted_ids"]) == going
    assert archived(store) == {f"{session_id}.jsonl" for session_id in going}
    assert {entry["sessionId"] for entry in store.read().values()} == {used, young, *kept}
    rows = skill("list_deleted", {"run_id": real.document["run_id"]}, **OFF).document["deleted"]
    assert {(row["id"], row["reason"], row["function"]) for row in rows} == {(i, "ghost", GHOSTS) for i in going}
    again = skill(GHOSTS, REAL, **OFF).document
    assert (again["live_ghosts"], again["deleted_ids"], again["run_id"]) == (0, [], None)


@pytest.mark.parametrize(
    "line",
    [
        USER,
        {"type": "message", "message": {"role": "assistant", "content": []}},
        {"type": "message", "message": {"role": "toolResult"}},
        {"type": "message", "message": None},
        {"type": "message"},
        {"type": "compaction", "summary": "long ago"},
        {"type": "custom_message", "content": "note"},
        {"type": "of tomorrow"},
        {"role": "user", "content": "an older format"},
        {"type": "session", "id": "x", "parentSession": "/sessions/parent.jsonl"},
        [USER],
        b'{"type":"message","message":{"role":"us',
        b"\xff\xfe",
        b"[" * 5000,
        b'{"type":"custom","data":"' + b"x" * LONGEST + b'"}',
    ],
    ids=lambda line: str(line)[:40],
)
def test_whatever_is_not_known_to_say_nothing_keeps_a_session(agents: Path, skill: Skill, line: object) -> None:
    store = StoreBuilder(agents)
    haunt(store, "cron:said", 60, CHANGE, line)
    ghost = haunt(store, "cron:ghost", 60, CHANGE)
    store.write()
    assert skill(GHOSTS, **OFF).document["deleted_ids"] == [ghost]


def test_a_session_whose_words_may_lie_elsewhere_is_no_ghost(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:unwritten", 60, transcript=False)
    haunt(store, "cron:counted", 60, totalTokens=12)
    haunt(store, "cron:outside", 60, sessionFile="/tmp/elsewhere.jsonl")
    topics = haunt(store, "cron:topics")
    store.transcript(f"{topics}-topic-7.jsonl", topics, now_ms() - 3_600_000)
    linked = haunt(store, "cron:linked")
    (store.dir / f"{linked}.jsonl").rename(agents / "real.jsonl")
    (store.dir / f"{linked}.jsonl").symlink_to(agents / "real.jsonl")
    piped = haunt(store, "cron:piped")
    (store.dir / f"{piped}.jsonl").unlink()
    os.mkfifo(store.dir / f"{piped}.jsonl")
    # Their times prove that nothing new is inside, so that only what they are can keep their sessions.
    for session_id in (linked, piped):
        os.utime(store.dir / f"{session_id}.jsonl", (0, 0), follow_symlinks=False)
    store.write()
    answer = skill(GHOSTS, REAL, **OFF)
    assert (answer.exit_code, answer.document["deleted_ids"], answer.document["kept"]) == (0, [], [])
    assert len(store.read()) == 6


def test_several_transcripts_without_a_message_go_together(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    session_id = haunt(store, "cron:a")
    rewrite(store, f"{session_id}-topic-7.jsonl")
    store.write()
    assert skill(GHOSTS, REAL, **OFF).document["deleted_ids"] == [session_id]
    assert archived(store) == {f"{session_id}.jsonl", f"{session_id}-topic-7.jsonl"}


def test_the_calling_session_a_busy_one_and_a_young_family_stay(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    calling, busy = haunt(store, "cron:calling"), haunt(store, "cron:busy")
    lock = {"pid": os.getpid(), "createdAt": "2999-01-01T00:00:00.000Z"}
    (store.dir / f"{busy}.jsonl.lock").write_text(json.dumps(lock))
    parent = haunt(store, "subagent:parent")
    store.add("subagent:parent:subagent:child", 5)
    store.write()
    document = skill(GHOSTS, REAL, ARIA_SESSION_ID=calling, **OFF).document
    assert reasons(document) == {calling: "current", busy: "busy", parent: "family"}
    assert document["deleted_ids"] == []


def test_a_first_message_before_the_act_keeps_the_session(
    agents: Path, at: Callable[[str, Callable[[], object]], None]
) -> None:
    """The gateway writes the message and touches the entry; the decision is made again from that."""
    store = StoreBuilder(agents)
    spoken, silent = haunt(store, "cron:spoken"), haunt(store, "cron:silent")
    store.write()

    def speak() -> None:
        rewrite(store, f"{spoken}.jsonl", USER, age=0)
        store.entries["agent:main:cron:late"] = {"sessionId": "late", "updatedAt": now_ms()}
        store.write()

    at("intent written", speak)
    settings = read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": ""})
    document = load(GHOSTS).run(Context(settings, Volume(str(agents)), now_ms), Arguments(dry_run=False))
    assert document["deleted_ids"] == [silent]
    assert reasons(document) == {spoken: "active"}
    assert (store.dir / f"{spoken}.jsonl").exists()
    assert {entry["sessionId"] for entry in store.read().values()} == {spoken, "late"}


def test_one_agent_fails_the_others_are_done_and_all_fail_says_so(agents: Path, skill: Skill, aria: SmallAria) -> None:
    bad, good = StoreBuilder(agents, "bad"), StoreBuilder(agents, "good")
    ghost = haunt(good, "cron:a")
    good.write()
    bad.index.write_bytes(b"{")
    answer = skill(GHOSTS, REAL, **OFF)
    assert (answer.exit_code, answer.document["code"], answer.document["deleted_ids"]) == (3, "partial", [ghost])
    assert [(e["agentId"], e["code"]) for e in answer.document["errors"]] == [("bad", "index_damaged")]
    good.index.write_bytes(b"")
    aria.prepared = [(200, {}, b'{"deleted": 7, "status": "ok"}')]
    answer = skill(GHOSTS, REAL, ARIA_API_URL=aria.url)
    assert (answer.exit_code, answer.document["code"]) == (7, "index_damaged")
    assert answer.document["database_ghosts"] == 7, "the database's ghosts are gone all the same, and it is said"


@pytest.mark.parametrize("arguments", [{"older_than_minutes": 0}, {"older_than_minutes": -1}, {"agent": "main"}])
def test_bad_arguments_change_nothing(agents: Path, skill: Skill, arguments: dict[str, object]) -> None:
    store = StoreBuilder(agents)
    haunt(store, "cron:a")
    store.write()
    before = picture(agents)
    assert skill(GHOSTS, {**REAL, **arguments}).exit_code == 2
    assert picture(agents) == before


# When aria-api cannot be reached.


@pytest.mark.parametrize("arguments", [{}, REAL])
def test_a_service_that_cannot_be_reached_is_no_failure(agents: Path, skill: Skill, arguments: dict[str, bool]) -> None:
    store = StoreBuilder(agents)
    ghost = haunt(store, "cron:a")
    store.write()
    answer = skill(GHOSTS, arguments)
    assert (answer.exit_code, answer.document["deleted_ids"]) == (0, [ghost])
    assert answer.document["database_ghosts"] is None
    assert "cannot be reached" in answer.document["pg_error"]
    assert MAYBE not in answer.document["pg_error"]
    assert answer.document.get("pg_pending") == (1 if arguments else None)
    assert (agents / ".session_manager").exists() == bool(arguments)


@pytest.mark.parametrize(
    ("prepared", "says", "doubt"),
    [
        ((404, {}, b"{}"), "older version", False),
        ((401, {}, b"{}"), "refused the token (401)", False),
        ((403, {}, b"{}"), "set ARIA_API_TOKEN to one that may do this", False),
        ((422, {}, b"{}"), "older_than_minutes", False),
        ((429, {"Retry-After": "60"}, b"{}"), "is busy (429)", False),
        ((307, {"Location": "http://elsewhere.example"}, b""), "redirects to 'http://elsewhere.example", False),
        ((500, {}, b"{}"), "check its log", True),
        ((503, {"Retry-After": "60"}, b"{}"), "is busy (503)", True),
        ((200, {}, b"<html>"), "does not answer as aria-api does", True),
        ((200, {}, b'{"deleted": "many"}'), "does not answer as aria-api does", True),
        ("die", "closed the connection", True),
    ],
)
def test_what_is_wrong_with_the_service_is_said_and_whether_it_may_have_deleted(
    agents: Path, skill: Skill, aria: SmallAria, prepared: Any, says: str, doubt: bool
) -> None:
    aria.always = prepared
    for arguments in ({}, REAL):
        answer = skill(GHOSTS, arguments, ARIA_API_URL=aria.url)
        assert (answer.exit_code, answer.document["database_ghosts"]) == (0, None)
        assert says in answer.document["pg_error"]
        assert (MAYBE in answer.document["pg_error"]) == (doubt and arguments is REAL)


def test_a_service_that_hangs_is_not_waited_for_beyond_the_budget(agents: Path, skill: Skill, aria: SmallAria) -> None:
    over = threading.Event()
    aria.always = lambda: over.wait(60) and None
    answer = skill(GHOSTS, REAL, ARIA_API_URL=aria.url, ARIA_API_TIMEOUT="0.5")
    over.set()
    assert (answer.exit_code, answer.document["database_ghosts"]) == (0, None)
    assert "within 0.5 s (ARIA_API_TIMEOUT)" in answer.document["pg_error"]
    assert MAYBE in answer.document["pg_error"]


def test_a_service_that_hung_before_it_was_asked_has_deleted_nothing(
    agents: Path, skill: Skill, aria: SmallAria
) -> None:
    store = StoreBuilder(agents)
    ghost = haunt(store, "cron:a")
    store.write()
    over = threading.Event()
    aria.always = lambda: over.wait(60) and None
    answer = skill(GHOSTS, REAL, ARIA_API_URL=aria.url, ARIA_API_TIMEOUT="0.5")
    over.set()
    assert (answer.document["deleted_ids"], answer.document["pg_pending"]) == ([ghost], 1)
    assert {request.method for request in aria.requests} == {"PATCH"}
    assert MAYBE not in answer.document["pg_error"]


# Both layers.


def test_ghosts_of_both_layers_go_and_history_hears_of_the_live_ones(
    agents: Path, skill: Skill, server: Databases, database: str, tmp_path: Path
) -> None:
    chats = Chats(server, database)
    store = StoreBuilder(agents)
    ghost, used = haunt(store, "cron:ghost"), store.add("cron:used", 60)
    store.write()
    env = {"DATABASE_URL": database, "ARIA_AGENTS_DIR": str(agents), "ARIA_SYNC_SECONDS": "0"}
    with running(tmp_path / "log", **env) as service:
        service.client.post("/api/sessions/sync")
        old = create(service.client, user_id="ann", agent_id="analyst", ttl_minutes=600)["id"]
        chats.age(old, 60)
        (plain,) = chats.empty(minutes=16)
        fresh, spoken = create(service.client)["id"], create(service.client)["id"]
        say(service.client, spoken)
        chats.age(spoken, 60)
        dry = skill(GHOSTS, ARIA_API_URL=service.api)
        assert (dry.exit_code, dry.document["database_ghosts"], dry.document["live_ghosts"]) == (0, 2, 1)
        assert "pg_error" not in dry.document
        shown = dry.document["database"]
        assert [(g["id"], g["user_id"]) for g in shown] == [(old, "ann"), (plain, None)]
        assert all(g["created_at"] and g["agent_id"] for g in shown)
        assert chats.ids() == {old, plain, fresh, spoken}
        assert statuses(service) == {ghost: "active", used: "active"}
        real = skill(GHOSTS, REAL, ARIA_API_URL=service.api)
        assert (real.exit_code, real.document["database_ghosts"], real.document["deleted_ids"]) == (0, 2, [ghost])
        assert (real.document["pg_status_updated"], real.document["pg_updated"]) == (True, 1)
        assert "pg_error" not in real.document
        assert chats.ids() == {fresh, spoken}
        assert statuses(service) == {ghost: "ended", used: "active"}
        again = skill(GHOSTS, REAL, ARIA_API_URL=service.api).document
        assert (again["database_ghosts"], again["live_ghosts"]) == (0, 0)
        assert skill(GHOSTS, {"older_than_minutes": 10**9}, ARIA_API_URL=service.api).document["pg_error"]


def statuses(service: Service) -> dict[str, str]:
    items = service.client.get("/api/sessions").json()["items"]
    return {item["metadata"]["aria_session_id"]: item["status"] for item in items}


def test_what_a_token_may_not_delete_is_said_and_stays(
    agents: Path, skill: Skill, server: Databases, database: str, tmp_path: Path
) -> None:
    chats = Chats(server, database)
    (ghost,) = chats.empty()
    writer, deleter = created(database), created(database, "--scope", "read,write,delete")
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        skill.env["ARIA_API_URL"] = service.api
        assert skill(GHOSTS, ARIA_API_TOKEN=writer).document["database_ghosts"] == 1
        answer = skill(GHOSTS, REAL, ARIA_API_TOKEN=writer)
        assert (answer.exit_code, answer.document["database_ghosts"]) == (0, None)
        assert "(403)" in answer.document["pg_error"]
        assert chats.ids() == {ghost}
        assert skill(GHOSTS, REAL, ARIA_API_TOKEN=deleter).document["database_ghosts"] == 1
        assert chats.ids() == set()
