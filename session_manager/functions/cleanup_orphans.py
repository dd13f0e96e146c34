"""cleanup_orphans: archives transcripts that no entry refers to, and removes entries whose files are gone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from session_manager.core.errors import Refused, SessionManagerError, failure, with_errors
from session_manager.core.orphans import CLASSES, Orphan, too_many
from session_manager.core.selection import full_name
from session_manager.core.session import Session
from session_manager.functions.context import (
    Agents,
    AllRows,
    Context,
    Minutes,
    SessionIds,
    iso_utc,
    named,
    named_when_interrupted,
)
from session_manager.functions.orphans import SHOWN, AgentState, Everyone, orphans_of
from session_manager.functions.policy import with_policy
from session_manager.functions.reading import errors_or_raise, only_observe
from session_manager.functions.tally import ACTIVE, Notes, note
from session_manager.stores.base import Orphans, Store, look_once_more
from session_manager.stores.results import OrphanPlan, OrphansRemoved

if TYPE_CHECKING:
    from session_manager.archives.work import Work

DESCRIPTION = (
    "Classifies the files in the sessions folders, archives transcripts that no index entry refers to, and removes "
    "index entries whose files are all gone, if they are old enough. A dry run unless dry_run is false."
)
DEAD_ENTRY = "entry_without_transcript"


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of cleanup_orphans."""

    agent: Agents | None = None
    dry_run: bool = True
    older_than_minutes: Minutes = 1440
    force: bool = False
    session_ids: SessionIds | None = None
    details: AllRows = False


