"""aria-api: the history service on PostgreSQL."""
