"""readopt_orphans: makes new entries for transcripts that lost theirs, after an index was damaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from session_manager.core.errors import Damaged, NotFound, SessionManagerError, failure, with_errors
from session_manager.functions.context import (
    Agent,
    Context,
    Unguarded,
    check_session_id,
    iso_utc,
    named_when_interrupted,
)
from session_manager.functions.orphans import SHOWN, AgentState, Everyone, orphans_of
from session_manager.functions.reading import errors_or_raise
from session_manager.stores.base import Store
from session_manager.stores.results import Adoption, Readopted

if TYPE_CHECKING:
    from session_manager.archives.work import Work

DESCRIPTION = (
    "Creates index entries for readable transcripts that have none, after an index was damaged; with rebuild it "
    "replaces an unreadable index and keeps the damaged file. A dry run unless dry_run is false."
)

Rebuild = Annotated[bool, msgspec.Meta(description="replace an unreadable index; the old file is kept beside it")]
OrphanId = Annotated[str, msgspec.Meta(description="one session's full id; default: all orphans")]


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of readopt_orphans."""

    agent: Agent | None = None
    session_id: OrphanId | None = None
    dry_run: bool = True
    rebuild: Rebuild = False
    force: Unguarded = False


def _row(adoption: Adoption) -> dict[str, Any]:
    """Returns the element for the result's ``adopted``."""
    return {
        "id": adoption.id,
        "agentId": adoption.agent_id,
        "key": adoption.key,
        "file": adoption.file,
        "updatedAt": iso_utc(adoption.updated_at),
        "startedAt": iso_utc(adoption.started_at),
    }


class Result(msgspec.Struct):
    """What was readopted so far, over all agents, and what was not, with its reason."""

    adopted: list[Adoption] = msgspec.field(default_factory=list)
    skipped: list[dict[str, str]] = msgspec.field(default_factory=list)
    kept_as: list[dict[str, str]] = msgspec.field(default_factory=list)
    salvaged: int = 0
    recovered: list[dict[str, object]] = msgspec.field(default_factory=list)
    errors: list[dict[str, object]] = msgspec.field(default_factory=list)

    def document(self, arguments: Arguments) -> dict[str, Any]:
        """Returns the function's document; in a dry run ``adopted`` means "would be adopted"."""
        document: dict[str, Any] = {
            "dry_run": arguments.dry_run,
            "adopted_count": len(self.adopted),
            "adopted": [_row(adoption) for adoption in self.adopted[:SHOWN]],
            "skipped_count": len(self.skipped),
            "skipped": self.skipped[:SHOWN],
            "salvaged_entries": self.salvaged,
            "damaged_kept_as": self.kept_as,
            "errors": self.errors,
        }
        return document if not self.recovered else {**document, "recovered": self.recovered}


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns the new entries, and the transcripts that got none, with the reasons.

    Raises UsageError or NotFound; the failure of the named agent, or the first when every agent failed: Damaged
    (``index_damaged``) when an index cannot be read and ``rebuild`` is not set, Locked, Refused, Failed.
    """
    if arguments.session_id is not None:
        check_session_id(arguments.session_id)
    everyone = Everyone(context)
    scope = everyone.scope(context, arguments.agent)
    result = Result()
    extra: dict[str, Any] = {}
    if arguments.dry_run:
        _each(scope, result, lambda state, store: _preview(context, everyone, state, store, result, arguments))
    else:
        from session_manager.archives.work import Work
        from session_manager.ledger import start_run

        run_info = start_run("readopt_orphans", context.settings)
        with (
            named_when_interrupted(run_info),
            Work(context.settings, run_info, context.volume.living, force=arguments.force) as work,
        ):
            _each(scope, result, lambda state, store: _act(context, everyone, work, store, result, arguments))
        extra |= {"run_id": run_info.shown_id, **work.notes()}
    if arguments.session_id is not None and not result.adopted and not result.skipped and not result.errors:
        raise NotFound(f"session {arguments.session_id!r} has no orphaned transcript: perhaps it has its index entry")
    return with_errors({**result.document(arguments), **extra}, result.errors)


def _each(scope: Sequence[AgentState], result: Result, act: Callable[[AgentState, Store], None]) -> None:
    failed: list[tuple[str, SessionManagerError]] = []
    for state in scope:
        try:
            if state.store is not None:
                act(state, state.store)
            elif state.error is not None:
                raise state.error
        except SessionManagerError as error:
            failed.append((state.agent_id, error))
    result.errors += errors_or_raise(failed, any_done=len(failed) < len(scope))


def _preview(
    context: Context, everyone: Everyone, state: AgentState, store: Store, result: Result, arguments: Arguments
) -> None:
    error = state.error
    if error is not None and not (isinstance(error, Damaged) and arguments.rebuild):
        raise error
    damaged = error if isinstance(error, Damaged) else None
    _add(
        result, store, orphans_of(context, everyone, store, 1).adoptable(state.snapshot, damaged, arguments.session_id)
    )


def _act(context: Context, everyone: Everyone, work: Work, store: Store, result: Result, arguments: Arguments) -> None:
    found = orphans_of(context, everyone, store, 1)
    _add(result, store, found.readopt(work, arguments.session_id, rebuild=arguments.rebuild))


def _add(result: Result, store: Store, done: Readopted) -> None:
    result.adopted += done.adopted
    result.skipped += [{"file": name, "agentId": store.agent_id, "reason": why} for name, why in done.skipped]
    result.salvaged += done.salvaged
    result.recovered += done.recovered
    result.errors += [failure(error, store.agent_id) for error in done.failures]
    if done.kept_as is not None:
        result.kept_as.append({"agentId": store.agent_id, "file": done.kept_as})
