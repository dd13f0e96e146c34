"""POST /api/engine/chat/stream: sends a message to the model and streams its reply as server-sent events."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from typing import Any

import orjson
from fastapi import APIRouter, FastAPI, Request
from pydantic import Field, model_validator
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from session_manager.service.api.common import BUSY, INVALID, LARGE, WHO, Asking, Responses
from session_manager.service.api.engine import owner
from session_manager.service.api.engine_schemas import Content, Key
from session_manager.service.api.schemas import Body, Name, Problem
from session_manager.service.db.ownership import Viewer
from session_manager.service.talk.talk import Event, Talk
from session_manager.service.talk.talks import Ask

HEARTBEAT_S = 15.0
_HEADERS = {
    "Cache-Control": "no-store, no-transform",
    # nginx would buffer a reply until it is complete.
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}
_EXAMPLE = """\
event: session
data: {"session_id":"5ec2…","new":true,"model":"gpt-4o"}

event: delta
data: {"content":"Hello"}

event: done
data: {"session_id":"5ec2…","title":"hi","message_count":2,"content":"Hello","replayed":false,…}

"""
_ANSWERS: Responses = {
    200: {"description": "the events", "content": {"text/event-stream": {"example": _EXAMPLE}}},
    404: {"model": Problem, "description": "there is no such session"},
    409: {"model": Problem, "description": "the session has ended, or the key was used for another message"},
    503: {"model": Problem, "description": "no room or no database now; `Retry-After` says when to ask again"},
}

ENCRYPTED_SENTENCE = (
    "an encrypted message cannot be answered, because no model can read it; "
    "store it with POST /api/engine/sessions/{id}/messages"
)

router = APIRouter(prefix="/api/engine/chat", tags=["engine"], responses={**WHO, **BUSY, **INVALID})


class ChatRequest(Body):
    """A message to the model. Without `session_id` it begins a session, which exists once the reply is complete."""

    message: Content
    session_id: uuid.UUID | None = Field(default=None, description="the session to continue; default: a new one")
    agent_id: Name = Field(
        default="main", description="the owner of a new session; an existing session keeps its owner"
    )
    org_id: Name | None = Field(default=None, description="the organisation of a new session; one of the token's")
    model: Name | None = Field(default=None, description="the model for this reply; a new session keeps it")
    idempotency_key: Key | None = Field(
        default=None, description="a retry with the same key and message returns what is stored, and stores nothing"
    )

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, body: Any) -> Any:
        if isinstance(body, dict) and ("encrypted" in body or isinstance(body.get("message"), dict)):
            raise ValueError(ENCRYPTED_SENTENCE)
        return body


async def begin(app: FastAPI, asking: Viewer, body: ChatRequest) -> Talk:
    """Starts the exchange that a request asks for. Raises as ``owner`` and ``Talks.begin`` do."""
    if body.session_id is None:
        owner(asking, None, body.org_id)
    talk: Talk = await app.state.talks.begin(asking, Ask(**body.model_dump()))
    return talk


class EventStream(StreamingResponse):
    """The events of an exchange; a client that disconnects early leaves the exchange."""

    media_type = "text/event-stream"

    def __init__(self, talk: Talk) -> None:
        super().__init__(_written(talk), headers=_HEADERS)
        self._talk = talk

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends all events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._talk.leave()


async def _written(talk: Talk) -> AsyncGenerator[bytes, None]:
    async for event in talk.events(HEARTBEAT_S):
        yield b": still here\n\n" if event is None else in_sse(event)


def in_sse(event: Event) -> bytes:
    """Returns an event in the server-sent events format."""
    return b"event: %s\ndata: %s\n\n" % (event.name.encode(), orjson.dumps(event.data))


@router.post(
    "/stream",
    summary="Send a message and stream the reply",
    response_class=Response,
    responses={**_ANSWERS, **LARGE},
)
async def chat_stream(request: Request, asking: Asking, body: ChatRequest) -> EventStream:
    """Events: `session`; `delta` with each piece of the reply; `done` when all is stored, or `error` when nothing is.

    Session, message and reply are stored together when the reply is complete: if the client disconnects earlier,
    nothing is stored. A comment every 15 seconds keeps the connection alive. The WebSocket `/api/engine/chat/ws` does
    the same: send this body as text, and receive `{"event", "data"}` for each event; one message at a time.
    """
    return EventStream(await begin(request.app, asking, body))
