"""All exchanges in progress in this process: their limit, and their end with the service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from session_manager.service.db.ownership import Viewer
from session_manager.service.model.base import Model
from session_manager.service.model.endpoint import open_model
from session_manager.service.problems import Unavailable
from session_manager.service.talk.opening import Ask, open_exchange
from session_manager.service.talk.talk import Talk

MOST_AT_ONCE = 500
LAST_WORDS_S = 5.0
# Fewer than the pool's connections: a complete reply waits for its turn, not for a connection it may never get.
DATABASE_TURNS = 8


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


@contextlib.asynccontextmanager
async def talking(app: FastAPI) -> AsyncIterator[None]:
    """Provides ``app.state.talks`` while the service runs."""
    async with open_model(app.state.config.llm) as model:
        app.state.talks = Talks(app.state.engine, model)
        try:
            yield
        finally:
            await app.state.talks.finish()
