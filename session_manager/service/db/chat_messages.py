"""Queries over ``chat_messages``: adding a message locks its session's row, and keeps the session.

Purges, the archive and other writers lock the row, too, so all of them are serialized. A writer whose row has
disappeared knows from its earlier read that it existed when the message arrived: it recreates an empty session that a
purge has deleted, as it was, and restores an archived one. The message wins.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import Table, case, func, insert, literal, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert as insert_or_not
from sqlalchemy.ext.asyncio import AsyncConnection

from session_manager.core.errors import Refused
from session_manager.service.db import chat_archive, chat_sessions
from session_manager.service.db.chat_sessions import ITEM, KEPT, unknown
from session_manager.service.db.engine import Row, all_rows, first_row
from session_manager.service.db.ownership import Viewer
from session_manager.service.db.tables import chat_messages as m
from session_manager.service.db.tables import chat_messages_archive as archived
from session_manager.service.db.tables import chat_sessions as s

TITLE_LENGTH = 80
_ATTEMPTS = 5
# The limits of the columns.
_MOST_MESSAGES, _MOST_TOKENS = 2**31 - 1, 2**63 - 1
_LAST_MOMENT = datetime(2199, 12, 31, tzinfo=UTC)
_TICK = text("interval '1 microsecond'")


class NewMessage(msgspec.Struct, frozen=True):
    """A message to add: plain ``content``, or ``encrypted``, which the service cannot read.

    Its ``id`` identifies an attempt whose answer was lost.
    """

    role: str
    content: str | None = None
    encrypted: dict[str, str] | None = None
    tokens: int = 0
    idempotency_key: str | None = None
    id: uuid.UUID = msgspec.field(default_factory=uuid.uuid4)

    def is_stored_as(self, row: Row) -> bool:
        """Returns whether a stored message is this one."""
        return (self.role, self.content, self.encrypted) == (row["role"], row["content"], row["encrypted"])


class Added(msgspec.Struct, frozen=True):
    """A stored message, its session as it is now, and whether this call stored it (or an earlier one)."""

    message: Row
    session: Row
    created: bool


async def hold(connection: AsyncConnection, session_id: uuid.UUID, viewer: Viewer, seen: Row | None = None) -> Row:
    """Locks a session's row until the transaction ends, to add a message, and returns it.

    ``seen`` is the session as it was when the message arrived, if that was earlier: a session that was open then
    accepts the message although it has been ended since. Raises NotFound, or Refused (``session_ended``).
    """
    known = seen or await chat_sessions.look(connection, session_id, viewer)
    if known is None:
        raise unknown(session_id)
    query = select(*ITEM).where(s.c.id == session_id, *viewer.sees(s)).with_for_update(key_share=True)
    # It may be archived and restored in between.
    for _ in range(_ATTEMPTS):
        row = await first_row(connection, query)
        if row is not None:
            if row["status"] == "ended" and seen is None:
                raise ended(session_id)
            return row
        if await chat_archive.revive(connection, session_id, viewer):
            continue
        if known["status"] == "active" and not known["message_count"]:
            if await chat_sessions.was_deleted(connection, session_id):
                break
            again = insert_or_not(s).values({name: known[name] for name in KEPT})
            await connection.execute(again.on_conflict_do_nothing())
    raise unknown(session_id)


async def stored(connection: AsyncConnection, session: Row, message: NewMessage) -> Row | None:
    """Returns a message that an earlier attempt has stored, by its id or its idempotency key."""
    table = _table(session)
    same = table.c.id == message.id
    if message.idempotency_key is not None:
        same = or_(same, table.c.idempotency_key == message.idempotency_key)
    return await first_row(connection, select(table).where(table.c.session_id == session["id"], same))


async def behind(connection: AsyncConnection, session: Row, message: Row) -> Row | None:
    """Returns the message after another one in a session."""
    table = _table(session)
    query = select(table).where(table.c.session_id == session["id"], table.c.position == message["position"] + 1)
    return await first_row(connection, query)


def _table(session: Row) -> Table:
    """Returns the table of a session's messages, live or archived, as the session was found."""
    return archived if session["status"] == "archived" else m


async def add(connection: AsyncConnection, session_id: uuid.UUID, viewer: Viewer, message: NewMessage) -> Added:
    """Adds a message; a retry with its idempotency key adds nothing, and is answered even after the session ended.

    Raises NotFound, or Refused (``session_ended``, ``idempotency_conflict``).
    """
    if message.idempotency_key is not None:
        known = await chat_sessions.find(connection, session_id, viewer)
        before = await stored(connection, known, message)
        if before is not None:
            return _added_before(known, before, message)
    session = await hold(connection, session_id, viewer)
    # Another attempt may have been in progress.
    before = await stored(connection, session, message)
    if before is not None:
        return _added_before(session, before, message)
    rows, changed = await append(connection, session, [message])
    return Added(rows[0], changed, created=True)


