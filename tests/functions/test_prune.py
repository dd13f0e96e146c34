"""prune_sessions: what goes, what stays and why, and that survivors keep every byte."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support import Skill, StoreBuilder, now_ms, picture

MINUTE = 60_000


def hold(path: Path) -> None:
    """A transcript lock of a living process: this one."""
    path.write_text(json.dumps({"pid": os.getpid(), "createdAt": "2026-02-15T18:00:00.000Z"}, indent=2))


def reasons(document: dict[str, Any]) -> dict[str, str]:
    assert all(set(k) == {"id", "agentId", "reason"} for k in document["kept"])
    return {k["id"]: k["reason"] for k in document["kept"]}


def both(skill: Skill, arguments: dict[str, Any], **env: str | None) -> dict[str, Any]:
    """Previews and prunes; the two must agree; returns the real run's document."""
    preview = skill("prune_sessions", {**arguments, "dry_run": True}, **env).document
    real = skill("prune_sessions", arguments, **env).document
    same = ("total_sessions", "pruned_count", "kept_count", "deleted_ids", "errors", "threshold_minutes", "kept")
    assert {k: preview[k] for k in same} == {k: real[k] for k in same}
    assert (preview["dry_run"], real["dry_run"]) == (True, False)
    assert real["pruned_count"] == len(real["deleted_ids"])
    assert real["pruned_count"] + real["kept_count"] == real["total_sessions"]
    return real


