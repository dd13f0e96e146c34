"""Queries over ``agent_sessions``. Each runs on a connection in its caller's transaction."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import ColumnElement, Select, TextClause, case, delete, func, insert, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from session_manager.service.db.engine import WRITERS, Row, all_rows
from session_manager.service.db.tables import agent_sessions as t

ARIA_SID = t.c.metadata["aria_session_id"].astext
_COUNTED = ("messages_count", "tokens_used", "cost_usd")
_SHOWN = ("id", "agent_id", "session_type", "started_at", "ended_at", *_COUNTED, "status", "metadata")
ITEM = tuple(t.c[name] for name in _SHOWN)
RUNTIME_TYPES = ("acp", "heartbeat", "hook", "node", "subagent")
BY_REQUEST = "request"


class Filter(msgspec.Struct, frozen=True):
    """Selects rows; None matches any. ``search`` is a part of ids, types, keys and labels, ignoring case."""

    status: str | None = None
    agent_id: str | None = None
    session_type: str | None = None
    search: str | None = None
    aria_session_id: str | None = None
    include_cron_events: bool = True
    include_runtime_events: bool = True

    def conditions(self) -> list[ColumnElement[bool]]:
        """Returns the filter as SQL conditions."""
        found: list[ColumnElement[bool]] = []
        for column, value in (
            (t.c.status, self.status),
            (t.c.agent_id, self.agent_id),
            (t.c.session_type, self.session_type),
            (ARIA_SID, self.aria_session_id),
        ):
            if value is not None:
                found.append(column == value)
        if self.search:
            texts = (
                t.c.agent_id,
                t.c.session_type,
                ARIA_SID,
                t.c.metadata["key"].astext,
                t.c.metadata["label"].astext,
            )
            found.append(or_(*(c.icontains(self.search, autoescape=True) for c in texts)))
        if not self.include_cron_events:
            found.append(t.c.session_type != "cron")
        if not self.include_runtime_events:
            found.append(t.c.session_type.not_in(RUNTIME_TYPES))
        return found


def page_query(wanted: Filter, order: Literal["asc", "desc"], limit: int, offset: int) -> Select[Any]:
    """Returns the query of one page.

    Oldest first by default: rows inserted while a client pages through come after the last page, so none is seen twice
    or missed.
    """
    by = t.c.seq.asc() if order == "asc" else t.c.seq.desc()
    # A deep page skips rows in an index; only the rows of the page itself are fetched.
    there = select(t.c.seq).where(*wanted.conditions()).order_by(by).limit(limit).offset(offset)
    return select(*ITEM).where(t.c.seq.in_(there)).order_by(by)


async def count(connection: AsyncConnection, wanted: Filter) -> int:
    """Returns how many rows match."""
    return int(await connection.scalar(select(func.count()).select_from(t).where(*wanted.conditions())) or 0)


async def page(
    connection: AsyncConnection, wanted: Filter, order: Literal["asc", "desc"], limit: int, offset: int
) -> list[Row]:
    """Returns one page of rows as dicts of the columns in ``ITEM``."""
    return await all_rows(connection, page_query(wanted, order, limit, offset))


async def lock_writers(connection: AsyncConnection) -> None:
    """Waits until this transaction is the only one that inserts rows or marks many."""
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITERS})


async def create(connection: AsyncConnection, values: Row) -> tuple[uuid.UUID, bool]:
    """Inserts a row unless its agent and session id have one; returns the row's id, and whether it is new."""
    await lock_writers(connection)
    sid = values["metadata"].get("aria_session_id")
    if sid is not None:
        query = select(t.c.id).where(t.c.agent_id == values["agent_id"], sid == ARIA_SID)
        existing = await connection.scalar(query)
        if existing is not None:
            return existing, False
    if values.get("status", "active") != "active":
        values = {"ended_at": func.clock_timestamp(), **values}
    created = await connection.scalar(
        insert(t).values(status_at=func.clock_timestamp(), ended_by=BY_REQUEST, **values).returning(t.c.id),
    )
    assert isinstance(created, uuid.UUID)
    return created, True


async def change(connection: AsyncConnection, row_id: uuid.UUID, changes: Row) -> bool:
    """Updates one row; False when there is none. ``metadata`` is merged; a status keeps the times in order.

    If the row is active afterwards, its last activity is now; after an end, only later activity in the volume revives
    it.
    """
    values: Row = dict(changes)
    if "metadata" in values:
        if "aria_session_id" in values["metadata"]:
            await lock_writers(connection)
        values["metadata"] = t.c.metadata.op("||")(values["metadata"])
    moved = func.greatest(t.c.last_activity_at, func.clock_timestamp())
    if "status" not in values:
        values["last_activity_at"] = case((t.c.status == "active", moved), else_=t.c.last_activity_at)
    else:
        ended = values["status"] != "active"
        values |= {
            "status_at": func.clock_timestamp(),
            "ended_at": func.coalesce(t.c.ended_at, func.clock_timestamp()) if ended else None,
            "ended_by": BY_REQUEST,
            "last_activity_at": t.c.last_activity_at if ended else moved,
        }
    found = await connection.execute(update(t).where(t.c.id == row_id).values(**values).returning(t.c.id))
    return found.first() is not None


