"""The tables as SQLAlchemy sees them; the migrations make them."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    DateTime,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    Table,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

STATUSES = ("active", "completed", "ended", "error")

metadata = MetaData()

# ``seq`` numbers rows in the order in which they became visible. ``status_at`` is when somebody last said what the
# status is, and ``ended_by`` who: a request, the volume sync, or the job that closes what is idle. ``volume`` is the
# volume in which the sync saw it.
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
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=text("now()")),
    Column("revoked_at", DateTime(timezone=True)),
)
