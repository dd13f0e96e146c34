"""No row of a conversation that no program could read back, whoever writes it."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_IN_RANGE = "{0} >= '1970-01-01 00:00Z' AND {0} < '2200-01-01 00:00Z'"
_CONSTRAINTS = (
    ("chat_sessions", "chat_sessions_last_message_readable", _IN_RANGE.format("last_message_at")),
    ("chat_sessions", "chat_sessions_ended_readable", _IN_RANGE.format("ended_at")),
    ("chat_messages", "chat_messages_created_readable", _IN_RANGE.format("created_at")),
    ("chat_messages", "chat_messages_encrypted_object", "jsonb_typeof(encrypted) = 'object'"),
)


def upgrade() -> None:
    """Adds constraints for what is written from now on: rows that are there need no reading, and stop nothing."""
    for table, name, condition in _CONSTRAINTS:
        op.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID")
