"""/api/jobs: the background jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import AsyncConnection

from session_manager.core.errors import Failed
from session_manager.service.api.common import BUSY, INVALID, WHO, Database
from session_manager.service.api.schemas import Moment, Problem
from session_manager.service.db import jobs as queries
from session_manager.service.jobs.loop import Runner
from session_manager.service.jobs.registry import Job
from session_manager.service.problems import Unavailable

router = APIRouter(prefix="/api/jobs", tags=["jobs"], responses={**WHO, **BUSY})


class JobItem(BaseModel):
    """A job, and its last run: in whichever replica, unless it changed nothing, then in this one."""

    name: str
    volume: str | None = Field(description="the volume it works on; null: the database")
    enabled: bool = Field(description="whether this service runs it on a schedule")
    interval_seconds: float = Field(description="0: only on request")
    running: bool = Field(description="whether a replica is running it now")
    started_at: Moment | None
    ended_at: Moment | None
    outcome: Literal["ok", "failed"] | None = Field(description="null: it has never run")
    result: dict[str, Any] | None = Field(description="what the last run did, if it succeeded")
    error: str | None = Field(description="why it failed")
    failures: int = Field(description="failures in a row")
    next_run_at: Moment | None


class JobList(BaseModel):
    """All jobs."""

    items: list[JobItem]


@router.get("", summary="List the jobs with their last runs")
async def list_jobs(request: Request, database: Database) -> JobList:
    """Runs of all replicas; runs that changed nothing are shown only by the replica that made them. `enabled` and the
    intervals are those of this replica."""
    runner: Runner = request.app.state.jobs
    return JobList(items=await _items(database, runner, list(runner.jobs)))


@router.post(
    "/{name}/run",
    summary="Run a job now",
    responses={
        404: {"model": Problem, "description": "there is no such job"},
        409: {"model": Problem, "description": "it is already running, or this service's settings disable it"},
        **INVALID,
    },
)
async def run_job(request: Request, name: Annotated[str, Path(description="as `GET /api/jobs` lists it")]) -> JobItem:
    """Answers when the run has ended; the run continues if the client disconnects. Needs the scope `admin`."""
    runner: Runner = request.app.state.jobs
    try:
        job = await runner.run_now(name)
    except Failed as error:
        raise Unavailable(error.message, code=error.code) from error
    async with request.app.state.engine.connect() as connection:
        (item,) = await _items(connection, runner, [job])
    return item


async def _items(connection: AsyncConnection, runner: Runner, jobs: list[Job]) -> list[JobItem]:
    return [_item(job, run) for job, run in zip(jobs, await runner.runs(connection, jobs), strict=True)]


def _item(job: Job, run: queries.Run) -> JobItem:
    # A job that no service runs any more has no next run.
    planned = run.next_run_at if run.next_run_at and (job.enabled or run.next_run_at > run.now) else None
    known = msgspec.structs.asdict(run) | {"next_run_at": planned}
    return JobItem(
        name=job.name, volume=job.volume or None, enabled=job.enabled, interval_seconds=job.interval_s, **known
    )
