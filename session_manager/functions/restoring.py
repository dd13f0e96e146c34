"""Undoes removals, over all agents: checks everything first, so that a conflict changes nothing anywhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from session_manager.archives.work import Work
from session_manager.core.errors import Refused, SessionManagerError, failure
from session_manager.files.memory import spare_memory
from session_manager.functions.context import Context
from session_manager.functions.reading import errors_or_raise
from session_manager.ledger import Removal, Removed, keeping
from session_manager.stores.base import Store
from session_manager.stores.lives import UNFINISHED, Blocked, Find, Life, Obstacle, refusal


class Outcome(msgspec.Struct):
    """The results of a restore, over all agents."""

    back: list[tuple[str, Removal]] = []
    blocked: list[tuple[Life, Obstacle]] = []
    recovered: list[dict[str, object]] = []
    errors: list[dict[str, object]] = []
    to_import: list[dict[str, str]] = []

    @property
    def names(self) -> list[tuple[str, str]]:
        """(agent id, session id) of the restored sessions, each once."""
        return list(dict.fromkeys((agent_id, removal.session_id) for agent_id, removal in self.back))

    @property
    def keys(self) -> list[str]:
        """The restored keys."""
        return list(dict.fromkeys(key for _, removal in self.back for key in removal.keys))

    @property
    def files(self) -> list[str]:
        """The names of the restored files."""
        return [source for _, removal in self.back for source, _ in removal.files]

    def blocked_errors(self) -> list[dict[str, object]]:
        """Returns the failures as a document's ``errors``."""
        return [failure(refusal([one]), one[0][0].agent_id, one[0][0].session_id) for one in self.blocked]


def take_back(context: Context, work: Work, wanted: Mapping[str, Find], *, skip_conflicts: bool) -> Outcome:
    """Restores the removals that ``wanted`` names in each agent; a prune skips them for some days.

    Raises Refused for a conflict, unless conflicts are skipped, and the failure to record the restore.
    Failures of single agents are in the result; when all fail, the first is raised.
    """
    spare_memory()
    outcome = Outcome()
    failed: list[tuple[str, SessionManagerError]] = []
    stores: list[tuple[Store, Find]] = []
    abroad: dict[str, dict[str, list[str]]] = {}
    conflicts: list[tuple[Life, Obstacle]] = []
    going: list[tuple[str, str]] = []
    for agent_id, find in wanted.items():
        try:
            store = _store(context, agent_id)
            outcome.recovered += end_earlier(work, store)
            able, unable, abroad[agent_id] = _look(context, work, store, find)
            conflicts += unable
            going += [(agent_id, session_id) for session_id in able]
            stores.append((store, find))
        except SessionManagerError as error:
            failed.append((agent_id, error))
    conflicts = [found for found in conflicts if found[1].code != UNFINISHED]
    if conflicts and not skip_conflicts:
        refused = refusal(conflicts)
        refused.details |= {"recovered": outcome.recovered} if outcome.recovered else {}
        raise refused
    if going:
        # Before any restore: a prune may be waiting for the lock.
        keeping.note_restored(context.settings, going, context.clock())
    for store, find in stores:
        try:
            # A restored entry must find its transcript, in any folder.
            for agent_id, names in abroad[store.agent_id].items():
                outcome.errors += _give_back(context, work, agent_id, names)
            done = store.restore(work, find, skip_conflicts=skip_conflicts or bool(outcome.back))
        except SessionManagerError as error:
            failed.append((store.agent_id, error))
            continue
        outcome.back += [(store.agent_id, removal) for removal in done.removals]
        if done.removals and (how := store.to_import()) is not None:
            outcome.to_import.append(how)
        outcome.blocked += done.blocked
        outcome.recovered += done.recovered
        outcome.errors += [failure(error, store.agent_id, session_id) for session_id, error in done.failures]
    outcome.errors += errors_or_raise(failed, any_done=len(failed) < len(wanted))
    return outcome


def _look(
    context: Context, work: Work, store: Store, find: Find
) -> tuple[list[str], list[Blocked], dict[str, list[str]]]:
    """Returns the ids of sessions that can be restored to a store, the others' conflicts, and their shared files.

    The lives themselves are as large as the list of sessions, and must not outlive this.
    """
    able, unable = store.restorable(work, find(work.ledger), context.clock())
    return [life[0].session_id for life in able], unable, _abroad(removed for life in able for removed in life)


def _abroad(going: Iterable[Removed]) -> dict[str, list[str]]:
    """Returns the files that removed sessions name in other agents' folders, by agent."""
    found: dict[str, list[str]] = {}
    for removed in going:
        for name in removed.shares:
            agent_id, slash, file = name.partition("/")
            if slash:
                found.setdefault(agent_id, []).append(file)
    return found


def _give_back(context: Context, work: Work, agent_id: str, names: Sequence[str]) -> list[dict[str, object]]:
    """Restores transcripts in another agent's folder, if necessary; returns those that could not be moved."""
    store = context.volume.archive_store(agent_id)
    failures = [] if store is None else store.give_back(work, names)
    return [failure(error, agent_id, session_id) for session_id, error in failures]


def end_earlier(work: Work, store: Store) -> list[dict[str, object]]:
    """Completes the work of a killed call: files that it has already restored cause no conflict.

    Returns the recoveries to report.
    """
    if not store.has_unfinished(work):
        return []
    return store.locked(work, lambda lock: store.end_earlier(work, lock))[1]


def _store(context: Context, agent_id: str) -> Store:
    store = context.volume.archive_store(agent_id)
    if store is None:
        raise Refused(f"agent {agent_id!r} has no sessions folder any more", code="not_restorable", agentId=agent_id)
    return store


def pinned(context: Context, session_ids: Collection[str]) -> dict[str, Any]:
    """Pins the restored sessions; returns the member of a document that reports it."""
    if not session_ids:
        return {}
    keeping.pin(context.settings, session_ids, context.clock())
    return {"pinned": True}


def import_of(outcome: Outcome) -> str:
    """Returns the end of a message on how gateways import sessions restored as files; empty for other sessions."""
    return "".join(f"; {agent['how']}" for agent in outcome.to_import)


def also(work: Work, outcome: Outcome) -> dict[str, Any]:
    """Returns the members common to all documents of a restore."""
    document: dict[str, Any] = {"run_id": work.run.shown_id, **work.notes()}
    if outcome.to_import:
        document["to_import"] = outcome.to_import
    return document if not outcome.recovered else {**document, "recovered": outcome.recovered}
