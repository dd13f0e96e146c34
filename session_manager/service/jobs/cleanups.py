"""Cleanups: empty conversations are deleted and idle ones archived, and sessions that stopped silently end in history.

The database decides row by row, so a killed run has done a part of the work, and nothing else.
"""

from __future__ import annotations

import logging

from sqlalchemy.ext.asyncio import AsyncEngine

from session_manager.service.config import Config
from session_manager.service.db import chat_cleanup
from session_manager.service.db.engine import limited
from session_manager.service.db.sync import close
from session_manager.service.jobs.quiet import Result

IDLE_S = 2 * 60 * 60.0
BATCH = 1000
_log = logging.getLogger(__name__)


class Purged(Result, frozen=True):
    """How many empty sessions were deleted."""

    deleted: int


class Archived(Result, frozen=True):
    """How many conversations were archived, with how many messages."""

    archived: int
    messages: int


class Closed(Result, frozen=True):
    """How many rows were ended."""

    closed: int = 0


async def purge_ghosts(engine: AsyncEngine, config: Config) -> Purged:
    """Deletes sessions that are empty for a quarter of an hour and have no time to live."""
    ghosts = chat_cleanup.ghosts(chat_cleanup.GHOST_MINUTES, whatever_ttl=False)
    purged = Purged(await chat_cleanup.purge(engine, ghosts))
    await chat_cleanup.forget_deleted(engine)
    return purged


async def purge_expired(engine: AsyncEngine, config: Config) -> Purged:
    """Deletes sessions that are still empty after their time to live."""
    return Purged(await chat_cleanup.purge(engine, chat_cleanup.expired()))


async def archive_idle(engine: AsyncEngine, config: Config) -> Archived:
    """Archives conversations without activity for thirty days."""
    return Archived(*await chat_cleanup.archive_idle(engine))


async def close_idle(engine: AsyncEngine, config: Config) -> Closed:
    """Ends the rows of cron and sub-agent sessions without activity for two hours, one transaction per batch.

    A gateway keeps their entries for days, so the volume sync alone would show them as active all that time. The sync
    revives a session that was only idle when its entry shows newer activity.
    """
    total = 0
    after: int | None = 0
    while after is not None:
        async with limited(engine) as connection:
            closed, after = await close(connection, IDLE_S, after, BATCH)
        total += closed
    if total:
        _log.info("closing: %d sessions without activity for %g h ended", total, IDLE_S / 3600)
    return Closed(total)
