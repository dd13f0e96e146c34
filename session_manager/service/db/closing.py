"""The query of the job ``closing``: rows of sessions that came to an end without anybody saying so."""

from __future__ import annotations

from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

TYPES: Final = ("cron", "subagent")

# Rows that somebody is changing are passed over: they are not idle, or come next time. Who said by a request that a
# session is active knows more than its last activity tells.
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
    """Ends, as of their last activity, up to ``batch`` active rows of TYPES that were idle for ``idle_s`` seconds.

    Rows that a request has made active, or changed, within that time are left alone.
    Goes on behind the row with the ``seq`` ``after``; returns how many there were, and the last one's ``seq``.
    """
    found = await connection.execute(_CLOSE, {"types": list(TYPES), "after": after, "idle_s": idle_s, "batch": batch})
    row = found.one()
    return row.closed, row.last
