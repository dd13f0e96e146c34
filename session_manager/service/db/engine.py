"""The engine: one connection pool per process, created when the service starts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

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
async def snapshot(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Yields a connection in a read transaction: all its statements see the same snapshot."""
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        async with connection.begin():
            yield connection


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
