"""Views with the table names of an older aria-api's conversations, for existing SQL queries.

Each begins with WITH, so PostgreSQL refuses every write through it. It reads its table like a query by hand, by the
same indexes. A later migration that changes a column's type must drop and recreate the view.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_SESSION = """
    id, agent_id, session_type, title, model, {status}, message_count, tokens, tokens AS total_tokens, user_id, org_id,
    created_at, updated_at, last_message_at, ended_at, metadata
"""
_MESSAGE = "id, session_id, position, role, content, encrypted, tokens, created_at"
_VIEWS = {
    "engine_chat_sessions": ("chat_sessions", _SESSION.format(status="status")),
    "engine_chat_session_archive": (
        "chat_sessions_archive",
        _SESSION.format(status="'archived' AS status") + ", archived_at",
    ),
    "engine_chat_messages": ("chat_messages", _MESSAGE),
    "engine_chat_message_archive": ("chat_messages_archive", _MESSAGE),
}
# The older service may still have its own table of that name in the same database.
_CREATE = """
    DO $$ BEGIN
      IF to_regclass('{view}') IS NULL THEN
        CREATE VIEW {view} AS WITH rows AS (SELECT * FROM {table}) SELECT {columns} FROM rows;
        COMMENT ON VIEW {view} IS 'Read only: the rows of {table} under the name that an older aria-api gave them';
      END IF;
    END $$
"""


def upgrade() -> None:
    """Creates the views whose names are free."""
    for view, (table, columns) in _VIEWS.items():
        op.execute(_CREATE.format(view=view, table=table, columns=columns))
