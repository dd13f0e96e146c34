"""sessions.json as entries: what survives an edit keeps every byte, and what is damaged is said to be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_manager.core.index import Index
from session_manager.core.jsonscan import scan_object
from session_manager.core.session import Entry

_TEXT = st.text(st.characters(codec=None), max_size=6)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**18, 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=8,
)
_KEYS = st.sampled_from(
    ["agent:main:cron:a", "main", "", "agent:main:\ud83d", "\ude00", "\ufffd", 'q"\\', "é", "\0", "a\nb"]
)
# Values as they may stand in a file: odd numbers, duplicates, escapes and white space included.
_RAW = st.sampled_from(
    [
        b"1.0", b"1E+2", b"-0", b"-0.0", b"1e400", b"0.10000000000000000001", b"9" * 5000, b"[ ]", b"{\n}",
        b'{"a":1,"a":2}', b'{"label" : "x",\t"label":"y"}', b'"\\u0041\\/"', b'"\\ud83d"', b'"\xc3\xa9"', b'"\xff"',
        b'{"sessionId":"\\ud83d"}', b"[" * 2000 + b"]" * 2000, b"null", b"[1,[2,{}]]",
    ]
)  # fmt: skip
_BLANK = st.sampled_from([b"", b" ", b"\n  ", b"\t", b"\r\n", b"  \n\n "])


@st.composite
def _texts(draw: st.DrawFn) -> tuple[bytes, list[tuple[str, bytes, bytes]]]:
    """An index's text with its members: (key, key token, value); keys may occur twice and be escaped differently."""
    members = []
    for _ in range(draw(st.integers(0, 5))):
        key = draw(_KEYS | _TEXT)
        token = json.dumps(key).encode()
        if not any(0xD800 <= ord(c) < 0xE000 for c in key) and draw(st.booleans()):
            token = json.dumps(key, ensure_ascii=False).encode()
        if key[:1].isalpha() and key[0].isascii() and draw(st.booleans()):
            token = f'"\\u{ord(key[0]):04x}'.encode() + token[2:]
        value = draw(_RAW | _JSON.map(lambda v: json.dumps(v).encode()))
        members.append((key, token, value))
    parts = [draw(_BLANK) + t + draw(_BLANK) + b":" + draw(_BLANK) + v + draw(_BLANK) for _, t, v in members]
    return b"{" + (b",".join(parts) or draw(_BLANK)) + b"}", members


def _names(index: Index) -> list[str]:
    """The index's own names of its members in file order: lone surrogates cannot be shown."""
    return [key for key, _ in index.members()]


@given(_texts(), st.data())
def test_any_subset_goes_and_every_other_byte_stays(
    built: tuple[bytes, list[tuple[str, bytes, bytes]]], data: st.DataObject
) -> None:
    text, members = built
    index = Index(text)
    names = _names(index)
    # Same key in JavaScript: same name here. Different key: different name.
    assert len(names) == len(members)
    assert len(set(zip(names, (k for k, _, _ in members), strict=True))) == len(set(names)) == len(index.entries)
    assert len(set(names)) == len({key for key, _, _ in members})
    gone = data.draw(st.sets(st.sampled_from(names)) if names else st.just(set()))

    edited = index.without(gone)
    left = [(token, value) for name, (_, token, value) in zip(names, members, strict=True) if name not in gone]
    spans = scan_object(edited)
    assert [(edited[m.key_start : m.key_end], edited[m.value_start : m.value_end]) for m in spans] == left
    if not left:
        assert edited == b"{}"
    # The last of two equal keys is the one that counts.
    for name, (_, token, value) in dict(zip(names, members, strict=True)).items():
        assert index.raw(name) == (token, value)


@given(st.dictionaries(_TEXT, _JSON, max_size=6), st.sampled_from([None, 1, 2, "\t"]), st.data())
def test_the_result_is_the_original_without_the_keys(
    value: dict[str, Any], indent: int | str | None, data: st.DataObject
) -> None:
    text = json.dumps(value, indent=indent).encode()
    index = Index(text)
    named = dict(zip(_names(index), value, strict=True))
    gone = data.draw(st.sets(st.sampled_from(sorted(named))) if named else st.just(set()))
    left = {key: value[key] for name, key in named.items() if name not in gone}
    assert index.without(gone) == json.dumps(left, indent=indent).encode()


