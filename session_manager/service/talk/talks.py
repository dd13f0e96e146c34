"""All exchanges in progress in this process: how they are opened, their limit, and their end with the service.

Opening one writes nothing, and keeps no database connection while the model replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Sequence

import msgspec
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from session_manager.service.db import chat_messages, chat_sessions
from session_manager.service.db.chat_exchange import NewSession, still_open, stored_exchange
from session_manager.service.db.chat_messages import NewMessage
from session_manager.service.db.engine import Row, snapshot
from session_manager.service.db.ownership import Viewer
from session_manager.service.model.base import Model, Turn
from session_manager.service.model.endpoint import open_model
from session_manager.service.problems import Unavailable
from session_manager.service.talk.talk import Opened, Talk

HISTORY_MESSAGES = 50
HISTORY_CHARACTERS = 100_000
# A tool's output makes no sense without the call, which is not stored.
_SHOWN = ("user", "assistant", "system")
MOST_AT_ONCE = 500
LAST_WORDS_S = 5.0
# Fewer than the pool's connections: a complete reply waits for its turn, not for a connection it may never get.
DATABASE_TURNS = 8


class Ask(msgspec.Struct, frozen=True):
    """A message and its session; without ``session_id`` it starts a session."""

    message: str
    session_id: uuid.UUID | None = None
    agent_id: str = "main"
    org_id: str | None = None
    model: str | None = None
    idempotency_key: str | None = None


class Talks:
    """Starts exchanges until it is stopped."""

    def __init__(self, engine: AsyncEngine, model: Model) -> None:
        self._engine = engine
        self._model = model
        self._turns = asyncio.Semaphore(DATABASE_TURNS)
        self._under_way: set[Talk] = set()
        self._finishing = False

    async def begin(self, viewer: Viewer, ask: Ask) -> Talk:
        """Starts an exchange and returns it.

        Raises as ``open_exchange`` does, and Unavailable (``shutting_down``, ``too_many_talks``).
        """
        self._need_room()
        async with self._turns:
            opened = await open_exchange(self._engine, viewer, ask, self._model)
        self._need_room()
        talk = Talk(self._engine, self._turns, self._model, opened)
        self._under_way.add(talk)
        talk.task.add_done_callback(lambda _: self._under_way.discard(talk))
        return talk

    def _need_room(self) -> None:
        if self._finishing:
            raise Unavailable("the service is stopping; send the message again in a moment", code="shutting_down")
        if len(self._under_way) >= MOST_AT_ONCE:
            raise Unavailable(
                f"{MOST_AT_ONCE} replies are being written already; try again in a moment", code="too_many_talks"
            )

    async def finish(self) -> None:
        """Accepts no more exchanges, gives those in progress a few seconds, then ends them with an error."""
        self._finishing = True
        await self._wait()
        for talk in list(self._under_way):
            talk.stop()
        await self._wait()

    async def _wait(self) -> None:
        if self._under_way:
            await asyncio.wait([talk.task for talk in self._under_way], timeout=LAST_WORDS_S)


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


@contextlib.asynccontextmanager
async def talking(app: FastAPI) -> AsyncIterator[None]:
    """Provides ``app.state.talks`` while the service runs."""
    async with open_model(app.state.config.llm) as model:
        app.state.talks = Talks(app.state.engine, model)
        try:
            yield
        finally:
            await app.state.talks.finish()
