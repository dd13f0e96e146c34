"""Schemas of requests and answers."""

from __future__ import annotations

import math
import re
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    model_validator,
)

from session_manager.service.volume_reader import ID_LIMIT, NAME_LIMIT

BULK_LIMIT = 10_000
METADATA_LIMIT = 65_536
_MOST = 2**53
_PLUS = re.compile(r"(\d:\d\S*) (\d\d:?\d\d)$")
_DATED = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)

Status = Literal["active", "completed", "ended", "error"]


def storable(text: str) -> str:
    """Returns the text. Raises ValueError when PostgreSQL cannot store it."""
    if "\0" in text:
        raise ValueError("must not contain the character U+0000")
    return text


def _text(value: object) -> object:
    # pydantic reads a number in a text as seconds or milliseconds, whichever is nearer: an ambiguous guess.
    if not (isinstance(value, str) and _DATED.match(value)):
        raise ValueError("must be a string such as 2026-02-15T18:00:00Z")
    # An unescaped plus sign in a URL arrives as a space.
    return _PLUS.sub(r"\1+\2", value)


def _in_utc(at: datetime) -> datetime:
    # PostgreSQL can show these times in any time zone.
    if not 1970 <= at.year < 2200:
        raise ValueError("must be within the years 1970 to 2199")
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def _storable_metadata(value: dict[str, Any]) -> dict[str, Any]:
    try:
        data = orjson.dumps(value)
    except TypeError as error:
        raise ValueError(f"cannot be stored as JSON: {error}") from error
    if len(data) > METADATA_LIMIT:
        raise ValueError(f"must not be longer than {METADATA_LIMIT} bytes of JSON")
    if not _is_storable(value):
        raise ValueError("must not contain the character U+0000, NaN or an infinite number")
    sid = value.get("aria_session_id")
    if sid is not None and not (isinstance(sid, str) and 0 < len(sid) <= ID_LIMIT):
        raise ValueError(f"aria_session_id must be a string of 1 to {ID_LIMIT} characters")
    return value


def _is_storable(value: object) -> bool:
    """Returns whether ``jsonb`` can store a value that orjson has written."""
    if isinstance(value, dict):
        return all(_is_storable(key) and _is_storable(member) for key, member in value.items())
    if isinstance(value, list):
        return all(map(_is_storable, value))
    if isinstance(value, float):
        return math.isfinite(value)
    return not (isinstance(value, str) and "\0" in value)


Name = Annotated[str, StringConstraints(min_length=1, max_length=NAME_LIMIT), AfterValidator(storable)]
SessionId = Annotated[str, StringConstraints(min_length=1, max_length=ID_LIMIT), AfterValidator(storable)]
SearchText = Annotated[
    str | None, StringConstraints(max_length=200), AfterValidator(lambda text: text and storable(text))
]
Metadata = Annotated[dict[str, Any], AfterValidator(_storable_metadata)]
Count = Annotated[int, Field(ge=0, le=_MOST, strict=True)]
SmallCount = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]
Cost = Annotated[float, Field(ge=0, lt=1e9, allow_inf_nan=False, strict=True)]
GivenMoment = Annotated[datetime, BeforeValidator(_text), AfterValidator(_in_utc)]
# The column can hold one value that is none.
CostShown = Annotated[float, BeforeValidator(lambda cost: 0.0 if math.isnan(cost) else cost)]
Moment = Annotated[datetime, PlainSerializer(lambda at: at.astimezone(UTC).isoformat(), return_type=str)]


