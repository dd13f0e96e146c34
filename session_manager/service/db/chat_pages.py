"""Pages of conversations that begin behind a row, not at a number."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from session_manager.service.db.chat_sessions import ITEM, Row
from session_manager.service.db.tables import chat_sessions as s


async def page(
    connection: AsyncConnection,
    conditions: Sequence[ColumnElement[bool]],
    limit: int,
    before: tuple[datetime, uuid.UUID] | None,
    *,
    empty: bool,
) -> list[Row]:
    """Returns sessions before a place (time, id), last changed first; ``at`` is the time that the order goes by.

    ``empty``: only those without a message, last created first.
    """
    at = s.c.created_at if empty else s.c.updated_at
    query = select(*ITEM, at.label("at")).where(*conditions).order_by(at.desc(), s.c.id.desc()).limit(limit)
    if empty:
        query = query.where(s.c.message_count == 0)
    if before is not None:
        query = query.where(tuple_(at, s.c.id) < before)
    return [dict(row) for row in (await connection.execute(query)).mappings()]
