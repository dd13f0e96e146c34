"""purge_archives: permanently deletes old archived transcripts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from session_manager.archives.purging import Archive, Purged, PurgePlan, plan_purge, preview_purge, purge
from session_manager.archives.second_names import SecondNames
from session_manager.core.errors import UNSUPPORTED, SessionManagerError, failure, with_errors
from session_manager.core.session import DAY_MS
from session_manager.files.atomic import clear_errors
from session_manager.functions.ages import ages_from
from session_manager.functions.context import Agents, AllRows, Context, named, named_when_interrupted
from session_manager.functions.policy import with_policy
from session_manager.functions.reading import errors_or_raise
from session_manager.functions.sharing import stores_ever
from session_manager.ledger import Ledger, start_run
from session_manager.stores.base import Store

if TYPE_CHECKING:
    from session_manager.archives.folder import Guard
    from session_manager.archives.work import Work

DESCRIPTION = (
    "Permanently deletes archived transcripts that are old enough, and what the ledger keeps to restore their "
    "sessions. This cannot be undone. A dry run unless dry_run is false."
)
SHOWN = 100

PlanOf = Annotated[
    list[str], msgspec.Meta(description="the `plan` of a dry run with details: only what it lists is deleted")
]
Days = Annotated[int, msgspec.Meta(ge=1, description="days, at least 1")]
Force = Annotated[
    bool, msgspec.Meta(description="purge even when the clock is more than a day ahead of the last entry")
]


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of purge_archives."""

    older_than_days: Days = 30
    agent: Agents | None = None
    dry_run: bool = True
    details: AllRows = False
    plan: PlanOf | None = None
    force: Force = False


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns the archives that were, or would be, deleted, over all agents and by agent.

    Raises UsageError or NotFound for a bad agent name; the failure of the named agent, or the first when every
    agent failed: Damaged (``index_damaged``), Refused (``store_unsupported``), Locked. UsageError (``bad_policy``).
    Refused (``clock_ahead``).
    """
    context = with_policy(context)
    call = Call(context, arguments)
    if arguments.dry_run:
        ledger = Ledger.open_existing(context.settings, "ro")
        with ledger or contextlib.nullcontext():
            call.take_time(ledger)
            call.each(lambda store: call.preview(store, ledger), ledger)
        return with_errors(call.document(), call.errors)

    from session_manager.archives.work import Work

    run_info = start_run("purge_archives", context.settings)
    with named_when_interrupted(run_info, call.so_far), Work(context.settings, run_info, context.volume.living) as work:
        call.take_time(work.existing_ledger)
        call.each(lambda store: call.purge(work, store), work.existing_ledger)
    document = {**call.document(), "run_id": run_info.shown_id}
    if call.recovered:
        document["recovered"] = call.recovered
    return with_errors(document, call.errors)


class Call:
    """One call: its findings and results so far, over all agents."""

    def __init__(self, context: Context, arguments: Arguments) -> None:
        self._context = context
        self._arguments = arguments
        plan = named(arguments.plan, "plan")
        self._only = None if plan is None else frozenset(plan)
        self._cutoff = 0
        self._second_names = SecondNames(context.settings.state_dir)
        self._by_agent: dict[str, Purged] = {}
        self.recovered: list[dict[str, object]] = []
        self.errors: list[dict[str, object]] = []

    def take_time(self, ledger: Ledger | None) -> None:
        """Sets the cut-off, by a clock that can be trusted. Raises Refused (``clock_ahead``)."""
        now = ages_from(self._context, ledger, force=self._arguments.force)
        self._cutoff = now - self._arguments.older_than_days * DAY_MS

    def each(self, act: Callable[[Store], None], ledger: Ledger | None) -> None:
        """Does ``act`` for every agent that has a store, or had; one's failure does not stop the others."""
        failed: list[tuple[str, SessionManagerError]] = []
        agents = 0
        for agent_id, found in stores_ever(self._context, self._arguments.agent, ledger):
            agents += 1
            try:
                moved = isinstance(found, SessionManagerError) and found.code == UNSUPPORTED
                store = self._context.volume.archive_store(agent_id) if moved else found
                if isinstance(store, SessionManagerError):
                    raise store
                if store is not None:
                    act(store)
            except SessionManagerError as error:
                failed.append((agent_id, error))
        self.errors += errors_or_raise(failed, any_done=len(failed) < agents)

    def plan(self, store: Store, ledger: Ledger | None) -> PurgePlan:
        """Decides what to delete in one store. Raises Damaged: a lost index is rebuilt from archives."""
        snapshot = store.read(self._context.clock())
        living = {session.id for session in snapshot.sessions}
        names, removed = store.archives(snapshot.names, ledger)
        with clear_errors("look for second names in", self._second_names.root):
            second = self._second_names.of_agent(store.agent_id)
        plan = plan_purge(store, names, second, removed, self._cutoff, self._context.pins, living)
        if self._only is None:
            return plan
        removals = [i for i in plan.removal_ids if removal_name(store.agent_id, i) in self._only]
        archives = [a for a in plan.archives if archive_name(store.agent_id, a) in self._only]
        # A removal is deleted as a whole.
        whole = set(removals) - {a.owner for a in plan.archives if archive_name(store.agent_id, a) not in self._only}
        return PurgePlan(
            [a for a in archives if a.owner is None or a.owner in whole],
            [i for i in removals if i in whole],
            plan.pinned,
            plan.living,
        )

    def preview(self, store: Store, ledger: Ledger | None) -> None:
        """Decides without acting."""
        self.add(store, preview_purge(self.plan(store, ledger)))

    def purge(self, work: Work, store: Store) -> None:
        """Decides under the lock, after recovering interrupted work, and acts."""

        purged = Purged([], [], [])
        self.add(store, purged)

        def act(guard: Guard) -> None:
            _, recovered, failures = store.end_earlier(work, guard)
            self.recovered += recovered
            self.errors += [failure(error, store.agent_id, session_id) for session_id, error in failures]
            plan = self.plan(store, work.existing_ledger)
            purged.pinned, purged.living = plan.pinned, plan.living
            if plan.archives or plan.removal_ids:
                purge(store, work.ledger, work.run, plan, purged)

        store.locked(work, act)
        if purged.errors:
            self.errors.append(_summary(store, purged.errors))

    def add(self, store: Store, purged: Purged) -> None:
        """Adds the archives that were, or would be, deleted of one agent."""
        self._by_agent[store.agent_id] = purged

    def so_far(self) -> dict[str, object]:
        """Returns the deletions until now."""
        found = self._by_agent.values()
        return {
            "purged_count": sum(len(purged.archives) for purged in found),
            "bytes_freed": sum(purged.bytes for purged in found),
        }

    def document(self) -> dict[str, Any]:
        """Returns the function's document; in a dry run it counts what would be deleted."""
        found = self._by_agent.items()
        files = [
            {"agentId": agent_id, "file": archive.name, "bytes_freed": freed}
            for agent_id, purged in found
            for archive, freed in purged.archives
        ]
        document: dict[str, Any] = {
            "dry_run": self._arguments.dry_run,
            "older_than_days": self._arguments.older_than_days,
            "purged_count": len(files),
            "bytes_freed": sum(purged.bytes for _, purged in found),
            "removals": sum(len(purged.removal_ids) for _, purged in found),
            "pinned_count": sum(purged.pinned for _, purged in found),
            "live_count": sum(purged.living for _, purged in found),
            "by_agent": {agent_id: _counts(purged) for agent_id, purged in found},
            "files": files[: None if self._arguments.details else SHOWN],
            "errors": self.errors,
        }
        return document if not (self._arguments.details and self._arguments.dry_run) else document | self._names()

    def _names(self) -> dict[str, Any]:
        names = []
        for agent_id, purged in self._by_agent.items():
            names += [archive_name(agent_id, archive) for archive, _ in purged.archives]
            names += [removal_name(agent_id, removal_id) for removal_id in purged.removal_ids]
        return {"plan": names}


def archive_name(agent_id: str, archive: Archive) -> str:
    """Returns an archive's entry in a plan."""
    return f"{agent_id}/{archive.name}"


def removal_name(agent_id: str, removal_id: int) -> str:
    """Returns a removal's entry in a plan; the removal may have no archive left."""
    return f"{agent_id}#{removal_id}"


def _counts(purged: Purged) -> dict[str, int]:
    return {
        "purged_count": len(purged.archives),
        "bytes_freed": purged.bytes,
        "removals": len(purged.removal_ids),
    }


def _summary(store: Store, errors: list[SessionManagerError]) -> dict[str, Any]:
    """Returns one element of ``errors`` per agent: if one file cannot be deleted, often thousands cannot."""
    found = failure(errors[0], store.agent_id)
    if len(errors) > 1:
        found["error"] += f" (and {len(errors) - 1} more)"
    return found
