"""Agents that have one sessions folder, or one index, together: which files are whose."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from session_manager.core.errors import NotFound, SessionManagerError
from session_manager.core.session import Session
from session_manager.functions.context import Context, named
from session_manager.live.transcripts import files_by_session
from session_manager.live.volume import Store

if TYPE_CHECKING:
    from session_manager.live.ledger import Archived, Ledger


def files_of(store: Store, names: Iterable[str], sessions: Iterable[Session]) -> set[str]:
    """Returns the files of sessions, of the ``names`` in their folder."""
    return {name for files in files_by_session(names, sessions, store.sessions_dir).values() for name in files}


def names_of(store: Store, names: Sequence[str], sessions: Sequence[Session], others: Collection[str]) -> list[str]:
    """Returns which names in a folder are an agent's part of it; ``others`` are files of its mates' sessions.

    What is nobody's is the keeper's.
    """
    if not store.mates:
        return list(names)
    own = files_of(store, names, sessions)
    return [name for name in names if name in own or (store.keeper and name not in others)]


def archives_of(store: Store, names: Sequence[str], ledger: Ledger | None) -> tuple[list[str], list[Archived]]:
    """Returns which names in a folder may be archives of an agent's, and its removals that the ledger knows."""
    removed = ledger.archived(store.agent_id) if ledger is not None else []
    if not store.mates and not store.database:
        return list(names), removed
    own = {name for removal in removed for name in removal.archives}
    if store.database:
        # What the gateway has made there since is its own to keep.
        return [name for name in names if name in own], removed
    known = {name for removal in ledger.archived(None) for name in removal.archives} if ledger is not None else set()
    return [name for name in names if name in own or (store.keeper and name not in known)], removed


def stores_ever(
    context: Context, agents: str | Sequence[str] | None, ledger: Ledger | None
) -> Iterator[tuple[str, Store | SessionManagerError | None]]:
    """Yields what ``reading.stores_of`` does, also for agents whose keys have all left the shared index."""
    names = named(agents, "agent")
    if names is not None:
        ids = list(dict.fromkeys(resolve_ever(context, ledger, name) for name in names))
    else:
        ids = context.volume.agent_ids()
        if context.volume.shared and ledger is not None:
            ids += sorted(set(ledger.agents()).difference(ids))
    return context.volume.stores_of(ids)


def resolve_ever(context: Context, ledger: Ledger | None, agent: str) -> str:
    """Does what ``Volume.resolve_agent`` does, also for an agent whose keys have all left the shared index."""
    try:
        return context.volume.resolve_agent(agent)
    except NotFound:
        if context.volume.shared and ledger is not None and agent.lower() in ledger.agents():
            return agent.lower()
        raise
