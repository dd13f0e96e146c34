"""Schemas of the requests to /api/engine and of its answers."""

from __future__ import annotations

import re
import uuid
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from session_manager.service.api.schemas import Body, GivenMoment, Metadata, Moment, Name, SmallCount, given, storable
from session_manager.service.config import LONGEST_TTL_MINUTES
from session_manager.service.db.chat_cleanup import GHOST_MINUTES, IDLE_DAYS

# Ten years: nothing is older, and no date of that age is out of range.
LONGEST_MINUTES = 5_256_000
CONTENT_LIMIT = 2**18
CIPHERTEXT_LIMIT = 2**18
# Metadata that only the service sets; values from a client do not count.
_FACTS = ("created_at", "has_messages", "first_message_at", "backend_created")

_HEX = re.compile(r"(?:[0-9a-fA-F]{2})+")

Role = Literal["user", "assistant", "system", "tool"]
Title = Annotated[str, StringConstraints(min_length=1, max_length=300), AfterValidator(storable)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(storable)]
Content = Annotated[str, StringConstraints(min_length=1, max_length=CONTENT_LIMIT), AfterValidator(storable)]


def _bytes_in_hex(text: str) -> str:
    if not _HEX.fullmatch(text):
        raise ValueError("must be hex digits, two per byte")
    return text


def _sized(least: int, most: int) -> Any:
    extra: dict[str, Any] = {"pattern": f"^{_HEX.pattern}$"}
    return Field(min_length=2 * least, max_length=2 * most, json_schema_extra=extra)


PublicKey = Annotated[str, _sized(32, 133), AfterValidator(_bytes_in_hex)]
Iv = Annotated[str, _sized(8, 32), AfterValidator(_bytes_in_hex)]
Ciphertext = Annotated[str, _sized(1, CIPHERTEXT_LIMIT), AfterValidator(_bytes_in_hex)]
Tag = Annotated[str, _sized(8, 64), AfterValidator(_bytes_in_hex)]
Salt = Annotated[str, _sized(8, 128), AfterValidator(_bytes_in_hex)]


def _whole_day(value: object) -> object:
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        return f"{value}T23:59:59.999999Z"
    return value


