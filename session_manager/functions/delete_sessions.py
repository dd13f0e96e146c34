"""delete_sessions: removes all named sessions, or all that match filters, under one lock per agent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from session_manager.core.errors import Refused, SessionManagerError, UsageError, failure, with_errors
from session_manager.core.protection import Protection, protection, refusal
from session_manager.core.retention import LIMIT, MINUTE_MS, Decision, apply_limit, is_old
from session_manager.core.selection import Selection
from session_manager.core.session import Session
from session_manager.functions.context import (
    Agents,
    Context,
    Filters,
    Limit,
    Minutes,
    check_session_id,
    named_when_interrupted,
)
from session_manager.functions.naming import parted, spelled
from session_manager.functions.policy import with_policy
from session_manager.functions.reading import (
    View,
    agent_ids,
    errors_or_raise,
    foreign_references,
    measure_view,
    names_referred_to,
    observe,
    only_observe,
    read_view,
)
from session_manager.functions.shared_files import archive_left
from session_manager.functions.tally import ACTIVE, Tally, plan_rows
from session_manager.stores.base import Snapshot, look_once_more

if TYPE_CHECKING:
    from session_manager.functions.gone import Absent
    from session_manager.ledger import Run

DESCRIPTION = (
    "Removes all sessions that session_ids lists or the filters match, of any type and, without older_than_minutes, "
    "of any age. Protected sessions stay. A dry run unless dry_run is false."
)
REASON = "asked for"

Details = Annotated[bool, msgspec.Meta(description="with dry_run: also a row for every session, in `plan`")]


class Arguments(Filters, forbid_unknown_fields=True):
    """Arguments of delete_sessions."""

    agent: Agents | None = None
    older_than_minutes: Minutes | None = None
    limit: Limit | None = None
    force: bool = False
    dry_run: bool = True
    details: Details = False


class Choice(msgspec.Struct, frozen=True):
    """Which sessions to remove. ``age`` is in minutes; ``limit`` spares the newest."""

    only: Selection
    age: int | None
    limit: int | None
    force: bool
    current: frozenset[str]

    def cutoff(self, now_ms: int) -> int | None:
        """Epoch milliseconds before which a session's last activity must lie; None for any age."""
        return None if self.age is None else now_ms - self.age * MINUTE_MS

    def decide(self, sessions: Sequence[Session], now_ms: int, already: int) -> list[Decision]:
        """Decides for every selected session; ``already`` is how many this run has removed before."""
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
    """Returns the counts, the removed ids, and the reason for each selected session that stayed.

    A named session that is protected or unknown is among the errors. Raises UsageError (``no_filter``) when nothing
    narrows the call, the failure of the only agent concerned, and the first error when no named session could be
    removed.
    """
    only = arguments.selection()
    if arguments.agent is None and arguments.older_than_minutes is None and only == Selection():
        raise UsageError(
            "no sessions were selected: give session_ids, agent, session_type, label, model, min_bytes, empty or "
            "older_than_minutes; nothing was changed",
            code="no_filter",
        )
    for name in only.ids or ():
        check_session_id(parted(name)[1])
    context = with_policy(context)
    age = arguments.older_than_minutes
    # Every agent is read: another agent's entry may refer to a transcript of this one.
    everyone = read_view(context, None, None if age is None else context.clock() - age * MINUTE_MS)
    scope = everyone.of(agent_ids(context, arguments.agent))
    absent: list[str] = []
    if only.ids is not None:
        found, absent = spelled(sorted(only.ids), scope.sessions)
        only = msgspec.structs.replace(only, ids=frozenset([*found, *absent]))
    choice = Choice(only, age, arguments.limit, arguments.force, context.settings.current)
    if arguments.dry_run:
        return _preview(context, scope, arguments, choice, absent)

    from session_manager.ledger import start_run

    run_info = start_run("delete_sessions", context.settings)
    with named_when_interrupted(run_info):
        return _delete(context, everyone, scope, choice, run_info, absent)


