"""Output for people: tables that fit the terminal, styles if it supports them, no control characters."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import typer
from rich.cells import cell_len, set_cell_size
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from rich.text import Text

from session_manager.core.errors import Failed
from session_manager.faces.runner import write

_GAP = "  "
# Persian words and multi-part emoji contain them.
_JOINERS = "\u200c\u200d"
_SYSTEMS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
    "windows": ColorSystem.WINDOWS,
}


class Column(NamedTuple):
    """A column: ``least`` is the width to which it may be cut (None: never); the highest ``rank`` is dropped first."""

    title: str
    least: int | None = None
    rank: int = 0
    right: bool = False


class Screen:
    """Collects the lines for standard output, and ``notes``, the messages that follow on standard error.

    ``width`` is None when standard output is no terminal: then nothing is cut.
    """

    def __init__(self) -> None:
        self._console = console = Console(file=sys.stdout)
        self.width = console.width if console.is_terminal else None
        plain = "NO_COLOR" in os.environ or not console.is_terminal
        self._system = None if plain else _SYSTEMS.get(console.color_system or "")
        self._lines: list[str] = []
        self.notes: list[str] = []

    def line(self, text: str = "", style: str = "") -> None:
        """Adds one line."""
        self._lines.append(self.styled(clean(text), style))

    def note(self, text: str) -> None:
        """Adds a sentence to the notes."""
        self.notes.append(text)

    def item(self, text: str) -> None:
        """Adds one item of a list, wrapped."""
        first, *rest = self._indented(clean(text))
        self._lines += ["- " + first.removeprefix(_GAP), *rest]

    def facts(self, facts: Iterable[tuple[str, object]]) -> None:
        """Adds names and values, one pair per line; skips values that are None."""
        known = [(name, clean(value)) for name, value in facts if value is not None]
        widest = max((len(name) for name, _ in known), default=0)
        for name, value in known:
            if self.width is None or widest + len(_GAP) + _cells(value) <= self.width:
                self._lines.append(self.styled(name.ljust(widest), "bold") + _GAP + value)
            else:
                self._lines += [self.styled(name, "bold"), *self._indented(value)]

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[object]], marked: Sequence[str] = ()) -> None:
        """Adds a table; ``marked`` holds a style for each row, or is empty."""
        texts = [[clean(cell) for cell in row] for row in rows]
        widths = _fitting(columns, texts, self.width)
        if widths is None:
            for i, row in enumerate(texts):
                self._stacked(row, marked[i] if marked else "")
            return
        shown = [i for i, width in enumerate(widths) if width]
        titles = [column.title for column in columns]
        self._lines.append(self.styled(_row(columns, titles, widths, shown), "bold"))
        for i, row in enumerate(texts):
            self._lines.append(self.styled(_row(columns, row, widths, shown), marked[i] if marked else ""))

    def _stacked(self, row: Sequence[str], style: str) -> None:
        """Adds a row that does not fit into columns: its name, and the other values below, wrapped."""
        self._lines.append(self.styled(row[0], style or "bold"))
        self._lines += self._indented(" · ".join(cell for cell in row[1:] if cell))

    def _wrapped(self, text: str, room: int) -> list[str]:
        """Wraps a text into lines of at most ``room`` cells."""
        if self.width is None or _cells(text) <= room:
            return [text]
        if cell_len(text) == len(text):
            return textwrap.wrap(text, max(1, room))
        return [line.plain.rstrip() for line in Text(text).wrap(self._console, max(2, room))]

    def _indented(self, text: str) -> list[str]:
        return [_GAP + line for line in self._wrapped(text, (self.width or 0) - len(_GAP))]

    def styled(self, text: str, style: str) -> str:
        """Returns ``text`` in a style (Rich's words), if the terminal supports it."""
        if not style or self._system is None:
            return text
        return Style.parse(style).render(text, color_system=self._system)

    def data(self) -> bytes:
        """Returns all that was added, encoded for the terminal."""
        if not self._lines:
            return b""
        return ("\n".join(self._lines) + "\n").encode(sys.stdout.encoding or "utf-8", "replace")


def _fitting(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int | None) -> list[int] | None:
    """Returns each column's width, 0 for a dropped one; None when not even the necessary ones fit."""
    wanted = [max(len(c.title), max((_cells(row[i]) for row in rows), default=0)) for i, c in enumerate(columns)]
    if width is None:
        return wanted
    shown = list(range(len(columns)))
    while True:
        least = {i: min(wanted[i], columns[i].least or wanted[i]) for i in shown}
        room = width - len(_GAP) * (len(shown) - 1) - sum(least.values())
        if room >= 0:
            break
        last = max(shown, key=lambda i: columns[i].rank)
        if columns[last].rank == 0:
            return None
        shown.remove(last)
    widths = [0] * len(columns)
    for i in shown:
        more = min(room, wanted[i] - least[i])
        widths[i], room = least[i] + more, room - more
    return widths


def _row(columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int], shown: Sequence[int]) -> str:
    parts = []
    for i in shown:
        cell, width = cells[i], widths[i]
        size = _cells(cell)
        if size > width:
            cell, size = set_cell_size(cell, width - 1) + "…", width
        blank = " " * (width - size)
        parts.append(blank + cell if columns[i].right else cell + blank)
    return _GAP.join(parts).rstrip()


def _cells(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def clean(value: object) -> str:
    """Returns a value as text that is safe for a terminal: labels are untrusted and may hold escape sequences."""
    text = "" if value is None else str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _JOINERS else _harmless(c) for c in text)


def _harmless(character: str) -> str:
    return " " if unicodedata.category(character) == "Zs" else character.encode("unicode_escape").decode()


def talk(text: str) -> None:
    """Prints a message on standard error; a failure to print it does not end the command."""
    with contextlib.suppress(OSError):
        typer.echo(clean(text), err=True)


def put(data: bytes) -> None:
    """Prints data. Ends the command when that fails; a closed pipe is no failure."""
    sys.stdout.flush()
    if not write(data):
        raise typer.Exit(Failed.exit_code)
