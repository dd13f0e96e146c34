"""Opens an exchange: finds its session, the earlier messages, and whether it has already been stored.

Writes nothing, and keeps no database connection while the model replies.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from session_manager.service.db import chat_messages, chat_sessions
from session_manager.service.db.chat_exchange import Committed, NewSession, still_open, stored_exchange
from session_manager.service.db.chat_messages import NewMessage
from session_manager.service.db.engine import Row, snapshot
from session_manager.service.db.ownership import Viewer
from session_manager.service.model.base import Model, Turn

HISTORY_MESSAGES = 50
HISTORY_CHARACTERS = 100_000
# A tool's output makes no sense without the call, which is not stored.
_SHOWN = ("user", "assistant", "system")


class Ask(msgspec.Struct, frozen=True):
    """A message and its session; without ``session_id`` it starts a session."""

    message: str
    session_id: uuid.UUID | None = None
    agent_id: str = "main"
    org_id: str | None = None
    model: str | None = None
    idempotency_key: str | None = None


class Opened(msgspec.Struct, frozen=True):
    """An exchange ready to run: ``turns`` are the model's input, ``stored`` is the stored answer for a retry."""

    viewer: Viewer
    session: NewSession | Row
    user: NewMessage
    model: str
    turns: Sequence[Turn]
    stored: Committed | None

    @property
    def session_id(self) -> uuid.UUID:
        """The session's id; a new one names nothing before the exchange is stored."""
        found: uuid.UUID = self.session.id if isinstance(self.session, NewSession) else self.session["id"]
        return found


async def open_exchange(engine: AsyncEngine, viewer: Viewer, ask: Ask, model: Model) -> Opened:
    """Looks up what an exchange needs.

    Raises NotFound for a session that does not exist or is another user's, Refused (``session_ended``,
    ``idempotency_conflict``), and the database's errors.
    """
    user = NewMessage("user", ask.message, idempotency_key=ask.idempotency_key)
    async with snapshot(engine) as connection:
        session: NewSession | Row
        before: list[Row] = []
        if ask.session_id is None:
            name = model.named(ask.model, None)
            session = NewSession(ask.agent_id, model=name, org_id=ask.org_id, user_id=viewer.user_id)
            stored = await stored_exchange(connection, viewer, session, user)
        else:
            session = await chat_sessions.find(connection, ask.session_id, viewer)
            name = model.named(ask.model, session["model"])
            stored = await stored_exchange(connection, viewer, session, user)
            if stored is None:
                before = await chat_messages.last_ones(connection, still_open(session), HISTORY_MESSAGES)
    return Opened(viewer, session, user, name, _turns(before, ask.message), stored)


def _turns(before: Sequence[Row], message: str) -> list[Turn]:
    """Returns the last turns that fit, oldest first; skips encrypted ones, which the service cannot read."""
    turns = [Turn("user", message)]
    left = HISTORY_CHARACTERS
    for row in reversed(before):
        if row["content"] is None or row["role"] not in _SHOWN:
            continue
        left -= len(row["content"])
        if left < 0:
            break
        turns.append(Turn(row["role"], row["content"]))
    return turns[::-1]
