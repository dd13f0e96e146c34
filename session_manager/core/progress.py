"""Progress of long work, reported to a watcher if an interface has set one.

Reports change nothing: a watcher only records them, and shows them at its own pace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
# The stage, the amount done, and the total: 0 if that cannot be counted.
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
