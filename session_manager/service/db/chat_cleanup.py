"""Cleanups of conversations: empty ones are deleted, idle ones archived, in batches that block no writer.

An empty session is deleted only when its own row, locked FOR UPDATE, still shows it as empty, and when no message
refers to it. Rows locked by others are skipped. Each batch is one transaction, so its locks are short. A locked row
does not move, so a batch is deleted by ctid, without another index lookup.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

import msgspec
from sqlalchemy import Column, ColumnElement, Text, cast, delete, func, literal_column, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from session_manager.service import metrics
from session_manager.service.db import chat_archive
from session_manager.service.db.chat_sessions import Place
from session_manager.service.db.engine import Row, all_rows, limited
from session_manager.service.db.ownership import EVERYBODY, Viewer
from session_manager.service.db.tables import chat_messages as m
from session_manager.service.db.tables import chat_sessions as s
from session_manager.service.db.tables import chat_sessions_deleted as deleted
from session_manager.service.logs import short

GHOST_MINUTES = 15
IDLE_DAYS = 30
# A twentieth of a second's work: a first message waits that long for the batch that has locked its session.
BATCH = 2500
# These move with all their messages.
ARCHIVE_BATCH = 100
# The columns in a list of empty sessions: owner and creation time.
LISTED = tuple(
    s.c[name] for name in ("id", "user_id", "org_id", "agent_id", "session_type", "created_at", "expires_at")
)
_SHOWN = 20
_ADDRESS: ColumnElement[str] = literal_column("chat_sessions.ctid")
_AT_ADDRESSES = text("chat_sessions.ctid = ANY (CAST(:addresses AS tid[]))")
_log = logging.getLogger(__name__)


class Empty(msgspec.Struct, frozen=True):
    """Selects empty sessions: conditions, and the time column of the index that finds them, oldest first."""

    name: str
    by: Column[datetime]
    conditions: list[ColumnElement[bool]]


def ghosts(older_than_minutes: int, viewer: Viewer = EVERYBODY, *, whatever_ttl: bool) -> Empty:
    """Selects the sessions without messages that are older than some minutes; 0 selects all.

    Sessions with a time to live expire by it, and are excluded unless ``whatever_ttl``.
    """
    conditions = [s.c.message_count == 0, *viewer.sees(s)]
    if older_than_minutes:
        conditions.append(s.c.created_at < func.now() - func.make_interval(0, 0, 0, 0, 0, older_than_minutes))
    if not whatever_ttl:
        conditions.append(s.c.expires_at.is_(None))
    return Empty("ghost purge", s.c.created_at, conditions)


def expired(viewer: Viewer = EVERYBODY) -> Empty:
    """Selects the sessions that still have no message after their time to live."""
    return Empty("expiry", s.c.expires_at, [s.c.message_count == 0, s.c.expires_at < func.now(), *viewer.sees(s)])


class Batch(msgspec.Struct, frozen=True):
    """The result of one batch: the number of deleted sessions, some of them, and the next position, None at the end."""

    deleted: int
    some: list[Row]
    last: Place | None


async def delete_empty(
    connection: AsyncConnection, which: Empty, limit: int, after: Place | None = None, shown: int = _SHOWN
) -> Batch:
    """Deletes one batch and returns up to ``shown`` of them.

    ``after`` is the position (time by which it is sorted, id) where the previous batch ended.
    """
    found_by = (which.by, s.c.id)
    query = select(s.c.id, which.by.label("at"), _ADDRESS.label("address")).where(*which.conditions).order_by(*found_by)
    if after is not None:
        query = query.where(tuple_(*found_by) > after)
    held = query.limit(limit).with_for_update(skip_locked=True).subquery("held")
    # The ctids stay one text here: Python adds nothing to the database's cost of a purge.
    addresses, last_id = cast(func.array_agg(held.c.address), Text), func.array_agg(held.c.id)[func.count()]
    found = await connection.execute(select(func.count(), addresses, func.max(held.c.at), last_id))
    n, held_at, at, last = found.one()
    if not n:
        return Batch(0, [], None)
    # Only a statement that begins after the rows are locked sees every earlier message. OFFSET keeps the planner from
    # joining with all messages: each session costs one index lookup. The condition on message_count must not match that
    # of the index of ghosts, which would be read whole instead of the ctids.
    messages = select(m.c.session_id).where(m.c.session_id == s.c.id).offset(0).correlate(s)
    these = delete(s).where(_AT_ADDRESSES.bindparams(addresses=held_at), s.c.message_count < 1, ~messages.exists())
    gone = these.returning(*LISTED).cte("gone")
    rows = await all_rows(connection, select(func.count().over().label("deleted"), *gone.c).limit(shown))
    deleted = max((row.pop("deleted") for row in rows), default=0)
    return Batch(deleted, rows, (at, last) if n == limit else None)


async def purge(engine: AsyncEngine, which: Empty, batch: int = BATCH) -> int:
    """Deletes empty sessions and returns how many; any number of purges may run at once."""
    return sum([done.deleted async for done in _purged(engine, which, batch, _SHOWN)])


async def purge_and_list(engine: AsyncEngine, which: Empty) -> list[Row]:
    """Deletes empty sessions and returns all of them, oldest first."""
    gone = [row async for done in _purged(engine, which, BATCH, BATCH) for row in done.some]
    return sorted(gone, key=lambda row: (row[which.by.name], row["id"]))


async def listed(engine: AsyncEngine, which: Empty) -> list[Row]:
    """Returns what a purge would delete, oldest first."""
    async with engine.connect() as connection:
        return await all_rows(connection, select(*LISTED).where(*which.conditions).order_by(which.by, s.c.id))


async def _purged(engine: AsyncEngine, which: Empty, batch: int, shown: int) -> AsyncIterator[Batch]:
    after: Place | None = None
    while True:
        async with limited(engine) as connection:
            done = await delete_empty(connection, which, batch, after, shown)
        metrics.ghosts_purged(done.deleted)
        _report(which.name, "deleted", done.deleted, done.some)
        yield done
        after = done.last
        if after is None:
            return


async def forget_deleted(engine: AsyncEngine) -> None:
    """Deletes day-old records of deliberately deleted empty sessions: no message to those is in flight any more."""
    old = delete(deleted).where(deleted.c.deleted_at < func.now() - func.make_interval(0, 0, 0, 1))
    async with limited(engine) as connection:
        await connection.execute(old)


async def archive_idle(engine: AsyncEngine, days: int = IDLE_DAYS, viewer: Viewer = EVERYBODY) -> tuple[int, int]:
    """Archives conversations without activity for some days; returns how many, and how many messages they hold."""
    archived, messages = 0, 0
    after: Place | None = None
    while True:
        async with limited(engine) as connection:
            rows = await chat_archive.archive_idle(connection, days, viewer, ARCHIVE_BATCH, after)
        _report("idle archive", "archived", len(rows), rows)
        archived += len(rows)
        messages += sum(row["message_count"] for row in rows)
        if len(rows) < ARCHIVE_BATCH:
            return archived, messages
        after = max((row["updated_at"], row["id"]) for row in rows)


async def measure_idle(engine: AsyncEngine, days: int = IDLE_DAYS, viewer: Viewer = EVERYBODY) -> tuple[int, int]:
    """Returns the same counts as ``archive_idle``, without archiving."""
    idle = chat_archive.idle(days, viewer)
    query = select(func.count(), func.coalesce(func.sum(s.c.message_count), 0)).where(*idle)
    async with limited(engine) as connection:
        sessions, messages = (await connection.execute(query)).one()
    return int(sessions), int(messages)


def _report(name: str, done: str, n: int, rows: Sequence[Row]) -> None:
    if n:
        more = f" and {n - _SHOWN} more" if n > _SHOWN else ""
        _log.info("%s: %s %d: %s%s", name, done, n, ", ".join(short(str(row["id"])) for row in rows[:_SHOWN]), more)
