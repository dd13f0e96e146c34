"""The loop around a job's step: it goes on after failures, with longer pauses, and ends when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable

LONGEST_PAUSE_S = 300.0
_log = logging.getLogger(__name__)


async def repeat(name: str, step: Callable[[], Awaitable[None]], interval_s: float, stop: asyncio.Event) -> None:
    """Runs ``step`` now and then every ``interval_s`` seconds until ``stop`` is set; a step in hand is finished.

    A step that raises is logged; after each failure in a row the pause doubles, up to five minutes.
    """
    failures = 0
    while not stop.is_set():
        try:
            await step()
            failures = 0
        except Exception as error:
            failures += 1
            _log.warning("%s failed (%d in a row): %s", name, failures, describe(error))
        pause = min(interval_s * 2 ** min(failures, 10), max(LONGEST_PAUSE_S, interval_s))
        # Replicas that started together need not all ask at the same moment for ever.
        pause *= random.uniform(0.95, 1.05)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), pause)


def describe(error: BaseException) -> str:
    """Returns an error in one line that holds no statement and no values."""
    from sqlalchemy.exc import SQLAlchemyError

    from session_manager.service.db.engine import server_message

    text = server_message(error) if isinstance(error, SQLAlchemyError) else str(error)
    return f"{type(error).__name__}: {text}"
