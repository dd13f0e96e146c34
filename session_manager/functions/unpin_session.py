"""unpin_session: undoes pin_session."""

from __future__ import annotations

from typing import Any

import msgspec

from session_manager.core.errors import NotFound
from session_manager.functions.context import Agent, Context
from session_manager.functions.delete_session import SessionId
from session_manager.functions.naming import tidied
from session_manager.functions.pinning import Found, find
from session_manager.functions.policy import read_kept, with_policy_to_read

DESCRIPTION = "Undoes pin_session. A pin of the retention policy or of the gateway stays, and the result says so."


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of unpin_session."""

    session_id: SessionId
    agent: Agent | None = None


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns the unpinned session, and other pins of it; one that was not pinned is a success that states this.

    Raises UsageError, NotFound (``session_not_found``), or the failure to write the pins.
    """
    from session_manager.ledger.keeping import unpin

    found = _found(context, arguments)
    before = unpin(context.settings, found.id)
    context, unusable = with_policy_to_read(context)
    by = _still_pinned_by(context, found)
    what = "is no longer pinned" if before else "was not pinned by pin_session"
    rest = {"policy": "; the retention policy still pins it", "gateway": "; the gateway still pins it", None: ""}[by]
    return {
        "unpinned": found.id,
        "was_pinned": before,
        "still_pinned_by": by,
        "message": f"Session {found.id} {what}{rest}",
        **unusable,
    }


def _found(context: Context, arguments: Arguments) -> Found:
    try:
        return find(context, arguments.session_id, arguments.agent)
    except NotFound:
        # The pinned session may be gone, perhaps removed by the gateway.
        kept = read_kept(context.settings)
        session_id = tidied(arguments.session_id)
        if kept is None or session_id not in kept.pins:
            raise
        return Found(session_id, [], [])


def _still_pinned_by(context: Context, found: Found) -> str | None:
    policy = context.policy
    keys = [key for session in found.sessions for key in session.keys]
    labels = [label for session in found.sessions for label in (session.label, *session.labels)]
    if policy is not None and policy.pins.name(found.id, keys, labels):
        return "policy"
    return "gateway" if any(session.pinned for session in found.sessions) else None
