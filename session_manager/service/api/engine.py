"""/api/engine/sessions/{id}: the service's own conversations, one at a time."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from session_manager.service import metrics
from session_manager.service.api.answers import BUSY, BY_ID, INVALID, LARGE, WHO, Responses
from session_manager.service.api.engine_schemas import (
    ChatChanges,
    ChatDetail,
    ChatSession,
    ChatSessions,
    LastMoment,
    Message,
    NewChatMessage,
    NewChatSession,
    NewTitle,
)
from session_manager.service.api.ids import PathId, uuid_in
from session_manager.service.api.schemas import Deleted, GivenMoment, Problem, SearchText
from session_manager.service.api.sessions import AgentId, Database, SessionType
from session_manager.service.db import chat_archive, chat_messages, chat_sessions, tables
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


def viewer(request: Request) -> Viewer:
    """Returns the viewer that stands for the sender."""
    found: Viewer = request.scope["principal"].viewer
    return found


def chat_id(request: Request, id: PathId) -> uuid.UUID:
    """Reads the id in a path. Raises as ``uuid_in`` does."""
    return uuid_in(request, id, "a chat session", "GET /api/engine/sessions")


Sort = Literal["updated_at", "created_at", "last_message_at", "message_count", "title"]
Asking = Annotated[Viewer, Depends(viewer)]
ChatId = Annotated[uuid.UUID, Depends(chat_id)]
Limit = Annotated[int, Query(ge=1, le=PAGE_LIMIT, description="how many at most")]
Offset = Annotated[int, Query(ge=0, le=LAST_OFFSET, description="how many to skip")]


def page_of(rows: list[Row], total: int, limit: int, offset: int) -> ChatSessions:
    """Returns one page of conversations."""
    return ChatSessions(
        sessions=[ChatSession.model_validate(row) for row in rows],
        total=total,
        limit=limit,
        offset=offset,
        has_more=offset + len(rows) < total,
    )


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
) -> ChatSessions:
    """Conversations that the token may see, last changed first."""
    wanted = ChatFilter(agent_id, session_type, date_from, date_to)
    conditions = [*wanted.conditions(), *asking.sees(tables.chat_sessions)]
    if search:
        conditions.append(await chat_sessions.search(database, search, asking))
    total = await chat_sessions.count(database, conditions)
    rows = await chat_sessions.page(database, conditions, sort, order, limit, offset) if offset < total else []
    return page_of(rows, total, limit, offset)


@router.post("", status_code=201, summary="Create a session before its first message", responses=LARGE)
async def create_chat(request: Request, database: Database, asking: Asking, body: NewChatSession) -> ChatSession:
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
async def show_chat(database: Database, asking: Asking, id: ChatId) -> ChatDetail:
    """With its last messages. An archived one is found, too; its status says so."""
    row = await chat_sessions.find(database, id, asking)
    return ChatDetail.model_validate({**row, "recent_messages": await chat_messages.last_ones(database, row, RECENT)})


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
    request: Request, database: Database, asking: Asking, id: ChatId, body: NewChatMessage, response: Response
) -> Message:
    """The first message makes the session permanent. A message to an archived session restores it."""
    added = await chat_messages.add(database, id, asking, NewMessage(**body.model_dump()))
    if added.created:
        request.state.then.append(lambda: metrics.messages_added(added.session, 1))
    else:
        response.status_code = 200
    return Message.model_validate(added.message)


@router.patch("/{id}", summary="Change title or model", responses={**BY_ID, **_STATE, **LARGE})
async def change_chat(database: Database, asking: Asking, id: ChatId, body: ChatChanges) -> ChatSession:
    """Fields that are left out do not change."""
    row = await chat_sessions.change(database, id, asking, body.model_dump(exclude_none=True))
    return ChatSession.model_validate(row)


@router.patch("/{id}/title", summary="Change the title", responses={**BY_ID, **_STATE, **LARGE})
async def rename_chat(database: Database, asking: Asking, id: ChatId, body: NewTitle) -> ChatSession:
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
