"""sessions.json as ordered (key, raw bytes) entries: entries that survive an edit keep every byte."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from session_manager.core.session import Entry

if TYPE_CHECKING:
    from session_manager.core.jsonscan import Member

_TOP = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENTRY = msgspec.json.Decoder(Entry)
_ENTRY_FIELDS = {f.encode_name: f.name for f in msgspec.structs.fields(Entry)}
_KEY = rb'(?s)[ \t\n\r]*+("[^"\\]*+(?:\\.[^"\\]*+)*")[ \t\n\r]*+:[ \t\n\r]*+'
_SEPARATOR = rb"[ \t\n\r]*+([,}])"


class Index:
    """A parsed index.

    ``data`` is the file's text; ``entries`` maps each key to its value's raw JSON, in file order. When a key
    occurs twice the last value counts, as in JavaScript, and both go when the key goes. In ``entries`` an escaped
    lone surrogate reads as U+FFFD (one more where two keys would read the same); ``data`` and everything written
    from it keep the original bytes.
    """

    def __init__(self, data: bytes) -> None:
        """Parses ``data``; raises ValueError when it is not one JSON object."""
        self.data = data
        self._shadow = data
        self._members: list[tuple[str, Member]] | None = None
        self._by_key: dict[str, Member] | None = None
        self.entries: Mapping[str, Any] = self._decode()

    def _decode(self) -> Mapping[str, Any]:
        try:
            return _TOP.decode(self.data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        from session_manager.core.jsonscan import without_lone_surrogates

        self._shadow = without_lone_surrogates(self.data)
        try:
            entries = _TOP.decode(self._shadow)
            if not any("\ufffd" in key for key in entries):
                return entries
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass
        self._members = self._scan()
        return {key: self._shadow[m.value_start : m.value_end] for key, m in self._members}

    def decoded(self) -> Iterator[tuple[str, Entry]]:
        """Yields each key with the fields of its entry; an entry that is no object yields an empty one."""
        for key, raw in self.entries.items():
            yield key, _decode(raw)

    def entry(self, key: str) -> Entry:
        """Returns the fields of one entry."""
        return _decode(self.entries[key])

    def raw(self, key: str) -> tuple[bytes, bytes]:
        """Returns the key's token and its value, both exactly as in the file."""
        token, value = self.view(key)
        return token, bytes(value)

    def view(self, key: str) -> tuple[bytes, memoryview]:
        """Returns what ``raw`` does, with the value as a slice of ``data`` instead of a copy."""
        m = self.span(key)
        return self.data[m.key_start : m.key_end], memoryview(self.data)[m.value_start : m.value_end]

    def span(self, key: str) -> Member:
        """Returns the position of a key's token and value in ``data``."""
        if self._by_key is None:
            self._by_key = dict(self.members())
        return self._by_key[key]

    def members(self) -> list[tuple[str, Member]]:
        """Returns every member in file order, duplicates included."""
        if self._members is None:
            self._members = self._walk() or self._scan()
        return self._members

    def _walk(self) -> list[tuple[str, Member]] | None:
        """Returns the spans of the entries that msgspec found; None if the text has more members (duplicates)."""
        from session_manager.core.jsonscan import Member

        key_at, separator_at = re.compile(_KEY).match, re.compile(_SEPARATOR).match
        shadow = self._shadow
        pos = shadow.index(b"{") + 1
        members: list[tuple[str, Member]] = []
        last = b","
        for key, raw in self.entries.items():
            token = key_at(shadow, pos)
            if token is None or last != b"," or _text(token[1]) != key:
                return None
            start = token.end()
            # Compared in place: a copy of every value would be a copy of the whole file.
            value = memoryview(raw)
            end = start + value.nbytes
            separator = separator_at(shadow, end)
            if separator is None or not shadow.startswith(value, start):
                return None
            members.append((key, Member(token.start(1), token.end(1), start, end)))
            pos, last = separator.end(), separator[1]
        return members if last == b"}" else None

    def _scan(self) -> list[tuple[str, Member]]:
        from session_manager.core.jsonscan import scan_object

        members: list[tuple[str, Member]] = []
        names: dict[str, str] = {}
        taken: set[str] = set()
        for m in scan_object(self._shadow):
            meaning = _text(self.data[m.key_start : m.key_end])
            if meaning not in names:
                # Two keys that differ only in lone surrogates must stay two keys.
                name = _text(self._shadow[m.key_start : m.key_end])
                while name in taken:
                    name += "\ufffd"
                names[meaning] = name
                taken.add(name)
            members.append((names[meaning], m))
        return members

    def without(self, keys: Collection[str]) -> bytes:
        """Returns the text without ``keys``: order, white space and every byte of the others stay."""
        return self.edited(keys, {})

    def edited(
        self,
        remove: Collection[str],
        put: Mapping[str, tuple[bytes, bytes | memoryview]],
        places: Mapping[str, int] = MappingProxyType({}),
    ) -> bytes:
        """Returns the text without the keys ``remove`` and with the raw members ``put``.

        ``put`` maps a key to (key token, value); a key that exists keeps its place, a new one goes to its place in
        ``places`` (0 is the first), or to the end. An index that loses its last key becomes ``{}``, as the gateway
        writes it.
        """
        return b"".join(self.parts_edited(remove, put, places)[0])

    def parts_edited(
        self,
        remove: Collection[str],
        put: Mapping[str, tuple[bytes, bytes | memoryview]],
        places: Mapping[str, int],
    ) -> tuple[list[bytes | memoryview], dict[str, int]]:
        """Returns the parts of what ``edited`` returns, without copies, and the offsets of the values of ``put``."""
        members = self.members()
        keep = [(key, m) for key, m in members if key not in remove]
        new = [key for key in put if key not in self.entries or key in remove]
        view = memoryview(self.data)
        before, after = view[: self.data.index(b"{")], view[self.data.rindex(b"}") + 1 :]
        if not keep and not new:
            return [before, b"{}", after], {}
        lead, tail, colon = self._style(members)
        parts: list[bytes | memoryview] = [before]
        begins: dict[str, int] = {}
        at = len(before)
        for key, m in _in_place(keep, new, places):
            first = len(parts) == 1
            member: tuple[bytes | memoryview, ...]
            if m is None or key in put:
                token, value = put[key]
                member = (lead, token, colon, value)
            else:
                member = (lead if first else view[self._lead_start(m) : m.key_start], view[m.key_start : m.value_end])
            parts += (b"{" if first else b",", *member)
            at += 1 + sum(map(len, member))
            if key in put:
                begins[key] = at - len(put[key][1])
        parts += (tail, b"}", after)
        return parts, begins

    def _lead_start(self, member: Member) -> int:
        start = member.key_start
        while self.data[start - 1] in b" \t\r\n":
            start -= 1
        return start

    def _style(self, members: list[tuple[str, Member]]) -> tuple[bytes, bytes, bytes]:
        """Returns the white space before a key and before the closing brace, and the colon, as written here."""
        if not members:
            return b"\n  ", b"\n", b": "
        first, last = members[0][1], members[-1][1]
        tail = self.data[last.value_end : self.data.rindex(b"}")]
        return (
            self.data[self._lead_start(first) : first.key_start],
            tail,
            self.data[first.key_end : first.value_start],
        )


