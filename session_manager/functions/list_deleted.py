"""list_deleted: what was removed, when, why, by whom, and whether it can be restored."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from session_manager.core.errors import NotFound, SessionManagerError
from session_manager.core.retention import MINUTE_MS
from session_manager.core.session import text_or_none
from session_manager.functions.context import Agent, Context, Limit, Minutes, iso_utc
from session_manager.live.volume import Snapshot, read_snapshot

if TYPE_CHECKING:
    from session_manager.live.ledger import Removed
    from session_manager.live.second_names import SecondNames

DESCRIPTION = (
    "Lists removed sessions, newest first: when, why, by whom, by which run, and whether they can be restored. "
    "Writes nothing."
)
_DEFAULT_LIMIT = 100
_UNFINISHED = "its removal is not finished; the next call that removes something finishes or undoes it"
_ENDS = {
    "restored": "it was restored",
    "purged": "its archives were purged",
    "erased": "it was erased",
}

RunId = Annotated[str, msgspec.Meta(description="a result's run_id")]


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of list_deleted."""

    agent: Agent | None = None
    since_minutes: Minutes | None = None
    run_id: RunId | None = None
    limit: Limit = _DEFAULT_LIMIT


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns the rows, at most ``limit``, and how many there are in all.

    Raises UsageError or NotFound for a bad agent name, and the ledger's failure.
    """
    from session_manager.live.ledger import Ledger
    from session_manager.live.second_names import SecondNames

    agent, unknown = arguments.agent, None
    if agent is not None:
        try:
            agent = context.volume.resolve_agent(agent)
        except NotFound as error:
            # An agent that is gone may still have been one when it was pruned.
            unknown = error
    ledger = Ledger.open_existing(context.settings, "ro")
    if ledger is None:
        if unknown is not None:
            raise unknown
        return {"deleted_count": 0, "deleted": []}
    since = None if arguments.since_minutes is None else context.clock() - arguments.since_minutes * MINUTE_MS
    with ledger:
        count = ledger.count_removals(agent_id=agent, since=since, run_id=arguments.run_id)
        if unknown is not None and not ledger.count_removals(agent_id=agent):
            raise unknown
        rows = ledger.removals(agent_id=agent, since=since, run_id=arguments.run_id, limit=arguments.limit)
    stores = Stores(context, SecondNames(context.settings.state_dir))
    return {"deleted_count": count, "deleted": [_row(removed, stores.why_not(removed)) for removed in rows]}


class Stores:
    """The stores as they are now, each read once, to say what can be brought back."""

    def __init__(self, context: Context, second_names: SecondNames) -> None:
        self._context = context
        self._second_names = second_names
        self._read: dict[str, Snapshot | str] = {}

    def why_not(self, removed: Removed) -> str | None:
        """Returns why a removal cannot be restored, or None when it can."""
        if removed.state != "removed":
            return _ENDS.get(removed.state, f"it is {removed.state}")
        if not removed.finished:
            return _UNFINISHED
        if not removed.has_entries:
            days = self._context.settings.keep_days
            return f"its index entry is kept no longer (ARIA_KEEP_DAYS is {days})"
        snapshot = self._snapshot(removed.agent_id)
        if isinstance(snapshot, str):
            return snapshot
        entries = snapshot.index.entries if snapshot.index is not None else {}
        for key in removed.keys:
            if key in entries and snapshot.index is not None:
                other = text_or_none(snapshot.index.entry(key).session_id)
                return f"its key {key} is in use by session {other}"
        for source, target in removed.files:
            if os.path.lexists(os.path.join(snapshot.store.sessions_dir, source)):
                return f"there is a file {source} already"
            second = self._second_names.path(removed.run_id, removed.agent_id, target)
            if not os.path.lexists(os.path.join(snapshot.store.sessions_dir, target)) and not os.path.lexists(second):
                return f"its archive {target} is gone"
        return None

    def _snapshot(self, agent_id: str) -> Snapshot | str:
        if agent_id not in self._read:
            try:
                store = self._context.volume.store(agent_id)
                if store is None:
                    self._read[agent_id] = f"agent {agent_id} has no sessions folder"
                else:
                    self._read[agent_id] = read_snapshot(store, self._context.clock())
            except SessionManagerError as error:
                self._read[agent_id] = error.message
        return self._read[agent_id]


def _row(removed: Removed, why_not: str | None) -> dict[str, Any]:
    facts = removed.facts
    return {
        "id": removed.session_id,
        "agentId": removed.agent_id,
        "run_id": removed.run_id,
        "deleted_at": iso_utc(removed.removed_at),
        "function": removed.function,
        "reason": removed.reason,
        "asked_by": removed.asked_by,
        "user": removed.user,
        "host": removed.host,
        "state": removed.state,
        "state_since": iso_utc(removed.changed_at),
        "restorable": why_not is None,
        "why_not": why_not,
        "keys": removed.keys,
        "archived_files": [target for _, target in removed.files],
        "history": None if removed.mark is None else f"{removed.mark[0]}: {removed.mark[1]}",
        "session_type": facts.session_type,
        "label": facts.label,
        "model": facts.model,
        "tokens": facts.tokens,
        "cost_usd": facts.cost_usd,
        "started_at": iso_utc(facts.started_at),
        "last_activity": iso_utc(facts.activity),
    }
