"""Alembic's entry point: runs on the connection that ``db.migrate`` hands over, inside its transaction."""

from alembic import context

from session_manager.service.db.migrate import VERSION_TABLE
from session_manager.service.db.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
