"""The model of a service without one: it states this, and echoes the message."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence

from session_manager.service.model.base import ECHO, End, Turn

LABEL = "[echo: no model is set, see ARIA_LLM_BASE_URL] "
LONGEST = 2000


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
