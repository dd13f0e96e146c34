"""Authentication: a token in ``Authorization: Bearer`` or in the cookie that /login sets.

Every path needs a token except those in OPEN. While there has never been a token, there is one local user, and the
service serves loopback only.
"""

from __future__ import annotations

import hmac
from urllib.parse import quote

from fastapi import Security
from fastapi.security import HTTPBearer
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from session_manager.service.config import Config
from session_manager.service.db import tokens
from session_manager.service.db.tokens import Principal
from session_manager.service.guard import PROBES, SAFE_METHODS, refuse
from session_manager.service.problems import UNREACHABLE

COOKIE = "aria_token"
OPEN = PROBES | {"/login", "/logout", "/style.css"}
ADMIN = ("/api/jobs/",)
FORWARDED = frozenset(("forwarded", "x-forwarded-for", "x-real-ip"))
ERASES = "/api/sessions/erase"
PAGES = frozenset(("/", "/sessions", "/conversations", "/chat", "/docs"))
# Forms on pages with which a person ends or deletes a row.
DELETING = ("/sessions/", "/conversations/")
LONGEST_QUERY = 2000
# Documentation only: describes tokens in the OpenAPI document.
DESCRIBED = Security(
    HTTPBearer(
        auto_error=False,
        scheme_name="token",
        description="`ARIA_API_TOKEN`, or a token made by `session-manager token create`.",
    )
)


LOCAL = Principal("local", frozenset(("admin",)))


class Authenticator:
    """Turns tokens into principals."""

    def __init__(self, config: Config, engine: AsyncEngine) -> None:
        self._config = config
        self._engine = engine
        self._admin = tokens.digest(config.api_token) if config.api_token else None

    async def principal(self, token: str | None) -> Principal | None:
        """Returns the holder of ``token``, or None. Raises SQLAlchemyError when the database does not answer."""
        if token and self._admin and hmac.compare_digest(tokens.digest(token), self._admin):
            return Principal("ARIA_API_TOKEN", frozenset(("admin",)))
        if not token and (self._admin or not self._config.on_loopback):
            return None
        async with self._engine.connect() as connection:
            held = await tokens.holder(connection, token) if token else None
            if held is not None:
                return held
            if self._admin or not self._config.on_loopback or await tokens.any_made(connection):
                return None
            return LOCAL


class Auth:
    """ASGI middleware: 401 without a valid token, 403 without the scope; else sets ``scope["principal"]``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on if its sender is authorized."""
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN:
            return await self._app(scope, receive, send)
        authenticator: Authenticator = scope["app"].state.authenticator
        try:
            principal = await authenticator.principal(token_of(scope))
        except SQLAlchemyError:
            return await refuse(scope, receive, send, 503, UNREACHABLE["error"], UNREACHABLE["code"])
        if principal is LOCAL and FORWARDED.intersection(Headers(scope=scope).keys()):
            # A proxy on this machine forwards requests from elsewhere.
            principal = None
        if principal is None:
            headers = {"WWW-Authenticate": "Bearer"}
            if scope["type"] == "http" and is_page(scope["path"]) and scope["method"] == "GET":
                login = f"/login?next={quote(address(scope))}"
                if "hx-request" not in Headers(scope=scope):
                    return await RedirectResponse(login, 303)(scope, receive, send)
                # htmx would follow a redirect, and replace a part of the page by the login form.
                headers["HX-Redirect"] = login
            return await refuse(
                scope,
                receive,
                send,
                401,
                "a valid token is needed: Authorization: Bearer <token>; browsers go to /login",
                "unauthorized",
                headers,
            )
        needed = scope_needed(scope)
        if not principal.may(needed):
            return await refuse(
                scope, receive, send, 403, f"this token may not do that; it lacks the scope {needed!r}", "forbidden"
            )
        scope["principal"] = principal
        return await self._app(scope, receive, send)


def address(scope: Scope) -> str:
    """Returns the path of a request with its query; drops a query longer than any page's."""
    path: str = scope["path"]
    query: bytes = scope["query_string"]
    return f"{path}?{query.decode('latin-1')}" if 0 < len(query) <= LONGEST_QUERY else path


def scope_needed(scope: Scope) -> str:
    """Returns the token scope that a request needs."""
    if scope["type"] == "websocket":
        return "write"
    method = scope["method"]
    if method in SAFE_METHODS:
        return "read"
    if scope["path"].startswith(ADMIN):
        return "admin"
    deletes = method == "DELETE" or scope["path"] == ERASES or scope["path"].startswith(DELETING)
    return "delete" if deletes else "write"


def is_page(path: str) -> bool:
    """Returns whether a path is a page's: its reader is a person, who can log in."""
    return path in PAGES or path.startswith(DELETING)


def token_of(scope: Scope) -> str | None:
    """Returns the token of a request, from the header, else from the cookie."""
    scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and given.strip():
        return given.strip()
    return HTTPConnection(scope).cookies.get(COOKIE) or None
