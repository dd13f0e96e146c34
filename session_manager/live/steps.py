"""Named steps of an edit: the places between which a process may die. Tests watch them, nothing else does."""

from __future__ import annotations

from collections.abc import Callable

watcher: Callable[[str], None] | None = None


def step(name: str) -> None:
    """Says that the step ``name`` has just been completed."""
    if watcher is not None:
        watcher(name)
