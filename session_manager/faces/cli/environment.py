"""The service's variables, shown in the help of each of its commands."""

ENVIRONMENT = """\
Environment: DATABASE_URL (PostgreSQL 15 or newer; unset: an embedded one, kept below XDG_STATE_HOME),
ARIA_AGENTS_DIR (the volume to sync), ARIA_API_TOKEN (an admin token), ARIA_ALLOWED_HOSTS (host names that the service
accepts, separated by commas), ARIA_VOLUME (the volume's name in history), SESSION_CLEANUP_TTL_MINUTES (default 30: how
long a chat session may stay without a message), SESSION_CLEANUP_ENABLED (default true; false: it stays until it is
deleted by hand), ARIA_LLM_BASE_URL, ARIA_LLM_MODEL and ARIA_LLM_API_KEY (the model that replies in chats, at an
OpenAI-compatible endpoint; unset: the service echoes the message), ARIA_LLM_TIMEOUT (default 60: seconds that the model
may be silent), ARIA_TRACEBACK (set: internal errors show their traceback), ARIA_STATE_DIR and ARIA_KEEP_DAYS (as for
the skill, whose ledger the service reads). Seconds between the runs of each job, 0: only on request: ARIA_SYNC_SECONDS
(default 30), ARIA_DELIVERY_SECONDS (30), ARIA_CLOSING_SECONDS (600), ARIA_GHOST_PURGE_SECONDS (600),
ARIA_EXPIRY_SECONDS (60), ARIA_IDLE_ARCHIVE_SECONDS (21600).
"""
