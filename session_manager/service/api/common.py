"""What the routes share: answers for the OpenAPI document, a request's transaction, its sender, and ids in paths."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.exceptions import HTTPException

from session_manager.service.api.schemas import Name, Problem
from session_manager.service.db.engine import limited, snapshot
from session_manager.service.db.ownership import Viewer
from session_manager.service.guard import SAFE_METHODS
from session_manager.service.problems import BadId

Responses = dict[int | str, dict[str, Any]]

WHO: Responses = {
    401: {"model": Problem, "description": "no valid token"},
    403: {"model": Problem, "description": "not allowed"},
}
BUSY: Responses = {
    503: {"model": Problem, "description": "the database does not answer; `Retry-After` says when to ask again"}
}
INVALID: Responses = {422: {"model": Problem, "description": "a field is wrong; `field` names it"}}
LARGE: Responses = {413: {"model": Problem, "description": "the body is too large"}}
BY_ID: Responses = {
    400: {"model": Problem, "description": "the id is not a UUID"},
    404: {"model": Problem, "description": "there is no such row"},
}


async def transaction(request: Request) -> AsyncIterator[AsyncConnection]:
    """Yields one connection in one transaction for a request, committed when its answer is ready.

    A read-only request reads one snapshot. The functions in ``request.state.then`` are called afterwards, unless the
    request has failed.
    """
    then: list[Callable[[], None]] = []
    request.state.then = then
    engine: AsyncEngine = request.app.state.engine
    async with snapshot(engine) if request.method in SAFE_METHODS else limited(engine) as connection:
        yield connection
    for each in then:
        each()


def viewer(request: Request) -> Viewer:
    """Returns the viewer that stands for the sender."""
    found: Viewer = request.scope["principal"].viewer
    return found


def _read_as(thing: str, listing: str) -> Any:
    """Returns the dependency that reads the id of a ``thing``; ``listing`` says where ids are listed.

    It raises BadId, and HTTPException (405) for a word that has a route of its own, such as ``stats``.
    """

    def read(request: Request, id: PathId) -> uuid.UUID:
        try:
            return uuid.UUID(id)
        except ValueError:
            if request.scope["path"] in request.app.openapi()["paths"]:
                raise HTTPException(405) from None
            raise BadId(f"{id[:64]!r} is not the id of {thing}; ids are UUIDs, as {listing} lists them") from None

    return Depends(read)


Database = Annotated[AsyncConnection, Depends(transaction, scope="function")]
Asking = Annotated[Viewer, Depends(viewer)]
PathId = Annotated[str, Path(description="a UUID", json_schema_extra={"format": "uuid"})]
RowId = Annotated[uuid.UUID, _read_as("a row", "GET /api/sessions")]
ChatId = Annotated[uuid.UUID, _read_as("a chat session", "GET /api/engine/sessions")]
AgentId = Annotated[Name | None, Query(description="of this agent only")]
SessionType = Annotated[Name | None, Query(description="of this type only")]