def _in_place(
    keep: Iterable[tuple[str, Member]], new: Sequence[str], places: Mapping[str, int]
) -> Iterator[tuple[str, Member | None]]:
    """Yields the kept members in order, and each new key after as many members as its place says."""
    waiting = deque(sorted((key for key in new if key in places), key=places.__getitem__))
    count = 0
    for key, m in keep:
        while waiting and places[waiting[0]] <= count:
            yield waiting.popleft(), None
            count += 1
        yield key, m
        count += 1
    for key in (*waiting, *(key for key in new if key not in places)):
        yield key, None


def _text(token: bytes) -> str:
    if b"\\" not in token:
        return token[1:-1].decode("utf-8", "replace")
    import json

    return str(json.loads(token.decode("utf-8", "replace"), strict=False))


def _decode(raw: Any) -> Entry:
    try:
        return _ENTRY.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_leniently(bytes(raw))


def _decode_leniently(raw: bytes) -> Entry:
    from session_manager.core.jsonscan import scan_object

    try:
        members = scan_object(raw)
    except ValueError:
        return Entry()
    found: dict[str, Any] = {}
    for m in members:
        name = _ENTRY_FIELDS.get(_text(raw[m.key_start : m.key_end]))
        if name is not None:
            found[name] = _value_or_none(raw[m.value_start : m.value_end])
    return Entry(**found)


def _value_or_none(raw: bytes) -> Any:
    import json

    try:
        return json.loads(raw.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
