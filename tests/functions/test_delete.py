"""delete_session: everything of the session goes, nothing else does, and protection holds."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import CLOSED_API, Skill, StoreBuilder, picture

from session_manager.files import steps
from session_manager.files.liveness import now_ms
from session_manager.functions import load
from session_manager.functions.context import Context
from session_manager.settings import CALLER_VARIABLES, read_settings
from session_manager.stores.openclaw_files import plan
from session_manager.stores.openclaw_files.volume import Volume

ARCHIVE = re.compile(r"^(?P<name>.+)\.deleted\.(?P<at>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z)$")
FROZEN = 1_771_180_200_123
FROZEN_AT = "2026-02-15T18-30-00.123Z"
A_MS_LATER = "2026-02-15T18-30-00.124Z"
UUID = "3dec1f8e-6ac5-4a37-8b0f-0123456789ab"


def archives(folder: Path) -> dict[str, str]:
    """Archive names by original name."""
    return {m["name"]: p.name for p in folder.iterdir() if (m := ARCHIVE.match(p.name))}


def marks(agents: Path) -> list[tuple[str, str, str, str]]:
    ledger = agents / ".session_manager" / "ledger.sqlite"
    if not ledger.exists():
        return []
    connection = sqlite3.connect(ledger)
    rows = connection.execute("SELECT agent_id, session_id, status, state FROM marks ORDER BY 1, 2").fetchall()
    connection.close()
    return rows


def hold(path: Path) -> None:
    """A transcript lock of a living process: this one."""
    path.write_text(json.dumps({"pid": os.getpid(), "createdAt": "2026-02-15T18:00:00.000Z"}, indent=2))


def in_process(agents: Path, session_id: str, **arguments: Any) -> dict[str, Any]:
    settings = read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": CLOSED_API})
    function = load("delete_session")
    return function.run(
        Context(settings, Volume(str(agents)), now_ms), function.arguments(session_id=session_id, **arguments)
    )


def test_the_documented_answer(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:abc123", 90, "abc123")
    store.add("cron:other", 90, "other")
    store.write()
    answer = skill("delete_session", {"session_id": "abc123"})
    document = answer.document
    assert answer.exit_code == 0
    assert document["deleted"] == "abc123"
    assert document["removed_keys"] == ["agent:main:cron:abc123"]
    assert document["transcript_archived"] is True
    assert (document["pg_status_updated"], document["pg_pending"]) == (False, True)
    assert document["message"] == "Session abc123 removed (1 keys, transcript=archived), PG update pending"
    assert "cannot be reached" in document["pg_error"]
    assert marks(agents) == [("main", "abc123", "ended", "pending")]
    assert list(store.read()) == ["agent:main:cron:other"]
    assert set(archives(store.dir)) == {"abc123.jsonl"}


def test_without_a_history_layer_no_mark_is_owed(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    sid = store.add("cron:a")
    store.write()
    document = skill("delete_session", {"session_id": sid}, ARIA_API_URL="").document
    assert (document["pg_status_updated"], "pg_pending" in document) == (False, False)
    assert document["message"] == f"Session {sid} removed (1 keys, transcript=archived), no history service"
    assert marks(agents) == []
    assert document["deleted"] == sid
    again = skill("delete_session", {"session_id": sid}, ARIA_API_URL="").document
    assert (again["deleted"], again["pg_status_updated"], "pg_pending" in again) == (sid, False, False)
    assert marks(agents) == []


@pytest.mark.parametrize("by", ["id", "first key", "second key"])
def test_all_keys_of_a_session_go(agents: Path, skill: Skill, by: str) -> None:
    store = StoreBuilder(agents)
    for rest in ("cron:job", "telegram:group:-1", "cron:job:run:s"):
        store.add(rest, 90, "s")
        store.add(rest + "0", 90, "s0")
    store.write()
    named = {"id": "s", "first key": "agent:main:cron:job", "second key": "agent:main:telegram:group:-1"}[by]
    document = skill("delete_session", {"session_id": named}).document
    keys = ["agent:main:cron:job", "agent:main:telegram:group:-1", "agent:main:cron:job:run:s"]
    assert (document["deleted"], document["removed_keys"]) == ("s", keys)
    assert {e["sessionId"] for e in store.read().values()} == {"s0"}
    assert set(archives(store.dir)) == {"s.jsonl"}
    assert marks(agents) == [("main", "s", "ended", "pending")]
    # Nor is a key a prefix match: agent:main:cron:job0 is another session's.
    assert len(store.read()) == 3


@pytest.mark.parametrize("named", [None, "main", "other"])
def test_namesakes_in_two_agents(agents: Path, skill: Skill, named: str | None) -> None:
    stores = {agent: StoreBuilder(agents, agent) for agent in ("main", "other")}
    for store in stores.values():
        store.add("cron:job", 90, "same")
        store.write()
    before = picture(agents)
    document = skill("delete_session", {"session_id": "same", **({"agent": named} if named else {})}).document
    going = [named] if named else ["main", "other"]
    assert document["removed_keys"] == [f"agent:{agent}:cron:job" for agent in going]
    assert marks(agents) == [(agent, "same", "ended", "pending") for agent in going]
    for agent, store in stores.items():
        if agent in going:
            assert store.read() == {}
            assert set(archives(store.dir)) == {"same.jsonl"}
        else:
            assert store.read() == store.entries
            assert {k: v for k, v in picture(agents).items() if k.startswith(agent)}.items() - before.items() == set()


def test_a_key_names_one_agents_session_only(agents: Path, skill: Skill) -> None:
    for agent in ("main", "other"):
        store = StoreBuilder(agents, agent)
        store.add("cron:job", 90, "same")
        store.write()
    document = skill("delete_session", {"session_id": "agent:other:cron:job"}).document
    assert document["removed_keys"] == ["agent:other:cron:job"]
    assert StoreBuilder(agents, "main").read()


@pytest.mark.parametrize("part", ["s", "s-1-2", "S-1-2-3", "s-1-2-3-4"])
def test_full_ids_only(agents: Path, skill: Skill, part: str) -> None:
    store = StoreBuilder(agents)
    store.add("cron:job", 90, "s-1-2-3")
    store.write()
    before = picture(agents, without_state=False)
    answer = skill("delete_session", {"session_id": part})
    assert (answer.exit_code, answer.document["code"]) == (5, "session_not_found")
    assert picture(agents, without_state=False) == before


FILES = [
    "s.jsonl",
    "s-topic-7.jsonl",
    "s-topic-a%2Fb%3Ac.jsonl",
    "2026-02-15T18-00-00-123Z_s.jsonl",
    "s.jsonl.bak-123-1771180200000",
    "s.jsonl.repair-123-1771180200000.tmp",
    "s.jsonl.truncate-tmp",
    "s.jsonl.manual-compaction-tmp",
    "s.jsonl.codex-app-server.json",
    f"s.checkpoint.{UUID}.jsonl",
    "s.trajectory.jsonl",
    "s.trajectory-path.json",
    "s-topic-7.trajectory.jsonl",
]
STAYS = [
    "s2.jsonl",
    "s.x.jsonl",
    "s-other.jsonl",
    "s-topic-7x",
    "s.jsonl.reset.2026-02-15T18-00-00.123Z",
    "s.jsonl.deleted.2026-02-15T18-00-00Z",
    "s.jsonl.bak.2026-02-15T18-00-00.123Z",
    "sessions.json.telegram-topic-names.json",
    "as.jsonl",
]


def test_all_files_of_a_session_are_archived_together_and_unchanged(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:job", 90, "s")
    store.add("cron:job2", 90, "s2")
    store.write()
    for number, name in enumerate([*FILES, *STAYS]):
        path = store.dir / name
        path.write_bytes(b"content of " + name.encode())
        path.chmod(0o600 + number % 8 * 8)
        os.utime(path, ns=(number, 1_771_000_000_000_000_001 + number))
    was = {p.name: (p.stat().st_ino, p.read_bytes(), p.stat()) for p in store.dir.iterdir()}
    document = skill("delete_session", {"session_id": "s"}).document
    found = {k: v for k, v in archives(store.dir).items() if v in document["archived_files"]}
    assert set(found) == set(FILES)
    assert len({ARCHIVE.match(v)["at"] for v in found.values()}) == 1  # type: ignore[index]
    for name in FILES:
        status, (inode, content, old) = (store.dir / found[name]).stat(), was[name]
        assert (store.dir / found[name]).read_bytes() == content
        assert (status.st_ino, status.st_mode, status.st_mtime_ns) == (inode, old.st_mode, old.st_mtime_ns)
        assert not (store.dir / name).exists()
    for name in STAYS:
        assert (store.dir / name).read_bytes() == b"content of " + name.encode()


def test_archives_never_overwrite(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StoreBuilder(agents)
    store.add("cron:job", 90, "s")
    store.write()
    monkeypatch.setattr(plan, "now_ms", lambda: FROZEN)
    taken = store.dir / f"s.jsonl.deleted.{FROZEN_AT}"
    taken.write_bytes(b"an older archive")
    content = (store.dir / "s.jsonl").read_bytes()
    document = in_process(agents, "s")
    assert document["archived_files"] == [f"s.jsonl.deleted.{A_MS_LATER}"]
    assert taken.read_bytes() == b"an older archive"
    assert (store.dir / f"s.jsonl.deleted.{A_MS_LATER}").read_bytes() == content


def test_an_archive_that_comes_in_between_is_not_overwritten(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StoreBuilder(agents)
    store.add("cron:job", 90, "s")
    store.write()
    monkeypatch.setattr(plan, "now_ms", lambda: FROZEN)
    taken = store.dir / f"s.jsonl.deleted.{FROZEN_AT}"
    content = (store.dir / "s.jsonl").read_bytes()

    def race(name: str) -> None:
        if name == "index verified":
            taken.write_bytes(b"the gateway's")

    monkeypatch.setattr(steps, "watcher", race)
    (name,) = in_process(agents, "s")["archived_files"]
    assert name != taken.name
    assert ARCHIVE.match(name)
    assert taken.read_bytes() == b"the gateway's"
    assert (store.dir / name).read_bytes() == content


def test_reset_by_name_twice_in_one_millisecond_keeps_both(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StoreBuilder(agents)
    monkeypatch.setattr(plan, "now_ms", lambda: FROZEN)
    for content in (b"first life", b"second life"):
        store.add("cron:job", 90, "s")
        store.write()
        (store.dir / "s.jsonl").write_bytes(content)
        assert in_process(agents, "s")["transcript_archived"] is True
    assert (store.dir / f"s.jsonl.deleted.{FROZEN_AT}").read_bytes() == b"first life"
    assert (store.dir / f"s.jsonl.deleted.{A_MS_LATER}").read_bytes() == b"second life"


@pytest.mark.parametrize(
    "path", ["s.jsonl", "./s.jsonl", "{dir}/s.jsonl", "/home/node/.openclaw/agents/main/sessions/s.jsonl"]
)
def test_a_transcript_that_a_survivor_refers_to_stays(agents: Path, skill: Skill, path: str) -> None:
    store = StoreBuilder(agents)
    store.add("cron:job", 90, "s")
    store.add("cron:fork", 90, "fork", transcript=False, sessionFile=path.format(dir=store.dir))
    store.write()
    content = (store.dir / "s.jsonl").read_bytes()
    answer = skill("delete_session", {"session_id": "s"})
    assert (answer.exit_code, answer.document["transcript_archived"]) == (0, False)
    assert (store.dir / "s.jsonl").read_bytes() == content
    assert list(store.read()) == ["agent:main:cron:fork"]
    # Only when the last one that refers to it goes.
    assert skill("delete_session", {"session_id": "fork"}).document["transcript_archived"] is True
    assert set(archives(store.dir)) == {"s.jsonl"}


@pytest.mark.parametrize(
    "path", ["{dir}/s.jsonl", "/home/node/.openclaw/agents/main/sessions/s.jsonl", "../../main/sessions/s.jsonl"]
)
@pytest.mark.parametrize("named", [True, False])
def test_a_transcript_that_another_agent_refers_to_stays(agents: Path, skill: Skill, path: str, named: bool) -> None:
    store, other = StoreBuilder(agents), StoreBuilder(agents, "other")
    store.add("cron:job", 90, "s")
    store.write()
    other.add("cron:fork", 90, "fork", transcript=False, sessionFile=path.format(dir=store.dir))
    other.write()
    answer = skill("delete_session", {"session_id": "s", **({"agent": "main"} if named else {})})
    assert (answer.exit_code, answer.document["transcript_archived"]) == (0, False)
    assert (store.dir / "s.jsonl").exists()
    assert store.read() == {}


def test_namesakes_that_share_one_transcript_both_go(agents: Path, skill: Skill) -> None:
    store, other = StoreBuilder(agents), StoreBuilder(agents, "also")
    store.add("cron:job", 90, "s")
    store.write()
    other.add("cron:job", 90, "s", transcript=False, sessionFile=str(store.dir / "s.jsonl"))
    other.write()
    document = skill("delete_session", {"session_id": "s"}).document
    assert len(document["removed_keys"]) == 2
    assert set(archives(store.dir)) == {"s.jsonl"}


@pytest.mark.parametrize(
    "outside",
    ["/etc/passwd", "../../../outside.jsonl", "../../outside.jsonl", "sub/x.jsonl", "../../other/sessions/o.jsonl"],
)
def test_a_session_file_outside_is_left_alone_and_reported(agents: Path, skill: Skill, outside: str) -> None:
    other = StoreBuilder(agents, "other")
    other.add("cron:o", 90, "o")
    other.write()
    store = StoreBuilder(agents)
    store.add("cron:job", 90, "s", sessionFile=outside)
    store.write()
    (store.dir / "sub").mkdir()
    for place in (agents.parent / "outside.jsonl", agents / "outside.jsonl", store.dir / "sub" / "x.jsonl"):
        place.write_bytes(b"not ours")
    before = picture(agents.parent)
    answer = skill("delete_session", {"session_id": "s"})
    assert answer.exit_code == 0
    assert answer.document["left_alone"] == [outside]
    assert set(archives(store.dir)) == {"s.jsonl"}
    changed = {k for k, v in picture(agents.parent).items() ^ before.items()} - {"agents/main/sessions/s.jsonl"}
    assert {k for k in changed if "s.jsonl.deleted" not in k and "/.session_manager" not in k} == {
        "agents/main/sessions/sessions.json"
    }
    assert Path("/etc/passwd").exists()


@pytest.mark.parametrize(
    "aimed_at",
    ["sessions.json", "./sessions.json", "other.jsonl", "other-topic-1.jsonl", ".", "", "s.jsonl/../other.jsonl"],
)
def test_a_session_file_never_moves_what_is_not_its_own(agents: Path, skill: Skill, aimed_at: str) -> None:
    store = StoreBuilder(agents)
    store.add("cron:job", 90, "s", transcript=False, sessionFile=aimed_at)
    store.add("cron:other", 90, "other")
    store.write()
    (store.dir / "other-topic-1.jsonl").write_bytes(b"topic\n")
    names = store.names()
    answer = skill("delete_session", {"session_id": "s"})
    assert (answer.exit_code, answer.document["transcript_archived"]) == (0, False)
    assert store.names() == names
    assert list(store.read()) == ["agent:main:cron:other"]


def test_a_link_in_place_of_a_transcript_is_renamed_not_followed(agents: Path, skill: Skill) -> None:
    target = agents.parent / "precious.jsonl"
    target.write_bytes(b"precious")
    store = StoreBuilder(agents)
    store.add("cron:job", 90, "s", transcript=False)
    store.write()
    (store.dir / "s.jsonl").symlink_to(target)
    assert skill("delete_session", {"session_id": "s"}).exit_code == 0
    assert target.read_bytes() == b"precious"
    assert not (store.dir / "s.jsonl").is_symlink()


@pytest.mark.parametrize("by", ["id", "key"])
def test_already_deleted_by_us(agents: Path, skill: Skill, by: str) -> None:
    store = StoreBuilder(agents)
    store.add("cron:job", 90, "s")
    store.write()
    named = "s" if by == "id" else "agent:main:cron:job"
    assert skill("delete_session", {"session_id": named}).exit_code == 0
    before = picture(agents)
    answer = skill("delete_session", {"session_id": named})
    document = answer.document
    assert (answer.exit_code, document["deleted"], document["removed_keys"]) == (0, "s", [])
    assert document["already_deleted"] is True
    assert "already" in document["message"]
    assert document["pg_pending"] is True
    assert picture(agents) == before
    assert marks(agents) == [("main", "s", "ended", "pending")]


@pytest.mark.parametrize(
    "archive",
    [
        "s.jsonl.deleted.2026-02-15T18-00-00.123Z",
        "s.jsonl.deleted.2026-02-15T18-00-00Z",
        "s-topic-4.jsonl.deleted.2026-02-15T18-00-00.123Z",
        "s.jsonl.deleted.2026-02-15T18-00-00.123Z.7618294de6cf4d02b9b454254666fc6b.zst",
    ],
)
def test_already_deleted_by_the_gateway(agents: Path, skill: Skill, archive: str) -> None:
    store = StoreBuilder(agents).write()
    (store.dir / archive).write_bytes(b"old\n")
    before = picture(agents)
    answer = skill("delete_session", {"session_id": "s"})
    assert (answer.exit_code, answer.document["already_deleted"], answer.document["removed_keys"]) == (0, True, [])
    assert picture(agents) == before
    # History may not have heard of it.
    assert marks(agents) == [("main", "s", "ended", "pending")]


@pytest.mark.parametrize(("url", "history"), [("http://localhost:9/api", "unknown"), ("", None)])
@pytest.mark.parametrize("named", ["nobody", "agent:main:cron:nobody", "s"])
def test_known_to_nobody(agents: Path, skill: Skill, url: str, history: str | None, named: str) -> None:
    store = StoreBuilder(agents)
    store.add("cron:job", 90, "s1")
    store.write()
    (store.dir / "s.jsonl.bak.2026-02-15T18-00-00.123Z").write_bytes(b"a compaction's\n")
    before = picture(agents, without_state=False)
    answer = skill("delete_session", {"session_id": named}, ARIA_API_URL=url)
    assert (answer.exit_code, answer.document["code"]) == (5, "session_not_found")
    assert named in answer.document["error"]
    assert answer.document.get("history") == history
    assert picture(agents, without_state=False) == before


@pytest.mark.parametrize("variable", CALLER_VARIABLES)
@pytest.mark.parametrize("current", ["s", "agent:main:cron:job", "agent:Main:Telegram:group:-1", " s "])
@pytest.mark.parametrize("named", ["s", "agent:main:cron:job"])
@pytest.mark.parametrize("force", [False, True])
def test_the_current_session_is_refused(
    agents: Path, skill: Skill, variable: str, current: str, named: str, force: bool
) -> None:
    store = StoreBuilder(agents)
    store.add("cron:job", 90, "s")
    store.add("telegram:group:-1", 90, "s")
    store.write()
    before = picture(agents)
    for function in ("delete_session", "cleanup_after_delegation"):
        answer = skill(function, {"session_id": named, "force": force}, **{variable: current})
        assert (answer.exit_code, answer.document["code"]) == (4, "session_protected")
        assert answer.document["reason"] == "current"
    assert picture(agents) == before
    assert marks(agents) == []


def test_the_caller_of_a_cli_backed_run_by_its_short_key(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("main", 90, "s")
    store.write()
    caller = {"OPENCLAW_MCP_AGENT_ID": "main", "OPENCLAW_MCP_SESSION_KEY": "main", "OPENCLAW_MCP_SESSION_ID": ""}
    answer = skill("delete_session", {"session_id": "s", "force": True}, **caller)
    assert (answer.exit_code, answer.document["reason"]) == (4, "current")


@pytest.mark.parametrize("key", ["main", "=main", "=global", "=agent:MAIN:main"])
@pytest.mark.parametrize("second", [None, "cron:job"])
def test_a_main_session_goes_only_by_force(agents: Path, skill: Skill, key: str, second: str | None) -> None:
    store = StoreBuilder(agents)
    store.add(key, 90, "s")
    if second:
        store.add(second, 90, "s")
    store.write()
    before = picture(agents)
    answer = skill("delete_session", {"session_id": "s"})
    assert (answer.exit_code, answer.document["code"], answer.document["reason"]) == (4, "session_protected", "main")
    assert "force" in answer.document["error"]
    assert picture(agents) == before
    assert skill("delete_session", {"session_id": "s", "force": "true"}).exit_code == 0
    assert store.read() == {}


def _lock(name: str) -> Callable[[StoreBuilder], None]:
    return lambda store: hold(store.dir / name)


@pytest.mark.parametrize(
    ("fields", "prepare", "code", "reason"),
    [
        ({}, _lock("s.jsonl.lock"), "session_busy", "busy"),
        ({}, _lock("s-topic-7.jsonl.lock"), "session_busy", "busy"),
        ({"sessionFile": "elsewhere.jsonl"}, _lock("elsewhere.jsonl.lock"), "session_busy", "busy"),
        ({"status": "running"}, _lock("s.jsonl.lock"), "session_busy", "running"),
        ({"pinnedAt": FROZEN}, lambda store: None, "session_protected", "pinned"),
    ],
)
def test_busy_and_pinned_sessions_go_only_by_force(
    agents: Path, skill: Skill, fields: dict[str, Any], prepare: Callable[[StoreBuilder], None], code: str, reason: str
) -> None:
    store = StoreBuilder(agents)
    store.add("cron:job", 90, "s", **fields)
    store.write()
    store.transcript("elsewhere.jsonl", "s", FROZEN)
    prepare(store)
    before = picture(agents)
    answer = skill("delete_session", {"session_id": "s"})
    assert (answer.exit_code, answer.document["code"], answer.document["reason"]) == (4, code, reason)
    assert picture(agents) == before
    assert marks(agents) == []
    answer = skill("delete_session", {"session_id": "s", "force": True})
    assert (answer.exit_code, answer.document["transcript_archived"]) == (0, True)
    assert store.read() == {}


def test_one_namesake_protected_the_other_deleted(agents: Path, skill: Skill) -> None:
    for agent in ("main", "other"):
        store = StoreBuilder(agents, agent)
        store.add("cron:job", 90, "s", **({"pinnedAt": FROZEN} if agent == "main" else {}))
        store.write()
    answer = skill("delete_session", {"session_id": "s"})
    document = answer.document
    assert (answer.exit_code, document["code"]) == (3, "partial")
    assert document["removed_keys"] == ["agent:other:cron:job"]
    assert [(e["agentId"], e["id"], e["code"]) for e in document["errors"]] == [("main", "s", "session_protected")]
    assert StoreBuilder(agents, "main").read()


def test_a_damaged_agent_does_not_hinder_the_others(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents, "other")
    store.add("cron:job", 90, "s")
    store.write()
    damaged = StoreBuilder(agents, "main").write()
    damaged.index.write_bytes(b"")
    answer = skill("delete_session", {"session_id": "s"})
    assert (answer.exit_code, answer.document["deleted"]) == (3, "s")
    assert [(e["agentId"], e["code"]) for e in answer.document["errors"]] == [("main", "index_damaged")]
    # Asked for the agent that is well, nothing is partial.
    store.add("cron:job", 90, "t")
    store.write()
    assert skill("delete_session", {"session_id": "t", "agent": "other"}).exit_code == 0
    named = skill("delete_session", {"session_id": "t", "agent": "main"})
    assert (named.exit_code, named.document["code"]) == (7, "index_damaged")


@pytest.mark.parametrize(
    "arguments",
    [{}, {"session_id": ""}, {"session_id": None}, {"session_id": 7}, {"session_id": ["s"]}, {"sessionid": "s"},
     {"session_id": "s", "force": "maybe"}, {"session_id": "s" * 300}, [], None, 5],
)  # fmt: skip
def test_bad_arguments(agents: Path, skill: Skill, arguments: Any) -> None:
    StoreBuilder(agents).write()
    before = picture(agents, without_state=False)
    answer = skill("delete_session", json.dumps(arguments))
    assert answer.exit_code == 2
    assert answer.document["error"]
    assert picture(agents, without_state=False) == before


def test_a_session_id_inside_the_index_that_is_a_path_moves_nothing(agents: Path, skill: Skill) -> None:
    (agents.parent / "evil.jsonl").write_bytes(b"evil")
    store = StoreBuilder(agents)
    store.add("cron:job", 90, "../../../evil", transcript=False)
    store.write()
    before = picture(agents.parent)
    for named in ("../../../evil", "agent:main:cron:job"):
        answer = skill("delete_session", {"session_id": named, "force": True})
        assert answer.exit_code in (2, 4)
        assert picture(agents.parent) == before
    assert skill("prune_sessions").document["deleted_ids"] == []
    assert picture(agents.parent) == before


def test_entries_are_dropped_from_the_ledger_after_the_keeping_time(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    for name in ("first", "second", "third"):
        store.add(f"cron:{name}", 120, session_id=name)
    store.write()
    ledger = agents / ".session_manager" / "ledger.sqlite"

    def kept() -> dict[str, bool]:
        connection = sqlite3.connect(ledger)
        try:
            return dict(
                connection.execute(
                    "SELECT session_id, entries IS NOT NULL FROM removals LEFT JOIN chunks USING (chunk_id)"
                ).fetchall()
            )
        finally:
            connection.close()

    skill("delete_session", {"session_id": "first"})
    connection = sqlite3.connect(ledger, isolation_level=None)
    connection.execute("UPDATE attempts SET created_at = created_at - 3 * 86400000")
    connection.close()
    skill("delete_session", {"session_id": "second"}, ARIA_KEEP_DAYS="4")
    assert kept() == {"first": True, "second": True}
    skill("delete_session", {"session_id": "third"}, ARIA_KEEP_DAYS="2")
    assert kept() == {"first": False, "second": True, "third": True}
