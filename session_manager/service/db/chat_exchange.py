"""An exchange: what a user said and what the assistant replied, committed in one transaction or not at all.

A session that is begun by an exchange exists only together with it, so whoever leaves before the reply is complete
leaves nothing behind.
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from session_manager.core.errors import Refused
from session_manager.service.db import chat_messages, chat_sessions
from session_manager.service.db.chat_messages import NewMessage
from session_manager.service.db.chat_sessions import ITEM, Row
from session_manager.service.db.ownership import Viewer
from session_manager.service.db.sync import database_time
from session_manager.service.db.tables import chat_messages as m
from session_manager.service.db.tables import chat_sessions as s


class NewSession(msgspec.Struct, frozen=True):
    """A session to begin with an exchange. ``id`` may be told to a client before: it names nothing until then."""

    agent_id: str
    session_type: str = "chat"
    model: str | None = None
    org_id: str | None = None
    user_id: str | None = None
    kind: str = "chat"
    metadata: dict[str, Any] = {}
    id: uuid.UUID = msgspec.field(default_factory=uuid.uuid4)


class Committed(msgspec.Struct, frozen=True):
    """What is stored: the session as it is now, both messages, and whether this call stored them (or an earlier)."""

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
    """Stores both messages, and makes the session when it is a new one; the caller's transaction is the exchange's.

    ``session`` is a NewSession, or an existing one as ``open_session`` returned it when the message came: a purge or an
    archive run in between does not stop the exchange. ``user.idempotency_key`` makes a retry return what the first
    attempt stored, also while that one is still under way. A new session's key counts among its owner's sessions.

    Raises NotFound when the session has been deleted, Refused (``idempotency_conflict``) when the key was used for
    another message.
    """
    key = user.idempotency_key
    if isinstance(session, NewSession):
        made = await _begin(connection, session, key)
        if made is None:
            return await _stored(connection, await _begun_with(connection, viewer, session, key), user)
        held = made
    else:
        held = await chat_messages.hold(connection, session["id"], viewer, seen=session)
        if await chat_messages.stored(connection, held["id"], key) is not None:
            return await _stored(connection, held, user)
    rows, changed = await chat_messages.append(connection, held, [user, assistant])
    return Committed(changed, rows[0], rows[1], created=True)


async def open_session(connection: AsyncConnection, session_id: uuid.UUID, viewer: Viewer) -> Row:
    """Returns an existing session that is to be talked in, live or archived; nothing is held or changed.

    Raises NotFound, or Refused (``session_ended``).
    """
    row = await chat_sessions.find(connection, session_id, viewer)
    if row["ended_at"] is not None:
        raise chat_messages.ended(session_id)
    return row


async def stored_exchange(
    connection: AsyncConnection, viewer: Viewer, session: NewSession | Row, user: NewMessage
) -> Committed | None:
    """Returns what an earlier attempt with this idempotency key stored, so that no model need be asked again.

    Raises Refused (``idempotency_conflict``) when the key was used for another message.
    """
    key = user.idempotency_key
    if key is None:
        return None
    if isinstance(session, NewSession):
        begun = await _find_begun(connection, session, key)
        if begun is None:
            return None
        session = await _begun_with(connection, viewer, session, key)
    elif await chat_messages.stored(connection, session["id"], key) is None:
        return None
    return await _stored(connection, session, user)


async def _begin(connection: AsyncConnection, session: NewSession, key: str | None) -> Row | None:
    """Makes a session; None when its owner has begun one with this key. Waits for an attempt that is under way."""
    now = await database_time(connection)
    facts = {"created_at": now.isoformat(), "backend_created": True, "kind": session.kind}
    values = {
        "id": session.id,
        "agent_id": session.agent_id,
        "session_type": session.session_type,
        "model": session.model,
        "user_id": session.user_id,
        "org_id": session.org_id,
        "created_at": now,
        "updated_at": now,
        "creation_key": key,
        "metadata": {**session.metadata, **facts},
    }
    made = await connection.execute(insert(s).values(values).on_conflict_do_nothing().returning(*ITEM))
    row = made.mappings().first()
    return None if row is None else dict(row)


async def _find_begun(connection: AsyncConnection, session: NewSession, key: str) -> uuid.UUID | None:
    owner = func.coalesce(s.c.user_id, "") == (session.user_id or "")
    found = await connection.scalar(select(s.c.id).where(owner, s.c.creation_key == key))
    return found if isinstance(found, uuid.UUID) else None


async def _begun_with(connection: AsyncConnection, viewer: Viewer, session: NewSession, key: str | None) -> Row:
    begun = session.id if key is None else await _find_begun(connection, session, key)
    row = None if begun is None else await chat_messages.look(connection, begun, viewer)
    if row is None or key is None:
        raise Refused("there is a session with this id or key already; ask again with new ones", code="session_exists")
    return row


async def _stored(connection: AsyncConnection, session: Row, user: NewMessage) -> Committed:
    first = await chat_messages.stored(connection, session["id"], user.idempotency_key)
    if first is None or not user.is_stored_as(first):
        raise chat_messages.conflict(user.idempotency_key)
    query = select(m).where(m.c.session_id == session["id"], m.c.position == first["position"] + 1)
    reply = (await connection.execute(query)).mappings().first()
    if reply is None or reply["role"] != "assistant":
        raise chat_messages.conflict(user.idempotency_key)
    return Committed(session, first, dict(reply), created=False)
