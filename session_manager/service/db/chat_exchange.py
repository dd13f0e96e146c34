"""An exchange: a user's message and the assistant's reply, committed in one transaction or not at all.

A session that an exchange starts exists only together with it, so a client that disconnects before the reply is
complete leaves nothing behind.
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
from sqlalchemy import Table, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from session_manager.core.errors import Refused
from session_manager.service.db import chat_messages, chat_sessions
from session_manager.service.db.chat_messages import NewMessage
from session_manager.service.db.chat_sessions import ITEM
from session_manager.service.db.engine import Row, first_row
from session_manager.service.db.ownership import Viewer
from session_manager.service.db.sync import database_time
from session_manager.service.db.tables import chat_sessions as s
from session_manager.service.db.tables import chat_sessions_archive as archive


class NewSession(msgspec.Struct, frozen=True):
    """A session to start with an exchange. A client may get ``id`` earlier: it names nothing until then."""

    agent_id: str
    session_type: str = "chat"
    model: str | None = None
    org_id: str | None = None
    user_id: str | None = None
    kind: str = "chat"
    metadata: dict[str, Any] = {}
    id: uuid.UUID = msgspec.field(default_factory=uuid.uuid4)


class Committed(msgspec.Struct, frozen=True):
    """The stored exchange: the session as it is now, both messages, and whether this call stored them."""

    session: Row
    user: Row
    assistant: Row
    created: bool


async def commit_exchange(
    connection: AsyncConnection,
    viewer: Viewer,
    session: NewSession | Row,
    user: NewMessage,
    assistant: NewMessage,
) -> Committed:
    """Stores both messages, and creates a new session, in the caller's transaction.

    ``session`` is a NewSession, or an existing one as found when the message arrived: a purge or an archive run in
    between does not stop the exchange. With ``user.idempotency_key`` a retry returns the exchange that the first
    attempt stored, also while that is still in progress. A new session's key is unique per owner.

    Raises NotFound when the session has been deleted, Refused (``idempotency_conflict``) when the key was used for
    another message.
    """
    if isinstance(session, NewSession):
        held = await _begin(connection, session, user.idempotency_key)
        if held is None:
            key = user.idempotency_key
            begun = session.id if key is None else await _find_begun(connection, session, key)
            return await _stored_at_first(connection, viewer, begun, user)
    else:
        held = await chat_messages.hold(connection, session["id"], viewer, seen=session)
        before = await _stored(connection, held, user)
        if before is not None:
            return before
    rows, changed = await chat_messages.append(connection, held, [user, assistant])
    return Committed(changed, rows[0], rows[1], created=True)


def still_open(session: Row) -> Row:
    """Returns an existing session, live or archived, that accepts messages. Raises Refused (``session_ended``)."""
    if session["ended_at"] is not None:
        raise chat_messages.ended(session["id"])
    return session


async def stored_exchange(
    connection: AsyncConnection, viewer: Viewer, session: NewSession | Row, user: NewMessage
) -> Committed | None:
    """Returns the exchange that an earlier attempt with this idempotency key stored, to save another model call.

    Raises Refused (``idempotency_conflict``) when the key was used for another message.
    """
    if user.idempotency_key is None:
        return None
    if not isinstance(session, NewSession):
        return await _stored(connection, session, user)
    begun = await _find_begun(connection, session, user.idempotency_key)
    return None if begun is None else await _stored_at_first(connection, viewer, begun, user)


async def _begin(connection: AsyncConnection, session: NewSession, key: str | None) -> Row | None:
    """Creates a session; None when its owner has started one with this key. Waits for an attempt in progress."""
    now = await database_time(connection)
    values = msgspec.structs.asdict(session) | {"created_at": now, "updated_at": now, "creation_key": key}
    facts = {"created_at": now.isoformat(), "backend_created": True, "kind": values.pop("kind")}
    values["metadata"] = {**session.metadata, **facts}
    row = await first_row(connection, insert(s).values(values).on_conflict_do_nothing().returning(*ITEM))
    if row is not None and key is not None and await _begun_in(connection, archive, session, key) is not None:
        # It may have been archived before the insert, or while that waited: only now is its absence certain.
        await connection.execute(delete(s).where(s.c.id == session.id))
        return None
    return row


async def _begun_in(connection: AsyncConnection, table: Table, session: NewSession, key: str) -> uuid.UUID | None:
    owner = func.coalesce(table.c.user_id, "") == (session.user_id or "")
    found = await connection.scalar(select(table.c.id).where(owner, table.c.creation_key == key))
    return found if isinstance(found, uuid.UUID) else None


async def _find_begun(connection: AsyncConnection, session: NewSession, key: str) -> uuid.UUID | None:
    """Returns the session that this owner started with this key, live or archived."""
    # Twice, since it may be restored from the archive between two reads.
    for table in (s, archive, s):
        found = await _begun_in(connection, table, session, key)
        if found is not None:
            return found
    return None


async def _stored_at_first(
    connection: AsyncConnection, viewer: Viewer, begun: uuid.UUID | None, user: NewMessage
) -> Committed:
    """Returns the exchange that already started a session. Raises Refused if another message started it."""
    session = None if begun is None else await chat_sessions.look(connection, begun, viewer)
    before = None if session is None else await _stored(connection, session, user)
    if before is None:
        raise Refused("a session with this id or key already exists; try again with new ones", code="session_exists")
    return before


async def _stored(connection: AsyncConnection, session: Row, user: NewMessage) -> Committed | None:
    """Returns an exchange that a session already has; ``created`` if this call stored it and lost the answer."""
    first = await chat_messages.stored(connection, session, user)
    if first is None:
        return None
    reply = await chat_messages.behind(connection, session, first)
    if not user.is_stored_as(first) or reply is None or reply["role"] != "assistant":
        raise chat_messages.conflict(user.idempotency_key)
    return Committed(session, first, reply, created=first["id"] == user.id)
