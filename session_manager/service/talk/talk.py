"""One exchange in progress: a task that calls the model and stores the exchange, and its events.

Until the reply is complete, a client that disconnects ends it without a trace. After that it is always stored whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from session_manager.service import metrics
from session_manager.service.db.chat_exchange import Committed, NewSession, commit_exchange
from session_manager.service.db.chat_messages import NewMessage
from session_manager.service.db.engine import Row, has_cut_off, is_unreachable, limited, server_message
from session_manager.service.db.ownership import Viewer
from session_manager.service.logs import short
from session_manager.service.model.base import End, Model, ModelError, Turn
from session_manager.service.problems import Unavailable, document

REPLY_LIMIT = 2**18
# Between attempts to store an exchange whose connection broke.
PAUSES_S = (0.1, 0.4, 1.5)
_log = logging.getLogger(__name__)


class Event(msgspec.Struct, frozen=True):
    """An event for the client: ``session`` first, then any number of ``delta``, then ``done`` or ``error``."""

    name: Literal["session", "delta", "done", "error"]
    data: dict[str, Any]


class Opened(msgspec.Struct, frozen=True):
    """An exchange ready to run: ``turns`` are the model's input, ``stored`` is the stored answer for a retry."""

    viewer: Viewer
    session: NewSession | Row
    user: NewMessage
    model: str
    turns: Sequence[Turn]
    stored: Committed | None

    @property
    def session_id(self) -> uuid.UUID:
        """The session's id; a new one names nothing before the exchange is stored."""
        found: uuid.UUID = self.session.id if isinstance(self.session, NewSession) else self.session["id"]
        return found


class Talk:
    """Starts at once. ``task`` ends after the last event, and raises nothing.

    ``turns`` limits concurrent use of the database.
    """

    def __init__(self, engine: AsyncEngine, turns: asyncio.Semaphore, model: Model, opened: Opened) -> None:
        self._engine = engine
        self._turns = turns
        self._model = model
        self._opened = opened
        self._storing = False
        self._stopped = False
        self._untold: list[Event] = []
        # Text after those events. A slow reader gets it in one piece; the reply's limit bounds its size.
        self._pieces: list[str] = []
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._run())
        self.task.add_done_callback(lambda _: self._news.set())

    async def events(self, heartbeat_s: float) -> AsyncGenerator[Event | None, None]:
        """Yields all events to the end; None after ``heartbeat_s`` seconds without one."""
        while True:
            while self._untold or self._pieces:
                if not self._untold:
                    self._flush()
                yield self._untold.pop(0)
            if self.task.done():
                return
            self._news.clear()
            try:
                async with asyncio.timeout(heartbeat_s):
                    await self._news.wait()
            except TimeoutError:
                yield None

    def leave(self) -> None:
        """Records that the client no longer listens."""
        if not self._storing:
            self.task.cancel()

    def stop(self) -> None:
        """Ends it because the service is stopping; its listeners get an error."""
        self._stopped = True
        self.leave()

    def _tell(self, name: Literal["session", "done", "error"], data: dict[str, Any]) -> None:
        self._flush()
        self._untold.append(Event(name, data))
        self._news.set()

    def _tell_piece(self, text: str) -> None:
        self._pieces.append(text)
        self._news.set()

    def _flush(self) -> None:
        if self._pieces:
            self._untold.append(Event("delta", {"content": "".join(self._pieces)}))
            self._pieces.clear()

    async def _run(self) -> None:
        began = time.monotonic()
        outcome = "left"
        try:
            outcome = await self._exchange()
        except asyncio.CancelledError:
            if self._stopped:
                outcome = "shutting_down"
                self._tell("error", {"error": "the service is stopping; send the message again", "code": outcome})
        except Exception as error:
            failure = document(error)
            outcome = failure["code"]
            self._tell("error", failure)
        seconds = time.monotonic() - began
        _log.info("exchange in %s: %s after %.1f s", short(str(self._opened.session_id)), outcome, seconds)

    async def _exchange(self) -> str:
        opened = self._opened
        if opened.stored is not None:
            self._tell_session(opened.stored.session["id"], new=False)
            self._tell_piece(opened.stored.assistant["content"] or "")
            self._tell("done", _done(opened.stored, opened.model, None))
            return "replayed"
        self._tell_session(opened.session_id, new=isinstance(opened.session, NewSession))
        text, end = await self._reply()
        self._storing = True
        committed = await self._store(text, end)
        if committed.created:
            if isinstance(opened.session, NewSession):
                metrics.session_created()
            metrics.messages_added(committed.session, 2)
        self._tell("done", _done(committed, opened.model, end))
        return "stored" if committed.created else "replayed"

    def _tell_session(self, session_id: object, *, new: bool) -> None:
        self._tell("session", {"session_id": str(session_id), "new": new, "model": self._opened.model})

    async def _reply(self) -> tuple[str, End]:
        parts: list[str] = []
        size, end = 0, End()
        try:
            async with (
                asyncio.timeout(self._model.longest_s),
                contextlib.aclosing(self._model.reply(self._opened.model, self._opened.turns)) as pieces,
            ):
                async for piece in pieces:
                    if isinstance(piece, End):
                        end = piece
                        continue
                    size += len(piece)
                    if size > REPLY_LIMIT:
                        raise ModelError(
                            f"the reply is longer than {REPLY_LIMIT} characters; ask for less", code="reply_too_long"
                        )
                    parts.append(piece)
                    self._tell_piece(piece)
        except TimeoutError:
            sentence = f"the reply was not complete after {self._model.longest_s:g} s; ask for less"
            raise ModelError(sentence, code="model_timeout") from None
        text = "".join(parts)
        if not text.strip():
            raise ModelError("the model sent an empty reply; try again", code="model_empty")
        return text, end

    async def _store(self, text: str, end: End) -> Committed:
        opened = self._opened
        user = msgspec.structs.replace(opened.user, tokens=end.prompt_tokens or 0)
        reply = NewMessage("assistant", text, tokens=end.completion_tokens or 0)
        # An exchange in flight when a connection broke is found by its messages' ids, or stored now.
        cut_off = False
        for pause_s in (*PAUSES_S, None):
            try:
                async with self._turns, limited(self._engine) as connection:
                    return await commit_exchange(connection, opened.viewer, opened.session, user, reply)
            except SQLAlchemyError as error:
                cut_off = cut_off or has_cut_off(error)
                if not cut_off or not is_unreachable(error):
                    raise
                _log.warning("the database connection was lost while an exchange was stored: %s", server_message(error))
            if pause_s is not None:
                await asyncio.sleep(pause_s)
        raise Unavailable(
            "the database connection was lost while this was stored; send it again with the same idempotency_key",
            code="outcome_unknown",
        )


def _done(committed: Committed, model: str, end: End | None) -> dict[str, Any]:
    """Returns the last event's data. ``content`` is the reply as it is stored: the first attempt's, for a retry."""
    own = end if committed.created else None
    return {
        "session_id": str(committed.session["id"]),
        "title": committed.session["title"],
        "message_count": committed.session["message_count"],
        "user_message_id": str(committed.user["id"]),
        "message_id": str(committed.assistant["id"]),
        "content": committed.assistant["content"],
        "model": model,
        "finish_reason": own and own.reason,
        "usage": {
            "prompt_tokens": own and own.prompt_tokens,
            "completion_tokens": own and own.completion_tokens,
        },
        "replayed": not committed.created,
    }