def test_the_documented_answer(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", 90, "abc123")
    store.add("cron:b", 61, "def456")
    store.add("cron:c", 59, "young")
    store.write()
    document = both(skill, {})
    assert {k: document[k] for k in document if k in ("total_sessions", "pruned_count", "kept_count", "errors")} == {
        "total_sessions": 3, "pruned_count": 2, "kept_count": 1, "errors": []
    }  # fmt: skip
    assert document["deleted_ids"] == ["abc123", "def456"]
    assert document["threshold_minutes"] == 60
    assert document["kept"] == []
    assert list(store.read()) == ["agent:main:cron:c"]
    assert not (store.dir / "abc123.jsonl").exists()
    assert (store.dir / "young.jsonl").exists()
    again = both(skill, {})
    assert (again["total_sessions"], again["pruned_count"], again["deleted_ids"]) == (1, 0, [])


Prepare = Callable[[StoreBuilder], None]


def nothing(store: StoreBuilder) -> None:
    pass


@pytest.mark.parametrize(
    ("reason", "key", "fields", "prepare"),
    [
        ("main", "main", {}, nothing),
        ("main", "=main", {}, nothing),
        ("main", "=global", {}, nothing),
        ("current", "cron:a", {}, nothing),
        ("busy", "cron:a", {}, lambda s: hold(s.dir / "s.jsonl.lock")),
        ("busy", "cron:a", {}, lambda s: hold(s.dir / "s-topic-5.jsonl.lock")),
        ("running", "cron:a", {"status": "running"}, lambda s: hold(s.dir / "s.jsonl.lock")),
        ("pinned", "cron:a", {"pinnedAt": 1_771_180_200_000}, nothing),
        ("durable", "telegram:group:-1", {}, nothing),
        ("durable", "discord:channel:1", {}, nothing),
        ("durable", "whatsapp:direct:+1", {}, nothing),
        ("durable", "telegram:group:-1:topic:4", {}, nothing),
        ("durable", "dashboard:u", {}, nothing),
        ("durable", "voice:u", {}, nothing),
        ("durable", "discord:slash:u", {}, nothing),
        ("unknown type", "my-main", {}, nothing),
        ("unknown type", "=something", {}, nothing),
        ("unknown age", "cron:a", {"updatedAt": None}, nothing),
        ("unknown age", "cron:a", {"updatedAt": -1}, nothing),
        ("unknown age", "cron:a", {"updatedAt": 864 * 10**15}, nothing),
        ("family", "subagent:p", {}, lambda s: s.add("subagent:p:subagent:c", 5, "young") and None),
    ],
)
def test_an_old_session_is_kept_for_a_reason(
    agents: Path, skill: Skill, reason: str, key: str, fields: dict[str, Any], prepare: Prepare
) -> None:
    store = StoreBuilder(agents)
    store.add(key, 600, "s")
    store.entries[next(iter(store.entries))].update(fields)
    prepare(store)
    store.add("cron:goes", 600, "goes")
    store.write()
    kept = picture(agents)
    document = both(skill, {}, ARIA_SESSION_ID="s" if reason == "current" else None)
    assert reasons(document) == {"s": reason}
    assert document["deleted_ids"] == ["goes"]
    assert "s" in {e["sessionId"] for e in store.read().values()}
    assert picture(agents)["main/sessions/s.jsonl"] == kept["main/sessions/s.jsonl"]


def test_times_in_any_unit_and_form(agents: Path, skill: Skill) -> None:
    """A session that is five minutes old is that in seconds, too, and never from 1970."""
    store = StoreBuilder(agents)
    young, old = now_ms() - 5 * MINUTE, now_ms() - 2880 * MINUTE
    forms: dict[str, object] = {
        "seconds": young // 1000,
        "fraction": young / 1000,
        "microseconds": young * 1000,
        "rfc3339": datetime.fromtimestamp(young / 1000, UTC).isoformat(),
        "digits": str(young),
        "second-digits": str(young // 1000),
        "nineties": 800_000_000_000,
        "nineties-text": "1999-12-31T23:59:59Z",
        "old-seconds": old // 1000,
        "old-rfc3339": datetime.fromtimestamp(old / 1000, UTC).isoformat(),
    }
    for name, at in forms.items():
        store.add(f"cron:{name}", 2880, name, updatedAt=at)
    store.write()
    document = both(skill, {})
    assert reasons(document) == {"nineties": "unknown age", "nineties-text": "unknown age"}
    assert sorted(document["deleted_ids"]) == ["old-rfc3339", "old-seconds"]
    shown = {row["id"]: row["updatedAt"] for row in skill("list_sessions").document["sessions"]}
    assert {name for name, at in shown.items() if at is None} == {"nineties", "nineties-text"}
    assert all(abs(datetime.fromisoformat(at).timestamp() * 1000 - young) < 1000 for at in shown.values() if at)


@pytest.mark.parametrize("last", ['"1999-12-31T23:59:59Z"', "1", "800000000000", "null"])
def test_a_line_with_an_absurd_time_hides_no_fresh_one(agents: Path, skill: Skill, last: str) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", 600, "s")
    store.write()
    with store.transcript("s.jsonl", "s", now_ms() - 5 * MINUTE, mtime_ms=now_ms()).open("a") as file:
        file.write(f'{{"type":"custom","timestamp":{last}}}\n')
    assert both(skill, {})["deleted_ids"] == []


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"startedAt": 10}, "running"),
        ({"startedAt": 10, "updatedAt": 600}, "running"),
        ({"startedAt": 600}, "running"),
        ({"startedAt": 31, "updatedAt": 31}, None),
        ({"startedAt": 10, "status": "done"}, None),
    ],
)
def test_a_run_that_only_the_entry_shows(
    agents: Path, skill: Skill, fields: dict[str, Any], reason: str | None
) -> None:
    """``fields``: minutes ago. The run of a child keeps its whole family."""
    store = StoreBuilder(agents)
    store.add("subagent:p", 600, "p")
    started = now_ms() - fields["startedAt"] * MINUTE
    store.add("subagent:p:subagent:c", fields.get("updatedAt", 10), "c", status=fields.get("status", "running"))
    store.entries["agent:main:subagent:p:subagent:c"]["startedAt"] = started
    store.write()
    document = both(skill, {"max_age_minutes": 5})
    assert reasons(document) == ({"p": "family", "c": reason} if reason else {})
    assert store.names() >= ({"p.jsonl", "c.jsonl"} if reason else set())


