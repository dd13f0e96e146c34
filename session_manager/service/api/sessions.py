"""/api/sessions: the history of agent sessions."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.exc import IntegrityError

from session_manager.core.errors import Failed, NotFound, Refused
from session_manager.service.api import schemas
from session_manager.service.api.common import (
    BUSY,
    BY_ID,
    INVALID,
    LARGE,
    WHO,
    AgentId,
    Database,
    Responses,
    RowId,
    SessionType,
)
from session_manager.service.db import dashboard
from session_manager.service.db import sessions as queries
from session_manager.service.jobs.sync import sync_volume
from session_manager.service.problems import Unavailable

PAGE_LIMIT = 1000
# The page number becomes an OFFSET, which must fit a bigint.
_LAST_PAGE = 2**40

_TAKEN: Responses = {409: {"model": schemas.Problem, "description": "another row has that session"}}

router = APIRouter(prefix="/api/sessions", tags=["sessions"], responses={**WHO, **BUSY, **INVALID})


@router.get("", summary="List sessions, a page at a time")
async def list_sessions(
    database: Database,
    page: Annotated[int, Query(ge=1, le=_LAST_PAGE, description="which page; the first is 1")] = 1,
    limit: Annotated[int, Query(ge=1, le=PAGE_LIMIT, description="how many a page at most")] = 50,
    status: Annotated[schemas.Status | None, Query(description="with this status only")] = None,
    agent_id: AgentId = None,
    session_type: SessionType = None,
    search: Annotated[
        schemas.SearchText,
        Query(description="part of an agent, a type, a session id, a key or a label; case does not matter"),
    ] = None,
    aria_session_id: Annotated[schemas.SessionId | None, Query(description="the session's id at the gateway")] = None,
    include_cron_events: Annotated[bool, Query(description="false leaves out `cron`")] = True,
    include_runtime_events: Annotated[
        bool, Query(description=f"false leaves out {', '.join(f'`{t}`' for t in queries.RUNTIME_TYPES)}")
    ] = True,
    order: Annotated[
        Literal["asc", "desc"],
        Query(description="`asc`: oldest row first, so that new rows never shift a page; `desc`: newest first"),
    ] = "asc",
) -> schemas.SessionPage:
    """Sessions in the order in which their rows were created."""
    wanted = queries.Filter(
        status, agent_id, session_type, search, aria_session_id, include_cron_events, include_runtime_events
    )
    total = await queries.count(database, wanted)
    rows = await queries.page(database, wanted, order, limit, (page - 1) * limit) if total else []
    return schemas.SessionPage(
        items=[schemas.SessionItem.model_validate(row) for row in rows],
        total=total,
        page=page,
        limit=limit,
        pages=-(-total // limit),
    )


@router.post(
    "", status_code=201, summary="Create a row", responses={200: {"model": schemas.Created}, **_TAKEN, **LARGE}
)
async def create_session(database: Database, body: schemas.NewSession, response: Response) -> schemas.Created:
    """A session that has a row already does not change: 200, `created` false, and the id of that row."""
    try:
        found, created = await queries.create(database, body.model_dump(exclude_none=True))
    except IntegrityError as error:
        raise Refused("a row for this session has just been created; try again", code="session_exists") from error
    if not created:
        response.status_code = 200
    return schemas.Created(id=found, created=created)


@router.patch("", summary="Mark many sessions at once", responses=LARGE)
async def mark_sessions(database: Database, body: schemas.BulkMark) -> schemas.BulkMarked:
    """All or nothing, in one statement. Asking twice does no harm: `ended_at` is set once."""
    pairs = [(ref.agent_id, ref.aria_session_id) for ref in body.sessions]
    updated, missing = await queries.mark_many(database, body.status, pairs)
    return schemas.BulkMarked(updated=updated, missing=_refs(missing))


@router.post("/erase", summary="Erase many sessions' details", responses=LARGE)
async def erase_sessions(database: Database, body: schemas.BulkErase) -> schemas.BulkErased:
    """For privacy; needs the scope `delete`. The rows are ended; of their metadata only `aria_session_id` and
    `erased_at` stay, and the counters. No snapshot of the volume fills them again, unless the session has done
    something since."""
    pairs = [(ref.agent_id, ref.aria_session_id) for ref in body.sessions]
    erased, missing = await queries.erase_many(database, pairs)
    return schemas.BulkErased(erased=erased, missing=_refs(missing))


def _refs(sessions: list[tuple[str, str]]) -> list[schemas.SessionRef]:
    return [schemas.SessionRef(agent_id=agent_id, aria_session_id=sid) for agent_id, sid in sessions]


@router.get("/stats", summary="Totals")
async def session_stats(database: Database) -> schemas.Stats:
    """Counts by agent, status and type, and sums of messages, tokens and cost."""
    return schemas.Stats.model_validate(await queries.stats(database))


@router.get("/hourly", summary="Sessions per hour")
async def sessions_per_hour(
    database: Database,
    hours: Annotated[int, Query(ge=1, le=24 * 31, description="how many hours, this one included")] = 24,
    agent_id: AgentId = None,
) -> schemas.Hourly:
    """How many sessions started in each of the last hours."""
    counted = await dashboard.counts(database, hours, "hour", agent_id)
    return schemas.Hourly(hours=hours, items=[schemas.Hour(hour=hour, sessions=n) for hour, n in counted.by_time])


@router.post(
    "/sync",
    summary="Run the volume sync now",
    responses={409: {"model": schemas.Problem, "description": "this service has no agents directory"}},
)
async def sync_now(request: Request) -> schemas.Synced:
    """Waits for a sync that another replica runs; `GET /api/jobs` shows it as a run of `volume_sync`. `errors` names
    agents whose index could not be read."""
    state = request.app.state
    state.config.volume_settings()
    # Waiting for a sync of this process holds no connection.
    async with state.syncing:
        try:
            result = await state.jobs.run_after("volume_sync", partial(sync_volume, wait=True))
        except Failed as error:
            raise Unavailable(error.message, code=error.code) from error
    return schemas.Synced.model_validate(msgspec.structs.asdict(result))


@router.patch("/{id}", summary="Change one row", responses={**BY_ID, **_TAKEN, **LARGE})
async def change_session(database: Database, id: RowId, body: schemas.SessionChanges) -> schemas.Updated:
    """`ended` sets `ended_at` by itself, once; counters are set, not added; metadata is merged."""
    try:
        found = await queries.change(database, id, body.changes())
    except IntegrityError as error:
        raise Refused("another row of this agent has that aria_session_id", code="session_exists") from error
    if not found:
        raise _unknown(id)
    return schemas.Updated()


@router.delete("/{id}", summary="Delete one row", responses=BY_ID)
async def delete_session(database: Database, id: RowId) -> schemas.Deleted:
    """For administrators: a cleanup never deletes rows, it ends them."""
    if not await queries.remove(database, id):
        raise _unknown(id)
    return schemas.Deleted()


def _unknown(id: uuid.UUID) -> NotFound:
    return NotFound(f"history has no row {id}")
