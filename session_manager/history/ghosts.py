"""Lists and deletes the conversations without a message that aria-api itself holds."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from session_manager.history.connection import Answer, Connection

PATH = "/engine/sessions/ghosts"

Document = TypeVar("Document", bound=msgspec.Struct)


class Ghost(msgspec.Struct, frozen=True):
    """One conversation without a message; ``created_at`` is ISO 8601."""

    id: str
    agent_id: str
    created_at: str
    user_id: str | None = None
    org_id: str | None = None


class Ghosts(msgspec.Struct, frozen=True):
    """The number of ghosts found or deleted, and the first of them."""

    total: int
    sessions: list[Ghost] = []


class _Deleted(msgspec.Struct):
    deleted: int


def list_ghosts(connection: Connection, older_than_minutes: int, most: int) -> Ghosts:
    """Returns the number that a deletion would delete, and up to ``most`` (at most 200) of them, oldest first.

    Raises Unavailable.
    """
    query = {"older_than_minutes": older_than_minutes, "limit": most}
    return _read(connection, connection.request("GET", PATH, query), Ghosts)


def delete_ghosts(connection: Connection, older_than_minutes: int) -> Ghosts:
    """Deletes the ghosts, regardless of their time to live. Raises Unavailable."""
    answer = connection.request("DELETE", PATH, {"older_than_minutes": older_than_minutes})
    return Ghosts(_read(connection, answer, _Deleted).deleted)


def _read(connection: Connection, answer: Answer, kind: type[Document]) -> Document:
    if answer.status in (404, 405, 501):
        raise connection.give_up(f"aria-api at {connection.url} is an older version without conversations")
    if answer.status in (400, 422):
        raise connection.give_up(f"aria-api rejects this older_than_minutes ({answer.status}): use a smaller value")
    if answer.status != 200:
        raise connection.give_up(f"aria-api answered {answer.status} at {connection.url}{PATH}: check ARIA_API_URL")
    return connection.json(answer, kind)
