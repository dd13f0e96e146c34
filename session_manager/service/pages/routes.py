"""/login, /sessions and /docs."""

from __future__ import annotations

import os
import time
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import RedirectResponse, Response

from session_manager.service.api.sessions import Database
from session_manager.service.auth import COOKIE, Authenticator
from session_manager.service.db import sessions as queries
from session_manager.service.db.tables import STATUSES
from session_manager.service.pages.render import FOLDER, render

ROWS = 50
STATS_AGE_S = 10.0

router = APIRouter(include_in_schema=False)


@router.get("/")
async def home() -> Response:
    """Leads to the dashboard."""
    return RedirectResponse("/sessions", 303)


@router.get("/style.css")
async def style() -> Response:
    """The one style sheet."""
    with open(os.path.join(FOLDER, "style.css"), encoding="utf-8") as file:
        return Response(file.read(), media_type="text/css", headers={"Cache-Control": "max-age=3600"})


@router.get("/login")
async def login_page(next: str = "/sessions") -> Response:
    """Asks for a token."""
    return render("login.html", next=_local(next), error=None)


@router.post("/login")
async def login(
    request: Request, token: Annotated[str, Form(max_length=5000)] = "", next: Annotated[str, Form()] = "/sessions"
) -> Response:
    """Turns a token into a cookie that scripts cannot read and other sites cannot send."""
    authenticator: Authenticator = request.app.state.authenticator
    token = token.strip()
    if not token or not token.isascii() or await authenticator.principal(token) is None:
        return render(
            "login.html", 401, next=_local(next), error="This token is not valid. Copy it whole, and try again."
        )
    answer = RedirectResponse(_local(next), 303)
    answer.set_cookie(
        COOKIE,
        token,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
        path="/",
        max_age=2_592_000,
    )
    return answer


@router.post("/logout")
async def logout() -> Response:
    """Forgets the cookie."""
    answer = RedirectResponse("/login", 303)
    answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return answer


def _local(path: str) -> str:
    """Returns a path of this service; anything that leads elsewhere becomes the dashboard."""
    plain = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if plain else "/sessions"


@router.get("/sessions")
async def dashboard(
    request: Request,
    database: Database,
    page: Annotated[int, Query(ge=1, le=10**9)] = 1,
    status: str = "",
    agent_id: Annotated[str, Query(max_length=200)] = "",
    search: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    """History a person can look at, newest first."""
    # A form sends what was left empty, too; NUL can be in no row.
    chosen = {"status": status, "agent_id": agent_id, "search": search}
    chosen = {name: value.replace("\0", "").strip() for name, value in chosen.items()}
    wanted = queries.Filter(
        status=chosen["status"] or None, agent_id=chosen["agent_id"] or None, search=chosen["search"] or None
    )
    total = await queries.count(database, wanted)
    rows = await queries.page(database, wanted, "desc", ROWS, (page - 1) * ROWS) if total else []
    pages = max(1, -(-total // ROWS))

    def link(number: int) -> str:
        return "/sessions?" + urlencode({**{k: v for k, v in chosen.items() if v}, "page": number})

    return render(
        "sessions.html",
        rows=rows,
        total=total,
        page=page,
        pages=pages,
        previous=link(min(page - 1, pages)) if page > 1 else None,
        following=link(page + 1) if page < pages else None,
        chosen=chosen,
        statuses=STATUSES,
        stats=await _recent_stats(request, database),
        who=request.scope["principal"].name,
    )


async def _recent_stats(request: Request, database: AsyncConnection) -> queries.Row:
    """Totals, at most some seconds old: they read the whole table."""
    state = request.app.state
    at, stats = getattr(state, "recent_stats", (0.0, None))
    if stats is None or time.monotonic() - at > STATS_AGE_S:
        stats = await queries.stats(database)
        state.recent_stats = (time.monotonic(), stats)
    return dict(stats)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The API, read off its own OpenAPI description."""
    return render("docs.html", api=request.app.openapi())
