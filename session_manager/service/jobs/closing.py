"""Closing: cron runs and delegations that stopped without reporting it end in history, too.

A gateway keeps their entries for days, so the volume sync alone would show them as active all that time. The sync
revives a session that was only idle when its entry shows newer activity.
"""

from __future__ import annotations

import logging

from sqlalchemy.ext.asyncio import AsyncEngine

from session_manager.service.config import Config
from session_manager.service.db.closing import close
from session_manager.service.db.locks import LIMITS
from session_manager.service.jobs.quiet import Result

IDLE_S = 2 * 60 * 60.0
BATCH = 1000
_log = logging.getLogger(__name__)


class Closed(Result, frozen=True):
    """How many rows were ended."""

    closed: int = 0

    @property
    def wrote(self) -> bool:
        """Whether there were any."""
        return self.closed > 0


async def close_idle(engine: AsyncEngine, config: Config) -> Closed:
    """Ends the rows of cron and sub-agent sessions without activity for two hours, one transaction per batch."""
    total = after = 0
    while True:
        async with engine.begin() as connection:
            await connection.execute(LIMITS)
            closed, last = await close(connection, IDLE_S, after, BATCH)
        total += closed
        if last is None:
            break
        after = last
    if total:
        _log.info("closing: %d sessions without activity for %g h ended", total, IDLE_S / 3600)
    return Closed(total)
