"""Reads rows page by page from any aria-api; detects from the answers what a service omits or ignores."""

from __future__ import annotations

from typing import Any

import msgspec

from session_manager.history.connection import Connection

# Agent id and session id: the same id in another agent is another session.
Name = tuple[str, str]
PATH = "/sessions"
# Older services refuse a limit that is too large for them, or cap it silently.
_LIMITS = (200, 50, None)
_MAX_PAGES = 100_000


class Row(msgspec.Struct, frozen=True):
    """One row of history, with the fields needed here."""

    id: str
    agent_id: str
    session_id: str
    status: str | None

    @property
    def name(self) -> Name:
        """The session of the row."""
        return (self.agent_id, self.session_id)


class Reading(msgspec.Struct):
    """The rows read. ``everything``: these are all rows, because the service ignored the filter, or there was none."""

    rows: list[Row]
    everything: bool


def read_rows(connection: Connection, session_id: str | None = None) -> Reading:
    """Reads all rows, or those of one session id if the service can filter.

    Raises Unavailable.
    """
    query: dict[str, str | int] = {"include_cron_events": "true", "include_runtime_events": "true"}
    if session_id is not None:
        query["aria_session_id"] = session_id
    query, body = _first_page(connection, query)
    rows: dict[str, Row] = {}
    seen: set[str] = set()
    longest = 0
    for page in range(1, _MAX_PAGES):
        items = _items(connection, body)
        new = {item_id: item for item in items if (item_id := _id(item)) not in seen}
        # A service without pages returns the same rows for each page.
        if not new:
            break
        seen.update(new)
        rows.update((item_id, row) for item_id, item in new.items() if (row := _row(item_id, item)) is not None)
        longest = max(longest, len(items))
        if _is_last(body, page, len(seen), len(items), longest):
            break
        body = _body(connection, {**query, "page": page + 1})
    foreign = len(rows) < len(seen) or any(row.session_id != session_id for row in rows.values())
    return Reading(list(rows.values()), session_id is None or foreign)


def _first_page(connection: Connection, query: dict[str, str | int]) -> tuple[dict[str, str | int], Any]:
    """Finds a limit that the service accepts; returns the query with it, and the first page."""
    for limit in _LIMITS:
        limited = query if limit is None else {**query, "limit": limit}
        body = _body(connection, {**limited, "page": 1}, may_refuse=limit is not None)
        if body is not None:
            break
    return limited, body


def _body(connection: Connection, query: dict[str, str | int], *, may_refuse: bool = False) -> Any:
    answer = connection.request("GET", PATH, query)
    if may_refuse and answer.status in (400, 422):
        return None
    if answer.status != 200:
        raise connection.give_up(f"aria-api answered {answer.status} at GET {connection.url}{PATH}: check ARIA_API_URL")
    body = connection.json(answer, object)
    if body is None:
        raise connection.unexpected()
    return body


def _items(connection: Connection, body: Any) -> list[dict[str, Any]]:
    items = body.get("items") if isinstance(body, dict) else body
    if not isinstance(items, list):
        raise connection.unexpected()
    return [item for item in items if isinstance(item, dict)]


def _is_last(body: Any, page: int, seen: int, length: int, longest: int) -> bool:
    pages, total, limit = (_count(body, name) for name in ("pages", "total", "limit"))
    if pages is not None:
        return page >= pages
    if total is not None:
        return seen >= total
    # Without either, the last page is one shorter than the limit that the service reports, or than another page.
    return length < (limit or longest)


def _count(body: Any, name: str) -> int | None:
    value = body.get(name) if isinstance(body, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _id(item: dict[str, Any]) -> str:
    value = item.get("id")
    # A row without an id cannot be marked, but it still tells one page from another.
    return str(value) if isinstance(value, str | int) else repr(item)


def _row(item_id: str, item: dict[str, Any]) -> Row | None:
    metadata = item.get("metadata")
    session_id = metadata.get("aria_session_id") if isinstance(metadata, dict) else None
    agent_id, status = item.get("agent_id"), item.get("status")
    if not isinstance(session_id, str) or not isinstance(agent_id, str) or not isinstance(item.get("id"), str | int):
        return None
    return Row(item_id, agent_id, session_id, status if isinstance(status, str) else None)
