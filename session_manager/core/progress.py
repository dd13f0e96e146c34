"""How far long work has come, told to whoever shows it; nobody does unless a face has asked.

What is told changes nothing: a watcher only takes note, and shows it in its own time.
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
    """Tells ``watcher`` of the work in this block."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def stage(doing: str) -> None:
    """Says what is being done where it cannot be counted."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(doing, 0, 0)


def tracked(items: Collection[Item], doing: str) -> Iterable[Item]:
    """Returns ``items`` to go through, and says how many are done."""
    watcher = _watcher.get()
    return items if watcher is None else _told(items, doing, watcher)


def _told(items: Collection[Item], doing: str, watcher: Watcher) -> Iterator[Item]:
    total = len(items)
    for done, item in enumerate(items):
        watcher(doing, done, total)
        yield item