def _preview(
    context: Context, scope: View, arguments: Arguments, choice: Choice, absent: Sequence[str]
) -> dict[str, Any]:
    errors = scope.errors()
    measure_view(scope, choice.only, sizes=arguments.details)
    tally = Tally([], [], set(), errors)
    for read in scope.agents:
        decisions = choice.decide(read.sessions, context.clock(), len(tally.removed))
        tally.foresee(decisions)
    document = tally.document("deleted_count", dry_run=True)
    if arguments.details:
        document["plan"] = plan_rows(tally.decisions, context.settings.current)
    lost = None
    if absent:
        from session_manager.functions.gone import Absent
        from session_manager.ledger import Ledger

        lost = Absent(scope, absent)
        if (ledger := Ledger.open_existing(context.settings, "ro")) is not None:
            with ledger:
                lost.look(ledger)
        else:
            lost.look(None)
    return _with_named(document, tally, choice, lost)


def _delete(
    context: Context, everyone: View, scope: View, choice: Choice, run_info: Run, absent: Sequence[str]
) -> dict[str, Any]:
    from session_manager.archives.work import Work
    from session_manager.functions.delivery import History

    references = foreign_references(everyone.agents)
    tally, failed = Tally([], [], set(), []), list(scope.failed)
    lost = None
    with (
        Work(context.settings, run_info, context.volume.living, force=choice.force) as work,
        History(context, run_info) as history,
    ):
        for read in scope.agents:
            if read.store is None:
                continue
            last: list[Decision] = []
            earlier: dict[str, Decision] = {}
            choose = _chooser(context, choice, last, earlier, len(tally.removed))
            shared = names_referred_to(references, read.store, set(tally.removed))
            try:
                outcome = read.store.remove(work, choose, shared)
            except SessionManagerError as error:
                failed.append((read.agent_id, error))
                continue
            tally.add(read.store, outcome, last, earlier)
        tally.add_second_look(look_once_more(work, only_observe(context)))
        tally.errors += archive_left(context, work, tally.left).errors
        if absent:
            from session_manager.functions.gone import Absent

            lost = Absent(scope, absent)
            lost.look(work.existing_ledger)
            if history.there:
                lost.owe(work, history)
        # Pending updates of earlier calls are delivered even when every agent has failed.
        told = history.tell([*tally.removed, *(lost.owed if lost is not None else ())])
    done = len(failed) < len(scope.agents) + len(scope.failed) or bool(lost is not None and lost.known)
    tally.errors += errors_or_raise(failed, any_done=done)
    extra = work.notes() | told | {"run_id": run_info.shown_id} | tally.on_the_way()
    return _with_named(tally.document("deleted_count", dry_run=False) | extra, tally, choice, lost)


def _with_named(document: dict[str, Any], tally: Tally, choice: Choice, lost: Absent | None) -> dict[str, Any]:
    """Adds the outcome of named sessions that were not removed. Raises the first error when nothing was done."""
    failures: list[tuple[str | None, str, SessionManagerError]] = []
    if choice.only.ids is not None:
        kept = ((k["agentId"], k["id"], _kept_although_named(k["reason"], k["id"])) for k in document["kept"])
        failures += [(agent_id, session_id, error) for agent_id, session_id, error in kept if error is not None]
    if lost is not None:
        failures += [(None, name, error) for name, error in lost.errors]
        document |= lost.document()
    errors = [*tally.errors, *(failure(error, agent_id, name) for agent_id, name, error in failures)]
    if failures and not (tally.removed or tally.errors or (lost is not None and lost.known)):
        first = failures[0][2]
        if len(failures) > 1:
            first.details.setdefault("errors", errors)
        raise first
    return with_errors(document | {"errors": errors}, errors)


def _kept_although_named(reason: str, session_id: str) -> Refused | None:
    """Returns the error for a named session that stayed; None when a limit spared it."""
    if reason == LIMIT:
        return None
    if reason == ACTIVE:
        return Refused(f"session {session_id} has just become active and was kept", code="session_busy", reason=reason)
    return refusal(Protection(reason, overridable=True), session_id)


def _chooser(
    context: Context, choice: Choice, last: list[Decision], earlier: dict[str, Decision], already: int
) -> Callable[[Snapshot], list[tuple[Session, str]]]:
    """Returns the decider to call under the lock; it records decisions in ``last``, previous ones in ``earlier``."""

    def choose(snapshot: Snapshot) -> list[tuple[Session, str]]:
        now = context.clock()
        observe(context, snapshot, now, choice.cutoff(now))
        snapshot.measure(choice.only)
        earlier.update({d.session.id: d for d in last})
        last[:] = choice.decide(snapshot.sessions, now, already)
        return [(d.session, d.rule) for d in last if d.prune]

    return choose