@given(
    st.dictionaries(st.text(max_size=5), st.dictionaries(st.text(max_size=5), _JSON, max_size=3), max_size=5), st.data()
)
def test_gateway_text_stays_gateway_text(value: dict[str, Any], data: st.DataObject) -> None:
    def written(store: dict[str, Any]) -> bytes:
        text = json.dumps(store, indent=2, ensure_ascii=False)
        # A lone surrogate is what JSON.stringify escapes, and nothing else.
        return "".join(f"\\u{ord(c):04x}" if 0xD800 <= ord(c) < 0xE000 else c for c in text).encode()

    index = Index(written(value))
    gone = data.draw(st.sets(st.sampled_from(sorted(value))) if value else st.just(set()))
    assert index.without(gone) == written({k: v for k, v in value.items() if k not in gone})
    assert index.without(()) == index.data


@pytest.mark.parametrize(
    "value",
    [
        b"1e400",
        b"9" * 5000,
        b"[" * 2000 + b"]" * 2000,
        b'{"a":' * 2000 + b"1" + b"}" * 2000,
        b'"\xff\xfe"',
        b'"\xed\xa0\xbd"',
        b'"\\ud83d"',
        b'{"\\ude00":"\\ud83d\\ude00"}',
    ],
    ids=["1e400", "digits", "arrays", "objects", "bytes", "surrogate bytes", "surrogate", "surrogate key"],
)
@pytest.mark.parametrize("field", ["other", "label", "updatedAt"])
def test_one_odd_value_hides_no_entry(value: bytes, field: str) -> None:
    odd = b'{"sessionId":"odd","model":"m","' + field.encode() + b'":' + value + b',"status":"running"}'
    text = b'{"x": {"sessionId":"x"}, "odd":' + odd + b', "y": {"sessionId":"y","updatedAt":5}}'
    index = Index(text)
    entries = dict(index.decoded())
    assert list(entries) == ["x", "odd", "y"]
    assert (entries["x"].session_id, entries["y"].session_id, entries["y"].updated_at) == ("x", "y", 5)
    assert (entries["odd"].session_id, entries["odd"].model, entries["odd"].status) == ("odd", "m", "running")
    assert index.without({"x"}) == b'{"odd":' + odd + b', "y": {"sessionId":"y","updatedAt":5}}'
    assert index.without({"x", "y"}) == b'{"odd":' + odd + b"}"


def test_keys_that_differ_only_in_lone_surrogates_are_two_keys() -> None:
    text = rb'{"k\ud83d":{"sessionId":"a"},"k\ud83e":{"sessionId":"b"},"k\uD83D":{"sessionId":"c"}}'
    index = Index(text)
    by_id = {entry.session_id: key for key, entry in index.decoded()}
    assert set(by_id) == {"b", "c"}
    assert index.without({by_id["b"]}) == rb'{"k\ud83d":{"sessionId":"a"},"k\uD83D":{"sessionId":"c"}}'
    assert index.without({by_id["c"]}) == rb'{"k\ud83e":{"sessionId":"b"}}'


@pytest.mark.parametrize("second", [b'"a"', b'"\\u0061"'])
def test_of_a_duplicate_key_the_last_counts_and_both_go(second: bytes) -> None:
    text = b'{"a": {"sessionId":"first"}, "b": 1, ' + second + b': {"sessionId":"last"}}'
    index = Index(text)
    assert next((key, entry.session_id) for key, entry in index.decoded()) == ("a", "last")
    assert index.raw("a") == (second, b'{"sessionId":"last"}')
    assert index.without({"a"}) == b'{"b": 1}'
    assert index.without({"b"}) == b'{"a": {"sessionId":"first"}, ' + second + b': {"sessionId":"last"}}'


@pytest.mark.parametrize("raw", [b"1", b"null", b'"text"', b"[]", b"true", b"{}"])
def test_an_entry_that_is_no_object_is_an_empty_one(raw: bytes) -> None:
    assert list(Index(b'{"a":' + raw + b"}").decoded()) == [("a", Entry())]


