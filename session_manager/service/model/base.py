"""What a conversation knows of the model that replies in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec

from session_manager.core.errors import SessionManagerError

ECHO = "echo"


class ModelError(SessionManagerError):
    """The model did not reply, or not to the end. Whoever reads the sentence may be anybody: it holds no secret."""

    http_status = 502
    default_code = "model_failed"


class Turn(msgspec.Struct, frozen=True):
    """One message that the model is shown."""

    role: str
    content: str


class End(msgspec.Struct, frozen=True):
    """The end of a complete reply: why it ended, and the tokens of question and reply where the endpoint says so."""

    reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Model(Protocol):
    """Replies to the last of some turns."""

    longest_s: float

    def named(self, asked: str | None, kept: str | None) -> str:
        """Returns which model replies: the one that a request asks for, the one that a session keeps, or the usual."""
        ...

    def reply(self, name: str, turns: Sequence[Turn]) -> AsyncGenerator[str | End, None]:
        """Yields a reply in pieces, and one End when it is complete. Raises ModelError when it will not be."""
        ...
