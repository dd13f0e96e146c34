"""delete_sessions: removes all sessions that some filters cover, in both layers, under one lock an agent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from session_manager.core.errors import SessionManagerError, UsageError, with_errors
from session_manager.core.protection import protection
from session_manager.core.retention import MINUTE_MS, Decision, apply_limit, is_old
from session_manager.core.selection import Selection
from session_manager.core.session import Session
from session_manager.functions.context import Agent, Context, Filters, Limit, Minutes, named_when_interrupted
from session_manager.functions.policy import with_policy
from session_manager.functions.reading import (
    View,
    errors_or_raise,
    foreign_references,
    measure_view,
    names_referred_to,
    observe,
    read_view,
)
from session_manager.functions.tally import Tally, plan_rows
from session_manager.live.volume import Snapshot

if TYPE_CHECKING:
    from session_manager.live.ledger import Run

DESCRIPTION = (
    "Removes all sessions that the filters cover, whatever their type and, without older_than_minutes, their age; "
    "protected ones stay. A dry run unless dry_run is false."
)
REASON = "asked for"

Details = Annotated[bool, msgspec.Meta(description="with dry_run: also a row for each session, in `plan`")]


class Arguments(Filters, forbid_unknown_fields=True):
    """Arguments of delete_sessions."""

    agent: Agent | None = None
    older_than_minutes: Minutes | None = None
    limit: Limit | None = None
    force: bool = False
    dry_run: bool = True
    details: Details = False


class Choice(msgspec.Struct, frozen=True):
    """Which sessions go. ``age`` is in minutes; the newest are spared by ``limit``."""

    only: Selection
    age: int | None
    limit: int | None
    force: bool
    current: frozenset[str]

    def cutoff(self, now_ms: int) -> int | None:
        """Epoch milliseconds before which a session's last activity must lie; None when any age will do."""
        return None if self.age is None else now_ms - self.age * MINUTE_MS

    def decide(self, sessions: Sequence[Session], now_ms: int, already: int) -> list[Decision]:
        """Decides for every session that is meant; ``already`` is how many this run has removed before."""
        cutoff = self.cutoff(now_ms)
        decisions = []
        for session in sessions:
            if not self.only.covers(session) or not (cutoff is None or is_old(session, cutoff)):
                continue
            protected = protection(session, self.current)
            stays = protected is not None and not (protected.overridable and self.force)
            reason = protected.reason if protected is not None and stays else None
            decisions.append(Decision(session, True, not stays, reason, REASON))
        apply_limit(decisions, self.limit, already)
        return decisions


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns the counts, the ids that went, and why each session that was meant and stayed did stay.

    Raises UsageError (``no_filter``) when nothing narrows the call, and the failure of the only agent concerned.
    """
    only = arguments.selection()
    if arguments.agent is None and arguments.older_than_minutes is None and only == Selection():
        raise UsageError(
            "nothing says which sessions: give agent, session_type, label, model, min_bytes, empty or "
            "older_than_minutes; nothing was changed",
            code="no_filter",
        )
    context = with_policy(context)
    settings = context.settings
    choice = Choice(only, arguments.older_than_minutes, arguments.limit, arguments.force, settings.current)
    # Every agent is read: another agent's entry may refer to a transcript of this one.
    everyone = read_view(context, None, choice.cutoff(context.clock()))
    scope = everyone
    if arguments.agent is not None:
        scope = everyone.of_agent(context.volume.resolve_agent(arguments.agent))
    if arguments.dry_run:
        document, errors = _preview(context, scope, arguments, choice)
        return with_errors(document, errors)

    from session_manager.live.ledger import start_run

    run_info = start_run("delete_sessions", settings)
    with named_when_interrupted(run_info):
        document, errors = _delete(context, everyone, scope, choice, run_info)
    return with_errors(document, errors)


def _preview(context: Context, scope: View, arguments: Arguments, choice: Choice) -> tuple[dict[str, Any], Any]:
    errors = scope.errors()
    measure_view(scope, choice.only, sizes=arguments.details)
    tally = Tally([], [], set(), errors)
    for read in scope.agents:
        decisions = choice.decide(read.sessions, context.clock(), len(tally.removed))
        tally.foresee(decisions)
    document = tally.document("deleted_count", dry_run=True)
    if arguments.details:
        document["plan"] = plan_rows(tally.decisions, context.settings.current)
    return document, tally.errors


def _delete(
    context: Context, everyone: View, scope: View, choice: Choice, run_info: Run
) -> tuple[dict[str, Any], list[dict[str, object]]]:
    from session_manager.functions.delivery import tell
    from session_manager.live.removal import Remover

    references = foreign_references(everyone.agents)
    tally, failed = Tally([], [], set(), []), list(scope.failed)
    with Remover(context.settings, run_info) as remover:
        for read in scope.agents:
            if read.store is None:
                continue
            last: list[Decision] = []
            earlier: dict[str, Decision] = {}
            choose = _chooser(context, choice, last, earlier, len(tally.removed))
            shared = names_referred_to(references, read.store, set(tally.removed))
            try:
                outcome = remover.remove(read.store, choose, shared)
            except SessionManagerError as error:
                failed.append((read.agent_id, error))
                continue
            tally.add(read.store, outcome, last, earlier)
    # What earlier calls owe is delivered even when every agent has failed.
    told = tell(context, run_info, tally.removed)
    tally.errors += errors_or_raise(failed, any_done=len(failed) < len(scope.agents) + len(scope.failed))
    extra = remover.at_risk.document() | told | {"run_id": run_info.shown_id} | tally.on_the_way()
    return tally.document("deleted_count", dry_run=False) | extra, tally.errors


def _chooser(
    context: Context, choice: Choice, last: list[Decision], earlier: dict[str, Decision], already: int
) -> Callable[[Snapshot, Sequence[str]], list[tuple[Session, str]]]:
    """Returns what decides under the lock; the decisions are noted in ``last``, those before them in ``earlier``."""
    from session_manager.live.measure import measure

    def choose(snapshot: Snapshot, names: Sequence[str]) -> list[tuple[Session, str]]:
        now = context.clock()
        observe(snapshot, names, now, choice.cutoff(now), context.pins)
        measure(snapshot.store, snapshot.sessions, names, choice.only)
        earlier.update({d.session.id: d for d in last})
        last[:] = choice.decide(snapshot.sessions, now, already)
        return [(d.session, d.rule) for d in last if d.prune]

    return choose
