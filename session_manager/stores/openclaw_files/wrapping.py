"""Reads an index that no gateway can parse although its entries are whole, because something is wrapped around them.

Editors and shells put a byte order mark before the text, write UTF-16, or keep a person's comment. ``JSON.parse`` of a
gateway refuses all three (2026.2.17 to 2026.7.1 read the file as UTF-8), but the entries are there, byte for byte.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

# The longer marks first: the UTF-32 mark begins like the UTF-16 mark.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32, little-endian"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32, big-endian"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16, little-endian"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16, big-endian"),
)
# Without a mark: the positions of the NUL bytes in a text that begins with ASCII.
_ZEROS = (
    (rb"(?:[^\0]\0\0\0){2}", "utf-32-le", "UTF-32, little-endian"),
    (rb"(?:\0\0\0[^\0]){2}", "utf-32-be", "UTF-32, big-endian"),
    (rb"(?:[^\0]\0){2}", "utf-16-le", "UTF-16, little-endian"),
    (rb"(?:\0[^\0]){2}", "utf-16-be", "UTF-16, big-endian"),
)
_STRING = rb'"[^"\\\x00-\x1f]*(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*)*"'
_TOKENS = re.compile(rb"(?s)(" + _STRING + rb")|(//[^\n]*|#[^\n]*|/\*.*?\*/)")
_VALUE_FOLLOWS = re.compile(rb'(?:"[ \t\r\n]*:|[,\[])[ \t\r\n]*\Z')
_MOST_STARTS = 100


def trouble(data: bytes) -> str | None:
    """Returns how a text is wrapped, for the sentence about a damaged index; None if in no known way."""
    mark, encoding, name = _encoding(data)
    if encoding != "utf-8":
        return f"is written in {name}, but gateways read UTF-8"
    if mark:
        return "begins with a byte order mark, which no gateway can parse"
    start = data.find(b"{")
    if start > 0 and data[:start].strip():
        return "has something other than JSON before its first brace"
    return None


def unwrapped(data: bytes) -> bytes:
    """Returns a text in UTF-8, without byte order mark; UTF-8 text keeps every byte.

    Half a surrogate pair, which UTF-16 can hold and UTF-8 cannot, becomes an escape. A character that is cut off at
    the end is left out.
    """
    mark, encoding, _ = _encoding(data)
    if encoding == "utf-8":
        while data.startswith(codecs.BOM_UTF8):
            data = data[len(codecs.BOM_UTF8) :]
        return data
    errors = "surrogatepass" if encoding.startswith("utf-16") else "replace"
    text = codecs.getincrementaldecoder(encoding)(errors).decode(data[len(mark) :])
    return text.lstrip("\ufeff").encode("utf-8", "backslashreplace")


def texts_inside(data: bytes) -> Iterator[bytes]:
    """Yields candidates for the index: the text from each possible first brace on, with comments and without.

    Their number is limited to what a person's notes may contain.
    """
    text = unwrapped(data)
    plain = _TOKENS.sub(lambda m: m[0] if m[1] is not None else b" " * len(m[0]), text)
    for candidate in (text, plain) if plain != text else (text,):
        start, left = candidate.find(b"{"), _MOST_STARTS
        while start >= 0 and left:
            # A brace after a colon or a comma begins a value inside an entry, not the index.
            if _VALUE_FOLLOWS.search(candidate, max(0, start - 100), start) is None:
                yield candidate[start:]
                left -= 1
            start = candidate.find(b"{", start + 1)


def _encoding(data: bytes) -> tuple[bytes, str, str]:
    """Returns a text's byte order mark (empty if it has none), its encoding, and the encoding's usual name."""
    for mark, encoding, name in _MARKS:
        if data.startswith(mark):
            return mark, encoding, name
    for zeros, encoding, name in _ZEROS:
        if re.match(zeros, data, re.DOTALL):
            return b"", encoding, name
    return b"", "utf-8", "UTF-8"
