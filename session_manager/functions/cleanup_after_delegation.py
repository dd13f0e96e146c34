"""cleanup_after_delegation: delete_session for a finished sub-agent."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from session_manager.functions import delete_session
from session_manager.functions.context import Agent, Context

DESCRIPTION = (
    "Removes the session of a finished sub-agent. Safe to call twice; waits a moment for a run that is about to end."
)

Child = Annotated[
    str,
    msgspec.Meta(description="the full session id, one of its keys (childSessionKey), or the uuid at the end of a key"),
]
WaitSeconds = Annotated[float, msgspec.Meta(ge=0, le=60, description="seconds to wait for its run to end")]


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of cleanup_after_delegation."""

    session_id: Child
    agent: Agent | None = None
    wait_seconds: WaitSeconds = 5
    force: bool = False


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns delete_session's document; refuses with ``session_busy`` when the run does not end in time."""
    inner = delete_session.Arguments(arguments.session_id, arguments.agent, arguments.force)
    return delete_session.delete(context, "cleanup_after_delegation", inner, arguments.wait_seconds, by_end=True)
