"""Cleanups of conversations: expired empty ones are deleted, idle ones archived.

The database decides row by row, so a killed run has done a part of the work, and nothing else.
"""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from session_manager.service.config import Config
from session_manager.service.db import chat_cleanup
from session_manager.service.jobs.quiet import Result


class Purged(Result, frozen=True):
    """How many empty sessions were deleted."""

    deleted: int

    @property
    def wrote(self) -> bool:
        """Whether there were any."""
        return self.deleted > 0


class Archived(Result, frozen=True):
    """How many conversations were archived, with how many messages."""

    archived: int
    messages: int

    @property
    def wrote(self) -> bool:
        """Whether there were any."""
        return self.archived > 0


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
    archived, messages = await chat_cleanup.archive_idle(engine)
    return Archived(archived, messages)
