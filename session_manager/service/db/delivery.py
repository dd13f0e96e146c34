"""Delivers a ledger's marks to history, with the queries of the bulk requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from session_manager.ledger.delivery import Heard, Name, Status
from session_manager.service.db import sessions as queries
from session_manager.service.db.engine import server_message
from session_manager.service.db.locks import LIMITS

BATCH = 10_000
_STATUSES: tuple[Status, ...] = ("active", "ended", "erased")


async def mark(engine: AsyncEngine, marks: Mapping[Name, Status], heard: Heard) -> None:
    """Records committed marks in ``heard``, one transaction per batch. Raises the database's errors."""
    for status in _STATUSES:
        names = [name for name, told in marks.items() if told == status]
        for start in range(0, len(names), BATCH):
            some = names[start : start + BATCH]
            try:
                async with engine.begin() as connection:
                    heard.reached = True
                    await connection.execute(LIMITS)
                    missing = await _change(connection, status, some)
            except SQLAlchemyError as error:
                heard.error = server_message(error)
                raise
            heard.missing |= missing
            heard.delivered |= set(some) - missing


async def _change(connection: AsyncConnection, status: Status, names: Sequence[Name]) -> set[Name]:
    """Returns the sessions that have no row."""
    if status != "erased":
        _, missing = await queries.mark_many(connection, status, names)
        return set(missing)
    # As over HTTP: only rows that could be ended are erased.
    absent = await _change(connection, "ended", names)
    found = [name for name in names if name not in absent]
    _, missing = await queries.erase_many(connection, found)
    return absent | set(missing)
