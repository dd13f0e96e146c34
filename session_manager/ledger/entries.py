"""Removed entries' raw bytes, many in one compressed chunk.

Entries of one store are much alike: together they take a third of the room and time that they would take alone.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence

from session_manager.core.index import Index
from session_manager.ledger.connection import as_json
from session_manager.ledger.rows import Member, Removal

CHUNK_BYTES = 256 * 1024
_IDS = "SELECT value FROM json_each(?)"


def packed(removals: Sequence[Removal]) -> Iterator[tuple[bytes, list[Removal], list[tuple[int, int]]]]:
    """Yields chunks: the compressed bytes, the removals in it, and the start and length of each one's text."""
    inside: list[Removal] = []
    spans: list[tuple[int, int]] = []
    parts: list[bytes] = []
    at, packer = 0, None
    for removal in removals:
        text = b"{" + b",\n".join([token + b":" + value for token, value in removal.members]) + b"}"
        packer = packer or zlib.compressobj(1)
        parts.append(packer.compress(text))
        inside.append(removal)
        spans.append((at, len(text)))
        at += len(text)
        if at >= CHUNK_BYTES:
            yield b"".join((*parts, packer.flush())), inside, spans
            inside, spans, parts, at, packer = [], [], [], 0, None
    if packer is not None:
        yield b"".join((*parts, packer.flush())), inside, spans


def members_in(chunk: bytes, start: int, length: int) -> list[Member]:
    """Returns the members (key token, value) of one removal; the values are slices of the chunk.

    Raises sqlite3.DatabaseError for a damaged one.
    """
    try:
        index = Index(chunk[start : start + length])
    except ValueError as error:
        raise sqlite3.DatabaseError(f"an entry is no JSON: {error}") from error
    whole, text = memoryview(chunk), index.data
    spans = [index.span(key) for key in index.entries]
    return [(text[m.key_start : m.key_end], whole[start + m.value_start : start + m.value_end]) for m in spans]


def read_members(sql: sqlite3.Connection, removal_ids: Iterable[int]) -> dict[int, list[Member]]:
    """Returns the members of removals, by removal id; those whose entries were dropped are left out."""
    found: dict[int, list[Member]] = {}
    last: tuple[int, bytes] | None = None
    for removal_id in sorted(removal_ids):
        row = sql.execute(
            "SELECT chunk_id, start, length FROM removals JOIN chunks USING (chunk_id) WHERE removal_id = ?",
            (removal_id,),
        ).fetchone()
        if row is None:
            continue
        chunk_id, start, length = row
        if last is None or last[0] != chunk_id:
            last = (chunk_id, _text(sql, chunk_id))
        found[removal_id] = members_in(last[1], start, length)
    return found


def forget(sql: sqlite3.Connection, removal_ids: Iterable[int]) -> None:
    """Erases the entries of removals in the caller's transaction; other entries of the same chunk stay.

    Each chunk is rewritten once, or deleted if no entries are left in it.
    """
    ids = as_json(list(removal_ids))
    gone: dict[int, list[tuple[int, int]]] = {}
    for chunk_id, start, length in sql.execute(
        f"SELECT chunk_id, start, length FROM removals JOIN chunks USING (chunk_id) WHERE removal_id IN ({_IDS})",
        (ids,),
    ):
        gone.setdefault(chunk_id, []).append((start, length))
    sql.execute(f"UPDATE removals SET chunk_id = NULL WHERE removal_id IN ({_IDS})", (ids,))
    in_use = sql.execute(
        "SELECT DISTINCT chunk_id FROM removals WHERE chunk_id IS NOT NULL AND attempt_id IN"
        f" (SELECT attempt_id FROM chunks WHERE chunk_id IN ({_IDS}))",
        (as_json(list(gone)),),
    ).fetchall()
    for (chunk_id,) in in_use:
        if chunk_id in gone:
            text = bytearray(_text(sql, chunk_id))
            for start, length in gone.pop(chunk_id):
                text[start : start + length] = bytes(len(text[start : start + length]))
            sql.execute("UPDATE chunks SET entries = ? WHERE chunk_id = ?", (zlib.compress(text, 1), chunk_id))
    sql.executemany("DELETE FROM chunks WHERE chunk_id = ?", [(chunk_id,) for chunk_id in gone])


def _text(sql: sqlite3.Connection, chunk_id: int) -> bytes:
    row = sql.execute("SELECT entries FROM chunks WHERE chunk_id = ?", (chunk_id,)).fetchone()
    return zlib.decompress(row[0])
