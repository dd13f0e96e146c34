"""Charts as positions of bars: the templates draw them as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec

HEIGHT = 120.0
WIDTH = 720.0
NAMED = 8
_GAP = 0.2


class Bar(msgspec.Struct, frozen=True):
    """One bar of a chart over time, in the units of its view box (WIDTH by HEIGHT), from the top left corner."""

    at: str
    n: int
    x: float
    y: float
    width: float
    height: float


class Share(msgspec.Struct, frozen=True):
    """One bar of a chart by name; ``percent`` is its length relative to the longest. ``name`` None is the rest."""

    name: str | None
    n: int
    percent: float


class Chart(msgspec.Struct, frozen=True):
    """Sessions over time; ``ticks`` are the times to write below, with their positions."""

    bars: list[Bar]
    most: int
    total: int
    ticks: list[tuple[float, str]]


def over_time(counted: Sequence[tuple[datetime, int]], unit: Literal["hour", "day"]) -> Chart:
    """Returns the bars of sessions by hour or day."""
    form = "%Y-%m-%d %H:%M" if unit == "hour" else "%Y-%m-%d"
    most = max((n for _, n in counted), default=0)
    step = WIDTH / max(len(counted), 1)
    bars = []
    for place, (at, n) in enumerate(counted):
        # Any bar above zero stays visible, however short beside the longest.
        height = max(HEIGHT * n / most, 2.0) if n else 0.0
        bars.append(
            Bar(
                at.strftime(form),
                n,
                _round(place * step),
                _round(HEIGHT - height),
                _round(step * (1 - _GAP)),
                _round(height),
            )
        )
    every = max(len(counted) // 6, 1)
    short = "%H:%M" if unit == "hour" and len(counted) <= 24 else "%m-%d"
    ticks = [(_round(place * step), counted[place][0].strftime(short)) for place in range(0, len(counted), every)]
    return Chart(bars, most, sum(n for _, n in counted), ticks)


def by_name(counted: Sequence[tuple[str, int]]) -> list[Share]:
    """Returns the bars of the first NAMED names, and of all others together."""
    shown = [(name, n) for name, n in counted[:NAMED]]
    others = sum(n for _, n in counted[NAMED:])
    rows: list[tuple[str | None, int]] = [*shown, (None, others)] if others else [*shown]
    most = max((n for _, n in rows), default=0)
    return [Share(name, n, _round(100 * n / most)) for name, n in rows]


def _round(value: float) -> float:
    return round(value, 2)
