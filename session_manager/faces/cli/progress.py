"""Shows progress on standard error while a command works, and erases it at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

from session_manager.core.progress import watched_by
from session_manager.faces.cli.screen import clean

_BAR = 30


@contextlib.contextmanager
def shown(doing: str) -> Iterator[None]:
    """Shows progress for this block if standard error is a terminal."""
    talking = Console(stderr=True)
    if not talking.is_terminal or talking.is_dumb_terminal or "NO_COLOR" in os.environ:
        yield
        return
    line = _Line(doing)
    live = Live(console=talking, get_renderable=line.draw, refresh_per_second=8, transient=True)
    with live, watched_by(line.watch):
        yield


class _Line:
    """The current step, how much of it is done, and its total (0: unknown)."""

    def __init__(self, doing: str) -> None:
        self._now = (doing, 0, 0)
        self._spinner = Spinner("line")

    def watch(self, doing: str, done: int, total: int) -> None:
        """Records progress; a separate thread draws it, so the work neither waits for drawing nor fails with it."""
        self._now = (doing, done, total)

    def draw(self) -> RenderableType:
        doing, done, total = self._now
        row = Table.grid(padding=(0, 1, 0, 0))
        row.add_column()
        row.add_column(overflow="ellipsis", no_wrap=True)
        if total < 2:
            row.add_row(self._spinner, f"{clean(doing)} …")
        else:
            row.add_column()
            row.add_column(no_wrap=True)
            row.add_row(self._spinner, clean(doing), ProgressBar(total, done, _BAR), f"{done:,} of {total:,}")
        return row