def _added_before(session: Row, before: Row, message: NewMessage) -> Added:
    if not message.is_stored_as(before):
        raise conflict(message.idempotency_key)
    return Added(before, session, created=False)


async def append(connection: AsyncConnection, session: Row, messages: Sequence[NewMessage]) -> tuple[list[Row], Row]:
    """Adds messages to a session that ``hold`` has returned; returns them and the updated session.

    Raises Refused (``session_full``) when a counter would overflow its column.
    """
    last = await connection.scalar(select(func.max(m.c.position)).where(m.c.session_id == session["id"])) or 0
    _check_room(session, last, messages)
    # Times follow the positions, whatever the clock does: readers query by the time since.
    at = func.greatest(func.clock_timestamp(), literal(session["last_message_at"], m.c.created_at.type) + _TICK)
    values = [
        {
            "session_id": session["id"],
            "position": last + n,
            "created_at": at + func.make_interval(0, 0, 0, 0, 0, 0, (n - 1) / 1_000_000),
            **msgspec.structs.asdict(message),
        }
        for n, message in enumerate(messages, 1)
    ]
    rows = await all_rows(connection, insert(m).values(values).returning(m))
    rows.sort(key=lambda row: row["position"])
    return rows, await _touch(connection, session["id"], rows)


def _check_room(session: Row, last: int, messages: Sequence[NewMessage]) -> None:
    tokens = session["tokens"] + sum(message.tokens for message in messages)
    at = session["last_message_at"]
    full = max(last, session["message_count"]) + len(messages) > _MOST_MESSAGES or tokens > _MOST_TOKENS
    if full or (at is not None and at > _LAST_MOMENT):
        raise Refused(f"chat session {session['id']} is full; start a new one", code="session_full")


async def _touch(connection: AsyncConnection, session_id: uuid.UUID, rows: Sequence[Row]) -> Row:
    used = {"has_messages": True, "first_message_at": rows[0]["created_at"].isoformat()}
    at = rows[-1]["created_at"]
    changed = await connection.execute(
        update(s)
        .where(s.c.id == session_id)
        .values(
            message_count=s.c.message_count + len(rows),
            tokens=s.c.tokens + sum(row["tokens"] for row in rows),
            updated_at=at,
            last_message_at=at,
            title=func.coalesce(s.c.title, title_of(rows[0])),
            metadata=case((s.c.message_count == 0, s.c.metadata.op("||")(used)), else_=s.c.metadata),
        )
        .returning(*ITEM)
    )
    return dict(changed.mappings().one())


def title_of(message: Row) -> str | None:
    """Returns the beginning of a user's message, as a title; None when there is no readable text."""
    words = (message["content"] or "").split() if message["role"] == "user" else []
    title = " ".join(words)
    return None if not title else title if len(title) <= TITLE_LENGTH else f"{title[: TITLE_LENGTH - 1]}…"


async def listed(
    connection: AsyncConnection, session: Row, limit: int, offset: int = 0, since: datetime | None = None
) -> list[Row]:
    """Returns messages of a session that ``chat_sessions.find`` has returned, in their order."""
    table = _table(session)
    conditions = [table.c.session_id == session["id"]]
    if since is not None:
        conditions.append(table.c.created_at > since)
    query = select(table).where(*conditions).order_by(table.c.position).limit(limit).offset(offset)
    return await all_rows(connection, query)


async def last_ones(connection: AsyncConnection, session: Row, limit: int) -> list[Row]:
    """Returns the last messages of a session that ``chat_sessions.find`` has returned, in their order."""
    table = _table(session)
    query = select(table).where(table.c.session_id == session["id"]).order_by(table.c.position.desc()).limit(limit)
    return (await all_rows(connection, query))[::-1]


def ended(session_id: uuid.UUID) -> Refused:
    """Returns the error for a message to a session that has ended."""
    return Refused(f"chat session {session_id} has ended; start a new one", code="session_ended")


def conflict(key: Any) -> Refused:
    """Returns the error for an idempotency key that another message has used."""
    return Refused(
        f"idempotency_key {str(key)[:64]!r} was used for another message; a new message needs a new key",
        code="idempotency_conflict",
    )
