"""Health: does the process live, and can it work."""

from __future__ import annotations

from fastapi import APIRouter, Request
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from session_manager.service.api.schemas import Health, Problem
from session_manager.service.db.migrate import head, revisions
from session_manager.service.problems import Unavailable

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Whether the process lives")
async def healthz() -> Health:
    """Asks nobody."""
    return Health()


@router.get("/readyz", summary="Whether it can work", responses={503: {"model": Problem}})
async def readyz(request: Request) -> Health:
    """Asks the database for its schema. A newer one will do, so that a rolling update leaves older replicas in."""
    try:
        async with request.app.state.engine.connect() as connection:
            found = await connection.scalar(text("SELECT version_num FROM alembic_version"))
    except (SQLAlchemyError, OSError) as error:
        raise Unavailable("the database does not answer, or has no schema; run session-manager migrate") from error
    if found != head() and found in revisions():
        raise Unavailable("the database's schema is an older version's; run session-manager migrate", code="schema")
    return Health()