_MANY = """
    WITH wanted AS (
      SELECT DISTINCT agent_id, sid
      FROM unnest(CAST(:agent_ids AS text[]), CAST(:sids AS text[])) AS w (agent_id, sid)
    ), found AS (
      SELECT s.id, w.agent_id, w.sid FROM wanted w
      JOIN agent_sessions s ON s.agent_id = w.agent_id AND %s
    ), changed AS (
      UPDATE agent_sessions s SET %s
      FROM found f WHERE s.id = f.id
      RETURNING s.id
    )
    SELECT w.agent_id, w.sid, (SELECT count(*) FROM changed) AS updated
    FROM (SELECT NULL AS agent_id, NULL AS sid UNION ALL SELECT agent_id, sid FROM wanted
          EXCEPT SELECT agent_id, sid FROM found) AS w
"""

_MARK = text(
    _MANY
    % (
        "s.metadata->>'aria_session_id' = w.sid",
        """
        status = :status,
        status_at = clock_timestamp(),
        ended_at = CASE WHEN :ended THEN coalesce(s.ended_at, clock_timestamp()) END,
        ended_by = 'request'
        """,
    )
)

# Duplicates are rows of an older aria-api that the migration found. last_activity_at: the sync applies only later
# activity.
_ERASE = text(
    _MANY
    % (
        "coalesce(s.metadata->>'aria_session_id', s.metadata->>'duplicate_of_aria_session_id') = w.sid",
        r"""
        metadata = jsonb_build_object(
          CASE WHEN s.metadata ? 'aria_session_id' THEN 'aria_session_id' ELSE 'duplicate_of_aria_session_id' END,
          f.sid,
          'erased_at',
          coalesce(
            s.metadata->>'erased_at',
            to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24\:MI\:SS.MS"+00\:00"')
          )
        ),
        status = 'ended',
        status_at = clock_timestamp(),
        ended_at = coalesce(s.ended_at, clock_timestamp()),
        ended_by = 'request',
        last_activity_at = greatest(s.last_activity_at, clock_timestamp())
        """,
    )
)


async def mark_many(
    connection: AsyncConnection, status: Literal["active", "ended"], sessions: Sequence[tuple[str, str]]
) -> tuple[int, list[tuple[str, str]]]:
    """Gives many sessions (agent id, session id) a status in one statement.

    Returns the number of rows, and the sessions without one. A row that already has the status keeps its ``ended_at``;
    the repeated request is recorded all the same, so that an older snapshot cannot revive it.
    """
    return await _change_many(connection, _MARK, sessions, {"status": status, "ended": status == "ended"})


async def erase_many(
    connection: AsyncConnection, sessions: Sequence[tuple[str, str]]
) -> tuple[int, list[tuple[str, str]]]:
    """Ends many sessions (agent id, session id) and deletes their metadata, in one statement.

    Returns the number of rows, and the sessions without one. The time of the first erasure stays.
    """
    return await _change_many(connection, _ERASE, sessions, {})


async def _change_many(
    connection: AsyncConnection, statement: TextClause, sessions: Sequence[tuple[str, str]], values: Row
) -> tuple[int, list[tuple[str, str]]]:
    await lock_writers(connection)
    pairs = {"agent_ids": [agent_id for agent_id, _ in sessions], "sids": [sid for _, sid in sessions]}
    rows = (await connection.execute(statement, pairs | values)).all()
    return rows[0].updated, [(row.agent_id, row.sid) for row in rows if row.sid is not None]


async def remove(connection: AsyncConnection, row_id: uuid.UUID) -> bool:
    """Deletes one row; False when there is none."""
    found = await connection.execute(delete(t).where(t.c.id == row_id).returning(t.c.id))
    return found.first() is not None


_STATS = text("""
    SELECT agent_id, status, session_type, grouping(agent_id, status, session_type) AS grouped,
           count(*) AS sessions, coalesce(sum(messages_count), 0)::bigint AS messages,
           coalesce(sum(tokens_used), 0) AS tokens, coalesce(sum(nullif(cost_usd, 'NaN')), 0)::float8 AS cost
    FROM agent_sessions GROUP BY GROUPING SETS ((agent_id), (status), (session_type), ())
""")


async def stats(connection: AsyncConnection) -> Row:
    """Returns totals: sessions, messages, tokens, cost, and counts by agent, status and type."""
    document: Row = {"by_agent": {}, "by_status": {}, "by_type": {}}
    # grouping() sets a bit for each column that is NOT in the grouping.
    places = {0b011: ("by_agent", 0), 0b101: ("by_status", 1), 0b110: ("by_type", 2)}
    for row in (await connection.execute(_STATS)).all():
        if row.grouped in places:
            name, column = places[row.grouped]
            document[name][row[column]] = row.sessions
        else:
            document |= {
                "total_sessions": row.sessions,
                "total_messages": row.messages,
                "total_tokens": int(row.tokens),
                "total_cost_usd": row.cost,
            }
    for name in ("by_agent", "by_status", "by_type"):
        document[name] = dict(sorted(document[name].items()))
    document["active_sessions"] = document["by_status"].get("active", 0)
    return document
