"""Reads the state of aria-api: its version, its database, and the token's permissions. Changes nothing there."""

from __future__ import annotations

import msgspec

from session_manager.history.connection import Answer, Connection, Unavailable
from session_manager.history.rows import PATH

_BASE = "/api"
# The header X-Service as ``service.api.health`` sends it.
_SERVICE = "aria-api"


class _Info(msgspec.Struct):
    version: str | None = None


class _Description(msgspec.Struct):
    info: _Info


class _Problem(msgspec.Struct):
    error: str


class Health(msgspec.Struct, frozen=True):
    """The state of aria-api. ``database`` and ``token`` are sentences about a problem with these, or None.

    Not reported by the service: ``version`` None; ``ready`` None (is the database in order); ``may_read`` and
    ``may_write`` None.
    """

    version: str | None
    ready: bool | None
    database: str | None
    may_read: bool | None
    may_write: bool | None
    token: str | None


def prove(connection: Connection) -> None:
    """Asks the service for its name, sending no token and no session. Raises Unavailable unless it is aria-api."""
    answer = connection.look(f"{connection.url.removesuffix(_BASE)}/healthz")
    if answer.status != 200 or answer.headers.get("x-service") != _SERVICE:
        raise connection.give_up(
            f"the server at {connection.url} does not identify itself as aria-api: set ARIA_API_URL if it is"
        )


def read_health(connection: Connection) -> Health:
    """Asks aria-api for its state. Raises Unavailable if it cannot be reached, or is not aria-api."""
    root = connection.url.removesuffix(_BASE)
    ready, database = _database(connection.look(f"{root}/readyz"))
    if ready is False:
        # Whatever else it is asked may wait for its database, too: who may ask is written there.
        return Health(None, ready, database, None, None, None)
    rows = connection.look(f"{connection.url}{PATH}?limit=1")
    may_read = _allowed(rows)
    if rows.status == 200:
        if not isinstance(connection.json(rows, object), dict | list):
            raise connection.unexpected()
    elif may_read:
        raise connection.give_up(f"aria-api answered {rows.status} at GET {connection.url}{PATH}: check ARIA_API_URL")
    version = _version(connection, root)
    may_write = _may_write(connection) if may_read else None
    return Health(version, ready, database, may_read, may_write, _token(rows, may_write))


def _may_write(connection: Connection) -> bool | None:
    # A mark without status and session is always refused: because of the token, or because of the missing fields.
    try:
        return _allowed(connection.look(f"{connection.url}{PATH}", "PATCH", {}))
    except Unavailable:
        return None


def _allowed(answer: Answer) -> bool | None:
    """Returns False if an answer refuses the token, True if it accepts it, None if it does not tell."""
    if answer.status in (401, 403):
        return False
    return None if answer.status >= 500 else True


def _token(rows: Answer, may_write: bool | None) -> str | None:
    if rows.status == 401:
        return "aria-api refuses the token (401)"
    if rows.status == 403:
        # The reason may be the token, or the host name in the request.
        return _said(rows, "the token lacks the right to read history (403)")
    return "the token lacks the right to change history (403)" if may_write is False else None


def _database(answer: Answer) -> tuple[bool | None, str | None]:
    if answer.status == 200:
        return True, None
    if answer.status != 503:
        return None, None
    return False, _said(answer, "aria-api is not ready (503)")


def _said(answer: Answer, otherwise: str) -> str:
    """Returns aria-api's own sentence about the error, or ``otherwise``."""
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
