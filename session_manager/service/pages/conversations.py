"""/conversations: the service's own, newest first; those without a message can be listed alone."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from session_manager.core.errors import UsageError
from session_manager.service.api.common import Asking, ChatId, Database
from session_manager.service.db import chat_sessions
from session_manager.service.db.tables import chat_sessions as chat_table
from session_manager.service.pages.dashboard import Chosen, may_delete
from session_manager.service.render import address, is_part, local, part, render

ROWS = 50
PATH = "/conversations"
PlaceIn = Annotated[str, Query(max_length=100)]

router = APIRouter(include_in_schema=False)


@router.get(PATH)
async def conversations(
    request: Request,
    database: Database,
    asking: Asking,
    agent_id: Chosen = "",
    search: Chosen = "",
    empty: bool = False,
    before: PlaceIn = "",
    after: PlaceIn = "",
) -> Response:
    """One page of the conversations that the sender may see."""
    given = {"search": search, "agent_id": agent_id}
    chosen: dict[str, Any] = {name: value.replace("\0", "").strip() for name, value in given.items()}
    chosen["empty"] = "true" if empty else ""
    conditions = chat_sessions.ChatFilter(agent_id=chosen["agent_id"] or None).conditions()
    if chosen["search"]:
        conditions.append(await chat_sessions.search(database, chosen["search"], asking))
    conditions += asking.sees(chat_table)
    page = await chat_sessions.keyset_page(
        database, conditions, ROWS, empty=empty, before=_place("before", before), after=_place("after", after)
    )
    values: dict[str, Any] = {
        "page": page,
        "chosen": chosen,
        "first": not (before or after),
        "here": address(PATH, chosen, before=before, after=after),
        "newest": address(PATH, chosen) if before or after else None,
        "newer": address(PATH, chosen, after=_words(page.newer)) if page.newer else None,
        "older": address(PATH, chosen, before=_words(page.older)) if page.older else None,
        "may_delete": request.scope["principal"].may("delete"),
    }
    if is_part(request):
        return part("conversation_part.html", **values)
    return render("conversations.html", scripts=True, who=request.scope["principal"].name, **values)


def _words(place: chat_sessions.Place) -> str:
    return f"{place[0].isoformat()}~{place[1]}"


def _place(name: str, text: str) -> chat_sessions.Place | None:
    """Reads a page's start from the link of an adjacent page. Raises UsageError."""
    if not text:
        return None
    at, _, session_id = text.partition("~")
    place: chat_sessions.Place | None
    try:
        place = datetime.fromisoformat(at), uuid.UUID(session_id)
    except ValueError:
        place = None
    if place is None or place[0].tzinfo is None or not 1970 <= place[0].year <= 2200:
        raise UsageError(f"{name}: is not the position of a page; go to /conversations", code="invalid")
    return place


@router.get(f"{PATH}/{{id}}/delete")
async def ask_to_delete(request: Request, database: Database, asking: Asking, id: ChatId, next: str = PATH) -> Response:
    """Shows the conversation's facts, and asks."""
    may_delete(request)
    row = await chat_sessions.find(database, id, asking)
    return render("delete_conversation.html", row=row, next=local(next, PATH), who=request.scope["principal"].name)


@router.post(f"{PATH}/{{id}}/delete")
async def delete(database: Database, asking: Asking, id: ChatId, next: Annotated[str, Form()] = PATH) -> Response:
    """Permanently deletes it with its messages."""
    await chat_sessions.remove(database, id, asking)
    return RedirectResponse(local(next, PATH), 303)
