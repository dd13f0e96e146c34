"""The tables for SQLAlchemy; the migrations create them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Computed,
    DateTime,
    ForeignKey,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

STATUSES = ("active", "completed", "ended", "error")

metadata = MetaData()

# ``seq`` numbers rows in the order in which they became visible. ``status_at`` is when the status was last set, and
# ``ended_by`` by whom: a request, the volume sync, or the job that closes idle rows; for an active row it is a request
# or NULL. ``volume`` is the volume in which the sync saw it.
agent_sessions = Table(
    "agent_sessions",
    metadata,
    Column("id", UUID(as_uuid=True), primary_key=True, server_default=text("gen_random_uuid()")),
    Column("seq", BigInteger, Identity(), nullable=False),
    Column("agent_id", Text, nullable=False),
    Column("session_type", Text, nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False),
    Column("ended_at", DateTime(timezone=True)),
    Column("messages_count", Integer, nullable=False),
    Column("tokens_used", BigInteger, nullable=False),
    Column("cost_usd", Numeric(16, 6, asdecimal=False), nullable=False),
    Column("status", Text, nullable=False),
    Column("metadata", JSONB, nullable=False),
    Column("status_at", DateTime(timezone=True), nullable=False),
    Column("ended_by", Text),
    Column("volume", Text),
    Column("last_activity_at", DateTime(timezone=True)),
)

volume_indexes = Table(
    "volume_indexes",
    metadata,
    Column("volume", Text, primary_key=True),
    Column("agent_id", Text, primary_key=True),
    Column("identity", Text, nullable=False),
    Column("read_at", DateTime(timezone=True), nullable=False),
)

job_runs = Table(
    "job_runs",
    metadata,
    Column("name", Text, primary_key=True),
    Column("volume", Text, primary_key=True),
    Column("started_at", DateTime(timezone=True), nullable=False),
    Column("ended_at", DateTime(timezone=True), nullable=False),
    Column("outcome", Text, nullable=False),
    Column("result", JSONB),
    Column("error", Text),
    Column("failures", Integer, nullable=False),
    Column("next_run_at", DateTime(timezone=True)),
)

api_tokens = Table(
    "api_tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("token_hash", LargeBinary, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("user_id", Text),
    Column("orgs", ARRAY(Text), nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Column("revoked_at", DateTime(timezone=True)),
)


def _chat_session_columns() -> list[Column[Any]]:
    return [
        Column("id", UUID(as_uuid=True), primary_key=True, server_default=text("gen_random_uuid()")),
        Column("title", Text),
        Column("agent_id", Text, nullable=False),
        Column("session_type", Text, nullable=False),
        Column("model", Text),
        Column("status", Text, nullable=False),
        Column("message_count", Integer, nullable=False),
        Column("tokens", BigInteger, nullable=False),
        Column("user_id", Text),
        Column("org_id", Text),
        Column("created_at", DateTime(timezone=True), nullable=False),
        Column("updated_at", DateTime(timezone=True), nullable=False),
        Column("last_message_at", DateTime(timezone=True)),
        Column("ended_at", DateTime(timezone=True)),
        Column("metadata", JSONB, nullable=False),
        Column("creation_key", Text),
    ]


def _chat_message_columns(sessions: str) -> list[Column[Any]]:
    return [
        Column("id", UUID(as_uuid=True), primary_key=True, server_default=text("gen_random_uuid()")),
        Column("session_id", UUID(as_uuid=True), ForeignKey(f"{sessions}.id", ondelete="CASCADE"), nullable=False),
        Column("position", Integer, nullable=False),
        Column("role", Text, nullable=False),
        Column("content", Text),
        Column("encrypted", JSONB(none_as_null=True)),
        Column("tokens", BigInteger, nullable=False),
        Column("created_at", DateTime(timezone=True), nullable=False),
        Column("idempotency_key", Text),
    ]


# ``expires_at`` is generated from the ``ttl_minutes`` of the metadata; the archive does not need it. ``creation_key``
# is the idempotency key of the exchange that created the session.
chat_sessions = Table(
    "chat_sessions",
    metadata,
    *_chat_session_columns(),
    Column("expires_at", DateTime(timezone=True), Computed("", persisted=True)),
)

# Positions count from 1, in commit order.
chat_messages = Table(
    "chat_messages", metadata, *_chat_message_columns("chat_sessions"), UniqueConstraint("session_id", "position")
)

chat_sessions_archive = Table(
    "chat_sessions_archive",
    metadata,
    *_chat_session_columns(),
    Column("archived_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
)

# Deliberately deleted empty sessions, kept while a message to them may be in flight.
chat_sessions_deleted = Table(
    "chat_sessions_deleted",
    metadata,
    Column("id", UUID(as_uuid=True), primary_key=True),
    Column("deleted_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
)

chat_messages_archive = Table(
    "chat_messages_archive",
    metadata,
    *_chat_message_columns("chat_sessions_archive"),
    UniqueConstraint("session_id", "position"),
)
