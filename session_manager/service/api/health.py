"""Health: does the process live, and can it work."""

from __future__ import annotations

from fastapi import APIRouter, Request
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from session_manager.service.api.schemas import Health, Problem
from session_manager.service.db.migrate import head, revisions
from session_manager.service.problems import Unavailable

router = APIRouter(tags=["health"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", summary="Whether the process lives")
async def healthz() -> Health:
    """Asks nobody."""
    return Health()


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", summary="Whether it can work", responses={503: {"model": Problem}})
async def readyz(request: Request) -> Health:
    """Asks the database for its schema. A newer one will do, so that a rolling update leaves older replicas in."""
    try:
        async with request.app.state.engine.connect() as connection:
            found = await connection.scalar(text("SELECT version_num FROM session_manager_version"))
    except ProgrammingError as error:
        raise Unavailable("the database has no schema; run session-manager migrate", code="schema") from error
    except SQLAlchemyError as error:
        raise Unavailable("the database does not answer; try again in a moment") from error
    if found is None or (found != head() and found in revisions()):
        raise Unavailable("the database's schema is an older version's; run session-manager migrate", code="schema")
    return Health()
