"""/login, /docs, /chat, and the style sheet and scripts of the pages."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from session_manager.service.auth import COOKIE, Authenticator
from session_manager.service.render import HTMX, local, own_file, render

router = APIRouter(include_in_schema=False)


@router.get("/")
async def home() -> Response:
    """Leads to the dashboard."""
    return RedirectResponse("/sessions", 303)


@router.get("/style.css")
async def style() -> Response:
    """The one style sheet."""
    return own_file("style.css", "max-age=3600")


@router.get(f"/{HTMX}")
async def htmx() -> Response:
    """The one script that is not our own; its name has its version."""
    return own_file(HTMX, "max-age=31536000, immutable")


@router.get("/login")
async def login_page(next: str = "/sessions") -> Response:
    """Asks for a token."""
    return render("login.html", next=local(next), error=None)


@router.post("/login")
async def login(
    request: Request, token: Annotated[str, Form(max_length=5000)] = "", next: Annotated[str, Form()] = "/sessions"
) -> Response:
    """Turns a token into a cookie that scripts cannot read and other sites cannot send."""
    authenticator: Authenticator = request.app.state.authenticator
    token = token.strip()
    if not token or not token.isascii() or await authenticator.principal(token) is None:
        return render(
            "login.html", 401, next=local(next), error="This token is not valid. Copy all of it, and try again."
        )
    answer = RedirectResponse(local(next), 303)
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


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The API, read off its own OpenAPI description."""
    return render("docs.html", api=request.app.openapi())


@router.get("/chat")
async def chat_page(request: Request) -> Response:
    """A page to talk on. Opening it asks for nothing and makes nothing; its script does the rest."""
    echo = request.app.state.config.llm.base_url is None
    return render("chat.html", scripts=True, echo=echo, who=request.scope["principal"].name)


@router.get("/chat.js")
async def chat_script() -> Response:
    """Its one script."""
    return own_file("chat.js", "no-cache")
