"""Which class each file of a sessions folder has, and which orphans may go: tables and properties."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_manager.core.orphans import CLASSES, Orphan, judge_entries, judge_orphans, too_many
from session_manager.core.retention import Policy
from session_manager.core.session import Entry, Session, build_sessions
from session_manager.stores.openclaw_files.orphans import (
    Mentions,
    class_of_name,
    classify,
    orphans_in,
    read_header,
    session_id_of,
    with_traces,
)
from session_manager.stores.openclaw_files.store import Store

UUID = "6513270e-0b3c-4b8e-9a55-0123456789ab"
STAMP = "2026-11-20T23-29-08.931Z"
NOW = 1_771_180_200_000
DAY = 86_400_000


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (f"{UUID}.jsonl", "true_orphan"),
        (f"2026-11-20T23-29-08-931Z_{UUID}.jsonl", "true_orphan"),
        ("A.b_c-1.jsonl", "true_orphan"),
        (f"{UUID}-topic-7.jsonl", "topic_file"),
        (f"2026-11-20T23-29-08-931Z_{UUID}-topic-7.jsonl", "topic_file"),
        (f"{UUID}-topic-.jsonl", "true_orphan"),
        ("live.jsonl", "live"),
        (f"{UUID}.trajectory.jsonl", "sidecar"),
        (f"{UUID}.trajectory-path.json", "sidecar"),
        (f"{UUID}.checkpoint.{UUID}.jsonl", "sidecar"),
        (f"{UUID}.jsonl.codex-app-server.json", "sidecar"),
        (f"{UUID}.jsonl.bak-12-1771180200000", "sidecar"),
        (f"{UUID}.jsonl.repair-12-1771180200000.tmp", "partial"),
        (f"{UUID}.jsonl.truncate-tmp", "partial"),
        (f"{UUID}.jsonl.manual-compaction-tmp", "partial"),
        ("sessions.json.4193999.0b7e.tmp", "partial"),
        (f"{UUID}.jsonl.deleted.{STAMP}", "deleted_archive"),
        (f"{UUID}.jsonl.deleted.{STAMP}.{'0f' * 16}.zst", "deleted_archive"),
        (f"{UUID}.jsonl.reset.{STAMP}", "reset_archive"),
        (f"{UUID}.jsonl.reset.{STAMP}.deleted.{STAMP}", "deleted_archive"),
        (f"{UUID}.jsonl.bak.{STAMP}", "backup_archive"),
        ("sessions.json", "other"),
        ("sessions.json.bak.1771180200000", "other"),
        (f"{UUID}.jsonl.lock", "other"),
        (".usage-cost-cache.json", "other"),
        (".jsonl", "other"),
        (".hidden.jsonl", "other"),
        (".a.trajectory.jsonl", "other"),
        ("-rf.jsonl", "other"),
        ("a..b.jsonl", "other"),
        ("...jsonl", "other"),
        ("a b.jsonl", "other"),
        ("a\nb.jsonl", "other"),
        ("é.jsonl", "other"),
        ("\udcff.jsonl", "other"),
        ("a" * 129 + ".jsonl", "other"),
        ("notes.txt", "other"),
        (f"{UUID}.json", "other"),
    ],
)
def test_each_name_has_one_class(name: str, kind: str) -> None:
    assert class_of_name(name, {"live.jsonl"}) == kind


@given(st.text(max_size=80), st.sampled_from(["", ".jsonl", ".tmp", f".jsonl.reset.{STAMP}", "-topic-1.jsonl"]))
def test_any_name_has_a_known_class_and_only_safe_ones_are_orphans(stem: str, suffix: str) -> None:
    name = stem + suffix
    kind = class_of_name(name, ())
    assert kind in CLASSES
    if kind == "true_orphan":
        found = session_id_of(name)
        assert found
        assert not set(found) & set("/\\\0\n ")
        assert found[0] not in ".-"
        assert ".." not in found


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (b'{"k": {"usageFamilySessionIds": ["old-id"]}}', True),
        (b'{"k": {"compactionCheckpoints": [{"preCompaction": {"sessionId": "old-id"}}]}}', True),
        (b'{"k": {"x": {"sessionFile": "/home/node/.openclaw/agents/main/sessions/old-id.jsonl"}}}', True),
        (b'{"agent:main:cron:j:run:old-id": {"sessionId": "new"}}', True),
        (b'{"agent:main:cron:j:run:old-id:x": {"sessionId": "new"}}', True),
        (b'{"k": {"usageFamilySessionIds": ["old-id"], "cut off', True),
        (b'{"agent:main:direct:old-id": {"sessionId": "new"}}', False),
        (b'{"k": {"label": "about old-id"}}', False),
        (b"", False),
        (b'"""\xff\xfe"', False),
    ],
)
def test_what_an_index_mentions(text: bytes, known: bool) -> None:
    assert Mentions(text).any_of("old-id", "old-id.jsonl") is known


