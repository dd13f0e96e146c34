"""The dashboard's queries over history, at a cost that does not grow with it.

A page begins after a row, not at an offset. Rows are read in the order of one index; other filters are checked row by
row, in at most SCAN rows, and the next page continues where this one stopped. Counts stop at MOST.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import ColumnElement, FromClause, Select, func, literal, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from session_manager.service.db.engine import Row, all_rows, first_row
from session_manager.service.db.ownership import Viewer
from session_manager.service.db.sessions import ARIA_SID, ITEM
from session_manager.service.db.tables import STATUSES
from session_manager.service.db.tables import agent_sessions as t
from session_manager.service.db.tables import chat_sessions as chats

SCAN = 50_000
MOST = 10_000
STALE_MINUTES = 60
# In addition to the statuses of rows: active ones without activity for STALE_MINUTES.
STALE = "stale"
# The most agents, and types, offered to choose from.
NAMED = 200
# The longest search, in characters.
LONGEST = 200


class Wanted(msgspec.Struct, frozen=True):
    """Selects rows; None matches any. ``search`` is a whole id, or a part of ids, keys, labels, agents and types."""

    status: str | None = None
    agent_id: str | None = None
    session_type: str | None = None
    search: str | None = None

    def lane(self) -> list[ColumnElement[bool]]:
        """Returns the condition for which an index has the order of the pages."""
        if self.agent_id is not None:
            return [t.c.agent_id == self.agent_id]
        if self.session_type is not None:
            return [t.c.session_type == self.session_type]
        if self.status is not None:
            return [t.c.status == ("active" if self.status == STALE else self.status)]
        return []

    def rest(self, row: FromClause) -> list[ColumnElement[bool]]:
        """Returns the conditions to check on each row of that index range."""
        found: list[ColumnElement[bool]] = []
        if self.status == STALE:
            found += [row.c.status == "active", _silent(row)]
        elif self.status is not None and (self.agent_id is not None or self.session_type is not None):
            found.append(row.c.status == self.status)
        if self.agent_id is not None and self.session_type is not None:
            found.append(row.c.session_type == self.session_type)
        if self.search is not None:
            in_metadata = [row.c.metadata[name].astext for name in ("aria_session_id", "key", "label")]
            texts = (row.c.agent_id, row.c.session_type, *in_metadata)
            found.append(or_(*(each.icontains(self.search, autoescape=True) for each in texts)))
        return found

    def named(self) -> list[ColumnElement[bool]]:
        """Returns the conditions for rows whose whole id equals the search."""
        assert self.search is not None
        return [self.search == ARIA_SID, *self.lane(), *msgspec.structs.replace(self, search=None).rest(t)]


class Page(msgspec.Struct, frozen=True):
    """Rows, newest first. ``newer`` and ``older`` are the starts of the adjacent pages, None if there is none.

    ``stopped_at`` is the start time of the row at which the search paused, None when it read all rows. ``named``: the
    search was a whole id, and these are all its rows.
    """

    rows: list[Row]
    newer: int | None
    older: int | None
    stopped_at: datetime | None
    named: bool = False


async def page(
    connection: AsyncConnection, wanted: Wanted, limit: int, *, before: int | None = None, after: int | None = None
) -> Page:
    """Returns the rows before a position (a row's ``seq``), or the nearest ones after it; the newest by default."""
    if wanted.search is not None and before is None and after is None:
        whole = select(t.c.seq, *ITEM).where(*wanted.named()).order_by(t.c.seq.desc()).limit(limit)
        exact = await all_rows(connection, whole)
        if exact:
            return Page(exact, None, None, None, named=True)
    walked = _walk(wanted, before, after)
    w = walked.subquery("w")
    order = w.c.seq.desc() if after is None else w.c.seq.asc()
    query = select(w.c.seq, *(w.c[column.name] for column in ITEM)).where(*wanted.rest(w)).order_by(order)
    found = await all_rows(connection, query.limit(limit + 1))
    rows, edge, stopped_at = found[:limit], None, None
    if len(found) > limit:
        edge = rows[-1]["seq"]
    elif wanted.rest(w):
        edge, stopped_at = await _stopped(connection, walked)
    if after is None:
        newer = None if before is None else rows[0]["seq"] if rows else max(before - 1, -(2**63))
        return Page(rows, newer, edge, stopped_at)
    rows.reverse()
    return Page(rows, edge, rows[-1]["seq"] if rows else min(after + 1, 2**63 - 1), stopped_at)


def _walk(wanted: Wanted, before: int | None = None, after: int | None = None) -> Select[Any]:
    query = select(t).where(*wanted.lane())
    if after is not None:
        return query.where(t.c.seq > after).order_by(t.c.seq.asc()).limit(SCAN)
    if before is not None:
        query = query.where(t.c.seq < before)
    return query.order_by(t.c.seq.desc()).limit(SCAN)


async def _stopped(connection: AsyncConnection, walked: Select[Any]) -> tuple[int, datetime] | tuple[None, None]:
    """Returns the position and the start time of the last row of a limited scan, else None."""
    last = walked.limit(1).offset(SCAN - 1).subquery("last")
    row = (await connection.execute(select(last.c.seq, last.c.started_at))).first()
    return (None, None) if row is None else (row.seq, row.started_at)


async def count(connection: AsyncConnection, wanted: Wanted) -> tuple[int, bool]:
    """Returns how many rows match, at most MOST + 1, and whether there are more rows than were read."""
    walked = _walk(wanted)
    w = walked.subquery("w")
    rest = wanted.rest(w)
    some = select(literal(1)).select_from(w).where(*rest).limit(MOST + 1).subquery("some")
    found = int(await connection.scalar(select(func.count()).select_from(some)) or 0)
    if not rest or found > MOST:
        return found, False
    edge, _ = await _stopped(connection, walked)
    return found, edge is not None


def _silent(row: FromClause) -> ColumnElement[bool]:
    return _last_activity(row) < func.now() - func.make_interval(0, 0, 0, 0, 0, STALE_MINUTES)


def _last_activity(row: FromClause) -> ColumnElement[Any]:
    return func.greatest(row.c.last_activity_at, row.c.started_at)


class Totals(msgspec.Struct, frozen=True):
    """Counts, each at most MOST + 1; ``about`` is PostgreSQL's own estimate of all rows, if that is more."""

    by_status: dict[str, int]
    sessions: int
    about: int
    stale: int
    ghosts: int


async def totals(connection: AsyncConnection, viewer: Viewer) -> Totals:
    """Counts rows, and conversations without a message that the viewer may see."""
    ghosts = [chats.c.message_count == 0, *viewer.sees(chats)]
    estimate = text("SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass('agent_sessions')")
    return Totals(
        by_status={name: await _up_to_most(connection, t.c.seq, [t.c.status == name]) for name in STATUSES},
        sessions=await _up_to_most(connection, t.c.seq, []),
        about=int(await connection.scalar(estimate) or 0),
        stale=await _up_to_most(connection, _last_activity(t), [t.c.status == "active", _silent(t)]),
        ghosts=await _up_to_most(connection, chats.c.created_at, ghosts),
    )


async def _up_to_most(
    connection: AsyncConnection, by: ColumnElement[Any], conditions: Sequence[ColumnElement[bool]]
) -> int:
    # This order makes PostgreSQL read the index, not the table.
    some = select(by.label("place")).where(*conditions).order_by(by).limit(MOST + 1).subquery("some")
    return int(await connection.scalar(select(func.count()).select_from(some)) or 0)


_NAMES_OF = """
    WITH RECURSIVE names AS (
      (SELECT {column} AS name FROM agent_sessions ORDER BY {column} LIMIT 1)
      UNION ALL
      SELECT (SELECT {column} FROM agent_sessions WHERE {column} > n.name ORDER BY {column} LIMIT 1)
      FROM names n WHERE n.name IS NOT NULL
    )
    SELECT name FROM names WHERE name IS NOT NULL LIMIT :most
"""
# Each name costs one index step, however many rows have it.
_AGENTS, _TYPES = (text(_NAMES_OF.format(column=column)) for column in ("agent_id", "session_type"))


async def names(connection: AsyncConnection) -> tuple[list[str], list[str]]:
    """Returns the agents and the types to filter by, in order, at most the first NAMED."""
    agents, types = [(await connection.scalars(query, {"most": NAMED})).all() for query in (_AGENTS, _TYPES)]
    return [name for name in agents if len(name) <= LONGEST], [name for name in types if len(name) <= LONGEST]


# There are far fewer cells than rows, which are read once.
_CHARTS = text("""
    WITH cells AS MATERIALIZED (
      SELECT date_trunc(:unit, started_at, 'UTC') AS at, agent_id, session_type, count(*) AS n
      FROM agent_sessions
      WHERE started_at >= date_trunc(:unit, now(), 'UTC') - make_interval(hours => :hours)
        AND started_at < date_trunc(:unit, now(), 'UTC') + make_interval(hours => :step)
        AND (CAST(:agent_id AS text) IS NULL OR agent_id = :agent_id)
      GROUP BY 1, 2, 3
    ), places AS (
      SELECT generate_series(
        date_trunc(:unit, now(), 'UTC') - make_interval(hours => :hours), date_trunc(:unit, now(), 'UTC'),
        make_interval(hours => :step)
      ) AS at
    )
    SELECT 'at' AS what, NULL AS name, at, coalesce(sum(n), 0)::bigint AS n
    FROM places LEFT JOIN cells USING (at) GROUP BY at
    UNION ALL SELECT 'agent', agent_id, NULL, sum(n)::bigint FROM cells GROUP BY agent_id
    UNION ALL SELECT 'type', session_type, NULL, sum(n)::bigint FROM cells GROUP BY session_type
""")


class Counts(msgspec.Struct, frozen=True):
    """Sessions that started lately: by hour or day (UTC, oldest first), by agent and by type (most first)."""

    by_time: list[tuple[datetime, int]]
    by_agent: list[tuple[str, int]]
    by_type: list[tuple[str, int]]


async def counts(
    connection: AsyncConnection, bars: int, unit: Literal["hour", "day"], agent_id: str | None = None
) -> Counts:
    """Counts an agent's or all sessions of the last ``bars`` hours or days (``unit``), this one included."""
    step = 24 if unit == "day" else 1
    values = {"unit": unit, "hours": (bars - 1) * step, "step": step, "agent_id": agent_id}
    found = (await connection.execute(_CHARTS, values)).all()

    def most_first(what: str) -> list[tuple[str, int]]:
        return sorted(((row.name, row.n) for row in found if row.what == what), key=lambda each: (-each[1], each[0]))

    by_time = sorted((row.at, row.n) for row in found if row.what == "at")
    return Counts(by_time, most_first("agent"), most_first("type"))


async def row(connection: AsyncConnection, row_id: uuid.UUID, *, hold: bool = False) -> Row | None:
    """Returns one row, None when there is none; ``hold`` locks it until the transaction ends."""
    query = select(*ITEM).where(t.c.id == row_id)
    return await first_row(connection, query.with_for_update() if hold else query)
