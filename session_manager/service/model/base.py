"""The interface of the model that replies in a conversation, and the model of a service without one: an echo."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

import msgspec

from session_manager.core.errors import SessionManagerError

ECHO = "echo"
LABEL = "[echo: no model is set, see ARIA_LLM_BASE_URL] "
LONGEST = 2000


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


class Echo:
    """Replies with the beginning of the message itself, word by word."""

    longest_s = 60.0

    def named(self, asked: str | None, kept: str | None) -> str:
        """Returns ``echo`` for any request."""
        return ECHO

    async def reply(self, name: str, turns: Sequence[Turn]) -> AsyncGenerator[str | End, None]:
        """Yields the label and the message."""
        said = turns[-1].content
        yield LABEL
        for word in re.findall(r"\s*\S+|\s+", said[:LONGEST]):
            yield word
        if len(said) > LONGEST:
            yield "…"
        yield End("stop")
