"""Writes and reads ages and sizes in human-readable form."""

from __future__ import annotations

import re
import time
from datetime import datetime

from session_manager.core.errors import UsageError

_AGES = (("year", 525_600), ("month", 43_200), ("week", 10_080), ("day", 1440), ("hour", 60), ("minute", 1))
_MINUTES = {"m": 1, "min": 1, "h": 60, "d": 1440, "w": 10_080}
_UNITS = ("bytes", "kB", "MB", "GB", "TB")
_BYTES = {"": 1, "b": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}


def age(moment: str | None) -> str:
    """Returns how long ago an ISO time was: 3 hours, now, unknown."""
    if moment is None:
        return "unknown"
    return span((time.time() - datetime.fromisoformat(moment).timestamp()) / 60)


def span(minutes: float) -> str:
    """Writes a number of minutes in the largest unit that gives at least two, or else in a smaller one."""
    for name, size in _AGES:
        if minutes >= 2 * size or (size == 1 and minutes >= 1):
            number = int(minutes // size)
            return f"{number} {name}{'' if number == 1 else 's'}"
    return "now"


def size(number: int | None) -> str:
    """Writes a number of bytes: 512 bytes, 1.2 kB."""
    if number is None:
        return ""
    value, unit = float(number), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    if number == 1:
        return "1 byte"
    return f"{value:.0f} {_UNITS[unit]}" if unit == 0 or value >= 99.95 else f"{value:.1f} {_UNITS[unit]}"


def minutes(text: str | None, option: str = "--older-than") -> int | None:
    """Reads an age: 90m, 12h, 7d, 2w; None stays None. Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,7})\s*(m|min|h|d|w)", text.strip().lower())
    if found is None or int(found[1]) < 1:
        raise UsageError(f"{option} takes an age such as 90m, 12h, 7d or 2w, at least 1m; not {text!r}")
    return int(found[1]) * _MINUTES[found[2]]


def days(text: str | None, option: str = "--older-than") -> int | None:
    """Reads an age in whole days: 30d, 4w. Raises UsageError."""
    found = minutes(text, option)
    if found is not None and found % 1440:
        raise UsageError(f"{option} takes whole days or weeks here, such as 30d or 4w; not {text!r}")
    return None if found is None else found // 1440


def amount(text: str | None, option: str = "--larger-than") -> int | None:
    """Reads a size in bytes: 4096, 500k, 1.5M, 2GB. Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,3})?)\s*([kmgt]?)b?", text.strip().lower())
    number = 0 if found is None else int(float(found[1]) * _BYTES[found[2]])
    if number < 1:
        raise UsageError(f"{option} takes a size such as 4096, 500k or 1.5M, at least 1; not {text!r}")
    return number
