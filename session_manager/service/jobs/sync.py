"""The volume sync: one step that updates history from the agents directory."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import msgspec
from sqlalchemy.ext.asyncio import AsyncEngine

from session_manager.service import metrics
from session_manager.service.config import Config
from session_manager.service.db import sync as queries
from session_manager.service.db.engine import limited
from session_manager.service.jobs.quiet import Result
from session_manager.service.volume_reader import VolumeRead, read_volume
from session_manager.stores.registry import open_volume

_log = logging.getLogger(__name__)


class SyncResult(Result, frozen=True):
    """What one sync did.

    ``ran`` is false when another replica was at it. ``changed`` and ``unchanged`` count indexes; ``created``,
    ``updated`` (``revived`` ones included), ``revived`` and ``ended`` count rows; ``skipped`` counts sessions whose
    id no database can hold; ``errors`` are agents that could not be read, about whose sessions nothing was said.
    """

    ran: bool
    changed: int = 0
    unchanged: int = 0
    created: int = 0
    updated: int = 0
    revived: int = 0
    ended: int = 0
    skipped: int = 0
    seconds: float = 0.0
    errors: list[dict[str, Any]] = msgspec.field(default_factory=list)

    @property
    def wrote(self) -> bool:
        """Whether anything was written, even if only an index's new version."""
        return bool(self.changed or self.rows)

    @property
    def rows(self) -> int:
        """The number of rows written."""
        return self.created + self.updated + self.ended


async def sync_volume(engine: AsyncEngine, config: Config, *, wait: bool) -> SyncResult:
    """Syncs once, in one transaction, in one replica at a time.

    With ``wait`` it waits for another replica's sync, and then runs, too. Raises Refused (``no_volume``) when the
    service has no agents directory, Failed when that directory cannot be read, and the database's errors; history is
    then unchanged.
    """
    volume = open_volume(config.volume_settings())
    began = time.monotonic()
    async with limited(engine) as connection:
        if not await queries.lock(connection, wait=wait):
            return SyncResult(ran=False)
        read_at = await queries.database_time(connection)
        known = await queries.identities(connection, config.volume)
        read: VolumeRead = await asyncio.to_thread(read_volume, volume, known)
        applied = dict.fromkeys(("created", "updated", "revived", "ended"), 0)
        if read.versions:
            applied = await queries.apply(connection, config.volume, read_at, read.versions, read.rows)
    result = SyncResult(
        ran=True,
        changed=len(read.versions),
        unchanged=read.unchanged,
        skipped=read.skipped,
        seconds=round(time.monotonic() - began, 3),
        errors=read.errors,
        **applied,
    )
    metrics.synced(result.seconds, applied, len(result.errors))
    return result


class VolumeSync:
    """The job's step: logs the changes, and each agent's problem once."""

    def __init__(self) -> None:
        self._known: set[tuple[str | None, str]] = set()

    async def __call__(self, engine: AsyncEngine, config: Config) -> SyncResult:
        """Syncs, unless another replica does."""
        result = await sync_volume(engine, config, wait=False)
        if result.ran:
            found = {(error["agentId"], error["code"]) for error in result.errors}
            for agent_id, code in sorted(found - self._known, key=str):
                _log.warning("volume sync: agent %s: %s", agent_id, code)
            self._known = found
        if result.rows:
            _log.info(
                "volume sync: %d created, %d updated, %d revived, %d ended in %.3f s",
                result.created,
                result.updated,
                result.revived,
                result.ended,
                result.seconds,
            )
        return result
