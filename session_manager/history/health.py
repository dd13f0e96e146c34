"""The state of aria-api: its version, its database, and what the token may do. Nothing is changed there."""

from __future__ import annotations

import msgspec

from session_manager.history.connection import Answer, Connection, Unavailable
from session_manager.history.rows import PATH

_BASE = "/api"
# What ``service.api.health`` says in the header X-Service.
_SERVICE = "aria-api"


class _Info(msgspec.Struct):
    version: str | None = None


class _Description(msgspec.Struct):
    info: _Info


class _Problem(msgspec.Struct):
    error: str


class Health(msgspec.Struct, frozen=True):
    """``version`` None: it does not say. ``database`` and ``token`` say in a sentence what is wrong, or are None.

    ``ready`` None: it does not say whether its database is in order; ``may_read`` and ``may_write`` None: it does
    not say.
    """

    version: str | None
    ready: bool | None
    database: str | None
    may_read: bool | None
    may_write: bool | None
    token: str | None


def prove(connection: Connection) -> None:
    """Asks who answers, with neither a token nor a session's name. Raises Unavailable unless it says: aria-api."""
    answer = connection.look(f"{connection.url.removesuffix(_BASE)}/healthz")
    if answer.status != 200 or answer.service != _SERVICE:
        raise connection.give_up(
            f"the server at {connection.url} does not identify itself as aria-api: set ARIA_API_URL if it is"
        )


def read_health(connection: Connection) -> Health:
    """Asks aria-api for its state. Raises Unavailable when it cannot be reached, or is not aria-api."""
    root = connection.url.removesuffix(_BASE)
    ready, database = _database(connection.look(f"{root}/readyz"))
    if ready is False:
        # Whatever else it is asked may wait for its database, too: who may ask is written there.
        return Health(None, ready, database, None, None, None)
    rows = connection.look(f"{connection.url}{PATH}?limit=1")
    may_read = _allowed(rows)
    if rows.status == 200:
        if not isinstance(connection.json(rows), dict | list):
            raise connection.unexpected()
    elif may_read:
        raise connection.give_up(f"aria-api answered {rows.status} at GET {connection.url}{PATH}: check ARIA_API_URL")
    version = _version(connection, root)
    may_write = _may_write(connection) if may_read else None
    return Health(version, ready, database, may_read, may_write, _token(rows, may_write))


def _may_write(connection: Connection) -> bool | None:
    # A mark that names neither a status nor a session is no mark: it is refused, for the token or for what it lacks.
    try:
        return _allowed(connection.look(f"{connection.url}{PATH}", "PATCH", {}))
    except Unavailable:
        return None


def _allowed(answer: Answer) -> bool | None:
    """Says what an answer says of the token; None when it says nothing of it."""
    if answer.status in (401, 403):
        return False
    return None if answer.status >= 500 else True


def _token(rows: Answer, may_write: bool | None) -> str | None:
    if rows.status == 401:
        return "aria-api refuses the token (401)"
    if rows.status == 403:
        # It may be the token, or the name that the service was asked by.
        return _said(rows, "the token lacks the right to read history (403)")
    return "the token lacks the right to change history (403)" if may_write is False else None


def _database(answer: Answer) -> tuple[bool | None, str | None]:
    if answer.status == 200:
        return True, None
    if answer.status != 503:
        return None, None
    return False, _said(answer, "aria-api is not ready (503)")


def _said(answer: Answer, otherwise: str) -> str:
    """Returns the sentence in which aria-api itself says what is wrong."""
    try:
        return msgspec.json.decode(answer.body, type=_Problem).error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return otherwise


def _version(connection: Connection, root: str) -> str | None:
    try:
        answer = connection.look(f"{root}/openapi.json")
        return msgspec.json.decode(answer.body, type=_Description).info.version if answer.status == 200 else None
    except (Unavailable, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
