"""Runs jobs: each in one replica at a time, when it is due by the database's clock, and again after failures.

A replica that runs a job holds its lock in a separate transaction, and records the run in that same transaction, unless
it changed nothing (see ``quiet``). A replica that dies during a run leaves no trace of it, and the others take over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from session_manager.core.errors import Failed, NotFound, Refused
from session_manager.service import metrics
from session_manager.service.config import Config
from session_manager.service.db import jobs as queries
from session_manager.service.db.engine import server_message
from session_manager.service.jobs.quiet import QuietRuns
from session_manager.service.jobs.registry import Job, Step
from session_manager.service.volume_reader import storable_text

# A run uses two connections, its own and its step's: all runs together must not exhaust a small pooler.
AT_ONCE = 2
GRACE_S = 30.0
LONGEST_PAUSE_S = 300.0
_ERROR_LIMIT = 500
_log = logging.getLogger(__name__)


class Turn(msgspec.Struct, frozen=True):
    """The outcome of one check of a job: ``busy`` when another replica runs it, ``failed`` why its run failed.

    ``wait_s`` is the time to the next check, in seconds. ``result`` is the step's result, ``error`` its exception.
    """

    wait_s: float
    ran: bool = False
    busy: bool = False
    failed: str | None = None
    result: Any = None
    error: Exception | None = None


class Runner:
    """The jobs of one service, from its start to its end."""

    def __init__(self, engine: AsyncEngine, config: Config, jobs: Sequence[Job]) -> None:
        self.jobs = jobs
        self._engine = engine
        self._config = config
        self._stop = asyncio.Event()
        self._turns = asyncio.Semaphore(AT_ONCE)
        # A hanging volume blocks each of its readers: they must not take all turns.
        self._turn_on_volume = asyncio.Semaphore(1)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._quiet = QuietRuns()

    def start(self) -> None:
        """Starts a loop for each job that is enabled."""
        for job in self.jobs:
            if job.enabled:
                self._tasks.add(asyncio.create_task(self._repeat(job)))

    async def stop(self) -> None:
        """Ends the loops; the current step is finished, unless it hangs: then its transaction is rolled back."""
        self._stop.set()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=GRACE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def runs(self, connection: AsyncConnection, jobs: Sequence[Job]) -> list[queries.Run]:
        """Returns the last run of each of these jobs that this replica knows of."""
        noted = await queries.runs(connection, [job.key for job in jobs])
        return [self._quiet.latest(job.key, run) for job, run in zip(jobs, noted, strict=True)]

    async def run_now(self, name: str) -> Job:
        """Runs a job, due or not, and returns it when it is done.

        Raises NotFound (``job_not_found``), Refused (``job_not_possible``, ``job_running``), Failed (``job_failed``),
        and the database's errors.
        """
        job = next((job for job in self.jobs if job.name == name), None)
        if job is None:
            raise NotFound(f"there is no job {name[:64]!r}; GET /api/jobs lists them", code="job_not_found")
        if not job.possible:
            raise Refused(
                f"the settings of this service disable {name}; session-manager serve --help lists them",
                code="job_not_possible",
            )
        turn = await self._asked_for(job, wait=False)
        if turn.busy:
            raise Refused(f"{name} is running now; GET /api/jobs shows its result", code="job_running")
        if turn.failed is not None:
            raise Failed(f"{name} failed: {turn.failed}", code="job_failed")
        return job

    async def run_after(self, name: str, step: Step) -> Any:
        """Runs ``step`` as a run of a job, after the one in progress in any replica; returns its result.

        Raises the step's and the database's errors.
        """
        job = next(job for job in self.jobs if job.name == name)
        turn = await self._asked_for(msgspec.structs.replace(job, step=step), wait=True)
        if turn.error is not None:
            raise turn.error
        return turn.result

    async def _asked_for(self, job: Job, *, wait: bool) -> Turn:
        # The client may disconnect; the run continues, and the end of the service waits for it.
        task = asyncio.create_task(self._turn(job, asked=True, wait=wait))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _turn(self, job: Job, *, asked: bool = False, wait: bool = False) -> Turn:
        async with self._turn_on_volume if job.volume else contextlib.nullcontext(), self._turns:
            if self._stop.is_set() and not asked:
                return Turn(0)
            return await take_turn(self._engine, self._config, job, self._quiet, asked=asked, wait=wait)

    async def _repeat(self, job: Job) -> None:
        lost = 0
        while not self._stop.is_set():
            try:
                wait_s = (await self._turn(job)).wait_s
                lost = 0
            except Exception as error:
                lost += 1
                wait_s = pause_s(job.interval_s, lost)
                _log.warning("%s could not be run or recorded (%d in a row): %s", job.name, lost, describe(error))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), wait_s)


async def take_turn(
    engine: AsyncEngine,
    config: Config,
    job: Job,
    quiet: QuietRuns | None = None,
    *,
    asked: bool = False,
    wait: bool = False,
) -> Turn:
    """Runs a job once if it is due or ``asked`` for, and no other replica runs it; with ``wait``, after that one.

    ``quiet`` is this process's memory of runs that are recorded nowhere else. A failed step is recorded and logged.
    Raises the database's errors of reading or recording.
    """
    quiet = quiet or QuietRuns()
    async with engine.begin() as connection:
        # Also checked before the lock is taken: a held lock shows the job as running.
        wait_s = due_in_s(job, await _last_run(connection, job, quiet))
        if wait_s > 0 and not asked:
            return Turn(wait_s)
        if not await queries.lock(connection, job.key, wait=wait):
            return Turn(min(job.interval_s, LONGEST_PAUSE_S), busy=True)
        before = await _last_run(connection, job, quiet)
        wait_s = due_in_s(job, before)
        if wait_s > 0 and not asked:
            return Turn(wait_s)
        return await _run(engine, config, job, connection, before, quiet)


async def _run(
    engine: AsyncEngine,
    config: Config,
    job: Job,
    holder: AsyncConnection,
    before: queries.Run,
    quiet: QuietRuns,
) -> Turn:
    began = time.monotonic()
    result: Any = None
    noted: Any = None
    raised: Exception | None = None
    failures, failed = 0, None
    try:
        result = await job.step(engine, config)
        noted = _storable(msgspec.to_builtins(result))
    except Exception as error:
        raised = error
        failures, failed = before.failures + 1, _storable(describe(error))[:_ERROR_LIMIT]
        _log.warning("%s failed (%d in a row): %s", job.name, failures, failed)
    took_s = time.monotonic() - began
    metrics.job_ran(job.name, took_s, failed=failed is not None)
    pause = pause_s(job.interval_s, failures)
    planned = pause if job.enabled else None
    if not quiet.keep(job.key, before, result, noted, took_s, planned):
        await queries.note(holder, job.key, before.now, noted, failed, failures, planned)
    return Turn(min(pause, LONGEST_PAUSE_S), ran=True, failed=failed, result=result, error=raised)


async def _last_run(connection: AsyncConnection, job: Job, quiet: QuietRuns) -> queries.Run:
    (found,) = await queries.runs(connection, [job.key])
    return quiet.latest(job.key, found)


def pause_s(interval_s: float, failures: int) -> float:
    """Returns the seconds between two runs: doubled for each consecutive failure, up to five minutes."""
    return min(interval_s * 2.0 ** min(failures, 10), max(LONGEST_PAUSE_S, interval_s))


def due_in_s(job: Job, run: queries.Run) -> float:
    """Returns the seconds until the next check of a job, 0 when it is due.

    A next run further ahead than this service's interval was recorded under another setting.
    """
    if run.next_run_at is None:
        return 0.0
    left = (run.next_run_at - run.now).total_seconds()
    return min(left, LONGEST_PAUSE_S) if 0 < left <= pause_s(job.interval_s, run.failures) else 0.0


def describe(error: BaseException) -> str:
    """Returns an error as one line without statement or values."""
    said = server_message(error) if isinstance(error, SQLAlchemyError) else str(error)
    return f"{type(error).__name__}: {said}"


def _storable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_storable(key): _storable(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_storable(member) for member in value]
    return storable_text(value) if isinstance(value, str) else value