@pytest.mark.parametrize(
    "kind",
    [
        "cron:a",
        "cron:a:run:s",
        "subagent:a",
        "hook:a",
        "acp:a",
        "heartbeat",
        "main:heartbeat",
        "node-a",
        "openai:a",
        "openresponses-user:a",
        "explicit:a",
    ],
)
@pytest.mark.parametrize("fields", [{}, {"status": "running"}, {"pinnedAt": None}])
def test_prunable_kinds(agents: Path, skill: Skill, kind: str, fields: dict[str, Any]) -> None:
    store = StoreBuilder(agents)
    store.add(kind, 600, "s", **fields)
    store.write()
    assert both(skill, {})["deleted_ids"] == ["s"]


@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        ({}, {"cron"}),
        ({"session_type": "cron"}, {"cron"}),
        ({"session_type": "group"}, {"group"}),
        ({"session_type": "unknown"}, {"unknown"}),
        ({"session_type": "main"}, set()),
        ({"session_type": "voice"}, set()),
        ({"include_durable": True}, {"cron", "group", "unknown"}),
        ({"include_durable": "true", "session_type": "group"}, {"group"}),
        ({"include_durable": True, "limit": 1}, {"unknown"}),
    ],
)
def test_type_and_durable(agents: Path, skill: Skill, arguments: dict[str, Any], gone: set[str]) -> None:
    store = StoreBuilder(agents)
    for number, (key, sid) in enumerate(
        {
            "cron:a": "cron",
            "telegram:group:-1": "group",
            "my-main": "unknown",
            "main": "main",
            "hook:y": "young",
        }.items()
    ):
        store.add(key, 600 + number if sid != "young" else 1, sid)
    store.write()
    document = both(skill, arguments)
    assert set(document["deleted_ids"]) == gone
    assert {e["sessionId"] for e in store.read().values()} == {"cron", "group", "unknown", "main", "young"} - gone
    if "session_type" in arguments:
        assert document["total_sessions"] == (arguments["session_type"] != "voice")


