"""Queries of two jobs: the volume sync, which updates history in one statement, and the closing of idle rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from session_manager.service.db.engine import SYNC
from session_manager.service.db.sessions import lock_writers
from session_manager.service.db.tables import volume_indexes as known
from session_manager.service.db.values import dump_json

TYPES: Final = ("cron", "subagent")


async def lock(connection: AsyncConnection, *, wait: bool) -> bool:
    """Locks the sync for this transaction; False when another replica is syncing and ``wait`` is not set."""
    if wait:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SYNC})
        return True
    return bool(await connection.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": SYNC}))


async def database_time(connection: AsyncConnection) -> datetime:
    """Returns the database's time, which orders every replica's snapshots and every mark."""
    moment = await connection.scalar(text("SELECT clock_timestamp()"))
    assert isinstance(moment, datetime)
    return moment


async def identities(connection: AsyncConnection, volume: str) -> dict[str, str]:
    """Returns, by agent, the version of each index that history has synced."""
    found = await connection.execute(select(known.c.agent_id, known.c.identity).where(known.c.volume == volume))
    return {row.agent_id: row.identity for row in found.all()}


# A request may change a row while this statement runs: PostgreSQL then rechecks the newest version, so the conditions
# on the row itself are in the UPDATE, not in the CTEs before it.
# When is an ended row active again? A snapshot says nothing about changes after it (status_at). A session ended by the
# sync was only absent from its index. One ended by a request needs activity since then. Until then, nothing is filled
# in on an erased row.
_APPLY = text("""
    WITH incoming AS MATERIALIZED (
      SELECT * FROM json_to_recordset(CAST(:rows AS json)) AS r (
        agent_id text, sid text, session_type text, started_at timestamptz, last_activity_at timestamptz,
        tokens_used bigint, cost_usd numeric, metadata jsonb
      )
    ), matched AS MATERIALIZED (
      SELECT s.id, r.* FROM incoming r
      LEFT JOIN agent_sessions s ON s.agent_id = r.agent_id AND s.metadata->>'aria_session_id' = r.sid
    ), updated AS (
      UPDATE agent_sessions s SET
        session_type = m.session_type,
        metadata = (s.metadata - 'erased_at') || m.metadata,
        tokens_used = coalesce(m.tokens_used, s.tokens_used),
        cost_usd = coalesce(m.cost_usd, s.cost_usd),
        last_activity_at = greatest(s.last_activity_at, m.last_activity_at),
        volume = :volume,
        (status, status_at, ended_at, ended_by) = (
          SELECT CASE WHEN revives THEN 'active' ELSE s.status END,
                 CASE WHEN revives THEN clock_timestamp() ELSE s.status_at END,
                 CASE WHEN NOT revives THEN s.ended_at END,
                 CASE WHEN NOT revives THEN s.ended_by END
          FROM (SELECT s.status <> 'active' AND s.status_at < :read_at AND (
                  s.ended_by IS NOT DISTINCT FROM 'sync'
                  OR coalesce(m.last_activity_at > greatest(s.ended_at, s.last_activity_at), false)
                ) AS revives) AS decision
        )
      FROM matched m WHERE s.id = m.id AND (
        s.session_type <> m.session_type OR NOT s.metadata @> m.metadata
        OR s.tokens_used <> m.tokens_used OR s.cost_usd <> m.cost_usd
        OR m.last_activity_at > coalesce(s.last_activity_at, '-infinity')
        OR s.volume IS DISTINCT FROM :volume
        OR (s.ended_by = 'sync' AND s.status <> 'active' AND s.status_at < :read_at)
      ) AND (
        s.metadata->>'erased_at' IS NULL
        OR coalesce(s.status_at < :read_at AND m.last_activity_at > coalesce(s.last_activity_at, '-infinity'), false)
      )
      RETURNING s.status = 'active' AND s.status_at > :read_at AS revived
    ), created AS (
      INSERT INTO agent_sessions (
        agent_id, session_type, started_at, last_activity_at, tokens_used, cost_usd, metadata, volume, status_at
      )
      SELECT agent_id, session_type, coalesce(started_at, last_activity_at, :read_at), last_activity_at,
             coalesce(tokens_used, 0), coalesce(cost_usd, 0), metadata, :volume, :read_at
      FROM matched WHERE id IS NULL
      RETURNING 1
    ), ended AS (
      UPDATE agent_sessions s SET
        status = 'ended', ended_at = clock_timestamp(), status_at = clock_timestamp(), ended_by = 'sync'
      WHERE s.volume = :volume AND s.agent_id = ANY (CAST(:agent_ids AS text[])) AND s.status = 'active'
        AND s.status_at < :read_at AND NOT EXISTS (SELECT FROM matched m WHERE m.id = s.id)
      RETURNING 1
    ), noted AS (
      INSERT INTO volume_indexes (volume, agent_id, identity, read_at)
      SELECT :volume, i.agent_id, i.identity, :read_at
      FROM unnest(CAST(:agent_ids AS text[]), CAST(:identities AS text[])) AS i (agent_id, identity)
      ON CONFLICT (volume, agent_id) DO UPDATE SET identity = excluded.identity, read_at = excluded.read_at
    )
    SELECT (SELECT count(*) FROM created) AS created, (SELECT count(*) FROM updated) AS updated,
           (SELECT count(*) FROM updated WHERE revived) AS revived, (SELECT count(*) FROM ended) AS ended
""")


async def apply(
    connection: AsyncConnection,
    volume: str,
    read_at: datetime,
    versions: Mapping[str, str],
    sessions: Sequence[Mapping[str, Any]],
) -> dict[str, int]:
    """Updates history from some agents' indexes, in one statement.

    Returns how many rows were created, updated (``revived`` ones included), revived and ended.

    ``versions`` maps each of these agents to the version that was read; ``sessions`` are all their sessions, with the
    names of the statement's ``incoming`` columns; ``read_at`` is the database's time before the reading began.
    """
    await lock_writers(connection)
    values = {
        "rows": dump_json(sessions),
        "volume": volume,
        "read_at": read_at,
        "agent_ids": list(versions),
        "identities": list(versions.values()),
    }
    return dict((await connection.execute(_APPLY, values)).mappings().one())


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