# Folders.


def store_at(folder: Path) -> Store:
    return Store("main", str(folder), str(folder / "sessions.json"), "main:1")


def transcript(path: Path, session_id: str, at_ms: int = NOW - 9 * DAY, **header: Any) -> None:
    first = {"type": "session", "version": 3, "id": session_id, "timestamp": "2026-01-01T00:00:00.000Z", **header}
    path.write_text(json.dumps(first) + "\n")
    os.utime(path, (at_ms / 1000, at_ms / 1000))


def sessions(*ids: str, **fields: Any) -> list[Session]:
    entries = [
        (f"agent:main:hook:{i}", msgspec.convert({"sessionId": sid, "updatedAt": NOW - 9 * DAY, **fields}, Entry))
        for i, sid in enumerate(ids)
    ]
    return build_sessions("main", entries, NOW)


def test_forks_and_renamed_files_of_the_living_are_previous_generations(tmp_path: Path) -> None:
    transcript(tmp_path / "live.jsonl", "live", parentSession="/home/node/x/sessions/first.jsonl")
    transcript(tmp_path / "first.jsonl", "first", parentSession="C:\\x\\sessions\\root.jsonl")
    transcript(tmp_path / "root.jsonl", "root", parentSession="root.jsonl")
    transcript(tmp_path / "renamed.jsonl", "live")
    transcript(tmp_path / "lost.jsonl", "lost", parentSession="live.jsonl")
    transcript(tmp_path / "lost-too.jsonl", "lost-too", parentSession=7)
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "deep.jsonl").write_bytes(b"[" * 100_000)
    names = [p.name for p in tmp_path.iterdir()]
    classes = classify(store_at(tmp_path), names, sessions("live"), (), []).classes
    assert {n for n, k in classes.items() if k == "previous_generation"} == {
        "first.jsonl", "root.jsonl", "renamed.jsonl",
    }  # fmt: skip
    assert {n for n, k in classes.items() if k == "true_orphan"} == {
        "lost.jsonl", "lost-too.jsonl", "empty.jsonl", "deep.jsonl",
    }  # fmt: skip


def test_links_and_fifos_are_no_orphans_and_are_not_opened(tmp_path: Path) -> None:
    folder, outside = tmp_path / "sessions", tmp_path / "outside.jsonl"
    folder.mkdir()
    transcript(outside, "linked")
    (folder / "linked.jsonl").symlink_to(outside)
    os.mkfifo(folder / "pipe.jsonl")
    found = classify(store_at(folder), ["linked.jsonl", "pipe.jsonl", "vanished.jsonl"], [], (), [])
    assert found.classes == {"linked.jsonl": "other", "pipe.jsonl": "other"}
    assert read_header(str(folder / "linked.jsonl")) is None
    assert orphans_in(store_at(folder), found, [], NOW, NOW) == []


