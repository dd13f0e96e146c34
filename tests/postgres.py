"""Real PostgreSQL servers for tests: fresh, private, and gone afterwards, for root and for ordinary users.

    with postgres.server() as database:
        psycopg.connect(host=database.folder, port=5432, user="session_manager", dbname="session_manager")

The role owns the database ``session_manager`` and may create others (``CREATE DATABASE x TEMPLATE session_manager``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from session_manager.service.embedded import EmbeddedPostgres

# What a test writes need not survive a power failure.
FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "shared_buffers": "16MB"}


@contextlib.contextmanager
def reachable_folder() -> Iterator[Path]:
    """A temporary folder that the database's account can pass through; pytest's own are closed to all but root."""
    root = os.geteuid() == 0
    folder = Path(tempfile.mkdtemp(prefix="sm-", dir="/tmp" if root else None))
    if root:
        folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def server() -> Iterator[EmbeddedPostgres]:
    """A server under a base of its own; ``url`` is SQLAlchemy's, ``folder`` the host for a plain connection."""
    with reachable_folder() as folder, EmbeddedPostgres.start(str(folder / "base"), None, FAST) as running:
        yield running
