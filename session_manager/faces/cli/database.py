"""The service's database, for commands that work on it directly."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def database() -> Iterator[str]:
    """Yields the URL of the migrated database."""
    from session_manager.service.db.migrate import migrate
    from session_manager.service.server import reachable_database

    with reachable_database(os.environ) as url:
        migrate(url)
        yield url


def in_database(work: Callable[[Any], Any]) -> Any:
    """Returns the result of ``work`` on a connection, in one transaction."""
    from session_manager.service.db.migrate import transaction

    with database() as url, transaction(url) as connection:
        return work(connection)