def test_of_a_duplicate_field_the_last_counts() -> None:
    for extra in (b"", b',"x":1e400,"label":"\\ud83d","label":"y"'):
        ((_, entry),) = Index(b'{"a":{"label":"x","label":"y"' + extra + b"}}").decoded()
        assert entry.label == "y"


@pytest.mark.parametrize(
    ("text", "put", "expected"),
    [
        (b"{}", {"n": b"1"}, b'{\n  "n": 1\n}'),
        (b'{\n  "a": 1\n}', {"n": b"2"}, b'{\n  "a": 1,\n  "n": 2\n}'),
        (b'{"a":1,"b":2}', {"n": b"3"}, b'{"a":1,"b":2,"n":3}'),
        (b'{"a":1,"b":2}', {"a": b"3"}, b'{"a":3,"b":2}'),
        (b'{"a":1,"b":2}', {"b": b"3", "n": b"4"}, b'{"a":1,"b":3,"n":4}'),
    ],
)
def test_members_are_put_in_the_style_of_the_file(text: bytes, put: dict[str, bytes], expected: bytes) -> None:
    members = {key: (json.dumps(key).encode(), value) for key, value in put.items()}
    assert Index(text).edited((), members) == expected
    _, begins = Index(text).parts_edited((), members, {})
    assert {key: expected[at : at + len(put[key])] for key, at in begins.items()} == put


@given(st.lists(st.text(), unique=True, min_size=1, max_size=12), st.data())
def test_what_was_taken_out_goes_back_to_its_place(keys: list[str], data: st.DataObject) -> None:
    text = json.dumps({key: {"sessionId": str(n)} for n, key in enumerate(keys)}, indent=2).encode()
    index = Index(text)
    gone = data.draw(st.sets(st.sampled_from(list(index.entries))))
    places = {key: place for place, key in enumerate(index.entries) if key in gone}
    left = Index(index.without(gone))
    assert left.edited((), {key: index.raw(key) for key in gone}, places) == text


def test_a_place_past_the_end_is_the_end() -> None:
    put = {"x": (b'"x"', b"1"), "y": (b'"y"', b"2")}
    assert Index(b'{"a":0}').edited((), put, {"y": 99, "x": 0}) == b'{"x":1,"a":0,"y":2}'


def test_put_and_remove_in_one_edit() -> None:
    index = Index(b'{"a":1,"b":2,"c":3}')
    assert index.edited({"a", "c"}, {"c": (b'"c"', b"4")}) == b'{"b":2,"c":4}'
    assert index.edited({"a", "b", "c"}, {"n": (b'"n"', b"5")}) == b'{"n":5}'


SMALL = json.dumps({"agent:main:cron:é": {"sessionId": "s", "n": [1, {"x": None}]}, "b": {}}, indent=2).encode()


@pytest.mark.parametrize("size", range(len(SMALL)))
def test_a_truncated_index_is_damaged(size: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        Index(SMALL[:size])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" \n",
        b"[]",
        b"null",
        b"1",
        b'"{}"',
        b"\xef\xbb\xbf{}",
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16"),
        b"\0" * 64,
        b'{"a":1}\0',
        b'{"a":1}{}',
        b"{}}",
        b"{} x",
        b'{"a":1,}',
        b"{,}",
        b"{'a':1}",
        b"{a:1}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":01}',
        b'{"a":1 "b":2}',
        b'{"a" 1}',
        b'{"a":"\\x"}',
        b'{"a":"\t"}',
        b'{"a":"\\ud83d","b":}',
        b'{"a":' + b"[" * 2000 + b"]" * 1999 + b"}",
        b'{"a":"\xff}',
        b'/**/{"a":1}',
    ],
)
def test_whatever_the_gateway_cannot_parse_is_damaged(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Index(text)


@pytest.mark.parametrize("text", [b' {"a":1,"b":2} \n', b'\n{\n  "a":1,\n  "b":2\n}\n'])
def test_white_space_around_the_object_stays(text: bytes) -> None:
    index = Index(text)
    assert index.without([]) == text
    assert index.without(["a"]).startswith(text[: text.index(b"{") + 1])
    assert index.without(["a"]).endswith(text[text.rindex(b"}") :])
    assert index.without(["a", "b"]).strip() == b"{}"
    assert index.without(["a", "b"]).endswith(text[text.rindex(b"}") :])
