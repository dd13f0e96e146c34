"""delete_session: removes one session in both layers."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from session_manager.core.errors import NotFound, Refused, SessionManagerError, failure, with_errors
from session_manager.core.protection import Protection, protection, refusal
from session_manager.core.session import Session
from session_manager.functions.context import Agent, Context, check_session_id, named_when_interrupted
from session_manager.functions.gone import not_found, removed_before, rows_in_history
from session_manager.functions.naming import keys_of, meant, tidied
from session_manager.functions.policy import with_policy
from session_manager.functions.reading import (
    View,
    agent_ids,
    foreign_references,
    names_referred_to,
    observe,
    only_observe,
    read_view,
)
from session_manager.functions.shared_files import archive_left, left_by
from session_manager.functions.tally import Notes, note, still_outside
from session_manager.stores.base import Snapshot, Store, look_once_more

if TYPE_CHECKING:
    from session_manager.archives.work import Work
    from session_manager.functions.delivery import History
from session_manager.stores.results import Outcome

DESCRIPTION = (
    "Removes one session: all its keys leave the index, its transcripts are archived, its history row is marked ended."
)
_POLL_S = 0.1

SessionId = Annotated[str, msgspec.Meta(description="the full session id, or one of the session's keys")]


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of delete_session."""

    session_id: SessionId
    agent: Agent | None = None
    force: bool = False


class Result(msgspec.Struct):
    """What a delete did, over all agents; ``left`` is what ``left_by`` says."""

    removed: list[tuple[str, str]]
    keys: list[str]
    archived: list[str]
    left_alone: dict[str, list[str]]
    left: list[tuple[str, str]]
    notes: Notes
    errors: list[dict[str, object]]


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns the removed session and its files; a session that was removed before is a success that states this."""
    return delete(context, "delete_session", arguments)


def delete(
    context: Context, function: str, arguments: Arguments, wait_seconds: float = 0, *, by_end: bool = False
) -> dict[str, Any]:
    """Deletes a session, waiting up to ``wait_seconds`` for its transcript's lock, and updates history at the end.

    ``by_end``: the name may be the end of the session's key (see ``naming.meant``).
    Raises UsageError, NotFound (``session_not_found``), Refused (``session_protected``, ``session_busy``), or the
    failure of the only agent concerned.
    """
    arguments = msgspec.structs.replace(arguments, session_id=tidied(arguments.session_id))
    check_session_id(arguments.session_id)
    if arguments.session_id in context.settings.current:
        raise refusal(Protection("current", overridable=False), arguments.session_id)
    context = with_policy(context)
    # Every agent is read: another agent's entry may refer to a transcript of this one.
    everyone = read_view(context, None)
    scope = everyone.of(agent_ids(context, arguments.agent))
    failed = scope.errors()
    arguments = _spelled(arguments, scope, by_end)
    _wait(scope, arguments.session_id, wait_seconds, context)

    from session_manager.archives.work import Work
    from session_manager.functions.delivery import History
    from session_manager.ledger import start_run

    run_info = start_run(function, context.settings)
    with (
        named_when_interrupted(run_info),
        Work(context.settings, run_info, context.volume.living, force=arguments.force) as work,
        History(context, run_info) as history,
    ):
        result = Result([], [], [], {}, [], {}, [])
        try:
            _remove(context, work, everyone, scope, arguments, result)
            if result.removed:
                document = _removed_now(context, history, result)
            elif gone := removed_before(
                work.existing_ledger, scope, arguments.session_id, _agent(scope, arguments), by_end=by_end
            ):
                document = _already_deleted(context, work, history, gone)
            else:
                document = _only_in_history(context, work, history, scope, arguments, failed)
        except SessionManagerError as error:
            # Pending updates of earlier calls are delivered even if this one fails.
            history.deliver()
            if isinstance(error, NotFound) or result.notes:
                error.details |= _also(work, run_info, result)
            raise
    return with_errors(document | _also(work, run_info, result), result.errors + failed)


def _spelled(arguments: Arguments, scope: View, by_end: bool) -> Arguments:
    """Returns the arguments with the session's name as in the index."""
    sessions = scope.sessions
    if any(session.id == arguments.session_id for session in sessions):
        return arguments
    name = meant(arguments.session_id, keys_of(sessions), by_end=by_end)
    return msgspec.structs.replace(arguments, session_id=name)


def _also(work: Work, run_info: Any, result: Result) -> dict[str, Any]:
    return {"run_id": run_info.shown_id, **work.notes(), **result.notes}


def _remove(context: Context, work: Work, everyone: View, scope: View, arguments: Arguments, result: Result) -> None:
    refused: list[tuple[str, SessionManagerError]] = []
    references = foreign_references(everyone.agents)
    for read in scope.agents:
        store = read.store
        if store is None or not (
            _matching(read.sessions, arguments.session_id) or store.has_unfinished(work, read.names)
        ):
            continue

        def choose(snapshot: Snapshot) -> list[tuple[Session, str]]:
            observe(context, snapshot, context.clock())
            found = _matching(snapshot.sessions, arguments.session_id)
            for session in found:
                protected = protection(session, context.settings.current)
                if protected is not None and not (protected.overridable and arguments.force):
                    raise refusal(protected, session.id)
            return [(session, "asked for") for session in found]

        try:
            outcome = store.remove(work, choose, names_referred_to(references, store, result.removed))
        except SessionManagerError as error:
            refused.append((read.agent_id, error))
            continue
        asked_for = {session.id for session in _matching(outcome.snapshot.sessions, arguments.session_id)}
        asked_for -= {removal.session_id for removal in outcome.removed}
        refused += [(read.agent_id, e) for i, e in outcome.failures if i in asked_for]
        outcome.failures = [(i, e) for i, e in outcome.failures if i not in asked_for]
        result.errors += note(result.notes, store, outcome)
        if outcome.alive:
            refused.append((read.agent_id, _became_active(arguments)))
        _collect(result, store, outcome)
    for store, outcome in look_once_more(work, only_observe(context)):
        result.errors += note(result.notes, store, outcome)
        woken = {(store.agent_id, one.session_id) for one in outcome.woken}
        refused += [(agent_id, _became_active(arguments)) for agent_id, i in result.removed if (agent_id, i) in woken]
        result.removed = [name for name in result.removed if name not in woken]
    if refused and not result.removed:
        raise refused[0][1]
    left = archive_left(context, work, result.left)
    result.archived += left.names
    result.errors += left.errors
    result.errors += [failure(error, agent_id, arguments.session_id) for agent_id, error in refused]


