"""Shared by cleanup_orphans and readopt_orphans: one read of all agents, and one way to classify a folder."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from session_manager.core.errors import SessionManagerError
from session_manager.core.retention import Policy
from session_manager.core.session import Session
from session_manager.functions.context import Context
from session_manager.functions.reading import (
    AgentRead,
    Reference,
    View,
    agent_ids,
    foreign_references,
    kin_by_agent,
    names_referred_to,
    observe,
)
from session_manager.stores.base import Orphans, Snapshot, Store, not_supported
from session_manager.stores.results import OrphanLook

# The most elements that a list in a result shows; the counts beside it count all.
SHOWN = 100


class AgentState(msgspec.Struct):
    """One agent as of one read: a snapshot, or the error that prevented it.

    ``store`` is None when there is none or that is unknown. ``mentions`` are there even when the index is damaged.
    """

    agent_id: str
    store: Store | None
    snapshot: Snapshot | None
    mentions: object
    error: SessionManagerError | None = None


class Everyone:
    """All agents, as of one read: an agent may refer to another agent's orphan."""

    def __init__(self, context: Context) -> None:
        self.agents = [_state(context, agent_id, store) for agent_id, store in context.volume.stores(None)]
        found = [(a, a.snapshot) for a in self.agents if a.snapshot is not None]
        reads = [AgentRead(a.agent_id, a.store, snapshot, snapshot.names) for a, snapshot in found]
        self._references: list[Reference] = foreign_references(reads)
        self._kin = kin_by_agent(View(reads, []))

    def scope(self, context: Context, agents: str | Sequence[str] | None) -> list[AgentState]:
        """Returns all agents or the named ones. Raises UsageError or NotFound for a bad name."""
        names = agent_ids(context, agents)
        return [a for a in self.agents if names is None or a.agent_id in names]

    def shared(self, store: Store) -> set[str]:
        """Returns names of files in ``store`` that other agents' entries refer to."""
        return names_referred_to(self._references, store, ())

    def kin(self, agent_id: str) -> Sequence[Session]:
        """Returns sessions of other agents that share a family with one of this agent's."""
        return self._kin.get(agent_id, ())

    def mentions_elsewhere(self, agent_id: str) -> list[object]:
        """Returns the files that the other agents' indexes mention."""
        return [a.mentions for a in self.agents if a.agent_id != agent_id and a.mentions is not None]


def _state(context: Context, agent_id: str, store: Store | SessionManagerError | None) -> AgentState:
    if store is None or isinstance(store, SessionManagerError):
        return AgentState(agent_id, None, None, None, store)
    try:
        now = context.clock()
        snapshot = store.read(now)
        observe(context, snapshot, now)
    except SessionManagerError as error:
        return AgentState(agent_id, store, None, store.mentions(None), error)
    return AgentState(agent_id, store, snapshot, store.mentions(snapshot))


def orphans_of(context: Context, everyone: Everyone, store: Store, older_than_minutes: int) -> Orphans:
    """Returns a store's orphans. Raises Refused (``not_supported``) if its kind has none."""
    look = OrphanLook(
        context.clock,
        Policy(older_than_minutes, include_durable=True),
        context.settings.current,
        context.pins,
        lambda snapshot: observe(context, snapshot, context.clock()),
        everyone.shared(store),
        everyone.mentions_elsewhere(store.agent_id),
        everyone.kin(store.agent_id),
    )
    found = store.orphans(look)
    if found is None:
        raise not_supported(store, "look for orphans")
    return found
