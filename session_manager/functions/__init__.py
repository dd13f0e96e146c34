"""The functions: one module per verb. Each has ``DESCRIPTION``, ``Arguments`` (a msgspec Struct) and ``run``.

``run(context, arguments)`` returns the function's document or raises a SessionManagerError. A module is loaded when its
function is called: the skill is a new process every time, and imports dominate its cost.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import msgspec

NAMES = (
    "list_sessions",
    "show_session",
    "get_session_stats",
    "prune_sessions",
    "delete_session",
    "delete_sessions",
    "cleanup_after_delegation",
    "deliver_history",
    "cleanup_orphans",
    "readopt_orphans",
    "purge_archives",
    "erase_session",
    "cleanup_ghosts",
    "list_deleted",
    "restore_session",
    "restore_run",
    "pin_session",
    "unpin_session",
    "verify_ledger",
    "doctor",
    "check_policy",
)


class Function(msgspec.Struct, frozen=True):
    """One function of the skill."""

    name: str
    description: str
    arguments: type[msgspec.Struct]
    run: Callable[[Any, Any], dict[str, Any]]


def load(name: str) -> Function:
    """Loads one of ``NAMES``."""
    module = import_module(f"{__name__}.{name}")
    return Function(name, module.DESCRIPTION, module.Arguments, module.run)
