"""The start of a run: who asked for it, and whether history will be told."""

from __future__ import annotations

import contextlib
import os

from session_manager.core.errors import SessionManagerError
from session_manager.files.liveness import now_ms
from session_manager.ledger.marks import Marks
from session_manager.ledger.run import Run, new_run_id
from session_manager.settings import Settings


def start_run(function: str, settings: Settings) -> Run:
    """Describes a run that starts now; nothing is written yet."""
    import platform

    return Run(
        run_id=new_run_id(),
        started_at=now_ms(),
        function=function,
        asked_by=_plain(settings.asked_by),
        user=_plain(_user_name()) or "",
        host=_plain(platform.node()) or "",
        history=is_owed(settings),
        keep_days=settings.keep_days,
    )


def is_owed(settings: Settings) -> bool:
    """Returns True if removals are reported to history, now or once it can be reached.

    Without configuration, only if history was reached before.
    """
    if settings.api_url is None or settings.api_named or settings.api_token is not None:
        return settings.api_url is not None
    # The call that removes something reports a broken ledger.
    with contextlib.suppress(SessionManagerError):
        ledger = Marks.open_existing(settings, "ro")
        if ledger is not None:
            with ledger:
                return ledger.knows_history()
    return False


def _plain(text: str | None) -> str | None:
    """Turns any bytes of the environment into text that SQLite and JSON accept."""
    return None if text is None else text.encode(errors="replace").decode()


def _user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
