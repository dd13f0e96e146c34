"""/chat: a page to talk on. Opening it asks for nothing and makes nothing."""

from __future__ import annotations

import os

from fastapi import APIRouter, Request
from starlette.responses import Response

from session_manager.service.pages.render import FOLDER, render

router = APIRouter(include_in_schema=False)


@router.get("/chat")
async def chat_page(request: Request) -> Response:
    """The page; its script does the rest."""
    echo = request.app.state.config.llm.base_url is None
    return render("chat.html", scripts=True, echo=echo, who=request.scope["principal"].name)


@router.get("/chat.js")
async def chat_script() -> Response:
    """The one script."""
    with open(os.path.join(FOLDER, "chat.js"), encoding="utf-8") as file:
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return Response(file.read(), media_type="text/javascript", headers=headers)
