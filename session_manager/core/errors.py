"""One tree of errors; each knows its code, its exit code and its HTTP status."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


def printable(text: str) -> str:
    """Returns text that every encoder accepts: U+FFFD replaces invalid characters, such as bytes of a file's name."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class SessionManagerError(Exception):
    """An error with a sentence for people and a slug for programs.

    ``details`` are extra members of the failure document (JSON values only). Paths in the message or the details may
    not be UTF-8.
    """

    exit_code: ClassVar[int] = 70
    http_status: ClassVar[int] = 500
    default_code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, **details: Any) -> None:
        self.message = printable(message)
        super().__init__(self.message)
        self.code = code or self.default_code
        self.details = details

    def document(self) -> dict[str, Any]:
        """Returns the failure document: ``{"error", "code", ...details}``."""
        return {"error": self.message, "code": self.code, **self.details}


class UsageError(SessionManagerError):
    """The call itself is wrong: argument, setting, function name."""

    exit_code = 2
    http_status = 422
    default_code = "bad_argument"


class Refused(SessionManagerError):
    """The call is understood but refused: protected, busy, unsupported, not writable."""

    exit_code = 4
    http_status = 409
    default_code = "refused"


class NotFound(SessionManagerError):
    """The named object exists in no layer."""

    exit_code = 5
    http_status = 404
    default_code = "session_not_found"


class Locked(SessionManagerError):
    """The lock was not released in time; ``details["holder"]`` describes the holder."""

    exit_code = 6
    http_status = 423
    default_code = "store_locked"


class Damaged(SessionManagerError):
    """A file that the call depends on cannot be read. Nothing was written to it."""

    exit_code = 7
    http_status = 500
    default_code = "index_damaged"


class Failed(SessionManagerError):
    """The machine failed (I/O error, missing package); nothing was half done."""


class Interrupted(SessionManagerError):
    """SIGINT or SIGTERM arrived."""

    exit_code = 130
    default_code = "interrupted"


UNSUPPORTED = "store_unsupported"
INTERRUPTED = "interrupted; the next call finishes or undoes what this one had begun"
PARTIAL_EXIT_CODE = 3


def failure(error: SessionManagerError, agent_id: str | None = None, session_id: str | None = None) -> dict[str, Any]:
    """Returns one element of a document's ``errors``: ``{"agentId", "id", "code", "error"}``."""
    return {"agentId": agent_id, "id": session_id, "code": error.code, "error": error.message}


def with_errors(document: dict[str, Any], errors: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Marks a function's own document as partial if there are errors to report.

    The runner turns ``"code": "partial"`` into exit code 3 (mission: exit codes).
    """
    if not errors:
        return document
    first = errors[0]["error"]
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return {**document, "errors": list(errors), "error": f"done in part: {first}{more}", "code": "partial"}
