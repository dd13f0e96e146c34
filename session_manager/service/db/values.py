"""Reads values that PostgreSQL can store but Python or JSON cannot: other programs may write them."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import orjson
import psycopg
from psycopg.adapt import AdaptersMap, Buffer, Loader
from psycopg.pq import Format
from psycopg.types.json import set_json_dumps, set_json_loads

# The deepest nesting that input (orjson) and output (pydantic) allow.
DEPTH = 254
_EARLIEST = datetime.min.replace(tzinfo=UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)
_MOMENT = psycopg.adapters.types["timestamptz"].oid
_PART = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[][{}]')
_MORE = '"…"'.encode()


_EXACT = psycopg.adapters.get_loader(_MOMENT, Format.TEXT)


class _Moment(Loader):
    """Reads ``timestamptz`` in UTC; a time outside Python's range becomes the nearest one within it."""

    def __init__(self, oid: int, context: psycopg.abc.AdaptContext | None = None) -> None:
        super().__init__(oid, context)
        assert _EXACT is not None
        self._exact = _EXACT(oid, context)

    def load(self, data: Buffer) -> datetime:
        """Returns the time."""
        try:
            found: datetime = self._exact.load(data)
            return found.astimezone(UTC)
        except (psycopg.DataError, OverflowError):
            text = bytes(data)
            return _EARLIEST if text.startswith((b"-", b"0001-")) or text.endswith(b"BC") else _LATEST


def adapters() -> AdaptersMap:
    """Returns a connection's adapters for reading and writing values (psycopg's ``context``)."""
    found = AdaptersMap(psycopg.adapters)
    found.register_loader("timestamptz", _Moment)
    set_json_loads(load_json, found)
    set_json_dumps(dump_json, found)
    return found


def dump_json(value: Any) -> str:
    """Writes JSON for a ``jsonb`` parameter. Raises TypeError for values that JSON cannot hold."""
    return orjson.dumps(value).decode()


def load_json(data: str | bytes) -> Any:
    """Reads ``jsonb``. Nesting that is too deep ends with an ellipsis; a number that Python cannot hold is None."""
    text = data.encode() if isinstance(data, str) else data
    if text.count(b"[") + text.count(b"{") > DEPTH:
        text = _cut(text)
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text, parse_float=_finite, parse_int=_whole)


def _cut(text: bytes) -> bytes:
    kept, depth, start = [], 0, 0
    for found in _PART.finditer(text):
        if found[0] in b"[{":
            depth += 1
            if depth == DEPTH + 1:
                kept += [text[start : found.start()], _MORE]
        elif found[0] in b"]}":
            if depth == DEPTH + 1:
                start = found.end()
            depth -= 1
    return b"".join([*kept, text[start:]])


def _finite(text: str) -> float | None:
    value = float(text)
    return value if abs(value) != float("inf") else None


def _whole(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        # More digits than Python's limit.
        return None
