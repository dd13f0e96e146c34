"""Who asked for what: one call of a mutating function."""

from __future__ import annotations

import os

import msgspec

from session_manager.live.liveness import now_ms
from session_manager.settings import Settings


def new_run_id() -> str:
    """Returns a fresh run id: time first, so that ids sort by age."""
    return f"{now_ms():012x}-{os.urandom(5).hex()}"


class Run(msgspec.Struct, frozen=True):
    """One call of a mutating function."""

    run_id: str
    started_at: int
    function: str
    asked_by: str | None
    user: str
    host: str
    history: bool
    keep_days: int


def start_run(function: str, settings: Settings) -> Run:
    """Describes a run that starts now; nothing is written yet."""
    import platform

    return Run(
        run_id=new_run_id(),
        started_at=now_ms(),
        function=function,
        asked_by=settings.asked_by,
        user=_user_name(),
        host=platform.node(),
        history=settings.api_url is not None,
        keep_days=settings.keep_days,
    )


def _user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
