"""WS /api/engine/chat/ws: chat over a WebSocket, any number of messages, one after the other.

Frames from the client are bodies of POST /api/engine/chat/stream; frames to it are ``{"event", "data"}``. A faulty
message is answered with an ``error``, and the connection stays open.
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter, WebSocket
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.websockets import WebSocketDisconnect

from session_manager.core.errors import Refused, SessionManagerError, UsageError
from session_manager.service.api.chat import HEARTBEAT_S, ChatRequest, begin
from session_manager.service.auth import Authenticator, token_of
from session_manager.service.db.ownership import Viewer
from session_manager.service.problems import document, found
from session_manager.service.talk.talk import Talk

# The longest message, fully escaped, and the frame around it.
FRAME_LIMIT = 2**22
POLICY_VIOLATION = 1008

router = APIRouter(prefix="/api/engine/chat")


@router.websocket("/ws")
async def chat_ws(socket: WebSocket) -> None:
    """Talks until the client goes away."""
    await socket.accept()
    line = _Line(socket)
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if not await line.take(message.get("text")):
                await socket.close(POLICY_VIOLATION, "unauthorized")
                return
    except WebSocketDisconnect:
        return
    finally:
        line.hang_up()


class _Line:
    """One connection with at most one exchange in progress."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._talk: Talk | None = None
        self._telling: asyncio.Task[None] | None = None

    async def take(self, text: str | None) -> bool:
        """Handles a message; False when its sender may no longer chat. Raises WebSocketDisconnect."""
        try:
            if self._telling is not None and not self._telling.done():
                raise Refused(
                    "a reply is being written; wait for done or error, or use another connection", code="busy"
                )
            asking = await self._asking()
            if asking is None:
                return False
            self._talk = await begin(self._socket.app, asking, _read(text))
        except (SessionManagerError, SQLAlchemyError) as error:
            await self._send("error", document(error))
            return True
        self._telling = asyncio.create_task(self._tell(self._talk))
        return True

    async def _asking(self) -> Viewer | None:
        """Returns the sender. The token may have been revoked since the connection was opened."""
        authenticator: Authenticator = self._socket.app.state.authenticator
        principal = await authenticator.principal(token_of(self._socket.scope))
        return principal.viewer if principal is not None and principal.may("write") else None

    async def _tell(self, talk: Talk) -> None:
        try:
            async for event in talk.events(HEARTBEAT_S):
                # The protocol's own pings show that the connection is alive.
                if event is not None:
                    await self._send(event.name, event.data)
        except WebSocketDisconnect:
            talk.leave()

    async def _send(self, name: str, data: dict[str, Any]) -> None:
        await self._socket.send_text(orjson.dumps({"event": name, "data": data}).decode())

    def hang_up(self) -> None:
        """Leaves the exchange in progress."""
        if self._talk is not None:
            self._talk.leave()
        if self._telling is not None:
            self._telling.cancel()


def _read(text: str | None) -> ChatRequest:
    if text is None:
        raise UsageError("body: must be a text frame, not a binary one", code="invalid", field="body")
    try:
        return ChatRequest.model_validate_json(text)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        first, *_ = found([{**each, "loc": ("body", *each["loc"])} for each in errors])
        raise UsageError(f"{first['field']}: {first['error']}", code="invalid", field=first["field"]) from None