def _became_active(arguments: Arguments) -> Refused:
    return Refused(f"session {arguments.session_id} has just become active and was kept", code="session_busy")


def _collect(result: Result, store: Store, outcome: Outcome) -> None:
    result.left += left_by(outcome.removed)
    unmoved = {session_id for session_id, _ in outcome.failures}
    result.left_alone |= outcome.left_alone
    for removal in outcome.removed:
        result.removed.append((store.agent_id, removal.session_id))
        result.keys += removal.keys
        if removal.session_id not in unmoved:
            result.archived += [target for _, target in removal.files]


def _removed_now(context: Context, history: History, result: Result) -> dict[str, Any]:
    session_id = result.removed[0][1]
    archived = bool(result.archived)
    transcript = "archived" if archived else "none"
    told, mark = _tell(context, history, result.removed)
    where = " from aria-api" if told["pg_status_updated"] else ""
    document: dict[str, Any] = {
        "deleted": session_id,
        "removed_keys": result.keys,
        "transcript_archived": archived,
        **told,
        "message": f"Session {session_id} removed{where} ({len(result.keys)} keys, transcript={transcript}), {mark}",
        "agents": [agent_id for agent_id, _ in result.removed],
        "archived_files": result.archived,
    }
    if left_alone := still_outside(result.left_alone):
        document["left_alone"] = left_alone
    return document


def _tell(
    context: Context, history: History, names: Collection[tuple[str, str]], heard: Collection[tuple[str, str]] = ()
) -> tuple[dict[str, Any], str]:
    """Delivers pending updates; returns the document's members about history, and a short summary.

    ``names`` are (agent id, session id) of the sessions in question, ``heard`` those already reported to history.
    """
    if not history.there:
        return {"pg_status_updated": False}, "no history service"
    from session_manager.functions.delivery import told

    document = told(history.deliver(names), [name for name in names if name not in heard])
    if document["pg_status_updated"]:
        return document, "PG marked ended"
    return document, "PG update pending" if "pg_pending" in document else "PG has no such row"


def _already_deleted(
    context: Context, work: Work, history: History, gone: Mapping[tuple[str, str], list[str]]
) -> dict[str, Any]:
    session_id = sorted(gone)[0][1]
    heard = work.owe_marks(gone) if history.there else set()
    told, _ = _tell(context, history, sorted(gone), heard)
    return {
        "deleted": session_id,
        "removed_keys": [],
        "transcript_archived": any(gone.values()),
        **told,
        "already_deleted": True,
        "message": f"Session {session_id} was already removed; there was nothing left to do on disk",
        "agents": sorted({a for a, _ in gone}),
    }


def _only_in_history(
    context: Context,
    work: Work,
    history: History,
    scope: View,
    arguments: Arguments,
    failed: list[dict[str, object]],
) -> dict[str, Any]:
    """Ends and reports a session that is in no store any more; an agent that could not be read may still have it."""
    session_id, agent_id = arguments.session_id, _agent(scope, arguments)
    asked = history if history.there else None
    rows, details = rows_in_history(asked, scope, session_id, None if agent_id is None else {agent_id})
    if not rows:
        details |= {"errors": failed} if failed else {}
        raise not_found(scope, work.existing_ledger, session_id, details)
    active = sorted({r.name for r in rows if r.status == "active"})
    document: dict[str, Any] = {"deleted": session_id, "removed_keys": [], "transcript_archived": False}
    if active:
        work.owe_marks(active, again=True)
        told, mark = _tell(context, history, active)
        document |= told | {"message": f"Session {session_id} was not in a live store, only in aria-api: {mark}"}
    else:
        document |= {
            "pg_status_updated": True,
            "already_deleted": True,
            "message": f"Session {session_id} has already ended in the live stores and in aria-api; nothing to do",
        }
    return document | {"agents": sorted({r.agent_id for r in rows})}


def _agent(scope: View, arguments: Arguments) -> str | None:
    """Returns the named agent if it could be read."""
    return scope.agents[0].agent_id if arguments.agent is not None and scope.agents else None


def _matching(sessions: Sequence[Session], wanted: str) -> list[Session]:
    return [s for s in sessions if s.id == wanted or (":" in wanted and wanted in s.keys)]


def _wait(scope: View, wanted: str, seconds: float, context: Context) -> None:
    """Waits while the session is busy, reading its entry and its locks again."""
    deadline = time.monotonic() + seconds
    for read in scope.agents:
        while read.store is not None and any(s.busy for s in _matching(read.sessions, wanted)):
            if time.monotonic() >= deadline:
                return
            time.sleep(_POLL_S)
            now = context.clock()
            try:
                snapshot = read.store.read(now)
                observe(context, snapshot, now)
                snapshot.release()
            except SessionManagerError:
                # The removal meets the same failure under the lock, and reports it.
                break
            read.snapshot, read.names = snapshot, snapshot.names
