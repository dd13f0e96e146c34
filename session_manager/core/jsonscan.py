"""Finds the members of a JSON object as byte spans, at any depth of nesting and in any text that JSON allows.

Slower than msgspec and never the first choice: it reads text that strict parsers refuse and JavaScript accepts
(thousands of levels, invalid UTF-8 inside strings, duplicate keys).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import msgspec

# Possessive only on single characters: Python before 3.11.5 matches possessive groups wrongly.
_WS = rb"[ \t\n\r]*+"
_STRING = rb'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*"'
_NUMBER = rb"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?"
_OPEN = re.compile(_WS + rb"\{")
_VALUE = re.compile(_WS + rb"(?:(" + _STRING + rb"|" + _NUMBER + rb"|true|false|null)|([\[{]))")
_KEY = re.compile(_WS + rb"(" + _STRING + rb")" + _WS + rb":")
_NEXT = re.compile(_WS + rb"([,\]}])")
_CLOSE = {b"{": re.compile(_WS + rb"\}"), b"[": re.compile(_WS + rb"\]")}
_CLOSER = {b"{": b"}", b"[": b"]"}
_BLANK = re.compile(_WS)
_END = re.compile(_WS + rb"\Z")

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class Member(msgspec.Struct, frozen=True):
    """One member of an object: the offsets of its key's token (quotes included) and of its value."""

    key_start: int
    key_end: int
    value_start: int
    value_end: int


def scan_object(data: bytes) -> list[Member]:
    """Returns the members of the one JSON object that ``data`` consists of, in order, duplicates included.

    Raises ValueError when ``data`` is not exactly one well-formed object.
    """
    return list(_members(data))


def scan_beginning(data: bytes) -> list[Member]:
    """Returns the complete members at the beginning of a damaged object."""
    members: list[Member] = []
    with contextlib.suppress(ValueError):
        for member in _members(data):
            members.append(member)
    return members


def _members(data: bytes) -> Iterator[Member]:
    match = _OPEN.match(data)
    if match is None:
        raise ValueError("not a JSON object")
    close = _CLOSE[b"{"].match(data, match.end())
    pos = match.end()
    while close is None:
        key = _KEY.match(data, pos)
        if key is None:
            raise ValueError(f"a key is expected at byte {pos}")
        blank = _BLANK.match(data, key.end())
        start = blank.end() if blank else key.end()
        pos = _skip_value(data, start)
        yield Member(key.start(1), key.end(1), start, pos)
        following = _NEXT.match(data, pos)
        if following is None or following[1] == b"]":
            raise ValueError(f"a comma or brace is expected at byte {pos}")
        pos = following.end()
        if following[1] == b"}":
            close = following
    if _END.match(data, close.end()) is None:
        raise ValueError(f"something follows the object at byte {close.end()}")


def _skip_value(data: bytes, pos: int) -> int:
    open_containers: list[bytes] = []
    while True:
        match = _VALUE.match(data, pos)
        if match is None:
            raise ValueError(f"a value is expected at byte {pos}")
        pos = match.end()
        opener = match[2]
        if opener is not None:
            empty = _CLOSE[opener].match(data, pos)
            if empty is None:
                open_containers.append(_CLOSER[opener])
                pos = _skip_key(data, pos) if opener == b"{" else pos
                continue
            pos = empty.end()
        while open_containers:
            following = _NEXT.match(data, pos)
            if following is None:
                raise ValueError(f"a comma or bracket is expected at byte {pos}")
            pos = following.end()
            if following[1] == b",":
                pos = _skip_key(data, pos) if open_containers[-1] == b"}" else pos
                break
            if following[1] != open_containers.pop():
                raise ValueError(f"brackets do not match at byte {pos - 1}")
        else:
            return pos


def _skip_key(data: bytes, pos: int) -> int:
    key = _KEY.match(data, pos)
    if key is None:
        raise ValueError(f"a key is expected at byte {pos}")
    return key.end()


def without_lone_surrogates(data: bytes) -> bytes:
    r"""Returns JSON text of the same length in which every escaped lone surrogate reads ``\ufffd``.

    JavaScript silently cuts an emoji in half; strict parsers refuse the result. Offsets stay valid.
    """
    lone: list[int] = []
    high: int | None = None
    for match in _SURROGATE.finditer(data):
        start = match.start()
        if _is_escaped(data, start):
            continue
        if data[start + 3] in b"89abAB":
            lone.append(start)
            high = start
        elif high is not None and high == start - 6:
            lone.pop()
            high = None
        else:
            lone.append(start)
    if not lone:
        return data
    text = bytearray(data)
    for start in lone:
        text[start : start + 6] = b"\\ufffd"
    return bytes(text)


def _is_escaped(data: bytes, pos: int) -> bool:
    """Returns True if the backslash at ``pos`` is itself the second half of an escaped backslash."""
    before = pos
    while before and data[before - 1] == 0x5C:
        before -= 1
    return (pos - before) % 2 == 1
