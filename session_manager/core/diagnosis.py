"""Shared by the doctor's checks: one check's result, and times and sizes in words."""

from __future__ import annotations

from typing import Any

import msgspec

from session_manager.core.errors import SessionManagerError, failure, with_errors


class Check(msgspec.Struct):
    """One line of the page: ``what`` was found, and, unless it is ``ok``, how to fix it.

    ``error`` is the failure that a function would have met there; None when work is only pending. ``agent_id`` is the
    checked agent, if the check is about one.
    """

    name: str
    ok: bool
    what: str
    advice: str | None = None
    error: SessionManagerError | None = None
    agent_id: str | None = None

    def document(self) -> dict[str, Any]:
        """Returns the check in its printed form."""
        return {"name": self.name, "ok": self.ok, "what": self.what, "advice": self.advice}


def failed(name: str, error: SessionManagerError, advice: str, agent_id: str | None = None) -> Check:
    """Returns a check that reports a failure."""
    return Check(name, False, error.message, advice, error, agent_id)


def page(checks: list[Check]) -> dict[str, Any]:
    """Returns the document of all checks, marked as partial when work is pending.

    Raises the first failure among them, with all checks as its details: it determines the exit code.
    """
    document = {"ok": all(check.ok for check in checks), "checks": [check.document() for check in checks]}
    bad = [check for check in checks if not check.ok]
    first = next((check.error for check in bad if check.error is not None), None)
    if first is not None:
        raise type(first)(first.message, code=first.code, **document)
    waiting = [failure(SessionManagerError(check.what, code=check.name), check.agent_id) for check in bad]
    return with_errors(document, waiting)


def age(milliseconds: float) -> str:
    """Writes a span of time in words, in its largest unit."""
    seconds = max(0, int(milliseconds / 1000))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def size(count: int) -> str:
    """Writes a number of bytes with a decimal unit."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def plural(count: int, noun: str) -> str:
    """Writes a number with its noun."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
