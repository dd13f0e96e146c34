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
from sqlalchemy import Column, ColumnElement, Text, any_, cast, delete, exists, func, literal, select, tuple_
from sqlalchemy.dialects.postgresql import ARRAY, UUID
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from session_manager.service import metrics
from session_manager.service.db import chat_archive
from session_manager.service.db.chat_archive import Place
from session_manager.service.db.locks import LIMITS
from session_manager.service.db.ownership import EVERYBODY, Viewer
from session_manager.service.db.tables import chat_messages as m
from session_manager.service.db.tables import chat_sessions as s
from session_manager.service.logs import short

GHOST_MINUTES = 15
IDLE_DAYS = 30
# A tenth of a second's work: a first message waits that long for the batch that holds its session.
BATCH = 5000
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


class Batch(msgspec.Struct, frozen=True):
    """What one batch did: how many sessions went, some of their ids, and from where to go on, None at the end."""

    deleted: int
    some: list[uuid.UUID]
    last: Place | None


async def delete_empty(connection: AsyncConnection, which: Empty, limit: int, after: Place | None = None) -> Batch:
    """Deletes one batch; ``after`` is the place (the time it goes by, id) where the batch before it ended."""
    query = select(s.c.id, which.by.label("at")).where(*which.conditions).order_by(which.by, s.c.id).limit(limit)
    if after is not None:
        query = query.where(tuple_(which.by, s.c.id) > after)
    held = query.with_for_update(skip_locked=True).subquery("held")
    ids = func.array_agg(held.c.id)
    # The ids stay one text here: what a purge costs is what the database does.
    found = await connection.execute(
        select(
            func.count().label("n"), cast(ids, Text).label("ids"), func.max(held.c.at).label("at"), ids[func.count()]
        )
    )
    n, text_of_ids, at, last_id = found.one()
    if not n:
        return Batch(0, [], None)
    # Only a statement that begins when the rows are held sees every message that came before.
    unused = ~exists().where(m.c.session_id == s.c.id)
    these = s.c.id == any_(cast(literal(text_of_ids, Text), ARRAY(UUID(as_uuid=True))))
    gone = delete(s).where(these, s.c.message_count == 0, unused).returning(s.c.id).cte("gone")
    some = select(gone.c.id).limit(_SHOWN).subquery()
    done = await connection.execute(
        select(
            select(func.count()).select_from(gone).scalar_subquery(),
            select(func.array_agg(some.c.id)).scalar_subquery(),
        )
    )
    deleted, shown = done.one()
    return Batch(deleted, list(shown or ()), (at, last_id) if n == limit else None)


async def purge(engine: AsyncEngine, which: Empty, batch: int = BATCH) -> int:
    """Deletes empty sessions and returns how many; any number of purges may run at once and share the work."""
    deleted = 0
    after: Place | None = None
    async with engine.connect() as connection:
        while True:
            async with connection.begin():
                await connection.execute(LIMITS)
                done = await delete_empty(connection, which, batch, after)
            metrics.ghosts_purged(done.deleted)
            _report(which.name, "deleted", done.deleted, done.some)
            deleted += done.deleted
            after = done.last
            if after is None:
                return deleted


async def archive_idle(engine: AsyncEngine, days: int = IDLE_DAYS, viewer: Viewer = EVERYBODY) -> tuple[int, int]:
    """Archives conversations without activity for some days; returns how many, and how many messages they hold."""
    archived, messages = 0, 0
    after: Place | None = None
    async with engine.connect() as connection:
        while True:
            async with connection.begin():
                await connection.execute(LIMITS)
                rows = await chat_archive.archive_idle(connection, days, viewer, ARCHIVE_BATCH, after)
            _report("idle archive", "archived", len(rows), [row["id"] for row in rows])
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


def _report(name: str, done: str, n: int, ids: Sequence[uuid.UUID]) -> None:
    if n:
        more = f" and {n - _SHOWN} more" if n > _SHOWN else ""
        _log.info("%s: %s %d: %s%s", name, done, n, ", ".join(short(str(i)) for i in ids[:_SHOWN]), more)
