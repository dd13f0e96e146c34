"""The engine: one connection pool per process, created when the service starts; its transactions and their locks.

All advisory locks are held for one transaction only. Every transaction that inserts sessions or marks many takes
WRITERS: rows become visible in the order of their ``seq``, which keeps pages stable, and two writers of many rows
cannot deadlock.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from sqlalchemy import Executable, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from session_manager.service.db.values import adapters

# Prepared statements belong to a server connection, and a pooler in transaction mode hands out another each time.
CONNECT_ARGUMENTS: dict[str, Any] = {
    "prepare_threshold": None,
    "connect_timeout": 5,
    "application_name": "aria-api",
    "client_encoding": "UTF8",
    "context": adapters(),
}
# One stuck holder must not block all others: a request gives up, and says when to retry.
LIMITS = text("""
    SELECT set_config('lock_timeout', '10s', true), set_config('statement_timeout', '120s', true),
           set_config('idle_in_transaction_session_timeout', '300s', true)
""")
MIGRATIONS: Final = 0x5E55_0001
SYNC: Final = 0x5E55_0002
WRITERS: Final = 0x5E55_0003
# The first part of two-part keys; the second one is the job.
JOBS: Final = 0x5E55_0004

Row = dict[str, Any]


def make_engine(url: str, pool_size: int = 10) -> AsyncEngine:
    """Returns an engine for an SQLAlchemy URL. It connects when it is first used; errors never show parameters."""
    return create_async_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_timeout=10,
        pool_pre_ping=True,
        pool_recycle=1800,
        hide_parameters=True,
        # After waiting for a lock, a statement must see the changes that its holder committed.
        isolation_level="READ COMMITTED",
        connect_args=CONNECT_ARGUMENTS,
    )


@contextlib.asynccontextmanager
async def limited(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yields a connection in one transaction with LIMITS."""
    async with engine.begin() as connection:
        await connection.execute(LIMITS)
        yield connection


@contextlib.asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yields a connection in a read transaction with LIMITS: all its statements see the same snapshot."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        async with connection.begin():
            await connection.execute(LIMITS)
            yield connection


async def all_rows(connection: AsyncConnection, query: Executable) -> list[Row]:
    """Returns a query's rows as dicts, by column."""
    return [dict(row) for row in (await connection.execute(query)).mappings()]


async def first_row(connection: AsyncConnection, query: Executable) -> Row | None:
    """Returns a query's first row as a dict, by column; None when there is none."""
    row = (await connection.execute(query)).mappings().first()
    return None if row is None else dict(row)


def server_message(error: SQLAlchemyError) -> str:
    """Returns the first line of an error of PostgreSQL or its driver, without the statement and its values."""
    origin = getattr(error, "orig", None) or error
    diagnosis = getattr(origin, "diag", None)
    primary = getattr(diagnosis, "message_primary", None)
    return str(primary or origin).strip().splitlines()[0]


def has_cut_off(error: SQLAlchemyError) -> bool:
    """Returns whether an error has ended a connection: its last statement, perhaps a commit, may have succeeded."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def is_unreachable(error: SQLAlchemyError) -> bool:
    """Returns whether an error means that the database is temporarily unavailable."""
    return isinstance(error, OperationalError | InterfaceError | PoolTimeout) or has_cut_off(error)
