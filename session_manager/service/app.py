"""aria-api: assembles the application."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI

from session_manager import __version__
from session_manager.service import problems
from session_manager.service.api import chat, chat_ws, engine, health, jobs, metrics, sessions
from session_manager.service.api.health import Watch
from session_manager.service.auth import DESCRIBED, Auth, Authenticator
from session_manager.service.config import Config
from session_manager.service.db.engine import make_engine
from session_manager.service.guard import Guard, Heads
from session_manager.service.jobs.loop import Runner
from session_manager.service.jobs.registry import jobs as registered
from session_manager.service.logs import AccessLog
from session_manager.service.pages import conversations, dashboard
from session_manager.service.pages import routes as pages
from session_manager.service.talk.talks import talking

DESCRIPTION = """\
The history of an AI agent's sessions. The volume sync updates `/api/sessions` from the gateway's files; cleanups mark
rows ended and never delete them, and status updates that a cleanup could not deliver are read from the volume's
ledger. `/api/engine/sessions` are conversations that the service stores itself: one that stays empty is deleted after a
while, an idle one is archived. `/api/engine/chat` sends messages to them. Every response other than a success is
`{"error", "code"}`.
"""


def create_app(config: Config, database_url: str, watch: Watch | None = None) -> FastAPI:
    """Returns the application on a migrated database (an SQLAlchemy URL). Its jobs run while it runs.

    ``watch`` reports the state of the embedded PostgreSQL, if that is the database.
    """
    app = FastAPI(
        title="aria-api",
        description=DESCRIPTION,
        version=__version__,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
    )
    app.state.config = config
    app.state.engine = make_engine(database_url)
    app.state.watch = watch or Watch()
    app.state.authenticator = Authenticator(config, app.state.engine)
    app.state.syncing = asyncio.Lock()
    app.state.readiness = None
    app.state.drawn = {}
    app.state.drawing = asyncio.Lock()
    app.state.jobs = Runner(app.state.engine, config, registered(config))
    problems.install(app)
    for router in (health.router, pages.router, dashboard.router, conversations.router, chat_ws.router):
        app.include_router(router)
    for router in (sessions.router, engine.router, chat.router, jobs.router, metrics.router):
        app.include_router(router, dependencies=[DESCRIBED])
    # The middleware added last sees a request first.
    app.add_middleware(Auth)
    app.add_middleware(Guard, config=config)
    app.add_middleware(Heads)
    app.add_middleware(AccessLog)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.jobs.start()
    try:
        async with talking(app):
            yield
    finally:
        await app.state.jobs.stop()
        await app.state.engine.dispose()