def given(*names: str) -> dict[str, Any]:
    """Returns the JSON Schema that requires one of some fields; null does not count."""
    some = [{"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in names]
    return {"anyOf": some}


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Problem(BaseModel):
    """Every answer that is not a success."""

    error: str = Field(description="one sentence that says what to do")
    code: str = Field(description="a slug for programs")


class SessionItem(BaseModel):
    """One row of the history of agent sessions."""

    id: uuid.UUID
    agent_id: str
    session_type: str
    started_at: Moment
    ended_at: Moment | None
    messages_count: int
    tokens_used: int
    cost_usd: CostShown
    status: str = Field(description="active, completed, ended or error")
    metadata: dict[str, Any] = Field(description="`aria_session_id` is the session's id at the gateway")


class SessionPage(BaseModel):
    """One page of sessions; `total` counts all that match."""

    items: list[SessionItem]
    total: int
    page: int
    limit: int
    pages: int


class NewSession(Body):
    """A row to create. At most one row may have the same agent and `metadata.aria_session_id`."""

    agent_id: Name
    session_type: Name = "unknown"
    status: Status = "active"
    started_at: GivenMoment | None = Field(default=None, description="UTC unless it has an offset; now when left out")
    messages_count: SmallCount = 0
    tokens_used: Count = 0
    cost_usd: Cost = 0.0
    metadata: Metadata = Field(default_factory=dict)


class Created(BaseModel):
    """The row's id. `created` is false when the session had a row already, which was left as it is."""

    id: uuid.UUID
    created: bool


class SessionChanges(Body):
    """What to change; at least one field."""

    model_config = ConfigDict(
        json_schema_extra=given("status", "messages_count", "tokens_used", "cost_usd", "metadata")
    )

    status: Status | None = Field(
        default=None, description="`active` clears `ended_at`; any other sets it, unless it is set already"
    )
    messages_count: SmallCount | None = None
    tokens_used: Count | None = None
    cost_usd: Cost | None = None
    metadata: Metadata | None = Field(default=None, description="merged into what is there")

    @model_validator(mode="after")
    def _something(self) -> SessionChanges:
        if not self.changes():
            raise ValueError(f"nothing to change; give one of: {', '.join(type(self).model_fields)}")
        return self

    def changes(self) -> dict[str, Any]:
        """Returns the fields that have a value."""
        return self.model_dump(exclude_none=True)


class Updated(BaseModel):
    """The row was found and is as asked."""

    updated: Literal[True] = True


class SessionRef(Body):
    """One session of one agent."""

    agent_id: Name
    aria_session_id: SessionId


class BulkMark(Body):
    """One status for many sessions."""

    status: Literal["ended", "active"]
    sessions: Annotated[list[SessionRef], Field(min_length=1, max_length=BULK_LIMIT)]


class BulkMarked(BaseModel):
    """How many rows have the status now, and which sessions have no row."""

    updated: int
    missing: list[SessionRef]


class BulkErase(Body):
    """Sessions of which only the id and the counters are kept."""

    sessions: Annotated[list[SessionRef], Field(min_length=1, max_length=BULK_LIMIT)]


class BulkErased(BaseModel):
    """How many rows are erased now, and which sessions have no row."""

    erased: int
    missing: list[SessionRef]


class Deleted(BaseModel):
    """The row is gone."""

    deleted: Literal[True] = True


class Stats(BaseModel):
    """Totals over all rows."""

    total_sessions: int
    active_sessions: int
    total_messages: int
    total_tokens: int
    total_cost_usd: float
    by_agent: dict[str, int]
    by_status: dict[str, int]
    by_type: dict[str, int]


class Hour(BaseModel):
    """Sessions that started within one hour (UTC)."""

    hour: Moment
    sessions: int


class Hourly(BaseModel):
    """The last hours, oldest first; an hour without sessions is there with 0."""

    hours: int
    items: list[Hour]


class SyncError(BaseModel):
    """An agent that could not be read."""

    agent_id: str | None = Field(validation_alias="agentId", serialization_alias="agentId")
    id: str | None
    code: str
    error: str


class Synced(BaseModel):
    """What the sync did: indexes `changed` and `unchanged`; rows created, updated, revived, ended."""

    changed: int
    unchanged: int
    created: int
    updated: int
    revived: int
    ended: int
    skipped: int = Field(description="sessions whose id no database can hold")
    seconds: float
    errors: list[SyncError]


class Health(BaseModel):
    """`ok`."""

    status: Literal["ok"] = "ok"


class Readiness(Health):
    """`ok`, and how often the service has started its own PostgreSQL again, where it has one."""

    database_restarts: int | None = Field(default=None, description="since the service was started")