def test_counts_and_bytes_add_up(tmp_path: Path) -> None:
    for i, name in enumerate([f"{UUID}.jsonl", "a-topic-1.jsonl", "sessions.json", f"x.jsonl.reset.{STAMP}"], 1):
        (tmp_path / name).write_bytes(b"x" * i)
    for name in (".session_manager.lock", "sessions.json.lock"):
        (tmp_path / name).write_bytes(b"ours")
    counted = classify(store_at(tmp_path), [p.name for p in tmp_path.iterdir() if p.is_file()], [], (), []).counted()
    assert {k: v for k, v in counted.items() if v[0]} == {
        "true_orphan": (1, 1), "topic_file": (1, 2), "other": (1, 3), "reset_archive": (1, 4),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("mtime", "inside", "young"),
    [
        (NOW - 9 * DAY, NOW - 9 * DAY, False),
        (NOW - 60_000, NOW - 9 * DAY, True),
        (NOW - 9 * DAY, NOW - 60_000, True),
        (NOW + 5 * DAY, NOW - 9 * DAY, True),
        (NOW - 9 * DAY, NOW + 5 * DAY, False),
        (NOW - 9 * DAY, None, False),
    ],
)
def test_the_newest_sign_counts(tmp_path: Path, mtime: int, inside: int | None, young: bool) -> None:
    path = tmp_path / "lost.jsonl"
    path.write_text(json.dumps({"type": "message", "timestamp": inside}) + "\n")
    os.utime(path, (mtime / 1000, mtime / 1000))
    folder = classify(store_at(tmp_path), ["lost.jsonl"], [], (), [])
    cutoff = NOW - DAY
    (judged,) = judge_orphans(orphans_in(store_at(tmp_path), folder, [], cutoff, NOW), cutoff, set())
    assert judged.reason == ("young" if young else None)


def test_two_files_of_one_id_go_together(tmp_path: Path) -> None:
    stamped = f"2026-11-20T23-29-08-931Z_{UUID}.jsonl"
    transcript(tmp_path / stamped, UUID)
    transcript(tmp_path / f"{UUID}.jsonl", UUID, NOW)
    folder = classify(store_at(tmp_path), [stamped, f"{UUID}.jsonl"], [], (), [])
    (orphan,) = orphans_in(store_at(tmp_path), folder, [], NOW - DAY, NOW)
    assert (orphan.id, sorted(orphan.files)) == (UUID, sorted([stamped, f"{UUID}.jsonl"]))
    assert judge_orphans([orphan], NOW - DAY, set())[0].reason == "young"


# Decisions.


def orphan(**fields: Any) -> Orphan:
    plain: dict[str, Any] = {"id": "x", "last_activity": NOW - 9 * DAY, "busy": False, **fields}
    return Orphan("main", plain["id"], ["x.jsonl"], 1, plain["last_activity"], plain["busy"])


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (orphan(), None),
        (orphan(last_activity=NOW - DAY - 1), None),
        (orphan(last_activity=NOW - DAY), "young"),
        (orphan(last_activity=None), "unreadable"),
        (orphan(busy=True), "busy"),
        (orphan(id="me"), "current"),
        (orphan(id="me", busy=True, last_activity=None), "current"),
        (orphan(id="../x"), "unsafe id"),
    ],
)
def test_why_an_orphan_stays(candidate: Orphan, reason: str | None) -> None:
    assert judge_orphans([candidate], NOW - DAY, {"me"})[0].reason == reason


@pytest.mark.parametrize(
    ("going", "total", "refused"),
    [(0, 0, False), (0, 5, False), (1, 1, True), (1, 2, False), (2, 3, True), (2, 4, False), (51, 100, True)],
)
def test_more_than_half_is_too_many(going: int, total: int, refused: bool) -> None:
    assert too_many(going, total) is refused


def entry_reasons(entries: dict[str, dict[str, Any]], found: set[str] | None = None) -> dict[str, str | None]:
    rows = [
        (key, msgspec.convert({"sessionId": key, "updatedAt": NOW - 9 * DAY, **fields}, Entry))
        for key, fields in entries.items()
    ]
    built = build_sessions("main", rows, NOW)
    for session in built:
        session.busy = session.id.endswith("busy")
    policy = Policy(1440, include_durable=True)
    return {j.subject.id: j.reason for j in judge_entries(built, found or set(), policy, NOW, {"hook:me"})}


