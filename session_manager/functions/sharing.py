"""Agents that share a sessions folder or an index: which file belongs to which agent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from session_manager.core.errors import NotFound, SessionManagerError
from session_manager.functions.context import Context, named
from session_manager.stores.base import Store

if TYPE_CHECKING:
    from session_manager.ledger import Ledger


def stores_ever(
    context: Context, agents: str | Sequence[str] | None, ledger: Ledger | None
) -> Iterator[tuple[str, Store | SessionManagerError | None]]:
    """Yields the same as ``reading.stores_of``, also for agents without a key left in the shared index."""
    names = named(agents, "agent")
    if names is not None:
        ids = list(dict.fromkeys(resolve_ever(context, ledger, name) for name in names))
    else:
        ids = context.volume.agent_ids()
        if context.volume.shared and ledger is not None:
            ids += sorted(set(ledger.agents()).difference(ids))
    return context.volume.stores_of(ids)


def resolve_ever(context: Context, ledger: Ledger | None, agent: str) -> str:
    """Does the same as ``Volume.resolve_agent``, also for an agent without a key left in the shared index."""
    try:
        return context.volume.resolve_agent(agent)
    except NotFound:
        if context.volume.shared and ledger is not None and agent.lower() in ledger.agents():
            return agent.lower()
        raise
