"""/sessions: the dashboard of history, the jobs and the ledger."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Form, Query, Request
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import RedirectResponse, Response

from session_manager.core.errors import NotFound
from session_manager.service.api.common import Database, RowId
from session_manager.service.db import dashboard as queries
from session_manager.service.db import sessions as history
from session_manager.service.db.tables import STATUSES
from session_manager.service.jobs.loop import Runner
from session_manager.service.pages.charts import Chart, Share, by_name, over_time
from session_manager.service.pages.ledger import read_ledger
from session_manager.service.problems import Forbidden
from session_manager.service.render import address, is_part, local, own_file, part, render

ROWS = 50
# Results that read more than a page of rows are cached for this long.
DRAWN_AGE_S = 10.0
PATH = "/sessions"
# For each choice: the number of bars, and their unit.
_SPANS: dict[str, tuple[int, Literal["hour", "day"], str]] = {
    "24h": (24, "hour", "24 hours"),
    "7d": (168, "hour", "7 days"),
    "30d": (30, "day", "30 days"),
}

Span = Literal["24h", "7d", "30d"]
Chosen = Annotated[str, Query(max_length=queries.LONGEST)]
# A position is a row's number, a bigint.
PlaceIn = Annotated[int | None, Query(ge=-(2**63), lt=2**63)]

router = APIRouter(include_in_schema=False)


class Drawn(msgspec.Struct, frozen=True):
    """The data of the charts over all sessions, and their time ``at`` by this process's clock."""

    at: float
    chart: Chart
    agents: list[Share]
    types: list[Share]


@router.get(PATH)
async def dashboard(
    request: Request,
    database: Database,
    status: Chosen = "",
    agent_id: Chosen = "",
    session_type: Chosen = "",
    search: Chosen = "",
    span: Span = "24h",
    before: PlaceIn = None,
    after: PlaceIn = None,
) -> Response:
    """One page of history, newest first; a script that asks for that part alone gets it alone."""
    # A form also sends empty fields; no row can contain NUL.
    given = {"search": search, "status": status, "agent_id": agent_id, "session_type": session_type}
    chosen = {name: value.replace("\0", "").strip() for name, value in given.items()}
    chosen["span"] = "" if span == "24h" else span
    values = await _history(database, chosen, before, after)
    values |= {"chosen": chosen, "span": span, "who": request.scope["principal"].name}
    values["may_delete"] = request.scope["principal"].may("delete")
    values["spans"] = [(name, words, address(PATH, chosen, span=name)) for name, (_, _, words) in _SPANS.items()]
    if is_part(request):
        return part("history.html", **values)
    agents, types = await queries.names(database)
    statuses = (*STATUSES, queries.STALE)
    runner: Runner = request.app.state.jobs
    live = request.app.state.config.live
    return render(
        "sessions.html",
        scripts=True,
        **values,
        statuses=statuses,
        agents=agents,
        many=[words for words, found in (("agents", agents), ("types", types)) if len(found) == queries.NAMED],
        named=queries.NAMED,
        types=types,
        clear=address(PATH, {"span": chosen["span"]}),
        totals=await queries.totals(database, request.scope["principal"].viewer),
        stale_minutes=queries.STALE_MINUTES,
        links={name: address(PATH, {"status": name}) for name in statuses},
        drawn=await _drawn(request, database, span),
        # None when this service has no volume.
        ledger=None if live is None else await asyncio.to_thread(read_ledger, live),
        jobs=list(zip(runner.jobs, await runner.runs(database, runner.jobs), strict=True)),
    )


@router.get("/sessions.js")
async def script() -> Response:
    """What htmx leaves to the page: to say that something went wrong."""
    return own_file("sessions.js", "no-cache")


async def _history(
    database: AsyncConnection, chosen: dict[str, str], before: int | None, after: int | None
) -> dict[str, Any]:
    filters = ("status", "agent_id", "session_type", "search")
    wanted = queries.Wanted(**{name: chosen[name] or None for name in filters})
    page = await queries.page(database, wanted, ROWS, before=before, after=after)
    first = before is None and after is None
    counted, cut = (len(page.rows), False) if page.named else (None, False)
    if first and page.rows and not page.named:
        counted, cut = await queries.count(database, wanted)
    return {
        "page": page,
        "counted": counted,
        "cut": cut,
        "most": queries.MOST,
        "scan": queries.SCAN,
        "here": address(PATH, chosen, before=before, after=after),
        "newest": None if first else address(PATH, chosen),
        "newer": None if page.newer is None else address(PATH, chosen, after=page.newer),
        "older": None if page.older is None else address(PATH, chosen, before=page.older),
        "forward": after is not None,
    }


async def _drawn(request: Request, database: AsyncConnection, span: Span) -> Drawn:
    known: dict[str, Drawn] = request.app.state.drawn
    # Of many concurrent requests, one counts, and the others wait for it.
    async with request.app.state.drawing:
        found = known.get(span)
        if found is None or time.monotonic() - found.at > DRAWN_AGE_S:
            bars, unit, _ = _SPANS[span]
            counted = await queries.counts(database, bars, unit)
            found = Drawn(
                time.monotonic(), over_time(counted.by_time, unit), by_name(counted.by_agent), by_name(counted.by_type)
            )
            known[span] = found
        return found


def may_delete(request: Request) -> None:
    """Raises Forbidden unless the sender may delete."""
    if not request.scope["principal"].may("delete"):
        raise Forbidden("this token may not do that; it lacks the scope 'delete'")


@router.get(f"{PATH}/{{id}}/end")
async def ask_to_end(request: Request, database: Database, id: RowId, next: str = PATH) -> Response:
    """Shows the row, and asks."""
    may_delete(request)
    row = await queries.row(database, id)
    if row is None:
        raise NotFound(f"history has no row {id}")
    return render("end_session.html", row=row, next=local(next), who=request.scope["principal"].name)


@router.post(f"{PATH}/{{id}}/end")
async def end(database: Database, id: RowId, next: Annotated[str, Form()] = PATH) -> Response:
    """Marks an active row ended; any other does not change."""
    row = await queries.row(database, id, hold=True)
    if row is None:
        raise NotFound(f"history has no row {id}")
    if row["status"] == "active":
        await history.change(database, id, {"status": "ended"})
    return RedirectResponse(local(next), 303)
