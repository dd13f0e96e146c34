"""Describes the errors in a request, field by field, for its sender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LIMIT = 20
# Replacements for messages that speak of pydantic's internals, by pydantic's error type.
_WORDS = {
    "extra_forbidden": "there is no such field",
    "missing": "is missing",
    "model_attributes_type": "must be a JSON object, sent with Content-Type: application/json",
    "model_type": "must be a JSON object",
    "string_unicode": "must not contain half a character (a lone surrogate)",
}


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
