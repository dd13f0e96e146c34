"""The facts that the ledger keeps of a removed session."""

from __future__ import annotations

from session_manager.core.session import Session, count_or_none, epoch_ms
from session_manager.ledger.rows import Facts

_LONGEST_TEXT = 200


def facts_of(session: Session, now: int) -> Facts:
    """Returns the facts that the ledger keeps: counters and names from the entry, nothing from the transcript."""
    total, given, written, cost, started, run_started = session.usage
    tokens = count_or_none(total)
    if tokens is None and not (given is None and written is None):
        parts = [n for n in (count_or_none(given), count_or_none(written)) if n is not None]
        tokens = sum(parts) if parts else None
    return Facts(
        session_type=session.session_type,
        label=_short(session.label),
        model=_short(session.model),
        tokens=tokens,
        cost_usd=count_or_none(cost),
        started_at=_time(started, now) or _time(run_started, now),
        activity=session.last_activity,
    )


def _time(value: object, now: int) -> int | None:
    return None if value is None else epoch_ms(value, now)


def _short(text: str | None) -> str | None:
    if text is None or (text.isascii() and len(text) <= _LONGEST_TEXT):
        return text
    return text[:_LONGEST_TEXT].encode(errors="replace").decode()
