"""restore_session: undoes the removal of one session, in both layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from session_manager.core.errors import NotFound, Refused, SessionManagerError, with_errors
from session_manager.functions.context import Agent, Context, Unguarded, check_session_id, named_when_interrupted
from session_manager.functions.delete_session import SessionId
from session_manager.functions.naming import hint, keys_of, meant, tidied
from session_manager.functions.reading import View, read_view, with_moved

if TYPE_CHECKING:
    from session_manager.archives.work import Work
    from session_manager.functions.restoring import Outcome
    from session_manager.ledger import Ledger, Removed
    from session_manager.stores.lives import Find, Life

DESCRIPTION = (
    "Restores one removed session: its keys return to the index byte for byte, its transcripts get their names back, "
    "and its history row is active again."
)
# A restored session may be only half restored.
_MAY_COME_BACK = ("removed", "restored")


Pin = Annotated[bool, msgspec.Meta(description="also pin what comes back, as pin_session does")]


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of restore_session."""

    session_id: SessionId
    agent: Agent | None = None
    pin: Pin = False
    force: Unguarded = False


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns the restored session; one that is already live is a success that states this.

    Raises UsageError, NotFound (``session_not_found``), Refused (``key_taken``, ``file_exists``,
    ``not_restorable``) when something is in the way, or the failure of the only agent concerned.
    """
    wanted = tidied(arguments.session_id)
    check_session_id(wanted)
    from session_manager.archives.work import Work
    from session_manager.functions.sharing import resolve_ever
    from session_manager.ledger import start_run

    run_info = start_run("restore_session", context.settings)
    with Work(context.settings, run_info, context.volume.living, force=arguments.force) as work:
        ledger = work.existing_ledger
        agent = None if arguments.agent is None else resolve_ever(context, ledger, arguments.agent)
        removed = []
        if ledger is not None:
            removed = ledger.removals(session=wanted, agent_id=agent)
            if not removed and (key := meant(wanted, ledger.keys_ending(wanted))) != wanted:
                removed, wanted = ledger.removals(session=key, agent_id=agent), key
        with named_when_interrupted(work.run):
            try:
                return _restore(context, work, removed, wanted, agent, pin=arguments.pin)
            except SessionManagerError:
                _deliver(context, work)
                raise


def _restore(
    context: Context, work: Work, removed: list[Removed], wanted: str, agent: str | None, *, pin: bool
) -> dict[str, Any]:
    from session_manager.functions.restoring import also, pinned, take_back

    if ":" in wanted and removed:
        # A key may have named several sessions, one after the other: take the last.
        wanted = removed[0].session_id
    from session_manager.stores.lives import LEFTOVER

    ordered = sorted(removed, key=lambda r: r.reason == LEFTOVER)
    newest = {r.agent_id: r for r in reversed(ordered) if r.session_id == wanted}
    going = {agent_id: _finder(agent_id, wanted) for agent_id, r in newest.items() if r.state in _MAY_COME_BACK}
    if not going:
        return _nothing_to_do(context, work, newest, wanted, agent, pin=pin)
    outcome = take_back(context, work, going, skip_conflicts=False)
    if not outcome.back:
        view = with_moved(context, read_view(context, agent))
        if not _living(view, wanted):
            raise Refused(
                f"session {wanted} was already restored, and has been deleted since by another program",
                code="not_restorable",
            )
        return _lives(context, work, view, wanted, pin=pin) | also(work, outcome)
    document = _document(context, work, outcome, wanted) | also(work, outcome)
    document |= pinned(context, [wanted]) if pin else {}
    return with_errors(document, outcome.errors + outcome.blocked_errors())


def _finder(agent_id: str, session_id: str) -> Find:
    from session_manager.stores.lives import lives

    def find(ledger: Ledger) -> list[Life]:
        return lives(ledger.removals(agent_id=agent_id, session=session_id))[:1]

    return find


def _document(context: Context, work: Work, outcome: Outcome, session_id: str) -> dict[str, Any]:
    from session_manager.functions.restoring import import_of

    told = _deliver(context, work, outcome.names)
    mark = "PG update pending" if work.run.history else "no history service"
    if told["pg_status_updated"]:
        mark = "PG row active"
    transcript = "restored" if outcome.files else "none"
    keys = len(outcome.keys)
    return {
        "restored": session_id,
        "restored_keys": outcome.keys,
        "transcript_restored": bool(outcome.files),
        **told,
        "message": f"Session {session_id} restored ({keys} keys, transcript={transcript}), {mark}{import_of(outcome)}",
        "agents": sorted({agent_id for agent_id, _ in outcome.names}),
        "restored_files": outcome.files,
    }


def _deliver(context: Context, work: Work, names: list[tuple[str, str]] | None = None) -> dict[str, Any]:
    """Delivers pending updates, of this call and of earlier ones; reports the outcome for ``names``."""
    if not work.run.history:
        return {"pg_status_updated": False}
    from session_manager.functions.delivery import History, told

    with History(context, work.run) as history:
        return told(history.deliver(), names or [])


def _nothing_to_do(
    context: Context, work: Work, newest: Mapping[str, Removed], session_id: str, agent: str | None, *, pin: bool
) -> dict[str, Any]:
    """Explains why there is nothing to restore. Raises NotFound or Refused when the session is not live."""
    from session_manager.functions.restoring import also

    view = with_moved(context, read_view(context, agent))
    session_id = meant(session_id, keys_of(view.sessions))
    outcome = _tidied(work, view)
    if _living(view, session_id):
        return _lives(context, work, view, session_id, pin=pin) | also(work, outcome)
    errors = view.errors()
    if newest:
        state = next(iter(newest.values())).state
        raise Refused(f"session {session_id} cannot be restored: it was {state}", code="not_restorable", state=state)
    details: dict[str, Any] = {"errors": errors} if errors else {}
    ledger = work.existing_ledger
    keys = [] if ledger is None else ledger.keys_ending(session_id)
    what = f"there is no removal of a session {session_id!r}: list_deleted shows what can be restored"
    raise NotFound(what + hint(session_id, keys), **details)


def _tidied(work: Work, view: View) -> Outcome:
    """Recovers interrupted runs, as every writing call does."""
    from session_manager.functions.restoring import Outcome, end_earlier

    stores = [read.store for read in view.agents if read.store is not None]
    return Outcome(recovered=[one for store in stores for one in end_earlier(work, store)])


def _living(view: View, wanted: str) -> list[str]:
    return sorted({s.agent_id for s in view.sessions if wanted == s.id or wanted in s.keys})


def _lives(context: Context, work: Work, view: View, session_id: str, *, pin: bool) -> dict[str, Any]:
    from session_manager.functions.restoring import pinned

    ids = {session.id for session in view.sessions if session_id == session.id or session_id in session.keys}
    return {
        "restored": session_id,
        "restored_keys": [],
        "transcript_restored": False,
        **_deliver(context, work),
        "already_live": True,
        "message": f"Session {session_id} is already live; nothing to do",
        "agents": _living(view, session_id),
        "restored_files": [],
        **(pinned(context, ids) if pin else {}),
    }