class Result(msgspec.Struct):
    """What was found and done so far, over all agents. ``gone`` holds (agent id, session id)."""

    classes: dict[str, tuple[int, int]] = msgspec.field(
        default_factory=lambda: dict.fromkeys((*CLASSES, DEAD_ENTRY), (0, 0))
    )
    archived: list[dict[str, Any]] = msgspec.field(default_factory=list)
    archived_bytes: int = 0
    entries: list[dict[str, Any]] = msgspec.field(default_factory=list)
    kept: list[dict[str, Any]] = msgspec.field(default_factory=list)
    gone: list[tuple[str, str]] = msgspec.field(default_factory=list)
    notes: Notes = msgspec.field(default_factory=dict)
    errors: list[dict[str, object]] = msgspec.field(default_factory=list)

    def count(self, plan: OrphanPlan) -> None:
        """Adds a folder's classes."""
        for kind, (count, size) in {**plan.classes, DEAD_ENTRY: (len(plan.entries), 0)}.items():
            self.classes[kind] = (self.classes[kind][0] + count, self.classes[kind][1] + size)

    def archive(self, orphan: Orphan, files: list[str]) -> None:
        """Adds an orphan that was, or would be, archived."""
        self.archived.append(
            {
                "id": orphan.id,
                "agentId": orphan.agent_id,
                "files": files,
                "bytes": orphan.size,
                "last_activity": iso_utc(orphan.last_activity),
            }
        )
        self.archived_bytes += orphan.size
        if orphan.is_session:
            self.gone.append((orphan.agent_id, orphan.id))

    def remove(self, agent_id: str, session_id: str, keys: list[str]) -> None:
        """Adds a session whose entries were, or would be, removed."""
        self.entries.append({"id": session_id, "agentId": agent_id, "keys": keys})
        self.gone.append((agent_id, session_id))

    def spare(self, agent_id: str, session_id: str) -> None:
        """Records that a session with removed entries received a message, and is live."""
        if any((e["agentId"], e["id"]) == (agent_id, session_id) for e in self.entries):
            self.entries = [e for e in self.entries if (e["agentId"], e["id"]) != (agent_id, session_id)]
            self.gone = [name for name in self.gone if name != (agent_id, session_id)]
            self.kept.append({"id": session_id, "agentId": agent_id, "class": DEAD_ENTRY, "reason": ACTIVE})

    def keep(self, subject: Orphan | Session, reason: str) -> None:
        """Adds a file or entry that stays although it looks like an orphan."""
        kind = subject.kind if isinstance(subject, Orphan) else DEAD_ENTRY
        self.kept.append({"id": subject.id, "agentId": subject.agent_id, "class": kind, "reason": reason})

    def document(self, arguments: Arguments) -> dict[str, Any]:
        """Returns the function's document; in a dry run ``archived`` and ``removed`` mean "would be"."""
        shown = None if arguments.details else SHOWN
        return {
            "dry_run": arguments.dry_run,
            "older_than_minutes": arguments.older_than_minutes,
            "classes": _classes(self.classes),
            "archived_count": len(self.archived),
            "archived_bytes": self.archived_bytes,
            "archived": self.archived[:shown],
            "removed_entries_count": len(self.entries),
            "removed_entries": self.entries[:shown],
            "kept_count": len(self.kept),
            "kept": self.kept[:shown],
            "errors": self.errors,
        }


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns count and bytes of each class, as found before any change, and all that was archived, removed and kept.

    Raises UsageError or NotFound for a bad agent name; the failure of the named agent, or the first when every
    agent failed: Damaged (``index_damaged``), Refused (``too_many_orphans``), Locked.
    """
    cleanup = Cleanup(with_policy(context), arguments)
    if arguments.dry_run:
        cleanup.each(cleanup.preview)
        return with_errors(cleanup.result.document(arguments), cleanup.result.errors)

    from session_manager.archives.work import Work
    from session_manager.functions.delivery import tell
    from session_manager.ledger import start_run

    run_info = start_run("cleanup_orphans", context.settings)
    with (
        named_when_interrupted(run_info),
        Work(context.settings, run_info, context.volume.living, force=arguments.force) as work,
    ):
        cleanup.each(lambda state, store: cleanup.clean(work, state, store))
        cleanup.look_once_more(work)
    result = cleanup.result
    document = {**result.document(arguments), **tell(context, run_info, result.gone), "run_id": run_info.shown_id}
    document |= work.notes()
    return with_errors(document | result.notes, result.errors)


class Cleanup:
    """One call: a read of all agents, and its results."""

    def __init__(self, context: Context, arguments: Arguments) -> None:
        self._context = context
        self._arguments = arguments
        only = named(arguments.session_ids, "session_ids")
        self._only = None if only is None else frozenset(only)
        self._everyone = Everyone(context)
        self._scope = self._everyone.scope(context, arguments.agent)
        self.result = Result()

    def each(self, act: Callable[[AgentState, Store], None]) -> None:
        """Does ``act`` for every agent that has a store; one agent's failure does not stop the others."""
        failed: list[tuple[str, SessionManagerError]] = []
        for state in self._scope:
            try:
                if state.error is not None:
                    raise state.error
                if state.store is not None:
                    act(state, state.store)
            except SessionManagerError as error:
                failed.append((state.agent_id, error))
        self.result.errors += errors_or_raise(failed, any_done=len(failed) < len(self._scope) or bool(self.result.gone))

    def preview(self, state: AgentState, store: Store) -> None:
        """Decides without acting."""
        assert state.snapshot is not None
        plan = self._orphans(store).plan(state.snapshot)
        self.result.count(plan)
        orphans, sessions = self._going(plan)
        for orphan in orphans:
            self.result.archive(orphan, orphan.files)
        for session in sessions:
            self.result.remove(state.agent_id, session.id, session.keys)
        self._keep(plan, set())

    def clean(self, work: Work, state: AgentState, store: Store) -> None:
        """Decides again under the lock, and acts."""
        first: list[OrphanPlan] = []

        def choose(plan: OrphanPlan) -> tuple[list[Orphan], list[Session]]:
            if not first:
                first.append(plan)
                self.result.count(plan)
            return self._going(plan)

        done = OrphansRemoved()
        try:
            self._orphans(store).remove(work, choose, done)
        finally:
            self._add(store, done)
        for plan in first:
            self._keep(plan, {i for a, i in self.result.gone if a == state.agent_id})

    def _add(self, store: Store, done: OrphansRemoved) -> None:
        result = self.result
        for outcome in done.outcomes:
            result.errors += note(result.notes, store, outcome)
            for removal in outcome.removed:
                result.remove(store.agent_id, removal.session_id, removal.keys)
            for session_id in outcome.alive:
                result.keep(done.by_id[session_id], ACTIVE)
        for orphan, removal in done.archived:
            result.archive(orphan, [target for _, target in removal.files])
        for orphan in done.spared:
            result.keep(orphan, ACTIVE)
        result.errors += [failure(error, store.agent_id, i) for i, error in done.failures]

    def look_once_more(self, work: Work) -> None:
        """Looks again for sessions whose entry reappeared."""
        result = self.result
        for store, outcome in look_once_more(work, only_observe(self._context)):
            result.errors += note(result.notes, store, outcome)
            for woken in outcome.woken:
                result.spare(store.agent_id, woken.session_id)

    def _orphans(self, store: Store) -> Orphans:
        return orphans_of(self._context, self._everyone, store, self._arguments.older_than_minutes)

    def _going(self, plan: OrphanPlan) -> tuple[list[Orphan], list[Session]]:
        """Returns the part of a plan that may be executed. Raises Refused (``too_many_orphans``)."""
        orphans = [j.subject for j in plan.orphans if j.reason is None and isinstance(j.subject, Orphan)]
        sessions = [j.subject for j in plan.entries if j.reason is None and isinstance(j.subject, Session)]
        going, total = sum(plan.is_orphan(f) for o in orphans for f in o.files), plan.transcripts
        if too_many(going, total) and not self._arguments.force:
            agent_id = orphans[0].agent_id
            raise Refused(
                f"{going} of the {total} transcripts of agent {agent_id!r} have no index entry, which looks like a "
                "lost index; nothing was changed: call readopt_orphans, or call with force: true if they really are "
                "leftovers",
                code="too_many_orphans",
                agentId=agent_id,
                orphans=going,
                transcripts=total,
                classes=_classes(plan.classes),
            )
        return [o for o in orphans if self._is_meant(o)], [s for s in sessions if self._is_meant(s)]

    def _is_meant(self, subject: Orphan | Session) -> bool:
        names = (subject.id, full_name(subject.agent_id, subject.id))
        return self._only is None or not self._only.isdisjoint(names)

    def _keep(self, plan: OrphanPlan, gone: Collection[str]) -> None:
        for judged in (*plan.orphans, *plan.entries):
            if judged.reason is not None and judged.subject.id not in gone:
                self.result.keep(judged.subject, judged.reason)


def _classes(counted: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
    return {kind: {"count": count, "bytes": size} for kind, (count, size) in counted.items()}
