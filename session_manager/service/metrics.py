"""Prometheus metrics at /metrics. Each process counts for itself, from its start; labels are few.

Other modules report events by calling these functions; some are the method of a metric itself, which takes a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

_METHODS = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"))
_LONG = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)

_requests = Histogram("aria_http_request_seconds", "Time until a request was answered", ("method", "route", "status"))
_runs = Histogram("aria_job_seconds", "Time that a run of a job took", ("job",), buckets=_LONG)
_failures = Counter("aria_job_failures", "Runs of a job that failed", ("job",))
_syncs = Histogram("aria_sync_seconds", "Time that a volume sync took", buckets=_LONG)
_synced = Counter("aria_sync_rows", "Rows that volume syncs wrote", ("change",))
_unreadable = Gauge("aria_sync_unreadable_agents", "Agents that the last volume sync could not read")
_embedded = Gauge("aria_embedded_database_up", "1: the embedded PostgreSQL answers, 0: it does not; NaN: there is none")
_embedded.set(float("nan"))
_revived = Counter("aria_embedded_database_restarts", "How often the embedded PostgreSQL was restarted")
marks_pending = Gauge(
    "aria_marks_pending", "Status updates that have not reached history yet; NaN: the ledger cannot be read"
).set
ghosts_purged = Counter("aria_ghosts_purged", "Chat sessions without a message that were deleted").inc
session_created = Counter("aria_chat_sessions_created", "Chat sessions that were created").inc
_used = Counter("aria_chat_sessions_used", "Chat sessions that got their first message")
_first = Histogram("aria_chat_first_message_seconds", "Age of a chat session at its first message", buckets=_LONG)


def answered(method: str, route: str | None, status: int, seconds: float) -> None:
    """Counts a request; ``route`` is the template of its path, None when none matched."""
    method = method if method in _METHODS else "other"
    _requests.labels(method, route or "none", f"{status // 100}xx").observe(seconds)


def job_ran(name: str, seconds: float, *, failed: bool) -> None:
    """Counts a run of a job."""
    _runs.labels(name).observe(seconds)
    # A counter that exists from the first run on shows its first failure as a change.
    _failures.labels(name).inc(int(failed))


def synced(seconds: float, rows: Mapping[str, int], unreadable: int) -> None:
    """Counts a volume sync, its ``rows`` by kind of change, and the agents that it could not read."""
    _syncs.observe(seconds)
    for change, count in rows.items():
        _synced.labels(change).inc(count)
    _unreadable.set(unreadable)


def embedded_database(up: bool, restarts: int) -> None:
    """Records whether the embedded PostgreSQL answers, and how often it was restarted since the last call."""
    _embedded.set(int(up))
    _revived.inc(restarts)


def messages_added(session: Mapping[str, Any], count: int) -> None:
    """Counts a chat session's first use: when the ``count`` messages just added are its only ones."""
    if session["message_count"] == count:
        _used.inc()
        _first.observe((session["last_message_at"] - session["created_at"]).total_seconds())
