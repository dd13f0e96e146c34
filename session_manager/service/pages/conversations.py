"""/conversations: what the service holds itself, newest first; those without a message can be looked at alone."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from starlette.responses import RedirectResponse, Response

from session_manager.core.errors import UsageError
from session_manager.service.api.engine import Asking, ChatId
from session_manager.service.api.sessions import Database
from session_manager.service.db import chat_pages as queries
from session_manager.service.db import chat_sessions
from session_manager.service.db.tables import chat_sessions as chat_table
from session_manager.service.pages.dashboard import Chosen, may_delete
from session_manager.service.pages.links import address, local
from session_manager.service.pages.render import render

ROWS = 50
PATH = "/conversations"

router = APIRouter(include_in_schema=False)


@router.get(PATH)
async def conversations(
    request: Request,
    database: Database,
    asking: Asking,
    agent_id: Chosen = "",
    search: Chosen = "",
    empty: bool = False,
    before: Annotated[str, Query(max_length=100)] = "",
) -> Response:
    """One page of the conversations that the sender may see."""
    given = {"search": search, "agent_id": agent_id}
    chosen: dict[str, Any] = {name: value.replace("\0", "").strip() for name, value in given.items()}
    chosen["empty"] = "true" if empty else ""
    conditions = chat_sessions.ChatFilter(agent_id=chosen["agent_id"] or None).conditions()
    if chosen["search"]:
        conditions.append(await chat_sessions.search(database, chosen["search"], asking))
    conditions += asking.sees(chat_table)
    rows = await queries.page(database, conditions, ROWS + 1, _place(before), empty=empty)
    more, rows = len(rows) > ROWS, rows[:ROWS]
    last = f"{rows[-1]['at'].isoformat()}~{rows[-1]['id']}" if more else None
    return render(
        "conversations.html",
        rows=rows,
        chosen=chosen,
        here=address(PATH, chosen, before=before),
        newest=address(PATH, chosen) if before else None,
        older=address(PATH, chosen, before=last) if last else None,
        may_delete=request.scope["principal"].may("delete"),
        who=request.scope["principal"].name,
    )


def _place(text: str) -> tuple[datetime, uuid.UUID] | None:
    """Reads where a page begins, as a link of the page before it says. Raises UsageError."""
    if not text:
        return None
    at, _, session_id = text.partition("~")
    place: tuple[datetime, uuid.UUID] | None
    try:
        place = datetime.fromisoformat(at), uuid.UUID(session_id)
    except ValueError:
        place = None
    if place is None or place[0].tzinfo is None or not 1970 <= place[0].year <= 2200:
        raise UsageError("before: is no place where a page begins; go to /conversations", code="invalid")
    return place


@router.get(f"{PATH}/{{id}}/delete")
async def ask_to_delete(request: Request, database: Database, asking: Asking, id: ChatId, next: str = PATH) -> Response:
    """Shows the conversation's facts, and asks."""
    may_delete(request)
    row = await chat_sessions.find(database, id, asking)
    return render("delete_conversation.html", row=row, next=local(next, PATH), who=request.scope["principal"].name)


@router.post(f"{PATH}/{{id}}/delete")
async def delete(database: Database, asking: Asking, id: ChatId, next: Annotated[str, Form()] = PATH) -> Response:
    """Deletes it with its messages, for good."""
    await chat_sessions.remove(database, id, asking)
    return RedirectResponse(local(next, PATH), 303)
