"""Ids in paths: UUIDs, parsed here so that anything else gets a specific error."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import Path, Request
from starlette.exceptions import HTTPException

from session_manager.service.problems import BadId

PathId = Annotated[str, Path(description="a UUID", json_schema_extra={"format": "uuid"})]


def uuid_in(request: Request, id: str, thing: str, listing: str) -> uuid.UUID:
    """Returns the id of a ``thing``; ``listing`` says where ids are listed.

    Raises BadId, and HTTPException (405) for a word that has a route of its own, such as ``stats``.
    """
    try:
        return uuid.UUID(id)
    except ValueError:
        if request.scope["path"] in request.app.openapi()["paths"]:
            raise HTTPException(405) from None
        raise BadId(f"{id[:64]!r} is not the id of {thing}; ids are UUIDs, as {listing} lists them") from None
