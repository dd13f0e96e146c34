"""The time that ages count from, for functions that permanently delete old files."""

from __future__ import annotations

import os

from session_manager.core.errors import Refused, SessionManagerError
from session_manager.files.atomic import OWN_PREFIX
from session_manager.functions.context import Context
from session_manager.ledger import Clock, Ledger


def ages_from(context: Context, ledger: Ledger | None, *, force: bool) -> int:
    """Returns the time (epoch ms) that ages count from: now, or less when the clock has just jumped ahead.

    Raises Refused (``clock_ahead``) when the clock is more than a day ahead of the ledger's last event, or, when the
    ledger has no event, of every file in the stores. ``force`` states that the clock is right.
    """
    now = context.clock()
    if force:
        return now
    clock = None if ledger is None else ledger.clock(now)
    if clock is None or clock.last is None:
        clock = Clock(now, now, _newest_file(context, now), "the newest file in the stores")
    if clock.is_ahead:
        raise Refused(
            f"{clock.told()}: nothing was purged; correct the clock if it is wrong, or call with force: true if it is "
            "right",
            code="clock_ahead",
        )
    return clock.trusted


def _newest_file(context: Context, now: int) -> int | None:
    """Returns when a file in the stores was last written, None when there is none."""
    newest: int | None = None
    for _, store in context.volume.stores(None):
        if store is None or isinstance(store, SessionManagerError):
            continue
        try:
            with os.scandir(store.sessions_dir) as found:
                for entry in found:
                    if not entry.name.startswith(OWN_PREFIX):
                        written = entry.stat(follow_symlinks=False).st_mtime_ns // 1_000_000
                        newest = max(newest or 0, min(written, now))
        except OSError:
            continue
    return newest
