"""Moves conversations into the archive and back: session and messages together, in one transaction.

A move locks the session's row FOR UPDATE. Adding a message locks that row, too, so a message is either stored before
the move and moves along, or comes after it and restores the session.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, ColumnElement, Table, delete, func, insert, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from session_manager.core.errors import Refused
from session_manager.service.db import chat_sessions
from session_manager.service.db.chat_sessions import KEPT, Place
from session_manager.service.db.engine import Row, all_rows, server_message
from session_manager.service.db.ownership import Viewer
from session_manager.service.db.tables import chat_messages as messages
from session_manager.service.db.tables import chat_messages_archive as archived_messages
from session_manager.service.db.tables import chat_sessions as s
from session_manager.service.db.tables import chat_sessions_archive as archive


def idle(days: int, viewer: Viewer) -> list[ColumnElement[bool]]:
    """Returns the conditions for conversations without activity for some days; empty sessions are excluded."""
    return [s.c.message_count > 0, s.c.updated_at < func.now() - func.make_interval(0, 0, 0, days), *viewer.sees(s)]


async def archive_idle(
    connection: AsyncConnection, days: int, viewer: Viewer, limit: int, after: Place | None = None
) -> list[Row]:
    """Archives one batch of idle conversations, longest idle first, and returns them.

    Rows locked by others are left for the next run. ``after`` is the position (``updated_at``, id) of the previous
    batch's last row: rows skipped before it are not read again.
    """
    query = select(s.c.id).where(*idle(days, viewer)).order_by(s.c.updated_at, s.c.id).limit(limit)
    if after is not None:
        query = query.where(tuple_(s.c.updated_at, s.c.id) > after)
    locked = await connection.execute(query.with_for_update(skip_locked=True))
    return await _archive(connection, [row.id for row in locked])


async def archive_one(connection: AsyncConnection, session_id: uuid.UUID, viewer: Viewer) -> Row:
    """Archives one session and returns it; an archived one stays as it is.

    Raises NotFound, or Refused (``session_empty``): no purge would find an empty session in the archive.
    """
    query = select(s.c.message_count).where(s.c.id == session_id, *viewer.sees(s)).with_for_update()
    # Twice, since it may be restored from the archive between the two.
    for _ in range(2):
        message_count = await connection.scalar(query)
        if message_count == 0:
            raise Refused(
                f"chat session {session_id} has no message, and so it is not archived; delete it instead",
                code="session_empty",
            )
        if message_count is not None:
            await _archive(connection, [session_id])
        row = await chat_sessions.find(connection, session_id, viewer)
        if row["status"] == "archived":
            break
    return row


async def revive(connection: AsyncConnection, session_id: uuid.UUID, viewer: Viewer) -> bool:
    """Restores a session from the archive; False when it is not there.

    Raises Refused (``archive_damaged``) for values that violate the live tables' constraints.
    """
    query = select(archive.c.id).where(archive.c.id == session_id, *viewer.sees(archive)).with_for_update()
    if await connection.scalar(query) is None:
        return False
    try:
        async with connection.begin_nested():
            await _copy(connection, archive, s, KEPT, archive.c.id == session_id)
            await _copy(
                connection, archived_messages, messages, messages.c.keys(), archived_messages.c.session_id == session_id
            )
    except IntegrityError as error:
        raise Refused(
            f"chat session {session_id} cannot be restored from the archive: another program has changed it there: "
            f"{server_message(error)}; correct its row in chat_sessions_archive, or start a new session",
            code="archive_damaged",
        ) from error
    await connection.execute(delete(archive).where(archive.c.id == session_id))
    return True


async def archived(
    connection: AsyncConnection, agent_id: str | None, viewer: Viewer, limit: int, offset: int
) -> tuple[list[Row], int]:
    """Returns one page of the archive, last archived first, and how many sessions match."""
    conditions = viewer.sees(archive)
    if agent_id is not None:
        conditions.append(archive.c.agent_id == agent_id)
    total = await connection.scalar(select(func.count()).select_from(archive).where(*conditions))
    by = (archive.c.archived_at.desc(), archive.c.id.desc())
    query = select(*chat_sessions.archived_columns()).where(*conditions).order_by(*by).limit(limit).offset(offset)
    return await all_rows(connection, query), int(total or 0)


async def _archive(connection: AsyncConnection, ids: Sequence[uuid.UUID]) -> list[Row]:
    """Moves sessions whose rows this transaction has locked."""
    if not ids:
        return []
    await _copy(connection, s, archive, KEPT, s.c.id.in_(ids))
    await _copy(connection, messages, archived_messages, messages.c.keys(), messages.c.session_id.in_(ids))
    return await all_rows(connection, delete(s).where(s.c.id.in_(ids)).returning(*chat_sessions.ITEM))


async def _copy(
    connection: AsyncConnection, source: Table, target: Table, names: Sequence[str], which: ColumnElement[bool]
) -> None:
    columns: list[Column[Any]] = [source.c[name] for name in names]
    await connection.execute(insert(target).from_select(list(names), select(*columns).where(which)))
