"""restore_run: undoes everything that one run removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from session_manager.core.errors import NotFound, SessionManagerError, with_errors
from session_manager.functions.context import Agent, Context, Unguarded, named_when_interrupted
from session_manager.functions.list_deleted import RunId
from session_manager.functions.restore_session import Pin

if TYPE_CHECKING:
    from session_manager.archives.work import Work
    from session_manager.functions.restoring import Outcome
    from session_manager.ledger import Ledger
    from session_manager.stores.lives import Find, Life

DESCRIPTION = (
    "Undoes one run: restores everything that it removed, in both layers. If one session cannot be restored, nothing "
    "is changed, unless skip_conflicts is true: then all others are restored."
)

SkipConflicts = Annotated[bool, msgspec.Meta(description="restore all others when some cannot be restored")]


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of restore_run."""

    run_id: RunId
    agent: Agent | None = None
    skip_conflicts: SkipConflicts = False
    pin: Pin = False
    force: Unguarded = False


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns the restored sessions; those restored before are counted.

    Raises UsageError, NotFound (``run_not_found``), Refused (``key_taken``, ``file_exists``, ``not_restorable``)
    with all ``conflicts``, or the failure of the only agent concerned.
    """
    from session_manager.archives.work import Work
    from session_manager.functions.sharing import resolve_ever
    from session_manager.ledger import start_run

    run_info = start_run("restore_run", context.settings)
    with Work(context.settings, run_info, context.volume.living, force=arguments.force) as work:
        named = arguments.agent
        agent = None if named is None else resolve_ever(context, work.existing_ledger, named)
        before, agents = _known(work, arguments.run_id, agent)

        def so_far() -> dict[str, object]:
            return {"restored_count": _known(work, arguments.run_id, agent)[0] - before}

        with named_when_interrupted(work.run, so_far):
            return _restore(context, work, arguments, before, agents)


def _restore(context: Context, work: Work, arguments: Arguments, before: int, agents: Sequence[str]) -> dict[str, Any]:
    from session_manager.functions.delivery import tell
    from session_manager.functions.restoring import also, import_of, take_back

    try:
        finds = {agent_id: _finder(agent_id, arguments.run_id) for agent_id in agents}
        outcome = take_back(context, work, finds, skip_conflicts=arguments.skip_conflicts)
    except SessionManagerError:
        # Pending updates of earlier calls are delivered even if this one fails.
        tell(context, work.run, ())
        raise
    # A removal that was never reported to history needs no undo there.
    told = tell(context, work.run, outcome.names if work.run.history else ())
    count = len(outcome.names)
    sessions = "1 session" if count == 1 else f"{count} sessions"
    document = {
        "restored_run": arguments.run_id,
        "restored_count": count,
        "restored_ids": list(dict.fromkeys(session_id for _, session_id in outcome.names)),
        "already_restored": before,
        "skipped": _skipped(outcome),
        "restored_files": len(outcome.files),
        **told,
        "message": f"{sessions} of run {arguments.run_id} restored, {len(outcome.blocked)} skipped"
        + import_of(outcome),
        **also(work, outcome),
        **(_pinned(context, work, arguments.run_id, agents) if arguments.pin else {}),
    }
    # Unless conflicts may be skipped, only changes made in between can be among the skipped.
    return with_errors(document, outcome.errors + ([] if arguments.skip_conflicts else outcome.blocked_errors()))


def _known(work: Work, run_id: str, agent: str | None) -> tuple[int, list[str]]:
    """Returns how many of a run's sessions were restored before, and its agents, last first. Raises NotFound."""
    ledger = work.existing_ledger
    states = [] if ledger is None else ledger.states(run_id, agent)
    if not states:
        raise NotFound(
            f"there is no run {run_id!r}: list_deleted shows the run ids, and each removal returns its own",
            code="run_not_found",
        )
    restored = sum(count for _, state, count in states if state == "restored")
    return restored, list(dict.fromkeys(agent_id for agent_id, _, _ in states))


def _pinned(context: Context, work: Work, run_id: str, agents: Sequence[str]) -> dict[str, Any]:
    """Pins the sessions of a run that were restored, now or before; returns the member that reports it."""
    from session_manager.functions.restoring import pinned

    removed = work.ledger.removals(run_id=run_id)
    return pinned(context, {r.session_id for r in removed if r.state == "restored" and r.agent_id in agents})


def _finder(agent_id: str, run_id: str) -> Find:
    """Returns a function that finds the run's removals in one agent, each with later removals of the same session."""
    from session_manager.stores.lives import REAPPEARED, lives

    def find(ledger: Ledger) -> Sequence[Life]:
        removed = ledger.removals(agent_id=agent_id, run_id=run_id)
        since = min(r.removed_at for r in removed)
        again = {r.session_id for r in ledger.removals(agent_id=agent_id, since=since, reason=REAPPEARED)}
        found: list[Life] = [[r] for r in removed if r.session_id not in again]
        ids = {r.removal_id for r in removed}
        for session_id in sorted({r.session_id for r in removed} & again):
            whole = lives(ledger.removals(agent_id=agent_id, session=session_id))
            found += [life for life in whole if not ids.isdisjoint(r.removal_id for r in life)]
        return found

    return find


def _skipped(outcome: Outcome) -> list[dict[str, Any]]:
    return [
        {"id": life[0].session_id, "agentId": life[0].agent_id, "code": obstacle.code, "reason": obstacle.reason}
        for life, obstacle in outcome.blocked
    ]
