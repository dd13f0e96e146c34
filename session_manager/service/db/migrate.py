"""Upgrades a database's schema to this version's, once, however many replicas start at the same time."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool

from session_manager.core.errors import Failed, Refused
from session_manager.service.db.engine import CONNECT_ARGUMENTS, MIGRATIONS, make_engine, server_message

OLDEST_POSTGRESQL = 150000
# Alembic's usual name may belong to the older service that shares the database.
VERSION_TABLE = "session_manager_version"
_WAIT_S = 15.0
_POLL_S = 0.5

Done = TypeVar("Done")


@functools.cache
def head() -> str:
    """Returns the schema revision that this version of the service uses."""
    revision = ScriptDirectory.from_config(_alembic()).get_current_head()
    assert revision is not None
    return revision


@functools.cache
def revisions() -> frozenset[str]:
    """Returns all revisions that this version of the service knows."""
    return frozenset(script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions())


def migrate(url: str, wait_s: float = _WAIT_S) -> str:
    """Migrates the database at an SQLAlchemy URL and returns its revision.

    A server that does not answer yet is given ``wait_s`` seconds. Raises Failed (``database_unavailable``,
    ``migration_failed``) or Refused (``database_version`` for a PostgreSQL older than 15, ``database_encoding``
    when it is not UTF-8, ``schema_newer`` when a newer version of the service has migrated it).
    """
    engine = _engine(url)
    deadline = time.monotonic() + wait_s
    try:
        while True:
            try:
                connection = engine.connect()
                break
            except OperationalError as error:
                if not _may_pass(error) or time.monotonic() > deadline:
                    raise Failed(
                        f"the database cannot be reached: {server_message(error)}; check DATABASE_URL",
                        code="database_unavailable",
                    ) from error
                time.sleep(_POLL_S)
        with connection, connection.begin():
            _upgrade(connection)
    except SQLAlchemyError as error:
        raise Failed(f"the migration failed: {server_message(error)}", code="migration_failed") from error
    finally:
        engine.dispose()
    return head()


@contextlib.contextmanager
def transaction(url: str) -> Iterator[Connection]:
    """Yields one connection to the database at ``url`` for a tool, in one transaction.

    Raises Failed (``database_unavailable``).
    """
    engine = _engine(url)
    try:
        with engine.begin() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise Failed(f"the database failed: {server_message(error)}", code="database_unavailable") from error
    finally:
        engine.dispose()


def on_engine(url: str, work: Callable[[AsyncEngine], Coroutine[Any, Any, Done]]) -> Done:
    """Runs a tool's work, which has transactions of its own, on an engine, and returns the result.

    Raises Failed (``database_unavailable``).
    """

    async def main() -> Done:
        engine = make_engine(url, pool_size=1)
        try:
            return await work(engine)
        finally:
            await engine.dispose()

    try:
        return asyncio.run(main())
    except SQLAlchemyError as error:
        raise Failed(f"the database failed: {server_message(error)}", code="database_unavailable") from error


def _engine(url: str) -> Engine:
    return create_engine(url, poolclass=NullPool, connect_args=CONNECT_ARGUMENTS, hide_parameters=True)


def _upgrade(connection: Connection) -> None:
    version = int(connection.scalar(text("SELECT current_setting('server_version_num')::int")) or 0)
    if version < OLDEST_POSTGRESQL:
        raise Refused(
            f"PostgreSQL {version // 10000} is too old; aria-api needs PostgreSQL 15 or newer",
            code="database_version",
        )
    encoding = connection.scalar(text("SELECT current_setting('server_encoding')"))
    if encoding != "UTF8":
        raise Refused(
            f"the database's encoding is {encoding}; aria-api needs one that was created with ENCODING 'UTF8'",
            code="database_encoding",
        )
    # Released with the transaction, so it also works behind a pooler that shares connections between transactions.
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATIONS})
    config = _alembic()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise Refused(
            f"a newer version of the service has migrated this database ({error}); update this service",
            code="schema_newer",
        ) from error


def _may_pass(error: DBAPIError) -> bool:
    """Returns whether waiting can help: for a server that is starting or absent, not for a wrong password."""
    message = server_message(error).lower()
    return not any(sign in message for sign in ("authentication failed", "does not exist", "no password", "pg_hba"))


def _alembic() -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", os.path.join(os.path.dirname(__file__), "migrations").replace("%", "%%"))
    return config
