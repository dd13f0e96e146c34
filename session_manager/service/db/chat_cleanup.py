"""Cleanups of conversations: empty ones are deleted, idle ones archived, in batches that block no writer.

An empty session is deleted only when it still is empty on its own row, held FOR UPDATE, and when no message refers to
it. Rows that somebody holds are passed by. Each batch is a transaction, so its rows are held for moments.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from datetime import datetime

import msgspec
from sqlalchemy import Column, ColumnElement, delete, exists, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from session_manager.service.db import chat_archive
from session_manager.service.db.chat_archive import Place
from session_manager.service.db.locks import LIMITS
from session_manager.service.db.ownership import EVERYBODY, Viewer
from session_manager.service.db.tables import chat_messages as m
from session_manager.service.db.tables import chat_sessions as s
from session_manager.service.logs import short

GHOST_MINUTES = 15
IDLE_DAYS = 30
BATCH = 1000
# These carry all their messages along.
ARCHIVE_BATCH = 100
_SHOWN = 20
_log = logging.getLogger(__name__)


class Empty(msgspec.Struct, frozen=True):
    """Which empty sessions: conditions, and the time by which an index finds them, oldest first."""

    name: str
    by: Column[datetime]
    conditions: list[ColumnElement[bool]]


def ghosts(older_than_minutes: int, viewer: Viewer = EVERYBODY, *, whatever_ttl: bool) -> Empty:
    """Returns the sessions without messages that are older than some minutes; 0 is all of them.

    Those that carry a time to live expire by that, and are left out unless ``whatever_ttl``.
    """
    conditions = [s.c.message_count == 0, *viewer.sees(s)]
    if older_than_minutes:
        conditions.append(s.c.created_at < func.now() - func.make_interval(0, 0, 0, 0, 0, older_than_minutes))
    if not whatever_ttl:
        conditions.append(s.c.expires_at.is_(None))
    return Empty("ghost purge", s.c.created_at, conditions)


def expired(viewer: Viewer = EVERYBODY) -> Empty:
    """Returns the sessions that still have no message when their time to live has passed."""
    return Empty("expiry", s.c.expires_at, [s.c.message_count == 0, s.c.expires_at < func.now(), *viewer.sees(s)])


async def delete_empty(
    connection: AsyncConnection, which: Empty, limit: int, after: Place | None = None
) -> tuple[list[uuid.UUID], Place | None]:
    """Deletes one batch and returns the ids of what it deleted, and the place from which to go on, None at the end."""
    query = select(s.c.id, which.by.label("at")).where(*which.conditions).order_by(which.by, s.c.id).limit(limit)
    if after is not None:
        query = query.where(tuple_(which.by, s.c.id) > after)
    held = (await connection.execute(query.with_for_update(skip_locked=True))).all()
    # Only a statement that begins when the rows are held sees every message that came before.
    unused = ~exists().where(m.c.session_id == s.c.id)
    ids = [row.id for row in held]
    gone = await connection.execute(delete(s).where(s.c.id.in_(ids), s.c.message_count == 0, unused).returning(s.c.id))
    last = (held[-1].at, held[-1].id) if len(held) == limit else None
    return [row.id for row in gone], last


async def purge(engine: AsyncEngine, which: Empty, batch: int = BATCH) -> int:
    """Deletes empty sessions and returns how many; any number of purges may run at once and share the work."""
    deleted = 0
    after: Place | None = None
    while True:
        async with engine.begin() as connection:
            await connection.execute(LIMITS)
            gone, after = await delete_empty(connection, which, batch, after)
        _report(which.name, "deleted", gone)
        deleted += len(gone)
        if after is None:
            return deleted


async def archive_idle(engine: AsyncEngine, days: int = IDLE_DAYS, viewer: Viewer = EVERYBODY) -> tuple[int, int]:
    """Archives conversations without activity for some days; returns how many, and how many messages they hold."""
    archived, messages = 0, 0
    after: Place | None = None
    while True:
        async with engine.begin() as connection:
            await connection.execute(LIMITS)
            rows = await chat_archive.archive_idle(connection, days, viewer, ARCHIVE_BATCH, after)
        _report("idle archive", "archived", [row["id"] for row in rows])
        archived += len(rows)
        messages += sum(row["message_count"] for row in rows)
        if len(rows) < ARCHIVE_BATCH:
            return archived, messages
        after = max((row["updated_at"], row["id"]) for row in rows)


async def measure_idle(engine: AsyncEngine, days: int = IDLE_DAYS, viewer: Viewer = EVERYBODY) -> tuple[int, int]:
    """Returns what ``archive_idle`` would."""
    async with engine.begin() as connection:
        await connection.execute(LIMITS)
        return await chat_archive.measure_idle(connection, days, viewer)


def _report(name: str, done: str, ids: Sequence[uuid.UUID]) -> None:
    if ids:
        more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
        _log.info("%s: %s %d: %s%s", name, done, len(ids), ", ".join(short(str(i)) for i in ids[:_SHOWN]), more)
