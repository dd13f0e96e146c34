"""Keyset pages of conversations: each begins after a row, not at an offset."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import ColumnElement, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from session_manager.service.db.chat_sessions import ITEM
from session_manager.service.db.engine import Row, all_rows
from session_manager.service.db.tables import chat_sessions as s

Place = tuple[datetime, uuid.UUID]


class Page(msgspec.Struct, frozen=True):
    """Sessions, last changed (or created) first.

    ``newer`` and ``older`` are the starts of the adjacent pages, None if there is none.
    """

    rows: list[Row]
    newer: Place | None
    older: Place | None


async def page(
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
