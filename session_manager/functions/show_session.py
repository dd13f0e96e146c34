"""show_session: everything known about one session, live or removed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from session_manager.core.errors import NotFound, with_errors
from session_manager.core.session import Session
from session_manager.functions.context import Agent, Context, check_session_id, iso_utc
from session_manager.functions.delete_session import SessionId
from session_manager.functions.naming import hint, keys_of, meant, tidied
from session_manager.functions.policy import with_policy_to_read
from session_manager.functions.reading import AgentRead, read_view
from session_manager.functions.rows import row

DESCRIPTION = (
    "Shows one session, by its full id or one of its keys: its keys, times, counters and files, and what was removed "
    "of it, when and why. Changes nothing."
)


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of show_session."""

    session_id: SessionId
    agent: Agent | None = None


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns ``{"session_id", "live": [...], "removed": [...]}``, a row for each agent that has or had it.

    Raises UsageError, NotFound, the failure of the only agent concerned, or the ledger's.
    """
    wanted = tidied(arguments.session_id)
    check_session_id(wanted)
    context, unusable = with_policy_to_read(context)
    view = read_view(context, arguments.agent)
    errors = view.errors()
    keys = keys_of(view.sessions)
    live = [shown for read in view.agents for shown in _live(context, read, wanted)]
    if not live:
        live = [shown for read in view.agents for shown in _live(context, read, meant(wanted, keys))]
    removed, removed_keys = _removed(context, arguments.agent, wanted)
    if not live and not removed:
        details: dict[str, Any] = {"errors": errors} if errors else {}
        what = f"no session {wanted!r}: give the full id or key as list_sessions or list_deleted shows it"
        raise NotFound(what + hint(wanted, [*keys, *removed_keys]), **details)
    document = {"session_id": arguments.session_id, "live": live, "removed": removed, **unusable}
    return with_errors(document, errors)


def _live(context: Context, read: AgentRead, wanted: str) -> Iterator[dict[str, Any]]:
    for session in read.sessions:
        if read.snapshot is not None and (session.id == wanted or wanted in session.keys):
            found = read.snapshot.details(session, context.clock())
            shown = {**row(session, context.settings.current), **_facts(session), "files": found.files}
            yield shown | ({"files_elsewhere": found.elsewhere} if found.elsewhere else {})


def _facts(session: Session) -> dict[str, Any]:
    from session_manager.files.liveness import now_ms
    from session_manager.ledger.facts import facts_of

    facts = facts_of(session, now_ms())
    return {
        "keys": session.keys,
        "last_activity": iso_utc(session.last_activity),
        "started_at": iso_utc(facts.started_at),
        "tokens": facts.tokens,
        "cost_usd": facts.cost_usd,
        "pinned": session.pinned,
        "busy": session.busy,
        "spawned_by": list(session.parents),
    }


def _removed(context: Context, agent: str | None, wanted: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the rows of removals, and the keys in the ledger with this ending."""
    from session_manager.archives.second_names import SecondNames
    from session_manager.functions.list_deleted import Stores, removal_row
    from session_manager.ledger import Ledger

    ledger = Ledger.open_existing(context.settings, "ro")
    if ledger is None:
        return [], []
    agent_id = None if agent is None else context.volume.resolve_agent(agent)
    with ledger:
        keys = ledger.keys_ending(wanted)
        found = ledger.removals(agent_id=agent_id, session=wanted) or ledger.removals(
            agent_id=agent_id, session=meant(wanted, keys)
        )
    stores = Stores(context, SecondNames(context.settings.state_dir))
    return [removal_row(removed, stores.why_not(removed)) for removed in found], keys
