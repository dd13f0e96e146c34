"""Refuses requests from foreign web pages, and oversized requests; answers HEAD for every GET route.

A browser sends requests to loopback on behalf of any page. Two things reveal such a page: its own name in ``Host``,
when it made that name resolve to 127.0.0.1 (DNS rebinding), and its origin in ``Origin`` or ``Sec-Fetch-Site``, which
scripts cannot forge.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from session_manager.service.config import Config, is_loopback
from session_manager.service.problems import problem

BODY_LIMIT = 16 * 2**20
PROBES = frozenset(("/health", "/healthz", "/readyz"))
SAFE_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "TRACE"))


class Guard:
    """ASGI middleware that refuses foreign hosts, foreign origins and oversized bodies."""

    def __init__(self, app: ASGIApp, config: Config) -> None:
        self._app = app
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 403 or 413, or passes the request on."""
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        # Health probes use an IP address, and learn nothing else.
        if scope["path"] not in PROBES and not self._host_is_ours(headers):
            return await refuse(
                scope, receive, send, 403, "this service does not accept that host name; see ARIA_ALLOWED_HOSTS", "host"
            )
        unsafe = scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS
        if unsafe and not self._origin_is_ours(headers):
            return await refuse(
                scope, receive, send, 403, "a page of another site must not do this; see ARIA_ALLOWED_HOSTS", "origin"
            )
        if scope["type"] == "http":
            declared = headers.get("content-length", "")
            if declared.isdecimal() and int(declared) > BODY_LIMIT:
                return await refuse(scope, receive, send, 413, _TOO_LARGE, "too_large")
            receive = _limited(receive)
        return await self._app(scope, receive, send)

    def _host_is_ours(self, headers: Headers) -> bool:
        if not self._config.on_loopback and not self._config.allowed_hosts:
            return True
        return self._is_ours(_hostname(headers.get("host", "")))

    def _is_ours(self, name: str) -> bool:
        return is_loopback(name) or name in self._config.allowed_hosts

    def _origin_is_ours(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is not None and _hostname(origin.partition("://")[2]) in self._config.allowed_hosts:
            return True
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return False
        return origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower() != ""


_TOO_LARGE = f"the request's body is larger than {BODY_LIMIT} bytes; send less at a time"


def _hostname(netloc: str) -> str:
    try:
        parts = urlsplit(f"//{netloc}")
        if parts.username is not None or parts.path or parts.query or parts.fragment:
            return ""
        return (parts.hostname or "").rstrip(".")
    except ValueError:
        return ""


def _limited(receive: Receive) -> Receive:
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > BODY_LIMIT:
            raise HTTPException(413, _TOO_LARGE)
        return message

    return limited


class Heads:
    """ASGI middleware that passes a HEAD on as a GET, and drops the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        # A copy: the server omits the body by the method in its own scope.
        asked = {**scope, "method": "GET"}

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(asked, receive, without_body)
        finally:
            scope.update({**asked, "method": "HEAD"})
        return None


async def refuse(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    error: str,
    code: str,
    headers: dict[str, str] | None = None,
) -> None:
    """Answers a request, or a WebSocket's handshake, with a problem."""
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": code})
        return
    await problem(scope, status, error, code, headers)(scope, receive, send)