def test_limit_takes_the_oldest_first(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    for name, age in {"c": 300, "a": 500, "e": 100, "b": 400, "d": 200}.items():
        store.add(f"cron:{name}", age, name)
    store.write()
    document = both(skill, {"limit": 2})
    assert set(document["deleted_ids"]) == {"a", "b"}
    assert reasons(document) == {"c": "limit", "d": "limit", "e": "limit"}
    assert {e["sessionId"] for e in store.read().values()} == {"c", "d", "e"}


def test_limit_covers_all_agents(sixteen: Path, skill: Skill) -> None:
    document = both(skill, {"limit": 5})
    assert (document["pruned_count"], document["kept_count"]) == (5, 11)
    assert list(reasons(document).values()).count("limit") == 9


def test_one_agent_only(sixteen: Path, skill: Skill) -> None:
    before = {k: v for k, v in picture(sixteen).items() if not k.startswith("analyst/")}
    document = both(skill, {"agent": "analyst"})
    assert document["total_sessions"] == 3
    assert document["pruned_count"] > 0
    assert before.items() <= picture(sixteen).items()


@pytest.mark.parametrize("minutes", [0, -1, "0", "-5", None, 1.5, "1.5", True, "sixty", "", [], {}, 1e400])
@pytest.mark.parametrize("dry_run", [True, False])
def test_an_age_below_one_minute_is_a_usage_error(sixteen: Path, skill: Skill, minutes: Any, dry_run: bool) -> None:
    before = picture(sixteen, without_state=False)
    answer = skill("prune_sessions", {"max_age_minutes": minutes, "dry_run": dry_run})
    assert answer.exit_code == 2
    assert answer.document["error"]
    assert picture(sixteen, without_state=False) == before


@pytest.mark.parametrize(
    "arguments",
    [
        {"limit": 0},
        {"limit": -1},
        {"session_type": "crn"},
        {"session_type": ""},
        {"dryrun": True},
        {"dry_run": "perhaps"},
        {"dry-run": True},
        {"max_age": 60},
        {"include_durable": 2},
    ],
)
def test_other_usage_errors(sixteen: Path, skill: Skill, arguments: dict[str, Any]) -> None:
    before = picture(sixteen, without_state=False)
    answer = skill("prune_sessions", arguments)
    assert answer.exit_code == 2
    assert answer.document["error"]
    assert picture(sixteen, without_state=False) == before


@pytest.mark.parametrize(("minutes", "goes"), [("60", True), (60.0, True), (89, True), (91, False), (10**30, False)])
def test_sloppy_and_large_ages(agents: Path, skill: Skill, minutes: Any, goes: bool) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", 90, "s")
    store.write()
    assert both(skill, {"max_age_minutes": minutes})["deleted_ids"] == ["s"] * goes


def test_a_brand_new_session_without_a_transcript_is_untouched(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:new", 0, "new", transcript=False)
    store.add("cron:old", 90, "old", transcript=False)
    store.write()
    document = both(skill, {"max_age_minutes": 1})
    assert document["deleted_ids"] == ["old"]
    assert list(store.read()) == ["agent:main:cron:new"]


@pytest.mark.parametrize(
    ("inside", "mtime", "goes"),
    [
        (5, 5, False),  # the entry was not brought up to date, the transcript knows better
        (600, 0, True),  # a copy or a checkout: a recent mtime proves nothing
        (5, 600, True),  # an old mtime proves that nothing new is inside: it is not read
        (600, 600, True),
    ],
)
@pytest.mark.parametrize("name", ["s.jsonl", "s-topic-9.jsonl"])
def test_the_transcript_has_a_say(agents: Path, skill: Skill, inside: int, mtime: int, goes: bool, name: str) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", 600, "s", transcript=False)
    store.transcript(name, "s", now_ms() - inside * MINUTE, now_ms() - mtime * MINUTE)
    store.write()
    assert both(skill, {})["deleted_ids"] == ["s"] * goes


@pytest.mark.parametrize("field", ["updatedAt", "lastInteractionAt", "lastActivityAt", "endedAt"])
@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("age", [5, 600])
def test_every_time_in_the_entry_counts(agents: Path, skill: Skill, field: str, as_text: bool, age: int) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", None, "s", transcript=False)
    at = now_ms() - age * MINUTE
    store.entries["agent:main:cron:a"] |= {"updatedAt": now_ms() - 700 * MINUTE, field: str(at) if as_text else at}
    store.write()
    assert both(skill, {})["deleted_ids"] == ["s"] * (age == 600)


def test_times_of_all_keys_count(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", 600, "s")
    store.add("cron:a:run:s", 5, "s", transcript=False)
    store.write()
    document = both(skill, {})
    assert (document["total_sessions"], document["pruned_count"]) == (1, 0)


def test_a_second_key_protects(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", 600, "s")
    store.add("telegram:direct:5", 600, "s")
    store.add("cron:b", 600, "m")
    store.add("main", 600, "m")
    store.write()
    document = both(skill, {})
    assert document["deleted_ids"] == []
    assert reasons(document) == {"s": "durable", "m": "main"}


ODD = (
    '{ "agent:main:cron:a" :{"sessionId":"a","updatedAt":1771000000000, "label":"\\ud83d caf\\u00e9"},\n'
    '\t"agent:main:telegram:direct:\u00e9" : {"sessionId":"keep1","updatedAt":1771000000000,\r\n "n": 1e+300,'
    '  "m":5e-324,"deep":[[[ ]]],"big":123456789012345678901234567890, "inf":1e400,"s":"\\ud83d\\/\\u0041"},\n'
    '"agent:main:cron:b":{"sessionId":"b","updatedAt":"1771000000000"},'
    '"agent:main:main":{"sessionId":"keep2","updatedAt":1771000000000}\n\n, "agent:main:cron:c":'
    '{"sessionId":"c","updatedAt":1771000000000} }\n'
).encode()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_survivors_keep_every_byte_and_the_file_its_mode(agents: Path, skill: Skill, mode: int) -> None:
    store = StoreBuilder(agents)
    store.index.write_bytes(ODD)
    store.index.chmod(mode)
    document = both(skill, {})
    assert sorted(document["deleted_ids"]) == ["a", "b", "c"]
    left = store.index.read_bytes()
    for start, end in ((b'"agent:main:telegram', b'\\u0041"}'), (b'"agent:main:main"', b'"updatedAt":1771000000000}')):
        at = ODD.index(start)
        assert ODD[at : ODD.index(end, at) + len(end)] in left
    assert set(json.loads(left)) == {"agent:main:telegram:direct:\u00e9", "agent:main:main"}
    assert stat.S_IMODE(store.index.stat().st_mode) == mode


def test_an_index_that_loses_all_becomes_an_empty_object(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a")
    store.write()
    assert both(skill, {})["pruned_count"] == 1
    assert store.index.read_bytes() == b"{}"
    assert both(skill, {})["total_sessions"] == 0


def test_when_nothing_is_to_do_the_index_is_not_rewritten(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", 5)
    store.write()
    was = store.index.stat()
    before = picture(agents)
    assert both(skill, {})["pruned_count"] == 0
    now = store.index.stat()
    assert (now.st_ino, now.st_mtime_ns) == (was.st_ino, was.st_mtime_ns)
    assert picture(agents) == before


@pytest.mark.parametrize("relative", [True, False])
def test_a_symlinked_index_stays_a_link(agents: Path, skill: Skill, relative: bool) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", 90, "old")
    store.add("cron:b", 5, "young")
    store.write()
    target = agents / "main" / "kept" / "store.json"
    target.parent.mkdir()
    store.index.rename(target)
    store.index.symlink_to("../kept/store.json" if relative else target)
    link = os.readlink(store.index)
    assert both(skill, {})["deleted_ids"] == ["old"]
    assert os.readlink(store.index) == link
    assert list(json.loads(target.read_bytes())) == ["agent:main:cron:b"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [p.name for p in target.parent.iterdir()] == ["store.json"]


def test_orphans_and_archives_are_left_alone(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", 90, "old")
    store.write()
    strangers = ("orphan.jsonl", "x.jsonl.deleted.2026-02-15T18-00-00.123Z", "sessions.json.bak.177", "notes.txt")
    for name in strangers:
        (store.dir / name).write_bytes(b"x\n")
    both(skill, {})
    assert store.names() >= set(strangers)


def test_an_agent_without_sessions(agents: Path, skill: Skill) -> None:
    (agents / "empty" / "sessions").mkdir(parents=True)
    (agents / "no-agent").mkdir()
    before = picture(agents)
    document = both(skill, {})
    assert (document["total_sessions"], document["kept"]) == (0, [])
    assert picture(agents) == before


def test_entries_that_are_no_sessions_survive(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", 90, "old")
    odd: dict[str, Any] = {"agent:main:cron:x": {"updatedAt": 5}, "agent:main:cron:y": None, "cron:z": [1], "": "text",
                           "agent:main:cron:n": {"sessionId": 7, "updatedAt": 5}}  # fmt: skip
    store.entries |= odd
    store.write()
    document = both(skill, {})
    assert (document["total_sessions"], document["deleted_ids"]) == (1, ["old"])
    assert store.read() == odd


def test_the_history_mark_is_announced(agents: Path, skill: Skill) -> None:
    for url, pending in (("", False), ("http://localhost:9/api", True)):
        store = StoreBuilder(agents)
        store.add("cron:a", 90)
        store.write()
        document = skill("prune_sessions", {}, ARIA_API_URL=url).document
        assert (document["pg_status_updated"], document["pg_pending"]) == (False, pending)
        assert skill("get_session_stats").document["pending_history_marks"] == int(pending)


def test_a_volume_whose_path_is_no_utf8_is_one_like_any_other(tmp_path: Path) -> None:
    agents = tmp_path / os.fsdecode(b"b\xffr\xe4") / "agents"
    store = StoreBuilder(agents)
    store.add("cron:old", 120, "old")
    entries = store.write().read()
    skill = Skill(agents, ARIA_API_URL="")
    assert skill("prune_sessions").document["deleted_ids"] == ["old"]
    assert skill("restore_session", {"session_id": "old"}).exit_code == skill("doctor").exit_code == 0
    assert store.read() == entries
