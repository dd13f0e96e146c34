"""prune_sessions: removes every session whose last activity is older than a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from session_manager.core.errors import SessionManagerError, UsageError, with_errors
from session_manager.core.retention import Decision, Policy, decide
from session_manager.core.session import Session
from session_manager.functions.context import Agents, Context, Filters, Limit, Unguarded, named_when_interrupted
from session_manager.functions.policy import with_policy
from session_manager.functions.reading import (
    agent_ids,
    errors_or_raise,
    foreign_references,
    kin_by_agent,
    measure_view,
    names_referred_to,
    observe,
    only_observe,
    read_view,
    stores_of,
)
from session_manager.functions.shared_files import archive_left
from session_manager.functions.tally import Tally, plan_rows
from session_manager.stores.base import Snapshot, look_once_more

if TYPE_CHECKING:
    from session_manager.core.rules import ByRules, Overrun
    from session_manager.ledger import Run

DESCRIPTION = (
    "Removes every session whose last activity is older than max_age_minutes (default: what the retention policy "
    "says, or 60 without one): its keys leave the index, its transcripts are archived, its history row is marked "
    "ended. Keeps conversations with people unless you ask for them."
)
DEFAULT_AGE = 60

Age = Annotated[
    int,
    msgspec.Meta(ge=1, description=f"minutes, at least 1; left out: the retention policy decides, else {DEFAULT_AGE}"),
]

Details = Annotated[bool, msgspec.Meta(description="with dry_run: also a row for every old session, in `plan`")]


class Arguments(Filters, forbid_unknown_fields=True):
    """Arguments of prune_sessions."""

    max_age_minutes: Age | msgspec.UnsetType = msgspec.UNSET
    dry_run: bool = False
    agent: Agents | None = None
    include_durable: bool = False
    limit: Limit | None = None
    details: Details = False
    force: Unguarded = False


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns the counts, the removed ids, and the reason for each old session that stayed."""
    context = with_policy(context)
    policy = policy_of(context, arguments)
    if arguments.dry_run:
        tally = preview(context, arguments.agent, policy, sizes=arguments.details)
        document = tally.document("pruned_count", dry_run=True) | _decided_by(context, policy, tally)
        if arguments.details:
            document["plan"] = plan_rows(tally.decisions, context.settings.current)
        return with_errors(document, tally.errors)
    from session_manager.ledger import start_run

    run_info = start_run("prune_sessions", context.settings)
    with named_when_interrupted(run_info):
        tally, extra = _prune(context, arguments, policy, run_info)
    document = tally.document("pruned_count", dry_run=False) | _decided_by(context, policy, tally) | extra
    return with_errors(document, tally.errors)


def _decided_by(context: Context, policy: Policy | ByRules, tally: Tally) -> dict[str, Any]:
    """Returns a document's members about the age applied, or about the retention policy and its reasons."""
    if isinstance(policy, Policy):
        return {"threshold_minutes": policy.max_age_minutes}
    gone = set(tally.removed)
    pruned = [
        {"id": d.session.id, "agentId": d.session.agent_id, "reason": d.rule}
        for d in tally.decisions
        if (d.session.agent_id, d.session.id) in gone
    ]
    return {"threshold_minutes": None, "policy": context.settings.policy_path, "pruned": pruned}


def policy_of(context: Context, arguments: Arguments | None = None) -> Policy | ByRules:
    """Returns the call's age, else the rules of the retention policy, else the default age.

    Raises UsageError for an argument that has no meaning beside those rules.
    """
    arguments = arguments or Arguments()
    only, age, limit = arguments.selection(), arguments.max_age_minutes, arguments.limit
    if age is not msgspec.UNSET or context.policy is None or not context.policy.has_rules:
        return Policy(DEFAULT_AGE if age is msgspec.UNSET else age, only, arguments.include_durable, limit)
    if arguments.include_durable:
        raise UsageError(
            "include_durable needs max_age_minutes: without it the retention policy decides which types go",
            argument="include_durable",
        )
    from session_manager.core.rules import ByRules

    return ByRules(context.policy, only, limit)


