"""Health: is the process alive, and can it work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from fastapi import APIRouter, FastAPI, Request, Response
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from session_manager.service import metrics
from session_manager.service.api.schemas import Health, Problem, Readiness
from session_manager.service.db.migrate import head, revisions
from session_manager.service.embedded.keeper import Standing
from session_manager.service.problems import UNREACHABLE, Unavailable

router = APIRouter(tags=["health"])


# Less than the usual timeout of probes; behind a pooler, waiting for a lost database takes much longer.
PATIENCE_S = 3.0


class Watch:
    """The embedded database: ``standing`` is the state of the embedded PostgreSQL, None when the service has none."""

    def __init__(self) -> None:
        self.standing: Standing | None = None
        self._then: Callable[[], object] | None = None

    def hear(self, standing: Standing) -> None:
        """Records its current state; callable from any thread."""
        before = self.standing.restarts if self.standing else 0
        self.standing = standing
        metrics.embedded_database(standing.up, standing.restarts - before)
        self._act()

    def when_lost(self, then: Callable[[], object]) -> None:
        """Registers a callback for when it cannot be restarted."""
        self._then = then
        self._act()

    def raise_lost(self) -> None:
        """Raises the reason if it could not be restarted."""
        if self.standing is not None and self.standing.lost is not None:
            raise self.standing.lost

    def _act(self) -> None:
        if self._then is not None and self.standing is not None and self.standing.lost is not None:
            self._then()


@router.get("/health", include_in_schema=False)
@router.get("/healthz", summary="Whether the process is alive")
async def healthz(response: Response) -> Health:
    """Checks only that. The header X-Service names the service, so that a skill sends its token to no other one."""
    response.headers["X-Service"] = "aria-api"
    return Health()


@router.get(
    "/readyz",
    summary="Whether the service is ready",
    response_model_exclude_none=True,
    responses={503: {"model": Problem}},
)
async def readyz(request: Request) -> Readiness:
    """Checks the database schema. A newer one passes, so that older replicas keep working during a rolling update."""
    watch: Watch = request.app.state.watch
    standing = watch.standing
    if standing is not None and not standing.up:
        raise Unavailable(
            f"the embedded PostgreSQL {standing.reason}, and is being restarted; try again in a moment",
            code="database_restarting",
        )
    question = _question(request.app)
    done, _ = await asyncio.wait({question}, timeout=PATIENCE_S)
    if not done:
        raise Unavailable("the database does not answer in time; try again in a moment")
    try:
        found = question.result()
    except ProgrammingError as error:
        raise Unavailable("the database has no schema; run session-manager migrate", code="schema") from error
    except SQLAlchemyError as error:
        raise Unavailable(UNREACHABLE["error"]) from error
    if found is None or (found != head() and found in revisions()):
        raise Unavailable("the database schema is outdated; run session-manager migrate", code="schema")
    return Readiness(database_restarts=None if standing is None else standing.restarts)


def _question(app: FastAPI) -> asyncio.Task[str | None]:
    """Returns the check in progress, or a new one: impatient probes must not exhaust the pool."""
    question: asyncio.Task[str | None] | None = app.state.readiness
    if question is None or question.done():
        question = app.state.readiness = asyncio.create_task(_schema(app.state.engine))
        # When no request waits for the answer any more, its error is not reported.
        question.add_done_callback(lambda task: task.cancelled() or task.exception())
    return question


async def _schema(engine: AsyncEngine) -> str | None:
    async with engine.connect() as connection:
        found: str | None = await connection.scalar(text("SELECT version_num FROM session_manager_version"))
        return found
