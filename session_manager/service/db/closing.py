"""The query of the job ``closing``: it ends rows of sessions that stopped without reporting their end."""

from __future__ import annotations

from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

TYPES: Final = ("cron", "subagent")

# Rows locked by others are skipped: they are not idle, or come next time. A request that set a session active knows
# more than its last activity shows.
_CLOSE = text("""
    WITH idle AS MATERIALIZED (
      SELECT id, seq, greatest(last_activity_at, started_at) AS active_at FROM agent_sessions
      WHERE status = 'active' AND session_type = ANY (CAST(:types AS text[])) AND seq > :after
        AND greatest(last_activity_at, started_at) < now() - make_interval(secs => :idle_s)
        AND NOT (status_at > now() - make_interval(secs => :idle_s) AND ended_by IS NOT DISTINCT FROM 'request')
      ORDER BY seq LIMIT :batch FOR NO KEY UPDATE SKIP LOCKED
    ), closed AS (
      UPDATE agent_sessions s SET
        status = 'ended', ended_at = idle.active_at, status_at = clock_timestamp(), ended_by = 'closing'
      FROM idle WHERE s.id = idle.id
      RETURNING s.seq
    )
    SELECT count(*) AS closed, max(seq) AS last FROM closed
""")


async def close(connection: AsyncConnection, idle_s: float, after: int, batch: int) -> tuple[int, int | None]:
    """Ends up to ``batch`` active rows of TYPES that were idle for ``idle_s`` seconds, as of their last activity.

    Rows that a request has made active, or changed, within that time are left alone.
    Continues after the row with the ``seq`` ``after``; returns the number of rows, and the last one's ``seq``.
    """
    found = await connection.execute(_CLOSE, {"types": list(TYPES), "after": after, "idle_s": idle_s, "batch": batch})
    row = found.one()
    return row.closed, row.last
