"""An embedded PostgreSQL: a real server that belongs to one service and ends with it."""

from session_manager.service.embedded.places import default_base
from session_manager.service.embedded.postgres import EmbeddedPostgres, attach

__all__ = ["EmbeddedPostgres", "attach", "default_base"]
