"""A failure as the data of an ``error`` event, in the words of an HTTP answer."""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from session_manager.core.errors import SessionManagerError
from session_manager.service.db.engine import is_unreachable, server_message

_log = logging.getLogger(__name__)


def document(error: Exception) -> dict[str, Any]:
    """Returns ``{"error", "code", ...}``; an unexpected error is logged, and its text withheld."""
    if isinstance(error, SessionManagerError):
        return error.document()
    if not isinstance(error, SQLAlchemyError):
        _log.error("internal error: %s", type(error).__name__, exc_info=error)
    elif is_unreachable(error):
        _log.warning("the database does not answer: %s", server_message(error))
        return {"error": "the database does not answer; try again in a moment", "code": "database_unavailable"}
    else:
        _log.error("internal error: %s: %s", type(error).__name__, server_message(error))
    return {"error": "internal error; the service's log says more", "code": "internal_error"}
