"""The list of jobs. To add one, add a line in ``jobs`` and its interval in ``config.INTERVALS``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from session_manager.service.config import Config
from session_manager.service.jobs.cleanups import archive_idle, close_idle, purge_expired, purge_ghosts
from session_manager.service.jobs.delivery import deliver_marks
from session_manager.service.jobs.sync import VolumeSync

Step = Callable[[AsyncEngine, Config], Awaitable[msgspec.Struct]]


class Job(msgspec.Struct, frozen=True):
    """Repeated work, in one replica at a time.

    ``step`` does it once, in transactions of its own, and returns its result. ``interval_s`` 0 means only on request.
    ``volume`` is the job's volume, empty for a job of the database; ``possible`` False means that this service lacks
    something that the step needs, or has it disabled.
    """

    name: str
    step: Step
    interval_s: float
    volume: str = ""
    possible: bool = True

    @property
    def enabled(self) -> bool:
        """Whether this service runs it on a schedule."""
        return self.possible and self.interval_s > 0

    @property
    def key(self) -> tuple[str, str]:
        """The key of its lock and its row."""
        return self.name, self.volume


def jobs(config: Config) -> tuple[Job, ...]:
    """Returns the jobs of a service."""
    every, volume, has_volume = config.intervals, config.volume, config.agents_dir is not None
    return (
        Job("volume_sync", VolumeSync(), every["volume_sync"], volume, has_volume),
        Job("delivery", deliver_marks, every["delivery"], volume, has_volume),
        Job("closing", close_idle, every["closing"]),
        Job("ghost_purge", purge_ghosts, every["ghost_purge"]),
        Job("expiry", purge_expired, every["expiry"], possible=config.cleanup_enabled),
        Job("idle_archive", archive_idle, every["idle_archive"]),
    )
