"""Indexes for the dashboard's pages, counts and charts."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_STATEMENTS = (
    "CREATE INDEX idx_agent_sessions_type_seq ON agent_sessions (session_type, seq)",
    # Active rows by their last activity: the stale ones come first. A query for active rows alone does not require one,
    # and uses the index of pages.
    """
    CREATE INDEX idx_agent_sessions_idle ON agent_sessions (greatest(last_activity_at, started_at))
      WHERE status = 'active' AND greatest(last_activity_at, started_at) IS NOT NULL
    """,
    # Counts by hour, agent and type use an index-only scan.
    "DROP INDEX IF EXISTS idx_agent_sessions_started",
    "CREATE INDEX idx_agent_sessions_started ON agent_sessions (started_at) INCLUDE (agent_id, session_type)",
)


def upgrade() -> None:
    """Creates the indexes."""
    for statement in _STATEMENTS:
        op.execute(statement)
