"""/api/engine/sessions/stats, /archived and the cleanups: requests about many conversations.

A cleanup covers the conversations that the token may see: all for an admin, else its user's own and those of its
organisations.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from session_manager.service.api.answers import BUSY, INVALID, WHO
from session_manager.service.api.engine import Asking, Limit, Offset, page_of
from session_manager.service.api.engine_schemas import (
    LONGEST_MINUTES,
    ArchivedSession,
    ArchivedSessions,
    ChatSessions,
    ChatStats,
    CleanedUp,
    GhostAge,
    Idleness,
    Purged,
)
from session_manager.service.api.sessions import AgentId, Database
from session_manager.service.db import chat_archive, chat_cleanup, chat_sessions
from session_manager.service.db.chat_cleanup import GHOST_MINUTES

# Included before the routes with {id}, which would read these names as ids.
router = APIRouter(prefix="/api/engine/sessions", tags=["engine"], responses={**WHO, **BUSY, **INVALID})


@router.get("/stats", summary="Totals of conversations")
async def chat_stats(database: Database, asking: Asking) -> ChatStats:
    """Counts over what the token may see."""
    return ChatStats.model_validate(await chat_sessions.stats(database, asking))


@router.get("/archived", summary="List the archive, a page at a time")
async def list_archived(
    database: Database,
    asking: Asking,
    agent_id: AgentId = None,
    limit: Limit = 50,
    offset: Offset = 0,
) -> ArchivedSessions:
    """Archived conversations, last archived first."""
    rows, total = await chat_archive.archived(database, agent_id, asking, limit, offset)
    return ArchivedSessions(
        sessions=[ArchivedSession.model_validate(row) for row in rows],
        total=total,
        limit=limit,
        offset=offset,
        has_more=offset + len(rows) < total,
    )


@router.get("/ghosts", summary="List sessions without messages")
async def list_ghosts(
    database: Database,
    asking: Asking,
    older_than_minutes: Annotated[int, Query(ge=0, le=LONGEST_MINUTES, description="age in minutes")] = GHOST_MINUTES,
    limit: Limit = 50,
    offset: Offset = 0,
) -> ChatSessions:
    """What a purge with the same age would delete, oldest first."""
    which = chat_cleanup.ghosts(older_than_minutes, asking, whatever_ttl=True)
    total = await chat_sessions.count(database, which.conditions)
    rows = await chat_sessions.page(database, which.conditions, which.by.name, "asc", limit, offset)
    return page_of(rows, total, limit, offset)


@router.delete("/ghosts", summary="Delete sessions without messages now")
async def purge_ghosts(request: Request, asking: Asking, query: Annotated[GhostAge, Query()]) -> Purged:
    """Ignores their time to live. A session that receives a message in the meantime is kept."""
    which = chat_cleanup.ghosts(query.older_than_minutes, asking, whatever_ttl=True)
    return Purged(deleted=await chat_cleanup.purge(request.app.state.engine, which))


@router.delete("/expired", summary="Delete sessions that waited too long for their first message")
async def purge_expired(request: Request, asking: Asking) -> Purged:
    """Those that are still empty when their `ttl_minutes` have passed."""
    if not request.app.state.config.cleanup_enabled:
        return Purged(deleted=0, status="disabled")
    return Purged(deleted=await chat_cleanup.purge(request.app.state.engine, chat_cleanup.expired(asking)))


@router.post("/cleanup", summary="Archive idle conversations")
async def archive_idle(request: Request, asking: Asking, query: Annotated[Idleness, Query()]) -> CleanedUp:
    """Moves them to the archive with all their messages. Sessions without messages are left to the purge."""
    engine = request.app.state.engine
    act = chat_cleanup.measure_idle if query.dry_run else chat_cleanup.archive_idle
    found = await act(engine, query.days, asking)
    return CleanedUp(pruned_count=found[0], message_count=found[1], days=query.days, dry_run=query.dry_run)
