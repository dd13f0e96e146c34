"""No row of a conversation that no program could read back, whoever writes it."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# For what is written from now on: rows that are there need no reading, and stop nothing.
_STATEMENTS = (
    """
    ALTER TABLE chat_sessions
      ADD CONSTRAINT chat_sessions_last_message_readable
        CHECK (last_message_at >= '1970-01-01 00:00Z' AND last_message_at < '2200-01-01 00:00Z') NOT VALID,
      ADD CONSTRAINT chat_sessions_ended_readable
        CHECK (ended_at >= '1970-01-01 00:00Z' AND ended_at < '2200-01-01 00:00Z') NOT VALID
    """,
    """
    ALTER TABLE chat_messages
      ADD CONSTRAINT chat_messages_created_readable
        CHECK (created_at >= '1970-01-01 00:00Z' AND created_at < '2200-01-01 00:00Z') NOT VALID,
      ADD CONSTRAINT chat_messages_encrypted_object CHECK (jsonb_typeof(encrypted) = 'object') NOT VALID
    """,
)


def upgrade() -> None:
    """Adds the constraints."""
    for statement in _STATEMENTS:
        op.execute(statement)
