"""The interface of the model that replies in a conversation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec

from session_manager.core.errors import SessionManagerError

ECHO = "echo"


class ModelError(SessionManagerError):
    """The model did not reply, or not to the end. Anybody may read the message: it holds no secret."""

    http_status = 502
    default_code = "model_failed"


class Turn(msgspec.Struct, frozen=True):
    """One message of the model's input."""

    role: str
    content: str


class End(msgspec.Struct, frozen=True):
    """The end of a complete reply: its reason, and the tokens of prompt and reply if the endpoint reports them."""

    reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Model(Protocol):
    """Replies to the last of some turns."""

    longest_s: float

    def named(self, asked: str | None, kept: str | None) -> str:
        """Returns the model that replies: the one in the request, the session's, or the default."""
        ...

    def reply(self, name: str, turns: Sequence[Turn]) -> AsyncGenerator[str | End, None]:
        """Yields a reply in pieces, and one End when it is complete. Raises ModelError when it will not be."""
        ...
