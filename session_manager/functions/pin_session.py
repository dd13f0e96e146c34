"""pin_session: pins one session, live or removed, so that only ``force`` removes it or its archives."""

from __future__ import annotations

from typing import Any

import msgspec

from session_manager.functions.context import Agent, Context
from session_manager.functions.delete_session import SessionId
from session_manager.functions.pinning import find

DESCRIPTION = (
    "Pins one session, live or removed: nothing removes it without force, and its archives are not purged. "
    "unpin_session undoes it."
)


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of pin_session."""

    session_id: SessionId
    agent: Agent | None = None


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns the pin; a session that was pinned before is a success that states this.

    Raises UsageError, NotFound (``session_not_found``), or the failure to write the pins.
    """
    from session_manager.ledger.keeping import pin

    found = find(context, arguments.session_id, arguments.agent)
    before = bool(pin(context.settings, [found.id], context.clock()))
    what = "was already pinned" if before else "is pinned"
    return {
        "pinned": found.id,
        "already_pinned": before,
        "agents": found.agents,
        "live": found.live,
        "message": f"Session {found.id} {what}",
    }
