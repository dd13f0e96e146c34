"""The scanner that reads what strict parsers refuse: same verdict as the standard library, exact spans."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from session_manager.core.jsonscan import scan_object, without_lone_surrogates

_TEXT = st.text(st.characters(codec=None), max_size=6)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=12,
)
_SOUP = st.lists(
    st.sampled_from(
        [*'{}[]:,"\\ \n\t019-+.eE/', '"a"', "true", "false", "null", "\\u00", "\\ud83d", "é", "1e5", '{"a":', "\0"]
    ),
    max_size=12,
).map("".join)  # fmt: skip


def no_constant(name: str) -> Any:
    raise ValueError(name)


def is_object(text: str) -> bool:
    """What the standard library says; NaN and Infinity are not JSON."""
    try:
        return isinstance(json.loads(text, parse_constant=no_constant), dict)
    except ValueError:
        return False


def scans(text: str) -> bool:
    try:
        scan_object(text.encode())
    except ValueError:
        return False
    return True


@given(_SOUP.map(lambda inner: '{"k":' + inner + "}") | _SOUP | _SOUP.map(lambda inner: "{" + inner + "}"))
@example('{"k":NaN}')
@example('{"k":01}')
@example('{"k":-}')
@example('{"k":1.}')
@example('{"k":"\\x"}')
@example('{"k":[}]}')
@example('{"k":1] "l":2}')
@example('{"k":{"a":1,}}')
@example("{1:2}")
def test_valid_is_what_the_standard_library_calls_valid(text: str) -> None:
    assert scans(text) is is_object(text)


@given(st.dictionaries(_TEXT, _JSON, max_size=5), st.sampled_from([None, 0, 2, "\t"]), st.booleans())
def test_the_spans_are_the_members(value: dict[str, Any], indent: int | str | None, ascii_only: bool) -> None:
    try:
        data = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        data = json.dumps(value, indent=indent).encode()
    found = [
        (json.loads(data[m.key_start : m.key_end]), json.loads(data[m.value_start : m.value_end]))
        for m in scan_object(data)
    ]
    assert found == list(value.items())


def test_duplicates_are_members_each() -> None:
    assert len(scan_object(b'{"a":1,"a":2,"\\u0061":3}')) == 3


@pytest.mark.parametrize(
    "value",
    [
        b"1e400",
        b"-" + b"9" * 5000,
        b"[" * 2000 + b"]" * 2000,
        b'{"a":' * 2000 + b"{}" + b"}" * 2000,
        b'"\xff\xfe\x80"',
        b'"\xed\xa0\xbd"',
        b'{"\xff":1}',
        b'"\\ud83d"',
    ],
    ids=["1e400", "digits", "arrays", "objects", "bytes", "surrogate bytes", "bytes in a key", "surrogate"],
)
def test_what_javascript_reads_is_read(value: bytes) -> None:
    data = b'{"a": ' + value + b' , "b":1}'
    first, second = scan_object(data)
    assert data[first.value_start : first.value_end] == value
    assert data[second.key_start : second.key_end] == b'"b"'


def test_deep_nesting_that_does_not_close_is_refused() -> None:
    for data in (b'{"a":' * 2000 + b"}" * 1999, b'{"a":' + b"[" * 2000 + b"]" * 1999 + b"}", b'{"a":' + b"[" * 2000):
        with pytest.raises(ValueError, match=r"expected|match"):
            scan_object(data)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rb'"\ud83d"', rb'"\ufffd"'),
        (rb'"\uDE00"', rb'"\ufffd"'),
        (rb'"\ud83d\ude00"', rb'"\ud83d\ude00"'),
        (rb'"\uD83D\uDE00\ud83d"', rb'"\uD83D\uDE00\ufffd"'),
        (rb'"\ud83d\ud83d\ude00"', rb'"\ufffd\ud83d\ude00"'),
        (rb'"\ud83d\ude00\ude00"', rb'"\ud83d\ude00\ufffd"'),
        (rb'"\ud83d \ude00"', rb'"\ufffd \ufffd"'),
        (rb'"\ude00\ud83d"', rb'"\ufffd\ufffd"'),
        (rb'"\\ud83d"', rb'"\\ud83d"'),
        (rb'"\\\ud83d"', rb'"\\\ufffd"'),
        (rb'"\ud83d\\ude00"', rb'"\ufffd\\ude00"'),
        (rb'"\u00e9"', rb'"\u00e9"'),
        (rb'{"key\ude00":1}', rb'{"key\ufffd":1}'),
    ],
)
def test_lone_surrogates_become_the_replacement_character(text: bytes, expected: bytes) -> None:
    assert without_lone_surrogates(text) == expected


_UNITS = st.sampled_from([r"\ud83d", r"\uDE00", r"\\", "a", r"\u0041", r"\"", "é"])


@given(st.lists(_UNITS, max_size=10))
def test_only_lone_surrogates_change_and_no_offset_moves(units: list[str]) -> None:
    text = '"' + "".join(units) + '"'
    repaired = without_lone_surrogates(text.encode())
    assert len(repaired) == len(text.encode())
    expected = json.loads(text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert json.loads(repaired) == expected
