"""Log lines: request, sender and result. No token, no message text, ids cut to 8 characters."""

from __future__ import annotations

import logging
import logging.config
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from session_manager.service import metrics

_log = logging.getLogger("session_manager.access")


def short(identifier: str) -> str:
    """Returns an id in the form for log lines."""
    return identifier if len(identifier) <= 8 else f"{identifier[:8]}…"


def configure() -> None:
    """Sends log lines to standard error."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
            "filters": {"refusals": {"()": _NoRefusals}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "filters": ["refusals"]}},
            "root": {"handlers": ["stderr"], "level": "INFO"},
            "loggers": {
                "alembic": {"level": "WARNING"},
                "uvicorn.error": {"level": "WARNING"},
                "httpx": {"level": "WARNING"},
            },
        }
    )


class _NoRefusals(logging.Filter):
    """Drops two events that uvicorn logs as its own errors.

    These are a WebSocket handshake refused with an answer, and WebSocket text that is not UTF-8.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return record.msg not in (
            "ASGI callable returned without completing handshake.",
            "Invalid UTF-8 sequence received from client.",
        )


class AccessLog:
    """ASGI middleware that logs and counts each request when it is answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on and records its status."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        # The server gives this answer to an exception.
        status = 500
        began = time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            who = scope.get("principal")
            seconds = time.perf_counter() - began
            metrics.answered(scope["method"], _template(scope), status, seconds)
            _log.info(
                "%s %s %d %.0f ms %s", scope["method"], _path(scope), status, seconds * 1000, who.name if who else "-"
            )
        return None


def _template(scope: Scope) -> str | None:
    """Returns the path's route template, None when no route matched."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else None


def _path(scope: Scope) -> str:
    """Returns the path with its ids cut; the query string, which may hold ids and text, is left out."""
    parts = scope["path"].split("/")
    known = (_template(scope) or "").split("/")
    fixed = known if len(known) == len(parts) else ["{}"] * len(parts)
    cut = (short(part) if pattern.startswith("{") else part for part, pattern in zip(parts, fixed, strict=True))
    # A path may hold anything, line breaks included.
    return "".join(c if c.isprintable() else "?" for c in "/".join(cut))
