"""Named steps of an edit, between which a process may die. Only tests watch them."""

from __future__ import annotations

from collections.abc import Callable

watcher: Callable[[str], None] | None = None


def step(name: str) -> None:
    """Reports that the step ``name`` is complete."""
    if watcher is not None:
        watcher(name)