def test_why_an_entry_stays() -> None:
    entries: dict[str, dict[str, Any]] = {
        "hook:old": {},
        "telegram:direct:1": {},
        "hook:traced": {},
        "main": {},
        "hook:me": {},
        "hook:busy": {},
        "cron:running:busy": {"status": "running"},
        "hook:pinned": {"pinnedAt": 1},
        "hook:young": {"updatedAt": NOW - 60_000},
        "hook:undated": {"updatedAt": None},
        "subagent:owed": {"pendingFinalDelivery": True},
        "subagent:parent": {"sessionId": "parent"},
        "subagent:child": {"sessionId": "child", "spawnedBy": "subagent:parent", "updatedAt": NOW},
        "hook:bad": {"sessionId": "../bad"},
    }
    assert entry_reasons(entries, {"hook:traced"}) == {
        "hook:old": None,
        "telegram:direct:1": None,
        "main": "main",
        "hook:me": "current",
        "hook:busy": "busy",
        "cron:running:busy": "running",
        "hook:pinned": "pinned",
        "hook:young": "young",
        "hook:undated": "unknown age",
        "subagent:owed": "undelivered",
        "parent": "family",
        "child": "young",
        "../bad": "unsafe id",
    }


@pytest.mark.parametrize(
    ("files", "fields", "traced"),
    [
        ([], {}, False),
        (["s.jsonl"], {}, True),
        (["s-topic-4.jsonl"], {}, True),
        (["s.trajectory.jsonl"], {}, True),
        ([f"s.jsonl.deleted.{STAMP}"], {}, True),
        ([f"s.jsonl.reset.{STAMP}"], {}, True),
        ([f"s-topic-4.jsonl.reset.{STAMP}.deleted.{STAMP}"], {}, True),
        (["t.jsonl"], {}, False),
        (["other.jsonl"], {"sessionFile": "other.jsonl"}, True),
        ([], {"sessionFile": "/home/node/.openclaw/agents/main/sessions/s.jsonl"}, False),
        ([], {"sessionFile": "/nobody/knows/s.jsonl"}, False),
        ([], {"sessionFile": "/etc/passwd"}, True),
        ([], {"sessionFile": "../../two/sessions/there.jsonl"}, True),
        ([], {"sessionFile": "../../two/sessions/gone.jsonl"}, False),
        ([], {"sessionFile": "/home/node/.openclaw/agents/two/sessions/there.jsonl"}, True),
        ([], {"sessionFile": "/home/node/.openclaw/agents/two/sessions/gone.jsonl"}, False),
        ([], {"sessionFile": "/home/node/.openclaw/agents/three/sessions/gone.jsonl"}, False),
        ([], {"sessionFile": "a\0b"}, False),
        (["earlier.jsonl"], {"usageFamilySessionIds": ["earlier"]}, True),
        ([f"earlier.jsonl.reset.{STAMP}"], {"usageFamilySessionIds": ["earlier"]}, True),
        (["unrelated.jsonl"], {"usageFamilySessionIds": ["earlier"]}, False),
    ],
)
def test_what_is_left_of_a_session(tmp_path: Path, files: list[str], fields: dict[str, Any], traced: bool) -> None:
    folder = tmp_path / "agents" / "main" / "sessions"
    folder.mkdir(parents=True)
    (tmp_path / "agents" / "two" / "sessions").mkdir(parents=True)
    (tmp_path / "agents" / "two" / "sessions" / "there.jsonl").write_bytes(b"")
    for name in files:
        (folder / name).write_bytes(b"")
    store, found = store_at(folder), sessions("s", **fields)
    classes = classify(store, files, found, (), [])
    raw = json.dumps({"sessionId": "s", **fields}).encode()
    assert with_traces(store, classes, found, {"s": [raw]}) == ({"s"} if traced else set())
