"""The last run of each background job."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Creates the table."""
    op.execute("""
        CREATE TABLE job_runs (
          name text NOT NULL, volume text NOT NULL,
          started_at timestamptz NOT NULL, ended_at timestamptz NOT NULL, outcome text NOT NULL,
          result jsonb, error text, failures integer NOT NULL, next_run_at timestamptz,
          PRIMARY KEY (name, volume)
        )
    """)
