"""What is wrong with a request, field by field, in words for its sender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LIMIT = 20
# Where pydantic's own words are about pydantic, by its names of errors.
_WORDS = {
    "extra_forbidden": "there is no such field",
    "missing": "is missing",
    "model_attributes_type": "must be a JSON object, sent with Content-Type: application/json",
    "model_type": "must be a JSON object",
    "string_unicode": "must not contain half a character (a lone surrogate)",
}


def found(errors: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns the first of pydantic's errors as ``{"field", "error"}``; where something is begins with what holds it.

    What is wrong with a body as a whole is in the field ``body``.
    """
    return [{"field": _field(error["loc"]), "error": _sentence(error)} for error in errors[:LIMIT]]


def _field(location: Sequence[object]) -> str:
    parts = [str(part) for part in location[1:]]
    return ".".join(parts) if parts and not parts[0].isdigit() else str(location[0])


def _sentence(error: Mapping[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"not readable as JSON ({error['ctx']['error']})"
    return _WORDS.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")
