"""POST /api/engine/chat/stream: sends a message to the model and streams its reply as server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from session_manager.service.api.answers import BUSY, INVALID, LARGE, WHO, Responses
from session_manager.service.api.chat_schemas import ChatRequest
from session_manager.service.api.engine import Asking, owner
from session_manager.service.api.schemas import Problem
from session_manager.service.talk.talk import Event, Talk

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

router = APIRouter(prefix="/api/engine/chat", tags=["engine"], responses={**WHO, **BUSY, **INVALID})


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
    if body.session_id is None:
        owner(asking, None, body.org_id)
    return EventStream(await request.app.state.talks.begin(asking, body.ask()))
