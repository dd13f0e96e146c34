"""cleanup_ghosts: removes sessions that were never used, in both layers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import msgspec

from session_manager.core.errors import SessionManagerError, with_errors
from session_manager.core.retention import Decision, Policy, decide
from session_manager.core.session import Session
from session_manager.functions.context import Context, Minutes, Unguarded, named_when_interrupted
from session_manager.functions.policy import with_policy
from session_manager.functions.reading import (
    errors_or_raise,
    foreign_references,
    kin_by_agent,
    names_referred_to,
    observe,
    only_observe,
    read_view,
)
from session_manager.functions.shared_files import archive_left, left_by
from session_manager.functions.tally import ACTIVE, Notes, note
from session_manager.stores.base import Snapshot, Store, look_once_more

if TYPE_CHECKING:
    from session_manager.archives.work import Work
    from session_manager.functions.delivery import History

DESCRIPTION = (
    "Removes ghosts that are old enough: conversations in aria-api without a message, and live sessions of prunable "
    "types whose transcript has no message. A dry run unless dry_run is false."
)
REASON = "ghost"
_SHOWN = 100


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of cleanup_ghosts."""

    older_than_minutes: Minutes = 15
    dry_run: bool = True
    force: Unguarded = False


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns the number of ghosts in each layer, those removed, and the live ones that stay, with their reasons.

    ``database_ghosts`` is None when aria-api could not be reached or did not report a result; ``pg_error`` gives the
    reason, and warns when some may have been deleted. When every agent failed, raises the first failure, with the
    database's result in its details.
    """
    from session_manager.functions.delivery import History, counted
    from session_manager.ledger import start_run

    context = with_policy(context)
    run_info = start_run("cleanup_ghosts", context.settings)
    cleanup = Cleanup(context, arguments)
    extra: dict[str, Any] = {}
    if arguments.dry_run:
        cleanup.preview()
    else:
        from session_manager.archives.work import Work

        with (
            named_when_interrupted(run_info),
            Work(context.settings, run_info, context.volume.living, force=arguments.force) as work,
        ):
            cleanup.clean(work)
        extra |= work.notes() | {"run_id": run_info.shown_id}
    with History(context, run_info) as history:
        if not arguments.dry_run:
            extra |= counted(history.deliver(cleanup.removed), cleanup.removed)
        extra |= _database(history, arguments)
    try:
        cleanup.errors += errors_or_raise(cleanup.failed, any_done=cleanup.any_read)
    except SessionManagerError as error:
        error.details |= extra
        raise
    return with_errors(cleanup.document() | extra, cleanup.errors)


def _database(history: History, arguments: Arguments) -> dict[str, Any]:
    found, error = history.ghosts(arguments.older_than_minutes, _SHOWN, delete=not arguments.dry_run)
    if found is None:
        return {"database_ghosts": None, "pg_error": error}
    document: dict[str, Any] = {"database_ghosts": found.total}
    if arguments.dry_run:
        document["database"] = msgspec.to_builtins(found.sessions)
    return document


class Cleanup:
    """The live part of one call: one read of all agents, and its results. ``removed``: (agent id, session id)."""

    def __init__(self, context: Context, arguments: Arguments) -> None:
        self._context = context
        self._arguments = arguments
        self._policy = Policy(arguments.older_than_minutes)
        # Families and sessionFiles may cross agents.
        view = read_view(context, None, self._policy.cutoff(context.clock()))
        self._agents = view.agents
        self._kin = kin_by_agent(view)
        self.failed = view.failed
        self.removed: list[tuple[str, str]] = []
        self.errors: list[dict[str, object]] = []
        self._left: list[tuple[str, str]] = []
        self._kept: list[dict[str, str]] = []
        self._also: Notes = {}

    @property
    def any_read(self) -> bool:
        """Whether at least one agent could be processed."""
        failed = {agent_id for agent_id, _ in self.failed}
        return any(agent.agent_id not in failed for agent in self._agents)

    def preview(self) -> None:
        """Decides without acting."""
        for agent in self._agents:
            if agent.snapshot is not None:
                for decision in self._judge(agent.snapshot):
                    self._note(decision, decision.reason)

    def clean(self, work: Work) -> None:
        """Removes ghosts as a prune removes old sessions: decides again, under the lock, about those found before."""
        references = foreign_references(self._agents)
        for agent in self._agents:
            store = agent.store
            if store is None or agent.snapshot is None:
                continue
            found = self._judge(agent.snapshot)
            going = {d.session.id: d for d in found if d.prune}
            for decision in found:
                if not decision.prune:
                    self._note(decision, decision.reason)
            if going:
                try:
                    self._remove(work, store, going, names_referred_to(references, store, set(self.removed)))
                except SessionManagerError as error:
                    self.failed.append((agent.agent_id, error))
        for store, outcome in look_once_more(work, only_observe(self._context)):
            woken = {(store.agent_id, one.session_id) for one in outcome.woken}
            self._kept += [{"id": i, "agentId": a, "reason": ACTIVE} for a, i in self.removed if (a, i) in woken]
            self.removed = [name for name in self.removed if name not in woken]
            self.errors += note(self._also, store, outcome)
        self.errors += archive_left(self._context, work, self._left).errors

    def _remove(self, work: Work, store: Store, going: dict[str, Decision], shared: Collection[str]) -> None:
        last: dict[str, Decision] = {}
        outcome = store.remove(work, self._chooser(going, last), shared)
        gone = {removal.session_id for removal in outcome.removed}
        self._left += left_by(outcome.removed)
        for session_id, decision in going.items():
            reason = last[session_id].reason if session_id in last else ACTIVE
            self._note(decision, None if session_id in gone else reason or ACTIVE)
        self.errors += note(self._also, store, outcome)

    def _chooser(
        self, going: Collection[str], last: dict[str, Decision]
    ) -> Callable[[Snapshot], list[tuple[Session, str]]]:
        def choose(snapshot: Snapshot) -> list[tuple[Session, str]]:
            now = self._context.clock()
            observe(self._context, snapshot, now, self._policy.cutoff(now))
            last.clear()
            last.update({d.session.id: d for d in self._judge(snapshot, going)})
            return [(d.session, REASON) for d in last.values() if d.prune]

        return choose

    def _judge(self, snapshot: Snapshot, among: Collection[str] | None = None) -> list[Decision]:
        """Decides, as a prune would, about sessions (``among`` these ids) without a message that are not young."""
        kin = self._kin.get(snapshot.agent_id, ())
        decisions = decide(snapshot.sessions, self._policy, self._context.clock(), self._context.settings.current, kin)
        old = [d for d in decisions if (d.prune or d.reason is not None) and (among is None or d.session.id in among)]
        empty, unseen = snapshot.without_messages(d.session for d in old)
        return [d for d in old if d.session.id in empty or (d.session.id in unseen and not d.prune)]

    def _note(self, decision: Decision, reason: str | None) -> None:
        session = decision.session
        if reason is None:
            self.removed.append((session.agent_id, session.id))
        else:
            self._kept.append({"id": session.id, "agentId": session.agent_id, "reason": reason})

    def document(self) -> dict[str, Any]:
        """Returns the live part of the function's document; in a dry run ``deleted`` means "would be deleted"."""
        return {
            "dry_run": self._arguments.dry_run,
            "older_than_minutes": self._arguments.older_than_minutes,
            "live_ghosts": len(self.removed),
            "deleted_ids": [session_id for _, session_id in self.removed],
            "kept_count": len(self._kept),
            "kept": self._kept[:_SHOWN],
            "errors": self.errors,
        } | self._also
