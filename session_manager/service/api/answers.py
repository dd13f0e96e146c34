"""The answers that every route can give besides its own, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from session_manager.service.api.schemas import Problem

Responses = dict[int | str, dict[str, Any]]

WHO: Responses = {
    401: {"model": Problem, "description": "no valid token"},
    403: {"model": Problem, "description": "not allowed"},
}
BUSY: Responses = {
    503: {"model": Problem, "description": "the database does not answer; `Retry-After` says when to ask again"}
}
INVALID: Responses = {422: {"model": Problem, "description": "a field is wrong; `field` names it"}}
LARGE: Responses = {413: {"model": Problem, "description": "the body is too large"}}
BY_ID: Responses = {
    400: {"model": Problem, "description": "the id is not a UUID"},
    404: {"model": Problem, "description": "there is no such row"},
}
