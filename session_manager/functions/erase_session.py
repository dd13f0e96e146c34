"""erase_session: irreversibly erases a session in both layers, for privacy."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from session_manager.core.errors import NotFound, Refused, SessionManagerError, UsageError, with_errors
from session_manager.core.keys import safe_name
from session_manager.core.protection import PINNED, Protection, refusal
from session_manager.functions.context import Agent, Context, iso_utc, named_when_interrupted
from session_manager.functions.policy import with_policy
from session_manager.functions.reading import View, agent_ids, read_view, with_moved

if TYPE_CHECKING:
    from session_manager.archives.work import Work
    from session_manager.functions.delivery import History
    from session_manager.functions.erasing import Result
    from session_manager.ledger import Removed

DESCRIPTION = (
    "Erases one session for privacy: its index entry, transcripts, archives, details in the ledger and details in "
    "history. This cannot be undone, and works only where a person has set ARIA_ALLOW_ERASE=1."
)
BEYOND = {
    "backups": "backups and snapshots of these folders and of the database still contain it",
    "model provider": "the model provider keeps what was sent to it, by its own rules",
    "search indexes": "search indexes, memories and workspace files that were made from the conversation",
    "other sessions": "other sessions' transcripts, archives and index entries that quote it, here and in the ledger",
    "a running gateway": "it may have the session in memory and write it back: check later, and erase again if it does",
    "free blocks": "freed disk blocks may not have been overwritten yet",
}

SessionId = Annotated[str, msgspec.Meta(description="the full session id, not a key")]
Confirm = Annotated[str, msgspec.Meta(description="the same session id again")]


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of erase_session."""

    session_id: SessionId
    confirm: Confirm
    agent: Agent | None = None
    force: bool = False


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns the receipt and all that was not reached; an earlier erasure is a success that states this.

    Raises UsageError, NotFound (``session_not_found``), Refused (``erase_disabled``, ``session_protected``,
    ``session_busy``), or the failure of the only agent concerned.
    """
    _check(context, arguments)
    context = with_policy(context)
    # A pin by id also holds when only the session's files are left.
    if context.pins is not None and arguments.session_id in context.pins.ids and not arguments.force:
        raise refusal(Protection(PINNED, overridable=True), arguments.session_id, "erased")
    # Every agent is read: another agent's entry may refer to a transcript of this one.
    everyone = with_moved(context, read_view(context, None))
    scope = everyone.of(agent_ids(context, arguments.agent))
    failed = scope.errors()

    from session_manager.archives.work import Work
    from session_manager.functions.delivery import History
    from session_manager.functions.erasing import Erasing
    from session_manager.ledger import start_run
    from session_manager.ledger.keeping import forget

    run_info = start_run("erase_session", context.settings)
    with (
        named_when_interrupted(run_info),
        Work(context.settings, run_info, context.volume.living, force=arguments.force) as work,
        History(context, run_info) as history,
    ):
        erasing = Erasing(context, work, everyone, scope, arguments.session_id, force=arguments.force)
        result = erasing.result
        try:
            erasing.run()
            forget(context.settings, arguments.session_id, result.done)
            only_in_history = not result.done and not result.begun
            if only_in_history:
                result.done = _in_history(context, history, scope, arguments, failed)
            document = _told(context, work, history, arguments.session_id, result)
        except SessionManagerError as error:
            # Pending updates of earlier calls are delivered even if this one fails.
            history.deliver()
            if isinstance(error, NotFound) and result.recovered:
                error.details["recovered"] = result.recovered
            raise
        document = _document(context, work, history, arguments.session_id, result, document, only_in_history)
    return with_errors({**document, "run_id": run_info.shown_id, **work.notes()}, result.errors + failed)


def _check(context: Context, arguments: Arguments) -> None:
    session_id = arguments.session_id
    if not context.settings.allow_erase:
        raise Refused(
            "erasing is turned off; to allow it, a person sets ARIA_ALLOW_ERASE=1 in this tool's environment. This "
            "guards against mistakes, not against attackers: anybody who can write these files can delete them",
            code="erase_disabled",
        )
    if not safe_name(session_id) or ":" in session_id:
        raise UsageError(
            f"{session_id!r} is not a session id: full ids only, no key, no path, no leading dot or dash",
            argument="session_id",
        )
    if arguments.confirm != session_id:
        raise UsageError("confirm must be the same id as session_id; nothing was changed", argument="confirm")
    if session_id in context.settings.current:
        raise refusal(Protection("current", overridable=False), session_id, "erased")


def _in_history(
    context: Context, history: History, scope: View, arguments: Arguments, failed: list[dict[str, object]]
) -> list[str]:
    """Returns the agents of a session that only history knows. Raises NotFound when history has none."""
    details: dict[str, Any] = {"errors": failed} if failed else {}
    agents: set[str] = set()
    if history.there:
        rows, error = history.find(arguments.session_id)
        if error is not None:
            details |= {"history": "unknown", "pg_error": error}
        agents = {row.agent_id for row in rows} - {agent_id for agent_id, _ in scope.failed}
        if arguments.agent is not None:
            agents &= {read.agent_id for read in scope.agents}
    if not agents:
        what = f"no session {arguments.session_id!r}: give the full id as list_sessions or list_deleted shows it"
        raise NotFound(what, **details)
    return sorted(agents)


def _told(context: Context, work: Work, history: History, session_id: str, result: Result) -> dict[str, Any]:
    """Records the erasure as pending for history if it is not yet, and delivers; returns the document's members."""
    if not history.there:
        return {"pg_status_updated": False}
    from session_manager.functions.delivery import told

    names = [(agent_id, session_id) for agent_id in result.done]
    try:
        for name in names:
            work.ledger.owe_erasure(work.run, *name)
    except SessionManagerError as error:
        if not result.changed:
            raise
        return {"pg_status_updated": False, "pg_pending": True, "pg_error": error.message}
    document = told(history.deliver(names), names)
    if result.begun:
        document["pg_status_updated"] = False
    return document


