"""Conversations in a database: made over HTTP or in SQL, aged in SQL, worked on by the service's own functions."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from service import Databases, Service
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from session_manager.service.db.engine import make_engine

BASE = "/api/engine/sessions"
ENCRYPTED = {
    "ephemeral_public_key": "02" + "aB" * 32,
    "iv": "00" * 12,
    "ciphertext": "C0ffee" * 20,
    "auth_tag": "11" * 16,
    "hkdf_salt": "22" * 32,
}


def create(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    """Makes a session before its first message."""
    answer = client.post(BASE, json=fields)
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


def say(client: httpx.Client, session_id: str, content: str = "hello", **fields: Any) -> dict[str, Any]:
    """Adds a message."""
    answer = client.post(f"{BASE}/{session_id}/messages", json={"content": content, **fields})
    assert answer.status_code == 201, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


def listed(client: httpx.Client, **query: Any) -> list[str]:
    """The ids of a list, in its order."""
    answer = client.get(BASE, params=query)
    assert answer.status_code == 200, answer.text
    return [session["id"] for session in answer.json()["sessions"]]


class Chats:
    """A database with conversations."""

    def __init__(self, server: Databases, url: str) -> None:
        self.url = url
        self._server = server

    @classmethod
    def of(cls, server: Databases, service: Service) -> Chats:
        """The database of a service, with no conversation in it."""
        assert service.database_url is not None
        found = cls(server, service.database_url)
        found.clear()
        return found

    def execute(self, statement: str, *values: object) -> list[Any]:
        with self._server.connect(self.url) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def clear(self) -> None:
        tables = "chat_sessions, chat_messages, chat_sessions_archive, chat_messages_archive, chat_sessions_deleted"
        self.execute(f"TRUNCATE {tables}")

    def age(self, session_id: str, minutes: float) -> None:
        """Makes a session older, with all that happened in it."""
        self.execute(
            "UPDATE chat_sessions SET created_at = created_at - make_interval(secs => %s),"
            " updated_at = updated_at - make_interval(secs => %s),"
            " last_message_at = last_message_at - make_interval(secs => %s) WHERE id = %s",
            *[minutes * 60] * 3,
            session_id,
        )

    def empty(self, n: int = 1, minutes: float = 60, metadata: str = "{}") -> list[str]:
        """Makes empty sessions of an age as other programs do, in SQL."""
        rows = self.execute(
            "INSERT INTO chat_sessions (created_at, updated_at, metadata)"
            " SELECT now() - make_interval(secs => %s), now(), %s::jsonb FROM generate_series(1, %s)"
            " RETURNING id::text",
            minutes * 60,
            metadata,
            n,
        )
        return [row[0] for row in rows]

    def ids(self, table: str = "chat_sessions") -> set[str]:
        return {row[0] for row in self.execute(f"SELECT id::text FROM {table}")}

    def counts(self) -> tuple[int, int]:
        """How many sessions and messages there are."""
        ((sessions, messages),) = self.execute(
            "SELECT (SELECT count(*) FROM chat_sessions), (SELECT count(*) FROM chat_messages)"
        )
        return sessions, messages

    def check(self) -> None:
        """Fails unless each session's counters are those of its messages."""
        wrong = self.execute(
            "SELECT s.id, s.message_count, count(m.id) FROM chat_sessions s LEFT JOIN chat_messages m"
            " ON m.session_id = s.id GROUP BY s.id HAVING s.message_count <> count(m.id)"
            " OR s.tokens <> coalesce(sum(m.tokens), 0) OR s.last_message_at IS DISTINCT FROM max(m.created_at)"
            " OR coalesce(max(m.position), 0) <> count(m.id)"
        )
        assert wrong == []

    def run(self, work: Callable[[AsyncEngine], Awaitable[Any]], pool_size: int = 10) -> Any:
        """Runs ``work`` on an engine of its own."""

        async def main() -> Any:
            engine = make_engine(self.url, pool_size)
            try:
                return await work(engine)
            finally:
                await engine.dispose()

        return asyncio.run(main())

    def on_connection(self, work: Callable[[AsyncConnection], Awaitable[Any]]) -> Any:
        """Runs ``work`` in one transaction."""

        async def main(engine: AsyncEngine) -> Any:
            async with engine.begin() as connection:
                return await work(connection)

        return self.run(main)


async def until_somebody_waits(engine: AsyncEngine, many: int = 1) -> None:
    """Waits until so many connections to this database wait for a row that another holds."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(30), engine.connect() as connection:
        while (await connection.scalar(query) or 0) < many:
            await connection.rollback()
            await asyncio.sleep(0.02)


def new_id() -> str:
    return str(uuid.uuid4())
