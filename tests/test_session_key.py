"""Session keys, names, times and labels, read from data that nobody promises is well formed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_manager.core.session import (
    DAY_MS,
    KINDS,
    NAME_LIMIT,
    Entry,
    Session,
    build_sessions,
    entry_activity,
    entry_label,
    epoch_ms,
    parse_key,
    safe_name,
)

NOW = 1_771_180_200_000
UUID = "6513270e-0b3c-4b8e-9a55-0123456789ab"


def one_session(entries: dict[str, dict[str, Any]]) -> Session:
    """Builds the one session that all ``entries`` (key -> fields) belong to."""
    found = build_sessions(
        "main", [(key, msgspec.convert({"sessionId": "s", **e}, Entry)) for key, e in entries.items()], NOW
    )
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("rest", "kind"),
    [
        ("main", "main"),
        ("global", "main"),
        ("direct:alice", "direct"),
        ("telegram:direct:123", "direct"),
        ("telegram:work:direct:123", "direct"),
        ("whatsapp:dm:123", "direct"),
        ("telegram:group:-100123", "group"),
        ("whatsapp:group:123@g.us", "group"),
        ("group:-100123", "group"),
        ("discord:channel:123", "channel"),
        ("slack:channel:c01", "channel"),
        ("telegram:group:-100123:topic:42", "thread"),
        ("slack:channel:c01:thread:1700.1", "thread"),
        ("telegram:direct:5:thread:9", "thread"),
        ("cron:job:thread:9", "thread"),
        ("discord:slash:77", "slash"),
        ("telegram:slash:77", "slash"),
        ("slack:slash:u1", "slash"),
        ("cron:job", "cron"),
        (f"cron:job:run:{UUID}", "cron"),
        (f"cron:job:run:{UUID}:retry", "cron"),
        (f"subagent:{UUID}", "subagent"),
        (f"subagent:{UUID}:subagent:{UUID}", "subagent"),
        (f"acp:{UUID}", "acp"),
        ("acp:binding:slack:work:abcdef", "acp"),
        (f"acp-bridge:{UUID}", "acp"),
        (f"hook:{UUID}", "hook"),
        ("node-living-room", "node"),
        ("node:living-room", "node"),
        ("voice:call-1", "voice"),
        ("heartbeat", "heartbeat"),
        ("main:heartbeat", "heartbeat"),
        ("telegram:group:-100123:heartbeat", "heartbeat"),
        (f"subagent:{UUID}:heartbeat", "heartbeat"),
        ("heartbeat-recovered-2026-02-15", "heartbeat"),
        (f"openai:{UUID}", "api"),
        ("openai-user:bob", "api"),
        (f"openresponses:{UUID}", "api"),
        ("openresponses-user:bob", "api"),
        (f"dashboard:{UUID}", "ui"),
        (f"tui-{UUID}", "ui"),
        ("explicit:mine", "explicit"),
        (f"explicit:model-run-{UUID}", "explicit"),
        # The last part is an id, not a suffix, a route or a marker.
        ("telegram:direct:heartbeat", "direct"),
        ("cron:heartbeat", "cron"),
        ("telegram:group:1:topic:heartbeat", "thread"),
        ("direct:main", "direct"),
        ("direct:group:1", "direct"),
        # Nothing that this tool knows: a configured main key looks like that.
        ("home", "unknown"),
        ("unknown", "unknown"),
        ("", "unknown"),
        ("cron", "unknown"),
        ("cron:", "unknown"),
        ("cronjob:x", "unknown"),
        ("node-", "unknown"),
        ("tui-", "unknown"),
        ("subagents:x", "unknown"),
        ("main:x", "unknown"),
        ("mainframe", "unknown"),
        ("telegram:direct:", "unknown"),
        ("a:b:c:d:direct:x", "unknown"),
    ],
)
def test_the_kind_is_read_from_the_key_alone(rest: str, kind: str) -> None:
    parsed = parse_key(f"agent:Ops:{rest}")
    assert (parsed.kind, parsed.agent_id, parsed.rest) == (kind, "ops", rest)
    assert parse_key(f"AGENT:ops:{rest.upper()}").kind == kind
    bare = parse_key(rest)
    assert (bare.kind, bare.agent_id, bare.rest) == (kind, None, rest)


@pytest.mark.parametrize("text", ["", ":", "agent", "agent:", "agent:main", "agent::main", "agent::cron:x", "::main"])
def test_a_malformed_key_is_unknown(text: str) -> None:
    parsed = parse_key(text)
    assert (parsed.kind, parsed.agent_id, parsed.text) == ("unknown", None, text)


_WORDS = st.sampled_from(
    ["agent", "main", "cron", "run", "subagent", "heartbeat", "thread", "direct", "node-", "", "x"]
)


@given(st.one_of(st.text(st.characters(codec=None)), st.lists(_WORDS | st.text(max_size=3)).map(":".join)))
def test_any_text_has_a_known_kind(text: str) -> None:
    parsed = parse_key(text)
    assert parsed.kind in KINDS
    assert parsed.text == text


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("main", True),
        ("aria-talk", True),
        ("a.b_c-d", True),
        (UUID, True),
        ("ünïcödé", True),
        ("x" * NAME_LIMIT, True),
        ("x" * (NAME_LIMIT + 1), False),
        ("", False),
        (".", False),
        ("..", False),
        ("./main", False),
        ("../x", False),
        ("a/../b", False),
        ("a..b", False),
        ("a/b", False),
        ("/etc", False),
        ("a\\b", False),
        (".hidden", False),
        ("-rf", False),
        ("--help", False),
        ("a\0b", False),
        ("a\nb", False),
        ("a\x7f", False),
        ("a\u202eb", False),
        ("\ud83d", False),
        ("a\ude00", False),
    ],
)
def test_a_safe_name_cannot_leave_its_folder(name: str, safe: bool) -> None:
    assert safe_name(name) is safe


@given(st.text(st.characters(codec=None)))
def test_whatever_is_safe_is_one_plain_file_name(name: str) -> None:
    if safe_name(name):
        assert not set(name) & set("/\\\0")
        assert ".." not in name
        assert name[0] not in ".-"
        name.encode()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (NOW, NOW),
        (str(NOW), NOW),
        (float(NOW) + 0.75, NOW),
        (1, 1),
        ("007", 7),
        (NOW + DAY_MS, NOW + DAY_MS),
        (NOW + DAY_MS + 1, None),
        (str(NOW + DAY_MS + 1), None),
        (0, None),
        ("0", None),
        (0.5, None),
        (-1, None),
        ("-1", None),
        (True, None),
        (False, None),
        (None, None),
        ("", None),
        (" 5", None),
        ("5.0", None),
        ("1e3", None),
        ("٣", None),
        ("9" * 5000, None),
        (10**400, None),
        (float("nan"), None),
        (float("inf"), None),
        (float("-inf"), None),
        (1e300, None),
        ([NOW], None),
        ({"ms": NOW}, None),
    ],
)
def test_a_time_is_read_or_ignored(value: object, expected: int | None) -> None:
    assert epoch_ms(value, NOW) == expected


@given(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.integers().map(str)))
def test_a_time_is_never_absurd(value: object) -> None:
    found = epoch_ms(value, NOW)
    assert found is None or (type(found) is int and 0 < found <= NOW + DAY_MS)


@pytest.mark.parametrize("field", ["updatedAt", "lastInteractionAt", "lastActivityAt", "endedAt"])
def test_the_newest_time_of_an_entry_counts(field: str) -> None:
    times = {"updatedAt": 10, "lastInteractionAt": 11, "lastActivityAt": 12, "endedAt": 13}
    entry = msgspec.convert({**times, field: "99"}, Entry)
    assert entry_activity(entry, NOW) == 99
    absurd = msgspec.convert({field: NOW + 2 * DAY_MS}, Entry)
    assert entry_activity(absurd, NOW) is None


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"label": "a", "origin": {"label": "b"}, "deliveryContext": {"to": "c"}}, "a"),
        ({"label": "", "origin": {"label": "b"}, "deliveryContext": {"to": "c"}}, "b"),
        ({"label": 7, "origin": {"label": None}, "deliveryContext": {"to": "c"}}, "c"),
        ({"origin": "b", "deliveryContext": {"to": "c"}}, "c"),
        ({"origin": ["label"], "deliveryContext": "c"}, None),
        ({"deliveryContext": {"to": 5}}, None),
        ({}, None),
    ],
)
def test_the_label_falls_back(fields: dict[str, Any], label: str | None) -> None:
    assert entry_label(msgspec.convert(fields, Entry)) == label


@pytest.mark.parametrize(
    ("entries", "best"),
    [
        ({"agent:main:home": {"label": "x"}, "agent:main:cron:j": {}}, "agent:main:cron:j"),
        ({"agent:main:main": {"label": "x"}, "agent:main:subagent:u": {}}, "agent:main:subagent:u"),
        ({"agent:main:hook:a": {}, "agent:main:direct:b": {"label": "x"}}, "agent:main:direct:b"),
        ({"agent:main:cron:j": {}, "agent:main:cron:j:run:s": {"label": "x"}}, "agent:main:cron:j:run:s"),
        (
            {"agent:main:cron:j": {"origin": {"label": "x"}}, "agent:main:cron:k": {"label": "y"}},
            "agent:main:cron:k",
        ),
        ({"agent:main:cron:j": {}, "agent:main:cron:k": {"deliveryContext": {"to": "x"}}}, "agent:main:cron:k"),
        ({"agent:main:direct:a": {}, "agent:main:direct:b": {}}, "agent:main:direct:a"),
    ],
)
def test_the_most_telling_key_wins(entries: dict[str, dict[str, Any]], best: str) -> None:
    for ordered in (entries, dict(reversed(entries.items()))):
        session = one_session(ordered)
        if len({repr(e) for e in entries.values()}) > 1 or next(iter(ordered)) == best:
            assert session.key == best
            assert session.session_type == parse_key(best).kind
        assert session.keys == list(ordered)


def test_a_session_sums_up_all_its_entries() -> None:
    session = one_session(
        {
            "agent:main:cron:j": {"updatedAt": 5, "contextTokens": 7, "model": "m", "sessionFile": "a.jsonl"},
            "agent:main:direct:a": {"updatedAt": 9, "endedAt": 20, "pinnedAt": 3, "status": "running"},
            "agent:main:hook:h": {"updatedAt": "absurd", "sessionFile": "a.jsonl", "spawnedBy": "agent:main:main"},
        }
    )
    assert (session.updated_at, session.entry_activity, session.last_activity) == (9, 20, 20)
    assert session.kinds == {"cron", "direct", "hook"}
    assert (session.pinned, session.running) == (True, True)
    assert (session.context_tokens, session.model) == (7, "m")
    assert session.session_files == ("a.jsonl",)
    assert session.parents == ("agent:main:main",)


@pytest.mark.parametrize("tokens", [True, "500", None, float("inf"), float("nan"), 10**400, [1]])
def test_context_tokens_that_are_no_number_are_none(tokens: object) -> None:
    assert one_session({"agent:main:cron:j": {"contextTokens": tokens}}).context_tokens is None


@pytest.mark.parametrize("session_id", [None, "", 5, True, ["s"], {"id": "s"}])
def test_an_entry_without_a_session_id_is_no_session(session_id: object) -> None:
    assert build_sessions("main", [("agent:main:main", Entry(session_id=session_id))], NOW) == []


def test_no_time_in_the_entry_is_an_unknown_age() -> None:
    session = one_session({"agent:main:cron:j": {"updatedAt": 0}})
    session.transcript_activity = NOW
    assert session.last_activity is None


def test_the_transcript_may_know_better_than_the_entry() -> None:
    session = one_session({"agent:main:cron:j": {"updatedAt": 50}})
    for inside, expected in ((None, 50), (40, 50), (60, 60)):
        session.transcript_activity = inside
        assert session.last_activity == expected


def test_a_nested_sub_agent_names_its_parent() -> None:
    session = one_session({"agent:main:subagent:a:subagent:b": {"spawnedBy": "agent:main:main"}})
    assert session.parents == ("agent:main:main", "agent:main:subagent:a")
    assert one_session({"agent:main:subagent:a": {}}).parents == ()
