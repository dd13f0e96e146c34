"""Queries over ``job_runs``: one row per job, written by the holder of the job's lock.

A job for a volume has a row and a lock per volume; all others have an empty ``volume``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from session_manager.service.db.engine import JOBS, LIMITS
from session_manager.service.db.values import dump_json

Key = tuple[str, str]


class Run(msgspec.Struct, frozen=True):
    """A job's last completed run, as of the database's time ``now``.

    All None and ``failures`` 0 when it has never run. ``failures`` counts consecutive ones; ``running``: a replica runs
    it now; ``result`` is JSON.
    """

    now: datetime
    running: bool = False
    started_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: Literal["ok", "failed"] | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    failures: int = 0
    next_run_at: datetime | None = None


# One more still fits an integer.
_MOST_FAILURES = 1_000_000
# A replica that hangs in a job must not block the others for ever.
_HOLD = text("SELECT set_config('idle_in_transaction_session_timeout', '1h', true)")
_LOCK = text("SELECT pg_try_advisory_xact_lock(CAST(:space AS int), hashtext(:key))")
_WAIT = text("SELECT pg_advisory_xact_lock(CAST(:space AS int), hashtext(:key))")
_RUNS = text("""
    SELECT clock_timestamp() AS now, r.started_at, r.ended_at, r.outcome, r.result, r.error,
           least(greatest(coalesce(r.failures, 0), 0), :most_failures) AS failures, r.next_run_at,
           EXISTS (
             SELECT FROM pg_locks l
             WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.classid = CAST(:space AS int)::oid
               AND l.objid = hashtext(concat(k.name, ':', k.volume))::oid AND l.granted
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           ) AS running
    FROM unnest(CAST(:names AS text[]), CAST(:volumes AS text[])) WITH ORDINALITY AS k (name, volume, place)
    LEFT JOIN job_runs r USING (name, volume)
    ORDER BY place
""")
_NOTE = text("""
    INSERT INTO job_runs AS r (name, volume, started_at, ended_at, outcome, result, error, failures, next_run_at)
    VALUES (:name, :volume, :started_at, clock_timestamp(), :outcome, CAST(:result AS jsonb), :error, :failures,
            clock_timestamp() + make_interval(secs => CAST(:pause_s AS float8)))
    ON CONFLICT (name, volume) DO UPDATE SET
      started_at = excluded.started_at, ended_at = excluded.ended_at, outcome = excluded.outcome,
      result = excluded.result, error = excluded.error, failures = excluded.failures,
      next_run_at = coalesce(excluded.next_run_at, r.next_run_at)
""")


async def lock(connection: AsyncConnection, key: Key, *, wait: bool = False) -> bool:
    """Locks the job for this transaction; False when another one runs it, in any replica.

    With ``wait`` it waits for that one, as long as a request waits for any lock.
    """
    values = {"space": JOBS, "key": ":".join(key)}
    if wait:
        await connection.execute(LIMITS)
        await connection.execute(_WAIT, values)
    await connection.execute(_HOLD)
    return wait or bool(await connection.scalar(_LOCK, values))


async def runs(connection: AsyncConnection, keys: Sequence[Key]) -> list[Run]:
    """Returns the last run of each of these jobs, in their order."""
    names, volumes = [name for name, _ in keys], [volume for _, volume in keys]
    values = {"space": JOBS, "names": names, "volumes": volumes, "most_failures": _MOST_FAILURES}
    return [_run(row) for row in (await connection.execute(_RUNS, values)).mappings()]


def _run(row: RowMapping) -> Run:
    found = dict(row)
    if found["outcome"] not in ("ok", "failed"):
        found["outcome"] = None
    if not isinstance(found["result"], dict):
        found["result"] = None
    return Run(**found)


async def note(
    connection: AsyncConnection,
    key: Key,
    started_at: datetime,
    result: Any,
    error: str | None,
    failures: int,
    pause_s: float | None,
) -> None:
    """Records a run that ends now, in one statement; a failed one has an ``error``.

    The next run is ``pause_s`` seconds ahead; None leaves it unchanged.
    """
    values = {
        "name": key[0],
        "volume": key[1],
        "started_at": started_at,
        "outcome": "ok" if error is None else "failed",
        "result": None if result is None else dump_json(result),
        "error": error,
        "failures": failures,
        "pause_s": pause_s,
    }
    await connection.execute(_NOTE, values)
