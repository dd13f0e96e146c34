"""/api/engine/sessions: the service's own conversations, many at a time and one.

A cleanup covers the conversations that the token may see: all for an admin, else its user's own and those of its
organisations.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Query, Request, Response

from session_manager.service import metrics
from session_manager.service.api import engine_schemas as schemas
from session_manager.service.api.common import (
    BUSY,
    BY_ID,
    INVALID,
    LARGE,
    WHO,
    AgentId,
    Asking,
    ChatId,
    Database,
    Responses,
    SessionType,
)
from session_manager.service.api.engine_schemas import ChatSession, LastMoment, Message
from session_manager.service.api.schemas import Deleted, GivenMoment, Problem, SearchText
from session_manager.service.db import chat_archive, chat_cleanup, chat_messages, chat_sessions, tables
from session_manager.service.db.chat_cleanup import GHOST_MINUTES
from session_manager.service.db.chat_messages import NewMessage
from session_manager.service.db.chat_sessions import ChatFilter
from session_manager.service.db.engine import Row
from session_manager.service.db.ownership import Viewer
from session_manager.service.problems import Forbidden

PAGE_LIMIT = 200
MESSAGES_LIMIT = 200
RECENT = 20
LAST_OFFSET = 2**40

_STATE: Responses = {409: {"model": Problem, "description": "the session is archived"}}
_EMPTY: Responses = {409: {"model": Problem, "description": "the session has no message"}}

router = APIRouter(prefix="/api/engine/sessions", tags=["engine"], responses={**WHO, **BUSY, **INVALID})
Sort = Literal["updated_at", "created_at", "last_message_at", "message_count", "title"]
Limit = Annotated[int, Query(ge=1, le=PAGE_LIMIT, description="how many at most")]
Offset = Annotated[int, Query(ge=0, le=LAST_OFFSET, description="how many to skip")]
Page = TypeVar("Page", schemas.ChatSessions, schemas.ArchivedSessions)


def page_of(kind: type[Page], rows: list[Row], total: int, limit: int, offset: int) -> Page:
    """Returns one page of conversations."""
    more = offset + len(rows) < total
    return kind.model_validate({"sessions": rows, "total": total, "limit": limit, "offset": offset, "has_more": more})


# The routes with {id} come last: they would read these names as ids.


@router.get("/stats", summary="Totals of conversations")
async def chat_stats(database: Database, asking: Asking) -> schemas.ChatStats:
    """Counts over what the token may see."""
    return schemas.ChatStats.model_validate(await chat_sessions.stats(database, asking))


@router.get("/archived", summary="List the archive, a page at a time")
async def list_archived(
    database: Database,
    asking: Asking,
    agent_id: AgentId = None,
    limit: Limit = 50,
    offset: Offset = 0,
) -> schemas.ArchivedSessions:
    """Archived conversations, last archived first."""
    rows, total = await chat_archive.archived(database, agent_id, asking, limit, offset)
    return page_of(schemas.ArchivedSessions, rows, total, limit, offset)


@router.get("/ghosts", summary="List sessions without messages")
async def list_ghosts(
    database: Database,
    asking: Asking,
    older_than_minutes: Annotated[
        int, Query(ge=0, le=schemas.LONGEST_MINUTES, description="age in minutes")
    ] = GHOST_MINUTES,
    limit: Limit = 50,
    offset: Offset = 0,
) -> schemas.ChatSessions:
    """What a purge with the same age would delete, oldest first."""
    which = chat_cleanup.ghosts(older_than_minutes, asking, whatever_ttl=True)
    total = await chat_sessions.count(database, which.conditions)
    rows = await chat_sessions.page(database, which.conditions, which.by.name, "asc", limit, offset)
    return page_of(schemas.ChatSessions, rows, total, limit, offset)


@router.delete("/ghosts", summary="Delete sessions without messages now")
async def purge_ghosts(request: Request, asking: Asking, query: Annotated[schemas.GhostAge, Query()]) -> schemas.Purged:
    """Ignores their time to live. A session that receives a message in the meantime is kept."""
    which = chat_cleanup.ghosts(query.older_than_minutes, asking, whatever_ttl=True)
    return schemas.Purged(deleted=await chat_cleanup.purge(request.app.state.engine, which))


@router.delete("/expired", summary="Delete sessions that waited too long for their first message")
async def purge_expired(request: Request, asking: Asking) -> schemas.Purged:
    """Those that are still empty when their `ttl_minutes` have passed."""
    if not request.app.state.config.cleanup_enabled:
        return schemas.Purged(deleted=0, status="disabled")
    return schemas.Purged(deleted=await chat_cleanup.purge(request.app.state.engine, chat_cleanup.expired(asking)))


@router.post("/cleanup", summary="Archive idle conversations")
async def archive_idle(
    request: Request, asking: Asking, query: Annotated[schemas.Idleness, Query()]
) -> schemas.CleanedUp:
    """Moves them to the archive with all their messages. Sessions without messages are left to the purge."""
    engine = request.app.state.engine
    act = chat_cleanup.measure_idle if query.dry_run else chat_cleanup.archive_idle
    found = await act(engine, query.days, asking)
    return schemas.CleanedUp(pruned_count=found[0], message_count=found[1], days=query.days, dry_run=query.dry_run)


@router.get("", summary="List conversations, a page at a time")
async def list_chats(
    database: Database,
    asking: Asking,
    agent_id: AgentId = None,
    session_type: SessionType = None,
    search: Annotated[SearchText, Query(description="part of a title, in any case, or a full id")] = None,
    date_from: Annotated[GivenMoment | None, Query(description="created then or later")] = None,
    date_to: Annotated[LastMoment | None, Query(description="created then or earlier; a date is the whole day")] = None,
    sort: Annotated[Sort, Query(description="the field to sort by; sessions without a value come last")] = (
        "updated_at"
    ),
    order: Annotated[Literal["asc", "desc"], Query(description="`desc`: newest or largest first")] = "desc",
    limit: Limit = 50,
    offset: Offset = 0,
) -> schemas.ChatSessions:
    """Conversations that the token may see, last changed first."""
    wanted = ChatFilter(agent_id, session_type, date_from, date_to)
    conditions = [*wanted.conditions(), *asking.sees(tables.chat_sessions)]
    if search:
        conditions.append(await chat_sessions.search(database, search, asking))
    total = await chat_sessions.count(database, conditions)
    rows = await chat_sessions.page(database, conditions, sort, order, limit, offset) if offset < total else []
    return page_of(schemas.ChatSessions, rows, total, limit, offset)


@router.post("", status_code=201, summary="Create a session before its first message", responses=LARGE)
async def create_chat(
    request: Request, database: Database, asking: Asking, body: schemas.NewChatSession
) -> ChatSession:
    """For clients that need an id in advance. The session is deleted if it has no message after `ttl_minutes`."""
    user_id = owner(asking, body.user_id, body.org_id)
    values = body.model_dump(include={"agent_id", "session_type", "title", "model", "org_id", "metadata"})
    ttl_minutes = body.ttl_minutes or request.app.state.config.cleanup_ttl_minutes
    row = await chat_sessions.create(
        database, {**values, "user_id": user_id}, ttl_minutes, body.kind or body.session_type
    )
    request.state.then.append(metrics.session_created)
    return ChatSession.model_validate(row)


def owner(asking: Viewer, user_id: str | None, org_id: str | None) -> str | None:
    """Returns a new session's owner. Raises Forbidden for another user, and for an organisation of others."""
    if user_id not in (None, asking.user_id) and not asking.sees_all:
        raise Forbidden("this token may create sessions for its own user only; leave user_id out", code="foreign_user")
    if not asking.may_create_for(org_id):
        raise Forbidden("that organisation is not one of this token's", code="foreign_organisation")
    return user_id or asking.user_id


