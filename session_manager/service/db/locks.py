"""Keys of the advisory locks, all held for one transaction only.

Every transaction that inserts sessions or marks many takes WRITERS: rows become visible in the order of their ``seq``,
which keeps pages stable, and two writers of many rows cannot deadlock.
"""

from typing import Final

from sqlalchemy import text

# One stuck holder must not block all others: a request gives up, and says when to retry.
LIMITS = text("""
    SELECT set_config('lock_timeout', '10s', true), set_config('statement_timeout', '120s', true),
           set_config('idle_in_transaction_session_timeout', '300s', true)
""")

MIGRATIONS: Final = 0x5E55_0001
SYNC: Final = 0x5E55_0002
WRITERS: Final = 0x5E55_0003
# The first part of two-part keys; the second one is the job.
JOBS: Final = 0x5E55_0004