def _document(
    context: Context,
    work: Work,
    history: History,
    session_id: str,
    result: Result,
    pg: dict[str, Any],
    only_in_history: bool,
) -> dict[str, Any]:
    counts = {name: getattr(result, name) for name in ("keys", "files", "bytes", "ledger_entries")}
    agents = sorted({*result.done, *result.begun})
    document: dict[str, Any] = {
        "erased": session_id,
        "receipt": {"agents": agents, "erased_at": iso_utc(_erased_at(work, session_id)), **counts},
        "not_reached": _not_reached(context, session_id, result, pg),
        **pg,
    }
    if only_in_history:
        message = f"was not in a live store, only in aria-api: {_in_history_now(history, pg)}"
    elif result.begun or result.changed:
        done = f"{result.keys} keys, {result.files} files, {result.ledger_entries} ledger entries"
        unfinished = f"is not completely erased yet ({done}); call again to continue"
        message = unfinished if result.begun else f"erased ({done}), {_in_history_now(history, pg)}"
    else:
        document["already_erased"] = True
        message = "was already erased; there was nothing left to do on disk"
    document["message"] = f"Session {session_id} {message}"
    for name in ("recovered", "reappeared"):
        if found := getattr(result, name):
            document[name] = found
    return document


def _in_history_now(history: History, pg: dict[str, Any]) -> str:
    if not history.there:
        return "no history service"
    if pg["pg_status_updated"]:
        return "PG erased"
    return "PG update pending" if "pg_pending" in pg else "PG has no such row"


def _erased_at(work: Work, session_id: str) -> int | None:
    """Returns the time of a session's newest receipt (epoch ms); None when only history knew the session."""
    ledger = work.existing_ledger
    receipts: list[Removed] = []
    with contextlib.suppress(SessionManagerError):
        receipts = ledger.removals(session=session_id, limit=1) if ledger is not None else []
    return receipts[0].changed_at if receipts and receipts[0].state == "erased" else None


def _not_reached(context: Context, session_id: str, result: Result, pg: dict[str, Any]) -> list[dict[str, str]]:
    """Returns where the session still has, or may have, data: places found first, then unreadable ones."""
    found = [_place(agent_id, name, "it also belongs to a session that stays") for agent_id, name in result.spared]
    for agent_id in sorted({*result.done, *result.begun}):
        try:
            store = context.volume.archive_store(agent_id) if safe_name(agent_id) else None
            left = store.left_of(session_id) if store is not None else []
        except SessionManagerError as error:
            found.append({"place": f"{agent_id}/sessions", "reason": error.message})
            continue
        found += [{"place": place, "reason": reason} for place, reason in left]
    if "pg_error" in pg:
        found.append({"place": "aria-api", "reason": pg["pg_error"]})
    return found + [{"place": place, "reason": reason} for place, reason in BEYOND.items()]


def _place(agent_id: str, name: str, reason: str) -> dict[str, str]:
    return {"place": f"{agent_id}/sessions/{name}", "reason": reason}