def _no_switch(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a whole number of minutes")
    return value


LastMoment = Annotated[GivenMoment, BeforeValidator(_whole_day)]


class Encrypted(Body):
    """A message that only its ends can read: all fields are hex. It is stored as it is and never read."""

    ephemeral_public_key: PublicKey = Field(description="32 to 133 bytes: X25519 to P-521")
    iv: Iv = Field(description="8 to 32 bytes")
    ciphertext: Ciphertext = Field(description=f"1 to {CIPHERTEXT_LIMIT} bytes")
    auth_tag: Tag = Field(description="8 to 64 bytes")
    hkdf_salt: Salt = Field(description="8 to 128 bytes")


def _object(value: object) -> object:
    return value if isinstance(value, dict) else {"older_metadata": value}


def _object_or_none(value: object) -> object:
    return value if isinstance(value, dict) else None


class ChatSession(BaseModel):
    """One conversation."""

    id: uuid.UUID
    session_id: uuid.UUID = Field(description="the same as `id`")
    title: str | None
    agent_id: str
    session_type: str
    model: str | None
    status: str = Field(description="active, ended or archived")
    message_count: int
    tokens: int
    user_id: str | None
    org_id: str | None
    created_at: Moment
    updated_at: Moment
    last_message_at: Moment | None
    ended_at: Moment | None
    # The archive's tables have fewer constraints than the live ones.
    metadata: Annotated[dict[str, Any], BeforeValidator(_object)]

    @model_validator(mode="before")
    @classmethod
    def _both_names(cls, row: Any) -> Any:
        return {**row, "session_id": row["id"]}


class ArchivedSession(ChatSession):
    """One conversation in the archive."""

    archived_at: Moment


class _Page(BaseModel):
    total: int = Field(description="all that match")
    limit: int
    offset: int
    has_more: bool


class ChatSessions(_Page):
    """One page of conversations."""

    sessions: list[ChatSession]


class ArchivedSessions(_Page):
    """One page of the archive."""

    sessions: list[ArchivedSession]


class Message(BaseModel):
    """One message; either `content` or `encrypted` is null."""

    id: uuid.UUID
    session_id: uuid.UUID
    position: int = Field(description="counts from 1 in each session")
    role: str = Field(description="user, assistant, system or tool")
    content: str | None
    encrypted: Annotated[dict[str, Any] | None, BeforeValidator(_object_or_none)] = Field(description="as it was sent")
    tokens: int
    created_at: Moment


class ChatDetail(ChatSession):
    """One conversation with its last messages, oldest first."""

    recent_messages: list[Message]


class NewChatSession(Body):
    """A session before its first message. It is deleted when it is still empty after `ttl_minutes`."""

    agent_id: Name = "main"
    session_type: Name = "chat"
    title: Title | None = None
    model: Name | None = None
    user_id: Name | None = Field(default=None, description="default: the token's user; an admin may name any user")
    org_id: Name | None = Field(default=None, description="one of the token's organisations")
    ttl_minutes: Annotated[int, BeforeValidator(_no_switch), Field(ge=1, le=LONGEST_TTL_MINUTES)] | None = Field(
        default=None, description="SESSION_CLEANUP_TTL_MINUTES when left out, which is 30 by default"
    )
    kind: Name | None = Field(default=None, description="what it is for; `session_type` when left out")
    metadata: Metadata = Field(
        default_factory=dict, description=f"{', '.join(f'`{name}`' for name in _FACTS)} are set by the service"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_metadata(cls, body: Any) -> Any:
        """Moves a time to live and a kind from the metadata to their fields."""
        if not isinstance(body, dict) or not isinstance(body.get("metadata"), dict):
            return body
        rest = {name: value for name, value in body["metadata"].items() if name not in _FACTS}
        lifted = {name: rest.pop(name) for name in ("ttl_minutes", "kind") if name in rest}
        return {**lifted, **body, "metadata": rest}


class ChatChanges(Body):
    """What to change; at least one field."""

    model_config = ConfigDict(json_schema_extra=given("title", "model"))

    title: Title | None = None
    model: Name | None = None

    @model_validator(mode="after")
    def _something(self) -> ChatChanges:
        if self.title is None and self.model is None:
            raise ValueError("nothing to change; give one of: title, model")
        return self


class NewTitle(Body):
    """A session's new title."""

    title: Title


class NewChatMessage(Body):
    """A message: either `content` or `encrypted`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": given("content", "encrypted")["anyOf"]})

    role: Role = "user"
    content: Content | None = None
    encrypted: Encrypted | None = None
    tokens: SmallCount = 0
    idempotency_key: Key | None = Field(
        default=None, description="a retry with the same key and message stores nothing and answers what is stored"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> NewChatMessage:
        if (self.content is None) == (self.encrypted is None):
            raise ValueError("give either content, a text, or encrypted, an encrypted payload")
        return self


class ChatStats(BaseModel):
    """Totals over the conversations that the token may see; the archive is not counted."""

    total_sessions: int
    total_messages: int
    active_agents: int = Field(description="agents with a session that has not ended")
    ghost_sessions: int = Field(description="sessions without messages")
    oldest_session: Moment | None
    newest_activity: Moment | None


class GhostAge(Body):
    """The query of a purge. A misspelt age is refused: the default may be less than what was meant."""

    older_than_minutes: int = Field(
        default=GHOST_MINUTES, ge=0, le=LONGEST_MINUTES, description="age in minutes; 0: all, also those just made"
    )


class Idleness(Body):
    """The query of a cleanup."""

    days: int = Field(default=IDLE_DAYS, ge=1, le=36_500, description="days without activity")
    dry_run: bool = Field(default=True, description="true: only count the sessions")


class Purged(BaseModel):
    """How many empty sessions were deleted. `disabled`: SESSION_CLEANUP_ENABLED is false."""

    deleted: int
    status: Literal["ok", "disabled"] = "ok"


class CleanedUp(BaseModel):
    """How many conversations were archived, with how many messages; in a dry run, how many would be."""

    pruned_count: int
    message_count: int
    days: int
    dry_run: bool
    status: Literal["ok"] = "ok"
