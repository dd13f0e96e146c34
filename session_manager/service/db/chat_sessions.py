"""Queries over ``chat_sessions``. Each runs on a connection in its caller's transaction.

A session that the viewer may not see appears not to exist. An archived session can be read, with the status
``archived``; only a new message, which restores it, and its deletion change it.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import Column, ColumnElement, and_, delete, func, literal, or_, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from session_manager.core.errors import NotFound, Refused
from session_manager.service.db.engine import Row, all_rows, first_row
from session_manager.service.db.ownership import Viewer
from session_manager.service.db.sync import database_time
from session_manager.service.db.tables import chat_sessions as s
from session_manager.service.db.tables import chat_sessions_archive as archive
from session_manager.service.db.tables import chat_sessions_deleted as deleted

SORTS = ("updated_at", "created_at", "last_message_at", "message_count", "title")
# The columns that a session keeps when it is archived and restored.
KEPT = tuple(column.name for column in archive.c if column.name != "archived_at")
ITEM: tuple[Column[Any], ...] = tuple(s.c[name] for name in KEPT)
_TRIGRAM = 3
_RARE = 1000

# A position in a list: a time and an id.
Place = tuple[datetime, uuid.UUID]


class ChatFilter(msgspec.Struct, frozen=True):
    """Selects sessions; None matches any. Dates are creation dates, both inclusive."""

    agent_id: str | None = None
    session_type: str | None = None
    date_from: datetime | None = None
    date_to: datetime | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """Returns the filter as SQL conditions."""
        found: list[ColumnElement[bool]] = []
        if self.agent_id is not None:
            found.append(s.c.agent_id == self.agent_id)
        if self.session_type is not None:
            found.append(s.c.session_type == self.session_type)
        if self.date_from is not None:
            found.append(s.c.created_at >= self.date_from)
        if self.date_to is not None:
            found.append(s.c.created_at <= self.date_to)
        return found


async def search(connection: AsyncConnection, term: str, viewer: Viewer) -> ColumnElement[bool]:
    """Returns the condition for sessions with ``term`` in the title, ignoring case, or as their id.

    A rare term is looked up in the index first, so that a list reads only the rows that the index returns. A common one
    fills its pages at once; only its count reads title by title.
    """
    inside: ColumnElement[bool] = s.c.title.icontains(term, autoescape=True)
    with contextlib.suppress(ValueError):
        return or_(inside, s.c.id == uuid.UUID(term.strip()))
    if viewer.sees_all and len(term) >= _TRIGRAM:
        holds = func.chat_trigrams(s.c.title).op("@>")(func.chat_trigrams(term))
        found = await connection.scalars(select(s.c.id).where(s.c.title.is_not(None), holds).limit(_RARE + 1))
        ids = found.all()
        if len(ids) <= _RARE:
            return and_(s.c.id.in_(ids), inside)
    return inside


async def count(connection: AsyncConnection, conditions: Sequence[ColumnElement[bool]]) -> int:
    """Returns how many sessions match."""
    return int(await connection.scalar(select(func.count()).select_from(s).where(*conditions)) or 0)


async def page(
    connection: AsyncConnection,
    conditions: Sequence[ColumnElement[bool]],
    sort: str,
    order: Literal["asc", "desc"],
    limit: int,
    offset: int,
) -> list[Row]:
    """Returns one page of sessions, by one of SORTS, nulls last."""
    column = s.c[sort]
    by = [column.asc(), s.c.id.asc()] if order == "asc" else [column.desc(), s.c.id.desc()]
    if column.nullable:
        by[0] = by[0].nulls_last()
    # A deep page skips rows in an index; only the rows of the page itself are fetched.
    there = select(s.c.id).where(*conditions).order_by(*by).limit(limit).offset(offset)
    return await all_rows(connection, select(*ITEM).where(s.c.id.in_(there)).order_by(*by))


class Page(msgspec.Struct, frozen=True):
    """A keyset page of sessions, last changed (or created) first: it begins after a row, not at an offset.

    ``newer`` and ``older`` are the starts of the adjacent pages, None if there is none.
    """

    rows: list[Row]
    newer: Place | None
    older: Place | None


async def keyset_page(
    connection: AsyncConnection,
    conditions: Sequence[ColumnElement[bool]],
    limit: int,
    *,
    empty: bool,
    before: Place | None = None,
    after: Place | None = None,
) -> Page:
    """Returns the sessions before a position (time, id), or the nearest ones after it; the newest by default.

    ``empty``: only those without a message, last created first.
    """
    at = s.c.created_at if empty else s.c.updated_at
    place = tuple_(at, s.c.id)
    query = select(*ITEM, at.label("at")).where(*conditions).limit(limit + 1)
    if empty:
        query = query.where(s.c.message_count == 0)
    if after is not None:
        query = query.where(place > after).order_by(at.asc(), s.c.id.asc())
    else:
        query = query.order_by(at.desc(), s.c.id.desc())
        if before is not None:
            query = query.where(place < before)
    found = await all_rows(connection, query)
    rows, more = found[:limit], len(found) > limit
    if after is not None:
        rows.reverse()
    first, last = (_place(rows[0]), _place(rows[-1])) if rows else (None, None)
    if after is not None:
        return Page(rows, first if more else None, last)
    return Page(rows, None if before is None else first, last if more else None)


def _place(row: Row) -> Place:
    return row["at"], row["id"]


async def look(connection: AsyncConnection, session_id: uuid.UUID, viewer: Viewer) -> Row | None:
    """Returns one session, live or archived; None when there is none."""
    here = select(*ITEM).where(s.c.id == session_id, *viewer.sees(s))
    there = select(*archived_columns()).where(archive.c.id == session_id, *viewer.sees(archive))
    # Twice, since it may be restored from the archive between two reads.
    for query in (here, there, here):
        row = await first_row(connection, query)
        if row is not None:
            return row
    return None


async def find(connection: AsyncConnection, session_id: uuid.UUID, viewer: Viewer) -> Row:
    """Returns one session, live or archived. Raises NotFound."""
    row = await look(connection, session_id, viewer)
    if row is None:
        raise unknown(session_id)
    return row


def archived_columns() -> list[ColumnElement[Any]]:
    """Returns the columns for showing an archived session."""
    return [
        literal("archived").label("status") if column.name == "status" else column
        for column in archive.c
        if column.name in KEPT or column.name == "archived_at"
    ]


async def create(connection: AsyncConnection, values: Row, ttl_minutes: int, kind: str) -> Row:
    """Creates a session without a message, with a time to live, and returns it."""
    now = await database_time(connection)
    facts = {
        "created_at": now.isoformat(),
        "ttl_minutes": ttl_minutes,
        "has_messages": False,
        "backend_created": True,
        "kind": kind,
    }
    values = {**values, "created_at": now, "updated_at": now, "metadata": {**values["metadata"], **facts}}
    return dict((await connection.execute(insert(s).values(**values).returning(*ITEM))).mappings().one())


async def change(connection: AsyncConnection, session_id: uuid.UUID, viewer: Viewer, changes: Row) -> Row:
    """Updates one session and returns it. Raises NotFound, or Refused (``session_archived``)."""
    query = update(s).where(s.c.id == session_id, *viewer.sees(s))
    query = query.values(updated_at=func.clock_timestamp(), **changes)
    in_archive = select(archive.c.ended_at).where(archive.c.id == session_id, *viewer.sees(archive))
    # Twice, since it may be restored from the archive between the two.
    for _ in range(2):
        row = await first_row(connection, query.returning(*ITEM))
        if row is not None:
            return row
        archived = (await connection.execute(in_archive)).first()
        if archived is not None:
            then = "a new message restores it" if archived.ended_at is None else "it has ended and cannot be changed"
            raise Refused(f"chat session {session_id} is archived; {then}", code="session_archived")
    raise unknown(session_id)


async def end(connection: AsyncConnection, session_id: uuid.UUID, viewer: Viewer) -> Row:
    """Ends a session, once, and returns it. Raises NotFound, or Refused (``session_archived``)."""
    ended_at = func.coalesce(s.c.ended_at, func.clock_timestamp())
    return await change(connection, session_id, viewer, {"status": "ended", "ended_at": ended_at})


async def remove(connection: AsyncConnection, session_id: uuid.UUID, viewer: Viewer) -> None:
    """Deletes a session, live or archived, with its messages. Raises NotFound.

    A message in flight to an empty one does not recreate it.
    """
    # Twice, since it may move in between.
    for table in (s, archive, s, archive):
        query = delete(table).where(table.c.id == session_id, *viewer.sees(table)).returning(table.c.message_count)
        message_count = await connection.scalar(query)
        if message_count is not None:
            if not message_count:
                await connection.execute(insert(deleted).values(id=session_id).on_conflict_do_nothing())
            return
    raise unknown(session_id)


async def was_deleted(connection: AsyncConnection, session_id: uuid.UUID) -> bool:
    """Returns whether a user has recently deleted an empty session; a purge does not count."""
    return await connection.scalar(select(deleted.c.id).where(deleted.c.id == session_id)) is not None


async def stats(connection: AsyncConnection, viewer: Viewer) -> Row:
    """Returns totals over the sessions that are not archived."""
    query = select(
        func.count().label("total_sessions"),
        func.coalesce(func.sum(s.c.message_count), 0).label("total_messages"),
        func.count(s.c.agent_id.distinct()).filter(s.c.status == "active").label("active_agents"),
        func.count().filter(s.c.message_count == 0).label("ghost_sessions"),
        func.min(s.c.created_at).label("oldest_session"),
        func.max(s.c.updated_at).label("newest_activity"),
    ).where(*viewer.sees(s))
    return dict((await connection.execute(query)).mappings().one())


def unknown(session_id: uuid.UUID) -> NotFound:
    """Returns the error for a session that does not exist, or is not the viewer's."""
    return NotFound(f"there is no chat session {session_id}")