def preview(
    context: Context, agents: str | Sequence[str] | None, policy: Policy | ByRules, *, sizes: bool = False
) -> Tally:
    """Decides as a prune would, and changes nothing.

    Raises the failure of the named agent, or the first when every agent failed.
    """
    now = context.clock()
    everyone = read_view(context, None, policy.cutoff(now))
    scope = everyone.of(agent_ids(context, agents))
    measure_view(scope, policy.only, sizes=sizes)
    tally = Tally([], [], set(), scope.errors(), scope.agents)
    kin = kin_by_agent(everyone)
    for read in scope.agents:
        others = kin.get(read.agent_id, ())
        if read.snapshot is None:
            continue
        decisions, overruns = _decide(context, policy, now, read.snapshot, others, len(tally.removed))
        tally.overruns += [(read.agent_id, overrun) for overrun in overruns]
        tally.foresee(decisions)
    return tally


def _decide(
    context: Context,
    policy: Policy | ByRules,
    now: int,
    snapshot: Snapshot,
    kin: Sequence[Session],
    already: int,
) -> tuple[list[Decision], list[Overrun]]:
    """Decides about one agent's sessions by ``policy``; also returns the budgets that cannot be met."""
    current, sessions = context.settings.current, snapshot.sessions
    if isinstance(policy, Policy):
        return decide(sessions, policy, now, current, kin, already), []
    from session_manager.core.rules import decide_by_rules

    transcripts = snapshot.transcript_sizes() if policy.needs_sizes else {}
    return decide_by_rules(sessions, policy, transcripts, now, current, kin, already)


def _prune(
    context: Context, arguments: Arguments, policy: Policy | ByRules, run_info: Run
) -> tuple[Tally, dict[str, Any]]:
    from session_manager.archives.work import Work

    settings = context.settings
    stores = list(stores_of(context, arguments.agent))
    # Families and sessionFiles may cross agents; a single agent, or a single named one, is not read twice.
    alone = stores[0][0] if len(stores) == 1 else None
    others = read_view(context, None, policy.cutoff(context.clock()), skip=alone)
    kin = {alone: others.sessions} if alone is not None else kin_by_agent(others)
    references = foreign_references(others.agents)
    tally, failed = Tally([], [], set(), []), []
    with Work(settings, run_info, context.volume.living, force=arguments.force) as work:
        for agent_id, store in stores:
            if store is None:
                continue
            last: list[Decision] = []
            earlier: dict[str, Decision] = {}

            def choose(
                snapshot: Snapshot,
                kin: Sequence[Session] = kin.get(agent_id, ()),
                last: list[Decision] = last,
                earlier: dict[str, Decision] = earlier,
            ) -> list[tuple[Session, str]]:
                now = context.clock()
                observe(context, snapshot, now, policy.cutoff(now))
                snapshot.measure(policy.only)
                earlier.update({d.session.id: d for d in last})
                last[:] = _decide(context, policy, now, snapshot, kin, len(tally.removed))[0]
                return [(d.session, d.rule) for d in last if d.prune]

            try:
                if isinstance(store, SessionManagerError):
                    raise store
                outcome = store.remove(work, choose, names_referred_to(references, store, set(tally.removed)))
            except SessionManagerError as error:
                failed.append((agent_id, error))
                continue
            tally.add(store, outcome, last, earlier)
        tally.add_second_look(look_once_more(work, only_observe(context)))
        tally.errors += archive_left(context, work, tally.left).errors
    from session_manager.functions.delivery import tell

    # Pending updates of earlier calls are delivered even when every agent has failed.
    told = tell(context, run_info, tally.removed)
    tally.errors += errors_or_raise(failed, any_done=len(failed) < len(stores))
    return tally, work.notes() | told | {"run_id": run_info.shown_id} | tally.on_the_way()
