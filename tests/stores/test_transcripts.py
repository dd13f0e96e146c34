"""File names in a sessions folder, and the times written inside transcripts."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_manager.archives.names import archive_names, archive_timestamp, parse_archive
from session_manager.core.session import DAY_MS, Entry, Session, build_sessions
from session_manager.stores.openclaw_files import observe
from session_manager.stores.openclaw_files.observe import last_timestamp, observe_transcripts
from session_manager.stores.openclaw_files.store import Snapshot, Store
from session_manager.stores.openclaw_files.transcripts import files_by_session, owner
from session_manager.stores.openclaw_files.whereabouts import OWN, Whereabouts, is_transcript, outside_files

UUID = "6513270e-0b3c-4b8e-9a55-0123456789ab"
STAMP = "2026-11-20T23-29-08.931Z"
GATEWAY_TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d{3})?Z$")
NOW = 1_771_180_200_000
HOUR = 3_600_000


def sessions(*rows: tuple[str, dict[str, Any]]) -> list[Session]:
    """Builds sessions from (session id, fields)."""
    entries = [
        (f"agent:main:hook:{i}", msgspec.convert({"sessionId": sid, "updatedAt": NOW - 2 * HOUR, **fields}, Entry))
        for i, (sid, fields) in enumerate(rows)
    ]
    return build_sessions("main", entries, NOW)


# Archive names.


@given(st.integers(0, 253_402_300_799_999))
def test_the_gateway_parses_our_timestamps(epoch_ms: int) -> None:
    text = archive_timestamp(epoch_ms)
    assert GATEWAY_TIMESTAMP.match(text)
    assert archive_timestamp(epoch_ms)[-4:-1] == f"{epoch_ms % 1000:03d}"


def test_the_timestamp_is_utc() -> None:
    assert archive_timestamp(1_771_178_400_123) == "2026-02-15T18-00-00.123Z"
    assert archive_timestamp(0) == "1970-01-01T00-00-00.000Z"


@pytest.mark.parametrize(
    "name", [f"{UUID}.jsonl", "a-topic-7.jsonl", f"{UUID}.trajectory-path.json", "a.jsonl.bak-1-2"]
)
def test_an_archive_name_is_free_and_leads_back(name: str) -> None:
    first = archive_names([name], (), NOW)[0][1]
    second = archive_names([name], {first}, NOW)[0][1]
    third = archive_names([name], {first, second}, NOW)[0][1]
    assert len({first, second, third}) == 3
    for archived in (first, second, third):
        assert not is_transcript(archived)
        original, reason, at = parse_archive(archived) or ("", "", "")
        assert (original, reason) == (name, "deleted")
        assert GATEWAY_TIMESTAMP.match(at)


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        (f"a.jsonl.deleted.{STAMP}", ("a.jsonl", "deleted", STAMP)),
        (f"a.jsonl.reset.{STAMP}", ("a.jsonl", "reset", STAMP)),
        (f"a.jsonl.bak.{STAMP}", ("a.jsonl", "bak", STAMP)),
        ("a.jsonl.deleted.2026-11-20T23-29-08Z", ("a.jsonl", "deleted", "2026-11-20T23-29-08Z")),
        (f"a.jsonl.deleted.{STAMP}.{'0f' * 16}.zst", ("a.jsonl", "deleted", STAMP)),
        (f"a.jsonl.deleted.{STAMP}.{'0f' * 16}", ("a.jsonl", "deleted", STAMP)),
        (f"a.jsonl.reset.{STAMP}.deleted.{STAMP}", (f"a.jsonl.reset.{STAMP}", "deleted", STAMP)),
        ("a.jsonl", None),
        ("a.jsonl.deleted", None),
        ("a.jsonl.deleted.", None),
        ("a.jsonl.deleted.2026-11-20T23:29:08.931Z", None),
        ("a.jsonl.deleted.2026-11-20T23-29-08.93Z", None),
        ("a.jsonl.deleted.2026-11-20", None),
        (f"a.jsonl.gone.{STAMP}", None),
        (f"a.jsonl.deleted.{STAMP}\n", None),
        (f"a.jsonl.deleted.{STAMP}.gz", None),
        (f".deleted.{STAMP}", None),
        ("a.jsonl.bak-1-2", None),
    ],
)
def test_what_is_an_archive(name: str, parsed: tuple[str, str, str] | None) -> None:
    assert parse_archive(name) == parsed


# Whose file is it?


@pytest.mark.parametrize(
    "name",
    [
        "{}.jsonl",
        "{}-topic-7.jsonl",
        "{}-topic-a%20b.jsonl",
        "{}-topic-x-topic-y.jsonl",
        "2026-11-20T23-29-08-931Z_{}.jsonl",
        "2026-11-20T23-29-08-931Z_{}-topic-7.jsonl",
        "{}.jsonl.bak-123-1771180200000",
        "{}.jsonl.repair-123-1771180200000.tmp",
        "{}.jsonl.truncate-tmp",
        "{}.jsonl.manual-compaction-tmp",
        "{}.jsonl.codex-app-server.json",
        "{}.checkpoint." + UUID + ".jsonl",
        "{}.trajectory.jsonl",
        "{}.trajectory-path.json",
        "{}-topic-7.trajectory.jsonl",
        "{}-topic-7.jsonl.bak-1-2",
    ],
)
@pytest.mark.parametrize("session_id", [UUID, "abc", "a.b-c_d", "x-topic-3", "a.trajectory", "é"])
def test_every_pattern_leads_to_its_session(name: str, session_id: str) -> None:
    assert owner(name.format(session_id), {session_id, "another"}) == session_id
    assert owner(name.format(session_id), {session_id + "x", "another"}) is None
    assert owner(name.format(session_id), ()) is None


@pytest.mark.parametrize(
    "name",
    [
        "sessions.json",
        "sessions.json.lock",
        "sessions.json.123.0b7e.tmp",
        "sessions.json.bak.1771180200000",
        "sessions.json.telegram-topic-names.json",
        ".usage-cost-cache.json",
        ".session_manager.lock",
        "abc",
        "abc.json",
        ".jsonl",
        "abc.jsonl.lock",
        f"abc.jsonl.deleted.{STAMP}",
        f"abc.jsonl.reset.{STAMP}",
        f"abc.jsonl.bak.{STAMP}",
        "abc.jsonl.bak-1-2.tmp",
        "abc.jsonl.tmp",
        "abcd.jsonl",
        "ab.jsonl",
        "abc-topic.jsonl",
        "abctopic-7.jsonl",
        "-topic-abc.jsonl",
        "2026-11-20_abc.jsonl",
        "2026-11-20T23-29-08-931Z_abc\n.jsonl",
        "abc.checkpoint.7.jsonl",
        "abc\n.jsonl",
    ],
)
def test_nobodys_file(name: str) -> None:
    assert owner(name, {"abc"}) is None


def test_an_id_that_looks_like_a_topic_owns_its_own_file() -> None:
    ids = {"a", "a-topic-7", "a.trajectory"}
    assert owner("a-topic-7.jsonl", ids) == "a-topic-7"
    assert owner("a-topic-7-topic-8.jsonl", ids) == "a-topic-7"
    assert owner("a-topic-8.jsonl", ids) == "a"
    assert owner("a.trajectory.jsonl", ids) == "a.trajectory"
    assert owner("a-topic-7.jsonl", {"a"}) == "a"


@given(st.text(max_size=30), st.sets(st.text(min_size=1, max_size=5), max_size=3))
def test_an_owner_is_always_one_of_the_ids(name: str, ids: set[str]) -> None:
    for candidate in (name, name + ".jsonl", *(f"{i}-topic-{name}.jsonl" for i in ids)):
        assert owner(candidate, ids) in {None, *ids}


# The entry's sessionFile.


@pytest.mark.parametrize(
    ("session_file", "expected"),
    [
        ("{dir}/s.jsonl", "s.jsonl"),
        ("{dir}/./x/../s.jsonl", "s.jsonl"),
        ("{dir}/fresh.jsonl", "fresh.jsonl"),
        ("s.jsonl", "s.jsonl"),
        ("./s.jsonl", "s.jsonl"),
        ("fresh.jsonl", "fresh.jsonl"),
        ("/home/node/.openclaw/agents/main/sessions/s.jsonl", "s.jsonl"),
        ("/home/node/.openclaw/agents/main/sessions/fresh.jsonl", None),
        ("/link/is/not/here/../s.jsonl", "s.jsonl"),
        ("{link}/s.jsonl", "s.jsonl"),
        ("{outside}/s.jsonl", None),
        ("{dir}/../../other/sessions/s.jsonl", None),
        ("{dir}/sub/s.jsonl", None),
        ("sub/s.jsonl", None),
        ("nowhere/s.jsonl", None),
        ("../../../outside.jsonl", None),
        ("../../../s.jsonl", None),
        ("/etc/passwd", None),
        ("/etc/s.jsonl", None),
        ("sessions.json", None),
        ("{dir}/sessions.json", None),
        ("{dir}", None),
        ("..", None),
        ("", None),
        (".jsonl", None),
        (".hidden.jsonl", None),
        ("s.jsonl\0", None),
        ("s\0.jsonl", None),
        ("a\n/s.jsonl", None),
        ("\ud83d/s.jsonl", None),
        ("s.jsonl.lock", None),
    ],
)
def test_only_files_of_this_folder_are_the_agents_own(tmp_path: Path, session_file: str, expected: str | None) -> None:
    folder, outside, link = tmp_path / "agents/main/sessions", tmp_path / "outside", tmp_path / "link"
    for path in (folder / "sub", tmp_path / "agents/other/sessions", outside):
        path.mkdir(parents=True)
        (path / "s.jsonl").touch()
    (folder / "s.jsonl").touch()
    link.symlink_to(folder)
    given_file = session_file.format(dir=folder, outside=outside, link=link)
    (session,) = sessions(("a", {"sessionFile": given_file}))
    whereabouts = Whereabouts(str(folder), [session], os.listdir(folder))
    assert [spot.at for spot in whereabouts.spots(session) if spot.kind == OWN] == ([expected] if expected else [])
    assert whereabouts.own_name(given_file) == (expected if expected in os.listdir(folder) else None)


@pytest.mark.parametrize(
    ("session_file", "reported"),
    [
        ("s.jsonl", False),
        ("/home/node/.openclaw/agents/main/sessions/s.jsonl", False),
        ("/home/node/.openclaw/agents/main/sessions/gone.jsonl", True),
        ("{outside}/s.jsonl", True),
        ("../../../outside.jsonl", True),
        ("/etc/passwd", True),
        ("sessions.json", True),
    ],
)
def test_what_lies_outside_is_reported(tmp_path: Path, session_file: str, reported: bool) -> None:
    folder, outside = tmp_path / "agents/main/sessions", tmp_path / "outside"
    for path in (folder, outside):
        path.mkdir(parents=True)
    given_file = session_file.format(outside=outside)
    (session,) = sessions(("s", {"sessionFile": given_file}))
    store = Store("main", str(folder), str(folder / "sessions.json"), "main:1")
    assert list(outside_files(store, [session], [session], ())) == ([given_file] if reported else [])


def test_files_are_sorted_to_their_sessions(tmp_path: Path) -> None:
    names = [
        "a.jsonl", "a-topic-1.jsonl", "a.jsonl.bak-1-2", "a.trajectory-path.json", "a-topic-7.jsonl",
        "renamed.jsonl", "renamed.jsonl.truncate-tmp", "shared.jsonl", "orphan.jsonl", "sessions.json",
        "a.jsonl.lock", f"a.jsonl.deleted.{STAMP}", "../c.jsonl",
    ]  # fmt: skip
    found = files_by_session(
        names,
        sessions(
            ("a", {"sessionFile": f"/elsewhere/sessions/{'a'}.jsonl"}),
            ("a-topic-7", {}),
            ("b", {"sessionFile": f"{tmp_path}/renamed.jsonl"}),
            ("c", {"sessionFile": "shared.jsonl"}),
            ("d", {"sessionFile": "shared.jsonl"}),
            ("e", {"sessionFile": "../c.jsonl"}),
            ("f", {"sessionFile": "not-there.jsonl"}),
        ),
        str(tmp_path),
    )
    assert found == {
        "a": ["a-topic-1.jsonl", "a.jsonl", "a.jsonl.bak-1-2", "a.trajectory-path.json"],
        "a-topic-7": ["a-topic-7.jsonl"],
        "b": ["renamed.jsonl", "renamed.jsonl.truncate-tmp"],
        "c": ["shared.jsonl"],
        "d": ["shared.jsonl"],
    }


def test_another_sessions_transcript_can_be_referred_to(tmp_path: Path) -> None:
    found = files_by_session(["a.jsonl"], sessions(("a", {}), ("b", {"sessionFile": "a.jsonl"})), str(tmp_path))
    assert found == {"a": ["a.jsonl"], "b": ["a.jsonl"]}


# The last time written inside a transcript.


def iso(epoch_ms: int) -> str:
    stamp = archive_timestamp(epoch_ms)
    return stamp[:10] + stamp[10:].replace("-", ":")


def line(at: object, text: str = "hi", **more: Any) -> str:
    message = {"type": "message", "id": "1", "parentId": None, "timestamp": at, "message": {"content": text}, **more}
    return json.dumps(message, separators=(",", ":"))


HEADER = json.dumps({"type": "session", "version": 3, "id": "s", "timestamp": iso(NOW - 9 * HOUR), "cwd": "/w"})
LONG = "x" * 200_000


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([HEADER], NOW - 9 * HOUR),
        ([HEADER, line(iso(NOW - 5))], NOW - 5),
        ([HEADER, line(NOW - 5)], NOW - 5),
        ([HEADER, line(str(NOW - 5))], NOW - 5),
        ([HEADER, line("2026-02-15T18:00:00+02:00")], 1_771_171_200_000),
        ([HEADER, line("2026-02-15T18:00:00")], 1_771_178_400_000),
        ([HEADER, line(iso(NOW - 7)), "", "", ""], NOW - 7),
        ([HEADER, line(iso(NOW - 7)), '{"type":"custom"}'], NOW - 7),
        ([HEADER, line(iso(NOW - 7)), "not json"], NOW - 7),
        ([HEADER, line(iso(NOW - 7)), line(None), line(True), line("soon"), line([1]), line(0), line(-5)], NOW - 7),
        ([HEADER, line(iso(NOW - 7)), line(iso(NOW + 2 * DAY_MS)), line("9999-12-31T23:59:59Z")], NOW - 7),
        # The newest plausible one counts, not the last line's.
        ([HEADER, line(iso(NOW - 7)), line(iso(NOW - 9))], NOW - 7),
        ([HEADER, line(iso(NOW - 7)), line("1999-12-31T23:59:59Z"), line(800_000_000_000)], NOW - 7),
        ([HEADER, line(iso(NOW - 7)), line(NOW // 1000 - 60)], NOW - 7),
        ([HEADER, line(NOW // 1000 - 60)], NOW // 1000 * 1000 - 60_000),
        ([HEADER, line(NOW * 1000)], NOW),
        ([HEADER, line(NOW / 1000)[:-20]], NOW),
        # However many absurd ones stand behind it.
        ([HEADER, line(iso(NOW - 7)), *[line("1999-12-31T23:59:59Z", "y" * 900)] * 300], NOW - 7),
        # Written to the middle of a line: what it begins with counts.
        ([HEADER, line(iso(NOW - 7))[:-5]], NOW - 7),
        ([HEADER, line(iso(NOW - 7)), line(iso(NOW - 5))[:30]], NOW - 7),
        ([HEADER, line(iso(NOW - 7), LONG)[:150_000]], NOW - 7),
        # Lines longer than the window.
        ([HEADER, line(iso(NOW - 7), LONG)], NOW - 7),
        ([HEADER, line(iso(NOW - 7)), line(None, LONG), line(None, LONG)], NOW - 7),
        ([HEADER, *(line(None, "y" * 900) for _ in range(100))], NOW - 9 * HOUR),
        # A time inside a message's content was not written by the gateway.
        ([HEADER, json.dumps({"type": "message", "message": {"timestamp": iso(NOW - 5)}})], NOW - 9 * HOUR),
        ([HEADER, json.dumps({"type": "message", "message": {"timestamp": iso(NOW - 5)}})[:-1]], NOW - 9 * HOUR),
        ([HEADER, json.dumps({"type": "message", "content": f'"timestamp":"{iso(NOW - 5)}"'})], NOW - 9 * HOUR),
        ([HEADER, json.dumps([{"timestamp": iso(NOW - 5)}])], NOW - 9 * HOUR),
        ([HEADER, line(iso(NOW - 7), deep="D")], NOW - 7),
        ([HEADER, line(iso(NOW - 7)).replace('"hi"', r'"\ud83d"')], NOW - 7),
        ([line(None), "x", "{}"], None),
        ([""], None),
    ],
)
@pytest.mark.parametrize("ending", ["\n", ""])
def test_the_last_time_in_a_transcript(tmp_path: Path, lines: list[str], expected: int | None, ending: str) -> None:
    path = tmp_path / "s.jsonl"
    text = "\n".join(lines).replace('"D"', "[" * 2000 + "]" * 2000)
    path.write_text(text + ending)
    assert last_timestamp(str(path), NOW, 1) == expected


def test_invalid_bytes_do_not_hide_the_time(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(
        HEADER.encode() + b"\n" + line(iso(NOW - 7), "hi").encode().replace(b'"hi"', b'"\xff\xfe"') + b"\n"
    )
    assert last_timestamp(str(path), NOW, 1) == NOW - 7


def test_a_tail_without_any_time_counts_as_active_when_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "_WINDOW_LIMIT", 64 * 1024)
    path = tmp_path / "s.jsonl"
    path.write_text(HEADER + "\n" + line(None, LONG) + "\n")
    assert last_timestamp(str(path), NOW, 77) == 77


def test_a_link_is_not_followed_and_counts_as_young_by_its_own_time(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(line(iso(NOW - 5)))
    (tmp_path / "s.jsonl").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match=r"symbolic|link"):
        last_timestamp(str(tmp_path / "s.jsonl"), NOW, 1)
    found = _observed(tmp_path, {"s.jsonl"})
    # Its mtime lies ahead of the test's clock.
    assert found.transcript_activity == NOW


def _observed(folder: Path, names: set[str], **fields: Any) -> Session:
    """What a look at ``names`` says about session "s", whose entry is two hours old; the cut-off is one hour ago."""
    found = sessions(("s", fields))
    store = Store("main", str(folder), str(folder / "sessions.json"), "main:1")
    observe_transcripts(Snapshot(store, None, None, found, sorted(names)), NOW - HOUR, NOW)
    return found[0]


@pytest.mark.parametrize(
    ("inside", "mtime", "expected"),
    [
        (NOW - 5, NOW - HOUR, NOW - 5),
        (NOW - 5, NOW, NOW - 5),
        # An old mtime proves that nothing new is inside: the tail is not read.
        (NOW - 5, NOW - HOUR - 1, None),
        # A recent one proves nothing: copies and checkouts make it.
        (NOW - 3 * HOUR, NOW, NOW - 3 * HOUR),
    ],
)
def test_the_tail_is_read_only_when_its_mtime_is_newer_than_the_cut_off(
    tmp_path: Path, inside: int, mtime: int, expected: int | None
) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(HEADER + "\n" + line(iso(inside)) + "\n")
    os.utime(path, ns=(mtime * 1_000_000, mtime * 1_000_000))
    found = _observed(tmp_path, {"s.jsonl"})
    assert found.transcript_activity == expected
    assert found.last_activity == max(NOW - 2 * HOUR, expected or 0)


@pytest.mark.parametrize(
    ("name", "fields", "counts"),
    [
        ("s-topic-7.jsonl", {}, True),
        ("other.jsonl", {"sessionFile": "other.jsonl"}, True),
        ("other.jsonl", {}, False),
        ("s.jsonl.bak-1-2", {}, False),
        (f"s.jsonl.deleted.{STAMP}", {}, False),
    ],
)
def test_whose_times_count(tmp_path: Path, name: str, fields: dict[str, Any], counts: bool) -> None:
    (tmp_path / name).write_text(line(iso(NOW - 5)))
    os.utime(tmp_path / name, ns=(NOW * 1_000_000, NOW * 1_000_000))
    assert _observed(tmp_path, {name}, **fields).transcript_activity == (NOW - 5 if counts else None)


def test_a_vanished_transcript_is_no_failure(tmp_path: Path) -> None:
    assert _observed(tmp_path, {"s.jsonl"}).transcript_activity is None
