"""The service's variables, as every command of the service shows them."""

ENVIRONMENT = """\
Environment: DATABASE_URL (a PostgreSQL 15 or newer; unset: an embedded one, kept below XDG_STATE_HOME),
ARIA_AGENTS_DIR (the volume to sync), ARIA_API_TOKEN (an admin token), ARIA_ALLOWED_HOSTS (names that the service goes
by, with commas), ARIA_VOLUME (the volume's name in history), SESSION_CLEANUP_TTL_MINUTES (default 30: how long a chat
session may wait for its first message), SESSION_CLEANUP_ENABLED (default true; false keeps it until purged by hand),
ARIA_LLM_BASE_URL, ARIA_LLM_MODEL and ARIA_LLM_API_KEY (the model that replies in chats, at an OpenAI-compatible
endpoint; unset: an echo), ARIA_LLM_TIMEOUT (default 60: seconds that it may be silent), ARIA_TRACEBACK (set: internal
errors show their traceback), ARIA_STATE_DIR and ARIA_KEEP_DAYS (the skill's ledger, as the skill is told). How often
the jobs run, in seconds, 0: only on request: ARIA_SYNC_SECONDS (default 30), ARIA_DELIVERY_SECONDS (30),
ARIA_CLOSING_SECONDS (600), ARIA_GHOST_PURGE_SECONDS (600), ARIA_EXPIRY_SECONDS (60), ARIA_IDLE_ARCHIVE_SECONDS (21600).
"""
