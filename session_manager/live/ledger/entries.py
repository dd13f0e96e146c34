"""Removed entries' raw bytes, compressed."""

from __future__ import annotations

import zlib

from session_manager.live.ledger.rows import Removal

_SMALL = 16 * 1024


def pack(removal: Removal) -> bytes:
    """Returns the compressed text of a removal's members, an object of its own."""
    members = b",\n".join(token + b":" + value for token, value in removal.members)
    text = b"{" + members + b"}"
    if len(text) > _SMALL:
        return zlib.compress(text, 1)
    # The usual window and hash tables are 256 KB of fresh memory: for a small text that costs more than the work.
    small = zlib.compressobj(1, zlib.DEFLATED, 12, 5)
    return small.compress(text) + small.flush()


def unpack(blob: bytes | None) -> list[tuple[bytes, bytes]]:
    """Returns the members (key token, value) that ``pack`` was given; none when they were dropped."""
    if blob is None:
        return []
    from session_manager.live.jsonscan import scan_object

    text = zlib.decompress(blob)
    return [(text[m.key_start : m.key_end], text[m.value_start : m.value_end]) for m in scan_object(text)]
