"""Finds the session to pin or unpin: a live one, or a removed one that can be restored."""

from __future__ import annotations

import contextlib

import msgspec

from session_manager.core.session import Session
from session_manager.functions.context import Context, check_session_id
from session_manager.functions.gone import not_found, removed_before
from session_manager.functions.naming import keys_of, meant, tidied
from session_manager.functions.reading import agent_ids, read_view


class Found(msgspec.Struct, frozen=True):
    """A session's id, its live ``sessions`` (one per agent), and all ``agents`` that have or had it."""

    id: str
    sessions: list[Session]
    agents: list[str]

    @property
    def live(self) -> bool:
        """Whether it is in some index."""
        return bool(self.sessions)


def find(context: Context, name: str, agent: str | None) -> Found:
    """Returns the session with that id or key. Raises UsageError or NotFound (``session_not_found``)."""
    from session_manager.ledger import Ledger

    wanted = tidied(name)
    check_session_id(wanted)
    view = read_view(context, None).of(agent_ids(context, agent))
    sessions = view.sessions
    if all(session.id != wanted for session in sessions):
        wanted = meant(wanted, keys_of(sessions))
    live = [session for session in sessions if session.id == wanted or wanted in session.keys]
    if live:
        return Found(live[0].id, live, sorted({session.agent_id for session in live}))
    ledger = Ledger.open_existing(context.settings, "ro")
    with ledger or contextlib.nullcontext():
        one = view.agents[0].agent_id if agent is not None and view.agents else None
        gone = sorted(removed_before(ledger, view, wanted, one))
        if not gone:
            errors = view.errors()
            raise not_found(view, ledger, wanted, {"errors": errors} if errors else {})
    return Found(gone[0][1], [], sorted({agent_id for agent_id, session_id in gone if session_id == gone[0][1]}))
