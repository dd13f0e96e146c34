"""Numbers for people: ratios with their spread, progress on standard error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import median

Figures = dict[str, float]


def ratio(measured: Sequence[float], yardstick: Sequence[float]) -> str:
    """Returns the median of the rounds' ratios with the lowest and the highest."""
    ratios = [m / y for m, y in zip(measured, yardstick, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def beside(name: str, measured: Sequence[float], yardstick_name: str, yardstick: Sequence[float]) -> str:
    """Returns both medians in milliseconds, by name, and the ratio."""
    ours, theirs = median(measured) * 1000, median(yardstick) * 1000
    return f"{name} {ours:.1f} ms, {yardstick_name} {theirs:.1f} ms, ratio {ratio(measured, yardstick)}"


def say(text: str) -> None:
    """Reports progress."""
    print(text, file=sys.stderr, flush=True)
