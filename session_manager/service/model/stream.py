"""Reads a streamed answer of an OpenAI-compatible endpoint, in the variants of different programs."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from session_manager.service.model.base import End, ModelError

LINE_LIMIT = 2**20
_MOST_TOKENS = 2**31 - 1
_DONE = b"[DONE]"
# Endpoints have their own words for an ordinary end (eos, stop_sequence, end_turn …), and new ones appear: an unknown
# word ends a reply. The words for a failure are few, and the text before one of them is no reply.
_FAILURES = frozenset(
    (
        "abort",
        "aborted",
        "cancel",
        "canceled",
        "cancelled",
        "error",
        "failed",
        "insufficient_system_resource",
        "interrupted",
        "network_error",
        "server_error",
        "timeout",
    )
)


async def data_of(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yields the text after ``data:`` on each line. Raises ModelError when a line has no end.

    Only a line feed ends a line: U+2028 and its like may stand in a text.
    """
    rest = bytearray()
    async for chunk in chunks:
        rest += chunk
        if b"\n" in chunk:
            *lines, rest = rest.split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    yield bytes(line[5:].strip())
        if len(rest) > LINE_LIMIT:
            raise garbled()


async def pieces(data: AsyncIterator[bytes], key: str | None = None) -> AsyncGenerator[str | End, None]:
    """Yields the reply's text in pieces that can be stored, and its End. Raises ModelError when it is not complete.

    It is complete when the endpoint reports a reason or the end; a connection that just ends reports neither, and some
    reasons are failures. No error may repeat ``key``.
    """
    joined = _Joined()
    reason: str | None = None
    usage: tuple[int | None, int | None] = (None, None)
    begun = ended = False
    async for each in data:
        begun = True
        if each == _DONE:
            ended = True
            break
        chunk = _read(each)
        if chunk.get("error"):
            raise ModelError(f"the model failed in the middle of its reply: {said_in(chunk, key)}")
        usage = _usage(chunk) or usage
        choice = _first_choice(chunk)
        delta = choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(text, str) and (whole := joined.add(text)):
            yield whole
        if said := _reason(choice):
            reason, ended = said, True
    if not begun:
        raise garbled()
    if not ended:
        raise ModelError("the model stopped in the middle of its reply; try again", code="model_broke_off")
    if last := joined.rest():
        yield last
    yield End(reason, *usage)


def _reason(choice: dict[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or not reason.strip():
        return None
    word = reason.strip().lower()
    if word in _FAILURES:
        raise ModelError(f"the model stopped in the middle of its reply ({word}); try again", code="model_broke_off")
    return _storable(reason[:100])


def said_in(document: dict[str, Any], key: str | None) -> str:
    """Returns an endpoint's message about its failure, as one short line, without the key."""
    error = document.get("error")
    said = error.get("message") if isinstance(error, dict) else error
    text = said if isinstance(said, str) and said.strip() else "it gives no reason"
    if key:
        text = text.replace(key, "…")
    return " ".join("".join(c if c.isprintable() else " " for c in text[:1000]).split())[:200]


def garbled() -> ModelError:
    """Returns the error for an answer that is no stream of chat completions."""
    return ModelError(
        "the model's endpoint does not answer with a stream of chat completions; see ARIA_LLM_BASE_URL",
        code="model_garbled",
    )


class _Joined:
    """Makes texts that any database can store: joins the halves of a surrogate pair that arrive separately."""

    def __init__(self) -> None:
        self._half = ""

    def add(self, text: str) -> str:
        text = self._half + text
        self._half = text[-1] if text and "\ud800" <= text[-1] <= "\udbff" else ""
        return _storable(text[: len(text) - len(self._half)])

    def rest(self) -> str:
        return _storable(self._half)


def _storable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text.replace("\0", "\ufffd")


def _read(data: bytes) -> dict[str, Any]:
    try:
        # Not a stricter parser: half a character arrives as an escaped lone surrogate.
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise garbled() from None
    if not isinstance(document, dict):
        raise garbled()
    return document


def _first_choice(chunk: dict[str, Any]) -> dict[str, Any]:
    choices = chunk.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _usage(chunk: dict[str, Any]) -> tuple[int | None, int | None] | None:
    usage = chunk.get("usage")
    if not isinstance(usage, dict):
        return None
    return _tokens(usage.get("prompt_tokens")), _tokens(usage.get("completion_tokens"))


def _tokens(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None
