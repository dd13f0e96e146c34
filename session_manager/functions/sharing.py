"""Agents that share a sessions folder or an index: which file belongs to which agent."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from session_manager.core.errors import NotFound, SessionManagerError
from session_manager.core.session import Session
from session_manager.functions.context import Context, named
from session_manager.stores.openclaw_files.store import Store
from session_manager.stores.openclaw_files.transcripts import files_by_session

if TYPE_CHECKING:
    from session_manager.ledger import Archived, Ledger


def files_of(store: Store, names: Iterable[str], sessions: Iterable[Session]) -> set[str]:
    """Returns those of the ``names`` in a folder that belong to sessions."""
    return {name for files in files_by_session(names, sessions, store.sessions_dir).values() for name in files}


def names_of(store: Store, names: Sequence[str], sessions: Sequence[Session], others: Collection[str]) -> list[str]:
    """Returns the names in a folder that belong to an agent; ``others`` are files of the other agents' sessions.

    Files that belong to no agent are the keeper's.
    """
    if not store.mates:
        return list(names)
    own = files_of(store, names, sessions)
    return [name for name in names if name in own or (store.keeper and name not in others)]


def archives_of(store: Store, names: Sequence[str], ledger: Ledger | None) -> tuple[list[str], list[Archived]]:
    """Returns the names in a folder that may be an agent's archives, and its removals in the ledger."""
    removed = ledger.archived(store.agent_id) if ledger is not None else []
    if not store.mates and not store.database:
        return list(names), removed
    own = {name for removal in removed for name in removal.archives}
    if store.database:
        # Files that the gateway has created there since stay.
        return [name for name in names if name in own], removed
    known = {name for removal in ledger.archived(None) for name in removal.archives} if ledger is not None else set()
    return [name for name in names if name in own or (store.keeper and name not in known)], removed


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
