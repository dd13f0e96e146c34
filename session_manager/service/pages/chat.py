"""/chat: a page to talk on. Opening it asks for nothing and makes nothing."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from session_manager.service.render import render, script_file

router = APIRouter(include_in_schema=False)


@router.get("/chat")
async def chat_page(request: Request) -> Response:
    """The page; its script does the rest."""
    echo = request.app.state.config.llm.base_url is None
    return render("chat.html", scripts=True, echo=echo, who=request.scope["principal"].name)


@router.get("/chat.js")
async def chat_script() -> Response:
    """The one script."""
    return script_file("chat.js", "no-cache")
