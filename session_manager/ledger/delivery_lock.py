"""Lets one process at a time deliver marks to history, so that each mark is sent once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from filelock import Timeout

from session_manager.files.atomic import clear_errors
from session_manager.files.own_lock import own_lock
from session_manager.settings import Settings

LOCK_NAME = "delivery.lock"


@contextlib.contextmanager
def delivery_lock(settings: Settings) -> Iterator[bool]:
    """Takes the lock if it is free, without waiting; yields whether it is ours.

    A killed process holds nothing. Raises Refused or Failed when the state directory, which must be there, cannot be
    written.
    """
    with contextlib.ExitStack() as held:
        mine = True
        with clear_errors("lock", settings.state_dir):
            try:
                held.enter_context(own_lock(os.path.join(settings.state_dir, LOCK_NAME), 0))
            except Timeout:
                mine = False
        yield mine
