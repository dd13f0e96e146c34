"""Session keys, names, times and labels, read from data that nobody promises is well formed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_manager.core.keys import KINDS, NAME_LIMIT, parse_key, safe_name
from session_manager.core.session import (
    DAY_MS,
    EARLIEST_MS,
    Entry,
    Session,
    build_sessions,
    entry_activity,
    entry_label,
    epoch_ms,
)

NOW = 1_771_180_200_000
TIMES = ("updatedAt", "lastInteractionAt", "lastActivityAt", "endedAt", "startedAt", "pinnedAt")
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
        (1, None),
        ("007", None),
        (800_000_000_000, None),
        ("1999-12-31T23:59:59Z", None),
        (EARLIEST_MS, EARLIEST_MS),
        (EARLIEST_MS - 1, None),
        # Plausible only as seconds or microseconds.
        (NOW // 1000, NOW),
        (str(NOW // 1000), NOW),
        (NOW / 1000 + 0.25, NOW + 250),
        (EARLIEST_MS // 1000, EARLIEST_MS),
        (EARLIEST_MS // 1000 - 1, None),
        ((NOW + DAY_MS) // 1000, NOW + DAY_MS),
        ((NOW + DAY_MS) // 1000 + 1, None),
        (NOW * 1000 + 999, NOW),
        (str(NOW * 1000), NOW),
        (NOW * 1_000_000, None),
        # RFC 3339, with what it allows: any fraction, small letters, a leap second; and without an offset, as UTC.
        ("2026-02-15T18:30:00Z", NOW),
        ("2026-02-15T20:30:00+02:00", NOW),
        ("2026-02-15t18:30:00.5z", NOW + 500),
        ("2026-02-15 18:30:00.123456789Z", NOW + 123),
        ("2026-02-15T18:30:00", NOW),
        ("2026-02-15T18:29:60Z", NOW - 1000),
        ("2026-02-15", None),
        ("20260215T183000Z", None),
        ("2026-02-30T18:30:00Z", None),
        ("2026-02-15T18:60:00Z", None),
        ("2026-02-17T18:30:00Z", None),
        ("0001-01-01T00:00:00+23:59", None),
        ("9999-12-31T23:59:59-23:59", None),
        ("2026-02-15T18:30:00Z" + "0" * 5000, None),
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


MOMENTS = st.datetimes().flatmap(
    lambda moment: st.sampled_from(["", "Z", "+14:00", "-23:59", "+99:99"]).map(lambda zone: moment.isoformat() + zone)
)
NUMBERS = st.one_of(st.integers(), st.floats(), st.integers(0, 4 * 10**15), st.floats(0, 4e15))
ANY_TIME = st.one_of(st.text(), st.booleans(), st.none(), NUMBERS, NUMBERS.map(str), MOMENTS, st.lists(NUMBERS))


@given(ANY_TIME)
def test_a_time_is_never_absurd(value: object) -> None:
    found = epoch_ms(value, NOW)
    assert found is None or (type(found) is int and EARLIEST_MS <= found <= NOW + DAY_MS)


@given(st.integers(EARLIEST_MS, NOW + DAY_MS))
def test_a_time_means_the_same_in_every_form(at: int) -> None:
    moment = datetime.fromtimestamp(at // 1000, UTC).replace(microsecond=at % 1000 * 1000)
    forms = (at, float(at), str(at), at * 1000, str(at * 1000), moment.isoformat())
    assert [epoch_ms(form, NOW) for form in forms] == [at] * len(forms)
    assert epoch_ms(at // 1000, NOW) in (at // 1000 * 1000, None)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(TIMES, ANY_TIME)))
def test_no_entry_looks_as_if_it_were_from_1970(fields: dict[str, Any]) -> None:
    session = one_session({"agent:main:cron:j": fields})
    for found in (session.updated_at, session.entry_activity, session.last_activity):
        assert found is None or EARLIEST_MS <= found <= NOW + DAY_MS


@pytest.mark.parametrize("at", [1, "yes", NOW, NOW // 1000, "2026-02-15T18:30:00Z", -1])
def test_whatever_pinned_at_says_pins(at: object) -> None:
    assert one_session({"agent:main:cron:j": {"pinnedAt": at}}).pinned


@pytest.mark.parametrize("field", ["updatedAt", "lastInteractionAt", "lastActivityAt", "endedAt"])
def test_the_newest_time_of_an_entry_counts(field: str) -> None:
    times = {"updatedAt": NOW - 10, "lastInteractionAt": NOW - 11, "lastActivityAt": NOW - 12, "endedAt": NOW - 13}
    entry = msgspec.convert({**times, field: str(NOW - 9)}, Entry)
    assert entry_activity(entry, NOW) == NOW - 9
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
            "agent:main:cron:j": {"updatedAt": NOW - 50, "contextTokens": 7, "model": "m", "sessionFile": "a.jsonl"},
            "agent:main:direct:a": {"updatedAt": NOW - 9, "endedAt": NOW - 2, "pinnedAt": 3, "status": "running"},
            "agent:main:hook:h": {"updatedAt": "absurd", "sessionFile": "a.jsonl", "spawnedBy": "agent:main:main"},
        }
    )
    assert (session.updated_at, session.entry_activity, session.last_activity) == (NOW - 9, NOW - 2, NOW - 2)
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
    session = one_session({"agent:main:cron:j": {"updatedAt": NOW - 50}})
    for inside, expected in ((None, NOW - 50), (NOW - 60, NOW - 50), (NOW - 40, NOW - 40)):
        session.transcript_activity = inside
        assert session.last_activity == expected


def test_a_nested_sub_agent_names_its_parent() -> None:
    session = one_session({"agent:main:subagent:a:subagent:b": {"spawnedBy": "agent:main:main"}})
    assert session.parents == ("agent:main:main", "agent:main:subagent:a")
    assert one_session({"agent:main:subagent:a": {}}).parents == ()
