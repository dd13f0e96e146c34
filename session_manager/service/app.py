"""aria-api: the application, put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import FastAPI

from session_manager.service import problems
from session_manager.service.api import chat, chat_ws, engine_cleanup, health, sessions
from session_manager.service.api.engine import router as engine_router
from session_manager.service.auth import Auth, Authenticator
from session_manager.service.config import Config
from session_manager.service.db.engine import make_engine
from session_manager.service.guard import Guard
from session_manager.service.jobs.loop import repeat
from session_manager.service.jobs.sync import SyncResult, sync_volume
from session_manager.service.logs import AccessLog
from session_manager.service.pages import chat as chat_page
from session_manager.service.pages import routes as pages
from session_manager.service.talk.talks import talking

_log = logging.getLogger(__name__)
GRACE_S = 30.0
DESCRIPTION = """\
The history of an AI agent's sessions. `/api/sessions` is brought up to date from the gateway's files by the volume
sync; cleanups mark rows ended and never delete them. `/api/engine/sessions` are conversations that the service holds
itself: an empty one goes after a while, an idle one into the archive. `/api/engine/chat` talks in them. Every answer
that is not a success is `{"error", "code"}`.
"""


def create_app(config: Config, database_url: str) -> FastAPI:
    """Returns the application on a migrated database (an SQLAlchemy URL). Jobs run while it does."""
    app = FastAPI(
        title="aria-api",
        description=DESCRIPTION,
        version="0.1.0",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
    )
    engine = make_engine(database_url)
    app.state.config = config
    app.state.engine = engine
    app.state.authenticator = Authenticator(config, engine)
    app.state.syncing = asyncio.Lock()
    problems.install(app)
    for router in (health.router, sessions.router, engine_cleanup.router, engine_router, pages.router):
        app.include_router(router)
    for router in (chat.router, chat_ws.router, chat_page.router):
        app.include_router(router)
    # The last one added is the first to see a request.
    app.add_middleware(Auth)
    app.add_middleware(Guard, config=config)
    app.add_middleware(AccessLog)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    config: Config = app.state.config
    stop = asyncio.Event()
    jobs: list[asyncio.Task[None]] = []
    if config.agents_dir is not None and config.sync_seconds:
        step = repeat("volume sync", _sync_step(app), config.sync_seconds, stop)
        jobs.append(asyncio.create_task(step))
    try:
        async with talking(app):
            yield
    finally:
        stop.set()
        if jobs:
            # A step in hand is finished, unless it hangs; then its transaction is rolled back.
            _, late = await asyncio.wait(jobs, timeout=GRACE_S)
            for job in late:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
        await app.state.engine.dispose()


def _sync_step(app: FastAPI) -> Callable[[], Awaitable[None]]:
    known: set[tuple[str | None, str]] = set()

    async def step() -> None:
        async with app.state.syncing:
            result = await sync_volume(app.state.engine, app.state.config, wait=False)
        found = {(error["agentId"], error["code"]) for error in result.errors}
        for agent_id, code in sorted(found - known, key=str):
            _log.warning("volume sync: agent %s: %s", agent_id, code)
        if result.ran:
            known.clear()
            known.update(found)
        _report(result)

    return step


def _report(result: SyncResult) -> None:
    if result.wrote:
        _log.info(
            "volume sync: %d created, %d updated, %d revived, %d ended in %.3f s",
            result.created,
            result.updated,
            result.revived,
            result.ended,
            result.seconds,
        )
