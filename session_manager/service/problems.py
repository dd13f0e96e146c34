"""Every failure as ``{"error", "code"}`` with its HTTP status; for a browser that asked for a page, as a page."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from session_manager.core.errors import SessionManagerError
from session_manager.service.db.engine import is_unreachable, server_message
from session_manager.service.render import render

_log = logging.getLogger(__name__)
_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 415: "bad_media_type"}
_METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
RETRY_AFTER_S = 2
LIMIT = 20
# Replacements for messages that speak of pydantic's internals, by pydantic's error type.
_WORDS = {
    "extra_forbidden": "there is no such field",
    "missing": "is missing",
    "model_attributes_type": "must be a JSON object, sent with Content-Type: application/json",
    "model_type": "must be a JSON object",
    "string_unicode": "must not contain half a character (a lone surrogate)",
}
UNREACHABLE = {
    "error": "the database does not answer; try again in a moment",
    "code": "database_unavailable",
}
INTERNAL = {"error": "internal error; the service's log says more", "code": "internal_error"}


class BadId(SessionManagerError):
    """An id in a path that cannot be one."""

    http_status = 400
    default_code = "bad_id"


class Forbidden(SessionManagerError):
    """The sender is known, but not authorized."""

    http_status = 403
    default_code = "forbidden"


class Unavailable(SessionManagerError):
    """The service cannot answer now; ``Retry-After`` says when to retry."""

    http_status = 503
    default_code = "database_unavailable"


def document(error: Exception) -> dict[str, Any]:
    """Returns ``{"error", "code", ...}``; a database's or an unexpected error is logged, and its text withheld."""
    if isinstance(error, SessionManagerError):
        return error.document()
    if not isinstance(error, SQLAlchemyError):
        _log.error("internal error: %s", type(error).__name__, exc_info=error)
    elif is_unreachable(error):
        _log.warning("the database does not answer: %s", server_message(error))
        return UNREACHABLE
    else:
        _log.error("internal error: %s: %s", type(error).__name__, server_message(error))
    return INTERNAL


def found(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns the first of pydantic's errors as ``{"field", "error"}``; a field's path starts with its container.

    An error of the whole body is in the field ``body``.
    """
    return [{"field": _field(error["loc"]), "error": _sentence(error)} for error in errors[:LIMIT]]


def _field(location: Sequence[object]) -> str:
    parts = [str(part) for part in location[1:]]
    return ".".join(parts) if parts and not parts[0].isdigit() else str(location[0])


def _sentence(error: Mapping[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"not readable as JSON ({error['ctx']['error']})"
    return _WORDS.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")


def problem(
    scope: Scope, status: int, error: str, code: str, headers: dict[str, str] | None = None, **details: Any
) -> Response:
    """Returns a problem in the client's format: JSON, or a page for a browser that asked for one."""
    answer: Response
    if "text/html" not in Headers(scope=scope).get("accept", "") or scope["path"].startswith("/api/"):
        answer = JSONResponse({"error": error, "code": code, **details}, status)
    else:
        answer = render("problem.html", status, error=error, login=status == 401)
    if status == 503:
        answer.headers["Retry-After"] = str(RETRY_AFTER_S)
    answer.headers.update(headers or {})
    return answer


def install(app: FastAPI) -> None:
    """Makes the app answer every failure with a problem."""
    app.add_exception_handler(SessionManagerError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(SQLAlchemyError, _database)
    app.add_exception_handler(Exception, _internal)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, SessionManagerError)
    return problem(request.scope, error.http_status, error.message, error.code, **error.details)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _refused(request, found(error.errors()))


def _refused(request: Request, fields: list[dict[str, str]]) -> Response:
    first = fields[0]
    sentence = f"{first['field']}: {first['error']}"
    return problem(request.scope, 422, sentence, "invalid", field=first["field"], fields=fields)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:
        # FastAPI's answer to a body that no JSON parser accepts (depth, digits, encoding).
        return _refused(request, [{"field": "body", "error": "not readable as JSON"}])
    code = _CODES.get(error.status_code, "http_error")
    sentence = {
        404: "there is nothing at this address; /docs lists all addresses",
        405: f"{request.method} is not allowed here; /docs lists what is",
    }.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed(request))
    return problem(request.scope, error.status_code, sentence, code, headers)


def _allowed(request: Request) -> list[str]:
    """Returns the methods of an address; the router reports those of a single route only.

    To the router an address such as ``stats`` may also be an ``{id}``, whose methods are not its own.
    """
    routes = request.app.router.routes
    own = request.app.openapi()["paths"].get(request.scope["path"])
    methods = [method for method in _METHODS if own is None or method.lower() in own]
    asked = ({**request.scope, "method": method} for method in methods)
    found = [s["method"] for s in asked if any(route.matches(s)[0] is Match.FULL for route in routes)]
    return sorted([*found, "HEAD"]) if "GET" in found else found


async def _database(request: Request, error: Exception) -> Response:
    told = document(error)
    return problem(request.scope, 503 if told is UNREACHABLE else 500, told["error"], told["code"])


async def _internal(request: Request, error: Exception) -> Response:
    # It goes on to the server, which logs its traceback.
    return problem(request.scope, 500, INTERNAL["error"], INTERNAL["code"])
