"""Progress of long work, reported to a watcher if a face has set one.

Reports change nothing: a watcher only records them, and shows them in its own time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
# What is being done, how much of it is done, and how much there is: 0 where that cannot be counted.
Watcher = Callable[[str, int, int], None]

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Reports the progress of this block to ``watcher``."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def stage(doing: str) -> None:
    """Reports a stage that cannot be counted."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(doing, 0, 0)


def tracked(items: Collection[Item], doing: str) -> Iterable[Item]:
    """Iterates over ``items`` and reports how many are done."""
    watcher = _watcher.get()
    return items if watcher is None else _told(items, doing, watcher)


def _told(items: Collection[Item], doing: str, watcher: Watcher) -> Iterator[Item]:
    total = len(items)
    for done, item in enumerate(items):
        watcher(doing, done, total)
        yield item