@router.get("/{id}", summary="One conversation", responses=BY_ID)
async def show_chat(database: Database, asking: Asking, id: ChatId) -> schemas.ChatDetail:
    """With its last messages. An archived one is found, too; its status says so."""
    row = await chat_sessions.find(database, id, asking)
    return schemas.ChatDetail.model_validate(
        {**row, "recent_messages": await chat_messages.last_ones(database, row, RECENT)}
    )


@router.get("/{id}/messages", summary="Messages, oldest first", responses=BY_ID)
async def list_messages(
    database: Database,
    asking: Asking,
    id: ChatId,
    limit: Annotated[int, Query(ge=1, le=MESSAGES_LIMIT, description="how many at most")] = 100,
    offset: Offset = 0,
    since: Annotated[
        GivenMoment | None, Query(description="only messages after this time, such as the last `created_at` seen")
    ] = None,
) -> list[Message]:
    """Messages of a conversation, archived or not, in their order."""
    row = await chat_sessions.find(database, id, asking)
    return [Message.model_validate(each) for each in await chat_messages.listed(database, row, limit, offset, since)]


@router.post(
    "/{id}/messages",
    status_code=201,
    summary="Add a message",
    responses={
        200: {"model": Message, "description": "stored before, under this idempotency key"},
        409: {"model": Problem, "description": "the session has ended, or the key was used for another message"},
        **BY_ID,
        **LARGE,
    },
)
async def add_message(
    request: Request, database: Database, asking: Asking, id: ChatId, body: schemas.NewChatMessage, response: Response
) -> Message:
    """The first message makes the session permanent. A message to an archived session restores it."""
    added = await chat_messages.add(database, id, asking, NewMessage(**body.model_dump()))
    if added.created:
        request.state.then.append(lambda: metrics.messages_added(added.session, 1))
    else:
        response.status_code = 200
    return Message.model_validate(added.message)


@router.patch("/{id}", summary="Change title or model", responses={**BY_ID, **_STATE, **LARGE})
async def change_chat(database: Database, asking: Asking, id: ChatId, body: schemas.ChatChanges) -> ChatSession:
    """Fields that are left out do not change."""
    row = await chat_sessions.change(database, id, asking, body.model_dump(exclude_none=True))
    return ChatSession.model_validate(row)


@router.patch("/{id}/title", summary="Change the title", responses={**BY_ID, **_STATE, **LARGE})
async def rename_chat(database: Database, asking: Asking, id: ChatId, body: schemas.NewTitle) -> ChatSession:
    """The same as changing the session with a title alone."""
    return ChatSession.model_validate(await chat_sessions.change(database, id, asking, {"title": body.title}))


@router.post("/{id}/end", summary="End a conversation", responses={**BY_ID, **_STATE})
async def end_chat(database: Database, asking: Asking, id: ChatId) -> ChatSession:
    """The session accepts no more messages. Repeating the request is safe: `ended_at` is set once."""
    return ChatSession.model_validate(await chat_sessions.end(database, id, asking))


@router.post("/{id}/archive", summary="Archive a conversation", responses={**BY_ID, **_EMPTY})
async def archive_chat(database: Database, asking: Asking, id: ChatId) -> ChatSession:
    """Session and messages move together. Asking twice does no harm."""
    return ChatSession.model_validate(await chat_archive.archive_one(database, id, asking))


@router.delete("/{id}", summary="Delete a conversation", responses=BY_ID)
async def delete_chat(database: Database, asking: Asking, id: ChatId) -> Deleted:
    """Permanently deletes it with its messages, archived or not."""
    await chat_sessions.remove(database, id, asking)
    return Deleted()
