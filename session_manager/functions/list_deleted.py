"""list_deleted: lists removals: when, why, by whom, and whether they can be restored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from session_manager.core.errors import NotFound, SessionManagerError
from session_manager.core.retention import MINUTE_MS
from session_manager.functions.context import Agents, Context, Limit, Minutes, iso_utc, named

if TYPE_CHECKING:
    from session_manager.archives.second_names import SecondNames
    from session_manager.ledger import Removed
    from session_manager.stores.base import Place

DESCRIPTION = (
    "Lists removed sessions, newest first: when, why, by whom and by which run each was removed, and whether it can "
    "be restored. Changes nothing."
)
_DEFAULT_LIMIT = 100
UNFINISHED = "unfinished"

RunId = Annotated[str, msgspec.Meta(description="the run_id of a result")]


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of list_deleted."""

    agent: Agents | None = None
    since_minutes: Minutes | None = None
    run_id: RunId | None = None
    limit: Limit = _DEFAULT_LIMIT


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns at most ``limit`` rows, the total, and how many of those an interrupted call left unfinished.

    Raises UsageError or NotFound for a bad agent name, and the ledger's failure.
    """
    from session_manager.archives.second_names import SecondNames
    from session_manager.ledger import Ledger

    agents = dict([_resolved(context, name) for name in named(arguments.agent, "agent") or ()])
    ledger = Ledger.open_existing(context.settings, "ro")
    if ledger is None:
        _raise_first(agents.values())
        return {"deleted_count": 0, "deleted": []}
    since = None if arguments.since_minutes is None else context.clock() - arguments.since_minutes * MINUTE_MS
    run_id, limit = arguments.run_id, arguments.limit
    count = begun = 0
    rows: list[Removed] = []
    with ledger:
        _raise_first(error for name, error in agents.items() if error and not ledger.count_removals(agent_id=name))
        for name in agents or (None,):
            count += ledger.count_removals(agent_id=name, since=since, run_id=run_id)
            begun += ledger.count_removals(agent_id=name, since=since, run_id=run_id, unfinished=True)
            rows += ledger.removals(agent_id=name, since=since, run_id=run_id, limit=limit)
    rows = sorted(rows, key=lambda removed: -removed.removal_id)[:limit]
    stores = Stores(context, SecondNames(context.settings.state_dir))
    shown = [removal_row(removed, stores.why_not(removed)) for removed in rows]
    return {"deleted_count": count, "deleted": shown} | ({"unfinished": begun} if begun else {})


def _resolved(context: Context, agent: str) -> tuple[str, NotFound | None]:
    """Returns an agent's folder name, or its name and the error: earlier removals may be of an agent now gone."""
    try:
        return context.volume.resolve_agent(agent), None
    except NotFound as error:
        return agent, error


def _raise_first(errors: Iterable[NotFound | None]) -> None:
    for error in errors:
        if error is not None:
            raise error


class Stores:
    """The stores as they are now, each read once, to decide which removals can be restored."""

    def __init__(self, context: Context, second_names: SecondNames) -> None:
        self._context = context
        self._second_names = second_names
        self._read: dict[str, Place | str] = {}

    def why_not(self, removed: Removed) -> str | None:
        """Returns why a removal cannot be restored, or None when it can."""
        if removed.agent_id not in self._read:
            self._read[removed.agent_id] = self._place(removed.agent_id)
        place = self._read[removed.agent_id]
        if isinstance(place, str):
            return place
        obstacle = place.obstacle([removed])
        return None if obstacle is None else obstacle.reason

    def _place(self, agent_id: str) -> Place | str:
        try:
            store = self._context.volume.archive_store(agent_id)
            if store is None:
                return f"agent {agent_id} has no sessions folder"
            keep_days = self._context.settings.keep_days
            return store.place(self._second_names, keep_days, self._context.clock())
        except SessionManagerError as error:
            return error.message


def removal_row(removed: Removed, why_not: str | None) -> dict[str, Any]:
    """Returns a removal's row; ``why_not`` says what prevents a restore."""
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
        "state": removed.state if removed.finished else UNFINISHED,
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
