"""readopt_orphans: makes new entries for transcripts that lost theirs, after an index was damaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from session_manager.archives.names import is_text
from session_manager.core.errors import Damaged, NotFound, SessionManagerError, failure, with_errors
from session_manager.core.keys import safe_name
from session_manager.core.session import epoch_ms
from session_manager.functions.context import (
    Agent,
    Context,
    Unguarded,
    check_session_id,
    iso_utc,
    named_when_interrupted,
)
from session_manager.functions.orphans import SHOWN, AgentState, Everyone, Planner
from session_manager.functions.reading import errors_or_raise
from session_manager.stores.openclaw_files.kind import FilesStore
from session_manager.stores.openclaw_files.names import session_id_of
from session_manager.stores.openclaw_files.observe import last_timestamp
from session_manager.stores.openclaw_files.orphans import ORPHAN, TOPIC, Header, held_ids, read_header
from session_manager.stores.openclaw_files.store import Snapshot

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


class Adoption(msgspec.Struct):
    """A new entry: ``file`` is the transcript's name; times in epoch milliseconds."""

    id: str
    agent_id: str
    key: str
    file: str
    updated_at: int
    started_at: int | None

    def row(self) -> dict[str, Any]:
        """Returns the element for the result's ``adopted``."""
        return {
            "id": self.id,
            "agentId": self.agent_id,
            "key": self.key,
            "file": self.file,
            "updatedAt": iso_utc(self.updated_at),
            "startedAt": iso_utc(self.started_at),
        }

    def member(self) -> tuple[bytes, bytes]:
        """Returns the raw member, with the gateway's indentation."""
        entry: dict[str, Any] = {"sessionId": self.id, "updatedAt": self.updated_at}
        if self.file != f"{self.id}.jsonl":
            entry["sessionFile"] = self.file
        if self.started_at is not None:
            entry["sessionStartedAt"] = self.started_at
        text = msgspec.json.format(msgspec.json.encode(entry), indent=2)
        return msgspec.json.encode(self.key), text.replace(b"\n", b"\n  ")


class Unfit(Exception):
    """A transcript gets no entry; the message is the reason."""


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
            "adopted": [adoption.row() for adoption in self.adopted[:SHOWN]],
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


def _each(scope: Sequence[AgentState], result: Result, act: Callable[[AgentState, FilesStore], None]) -> None:
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
    context: Context, everyone: Everyone, state: AgentState, store: FilesStore, result: Result, arguments: Arguments
) -> None:
    snapshot = state.snapshot
    if isinstance(state.error, Damaged) and arguments.rebuild:
        from session_manager.stores.openclaw_files.readoption import salvage

        snapshot, _ = salvage(store, state.error)
        result.salvaged += len(snapshot.index.entries) if snapshot.index else 0
    elif state.error is not None:
        raise state.error
    assert snapshot is not None
    adopted, skipped = _decide(context, _planner(context, everyone, store), snapshot, arguments)
    result.adopted += adopted
    result.skipped += skipped


def _act(
    context: Context, everyone: Everyone, work: Work, store: FilesStore, result: Result, arguments: Arguments
) -> None:
    from session_manager.stores.openclaw_files.readoption import readopt

    planner = _planner(context, everyone, store)
    last: tuple[list[Adoption], list[dict[str, str]]] = ([], [])

    def choose(snapshot: Snapshot) -> Mapping[str, tuple[bytes, bytes]]:
        nonlocal last
        last = _decide(context, planner, snapshot, arguments)
        return {adoption.key: adoption.member() for adoption in last[0]}

    done = store.locked(work, lambda lock: readopt(work, store, lock, choose, rebuild=arguments.rebuild))
    result.adopted += [adoption for adoption in last[0] if adoption.key in done.members]
    result.skipped += last[1]
    result.salvaged += done.salvaged
    result.recovered += done.recovered
    result.errors += [failure(error, store.agent_id) for error in done.failures]
    if done.kept_as is not None:
        result.kept_as.append({"agentId": store.agent_id, "file": done.kept_as})


def _planner(context: Context, everyone: Everyone, store: FilesStore) -> Planner:
    return Planner(context, everyone, store.agent_id, 1)


def _decide(
    context: Context, planner: Planner, snapshot: Snapshot, arguments: Arguments
) -> tuple[list[Adoption], list[dict[str, str]]]:
    """Picks the transcripts that get an entry: idle orphans and topic files that name their session."""
    store, now = snapshot.store, context.clock()
    folder = planner.classify(snapshot)
    # In a shared folder the keeper adopts files that belong to no agent.
    files = {name: session_id_of(name) or "" for name in folder.of_class(ORPHAN, TOPIC) if store.keeper}
    busy = held_ids(store, snapshot.names, set(files.values()), now)
    taken = set(snapshot.index.entries) if snapshot.index else set()
    living = {s.id for s in snapshot.sessions}
    adopted: dict[str, Adoption] = {}
    skipped = []

    def rank(name: str) -> tuple[bool, bool, int]:
        # A session's own file comes before its others, and before its topic files; then the newest.
        return (folder.classes[name] == TOPIC, name != f"{files[name]}.jsonl", -folder.mtimes.get(name, 0))

    for name in sorted(files, key=rank):
        path = os.path.join(store.sessions_dir, name)
        header = read_header(path)
        if arguments.session_id not in (None, files[name], header.id if header else None):
            continue
        try:
            if not is_text(name):
                raise Unfit("name is not UTF-8")
            if files[name] in busy:
                raise Unfit("busy")
            adoption = _adoption(store.agent_id, path, header, now, taken)
            if adoption.id in living:
                raise Unfit("has an entry")
            if adoption.id in adopted:
                raise Unfit("another file of the session was taken")
        except Unfit as why:
            skipped.append({"file": name, "agentId": store.agent_id, "reason": str(why)})
        else:
            adopted[adoption.id] = adoption
            taken.add(adoption.key)
    return list(adopted.values()), skipped


def _adoption(agent_id: str, path: str, header: Header | None, now_ms: int, taken: Collection[str]) -> Adoption:
    """Derives the entry from a transcript. Raises Unfit."""
    if header is None or not isinstance(header.id, str):
        raise Unfit("no header")
    if session_id_of(f"{header.id}.jsonl") != header.id or not safe_name(header.id):
        raise Unfit("unsafe id")
    try:
        mtime_ms = os.lstat(path).st_mtime_ns // 1_000_000
        last = last_timestamp(path, now_ms, mtime_ms) or min(mtime_ms, now_ms)
    except OSError:
        raise Unfit("unreadable") from None
    started = epoch_ms(header.timestamp, now_ms)
    return Adoption(header.id, agent_id, _key(agent_id, header.id, taken), os.path.basename(path), last, started)


def _key(agent_id: str, session_id: str, taken: Collection[str]) -> str:
    """Returns a free key of type ``ui``, as a person's own chats have: no prune removes it by age."""
    plain = f"agent:{agent_id}:dashboard:{session_id}".lower()
    key, number = plain, 1
    while key in taken:
        number += 1
        key = f"{plain}-{number}"
    return key
