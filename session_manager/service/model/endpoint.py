"""A model behind any OpenAI-compatible endpoint: streamed ``chat/completions``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx

from session_manager.service.config import ModelSettings, is_loopback
from session_manager.service.model import stream
from session_manager.service.model.base import ECHO, Echo, End, Model, ModelError, Turn

CONNECT_S = 10.0
_REPLIES = 10
_SAID_LIMIT = 65_536


@contextlib.asynccontextmanager
async def open_model(settings: ModelSettings) -> AsyncIterator[Model]:
    """Yields the model that the settings name, with one connection pool; an echo when they name none."""
    if settings.base_url is None or settings.model is None:
        yield Echo()
        return
    host = urlsplit(settings.base_url).hostname or ""
    headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity", "User-Agent": "aria-api"}
    if settings.api_key is not None:
        headers["Authorization"] = f"Bearer {settings.api_key}"
    async with httpx.AsyncClient(
        headers=headers,
        timeout=httpx.Timeout(settings.timeout_s, connect=min(CONNECT_S, settings.timeout_s)),
        # ``talk.talks`` limits the number of concurrent exchanges.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        # A proxy from the environment can reach neither this machine nor names of the internal network.
        trust_env=not is_loopback(host) and ("." in host or ":" in host),
    ) as client:
        yield Endpoint(client, settings)


class Endpoint:
    """Asks ``{base_url}/chat/completions``. Redirects are not followed: the key is for that address only."""

    def __init__(self, client: httpx.AsyncClient, settings: ModelSettings) -> None:
        self._client = client
        self._url = f"{settings.base_url}/chat/completions"
        self._usual = settings.model or ""
        self._key = settings.api_key
        self._silence_s = settings.timeout_s
        self._asks_usage = True
        self.longest_s = _REPLIES * settings.timeout_s

    def named(self, asked: str | None, kept: str | None) -> str:
        """Returns the model to call; a session that an echo started has none of its own."""
        return asked or (kept if kept != ECHO else None) or self._usual

    async def reply(self, name: str, turns: Sequence[Turn]) -> AsyncGenerator[str | End, None]:
        """Yields the reply in pieces, and its End. Raises ModelError."""
        try:
            answer = await self._ask(name, turns)
            try:
                async with (
                    contextlib.aclosing(stream.data_of(answer.aiter_bytes())) as data,
                    contextlib.aclosing(stream.pieces(data, self._key)) as found,
                ):
                    async for piece in found:
                        yield piece
            finally:
                await answer.aclose()
        except httpx.TimeoutException as error:
            raise self._late(error) from error
        except (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
            raise ModelError(
                "the model's endpoint cannot be reached; try again in a moment", code="model_unreachable"
            ) from error
        except httpx.HTTPError as error:
            raise ModelError("the connection to the model was lost; try again", code="model_broke_off") from error

    async def _ask(self, name: str, turns: Sequence[Turn]) -> httpx.Response:
        """Returns a streaming answer; the caller closes it."""
        while True:
            body: dict[str, Any] = {
                "model": name,
                "messages": [{"role": turn.role, "content": turn.content} for turn in turns],
                "stream": True,
            }
            asks_usage = self._asks_usage
            if asks_usage:
                body["stream_options"] = {"include_usage": True}
            answer = await self._client.send(self._client.build_request("POST", self._url, json=body), stream=True)
            if answer.status_code == 200:
                return answer
            try:
                said = await _said(answer, self._key)
            finally:
                await answer.aclose()
            if not (asks_usage and answer.status_code in (400, 422) and "stream_options" in said):
                raise _refusal(answer.status_code, said)
            # Retry without token counts, which this endpoint does not support.
            self._asks_usage = False

    def _late(self, error: httpx.TimeoutException) -> ModelError:
        if isinstance(error, httpx.ConnectTimeout):
            return ModelError("the model's endpoint cannot be reached in time; try again", code="model_unreachable")
        return ModelError(
            f"the model was silent for {self._silence_s:g} s (ARIA_LLM_TIMEOUT); try again", code="model_timeout"
        )


async def _said(answer: httpx.Response, key: str | None) -> str:
    """Returns an endpoint's message about a failure."""
    data = b""
    async for chunk in answer.aiter_bytes():
        data += chunk
        if len(data) > _SAID_LIMIT:
            break
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    return stream.said_in(document if isinstance(document, dict) else {}, key)


def _refusal(status: int, said: str) -> ModelError:
    if status in (401, 403):
        # Such an answer may repeat the key.
        return ModelError(f"the model's endpoint refuses the service's key ({status}); see ARIA_LLM_API_KEY")
    if status == 429:
        return ModelError("the model is busy (429); try again in a moment", code="model_busy")
    if 300 <= status < 400:
        return ModelError(f"the model's endpoint has moved ({status}); see ARIA_LLM_BASE_URL")
    return ModelError(f"the model's endpoint answers {status}: {said}")
