"""A tiny store kind, for these tests only: one file for each session in one folder for each agent, and no index.

``<root>/<agent>/<id>.session`` has a JSON object in its first line (``key``, ``updatedAt`` in epoch ms, ``label``,
``pinned``) and one message in each further line (``at`` in epoch ms, ``text``). ``<id>.running`` lies beside it while a
run is in progress. The owner takes no lock: it appends lines to the file that has the name, or begins a new one.

A session lives if its file has its live name. That is all that recovery needs to know.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from filelock import Timeout

from session_manager.archives.archive import Failures, archive_files, bring_back_files, forget_second_names
from session_manager.archives.copying import PART
from session_manager.archives.erasing import Traces, carry_out, erase, erase_lost
from session_manager.archives.folder import Guard
from session_manager.archives.names import archive_names, original_name, parse_archive
from session_manager.archives.purging import Archive, end_purge
from session_manager.archives.second_names import SecondNames
from session_manager.archives.work import Work
from session_manager.core.diagnosis import Check
from session_manager.core.errors import Damaged, Locked, NotFound, Refused, SessionManagerError, UsageError
from session_manager.core.keys import safe_name
from session_manager.core.retention import Cutoff
from session_manager.core.selection import Selection
from session_manager.core.session import Entry, Session, build_sessions
from session_manager.files.atomic import OWN_PREFIX, clear_errors, exchange, explain, sync_folder, write_new
from session_manager.files.liveness import now_ms
from session_manager.files.own_lock import own_lock
from session_manager.files.steps import step
from session_manager.files.versions import Identity, identity_of, read_file
from session_manager.ledger import ERASE, PURGE, REMOVE, REMOVED, RESTORE, Archived, Attempt, Ledger, Removal, Removed
from session_manager.ledger.facts import facts_of
from session_manager.stores import base, results
from session_manager.stores.lives import (
    FILE_EXISTS,
    KEY_TAKEN,
    NOT_RESTORABLE,
    UNFINISHED,
    Blocked,
    Find,
    Life,
    Obstacle,
    Restored,
    refusal,
    split,
)

LIVE, RUNNING, LOCK = ".session", ".running", ".session_manager.lock"
Done = TypeVar("Done")


class Header(msgspec.Struct, rename="camel"):
    """A session's first line."""

    key: str
    updated_at: int
    label: str | None = None
    pinned: bool = False


class Message(msgspec.Struct):
    """One further line."""

    at: int
    text: str


class Held:
    """The store's lock, held: the kernel never gives it to another process."""

    def check(self) -> None:
        """Never raises."""


class TinySnapshot(msgspec.Struct):
    """One read of the folder; ``versions`` are those of the files that the sessions were read from."""

    store: TinyStore
    sessions: list[Session]
    names: list[str]
    versions: dict[str, Identity]

    @property
    def agent_id(self) -> str:
        return self.store.agent_id

    def release(self) -> None:
        """Does nothing: it keeps no text."""

    def observe(self, now_ms: int, cutoff: Cutoff | None = None) -> None:
        here = set(self.store.listing())
        for session in self.sessions:
            session.running = session.busy = session.id + RUNNING in here
            limit = cutoff(session) if callable(cutoff) else cutoff
            if limit is not None and (session.entry_activity or 0) < limit:
                self._look_inside(session)

    def _look_inside(self, session: Session) -> None:
        messages = self.store.messages(session.id)
        session.transcript_activity = max((message.at for message in messages), default=0) or None

    def measure(self, only: Selection, *, sizes: bool = False) -> None:
        if sizes or only.empty or only.min_bytes is not None:
            for session in self.sessions:
                session.size = self.versions[session.id].size
                session.empty = not self.store.messages(session.id)

    def transcript_sizes(self) -> dict[str, dict[str, int]]:
        return {s.id: {s.id + LIVE: self.versions[s.id].size} for s in self.sessions}

    def without_messages(self, asked: Iterable[Session]) -> tuple[set[str], set[str]]:
        return {session.id for session in asked if not self.store.messages(session.id)}, set()

    def references(self, names: Sequence[str]) -> list[tuple[str, str, str]]:
        return []

    def own_names(self, others: Collection[str]) -> list[str]:
        return self.names

    def own_files(self) -> set[str]:
        return {session.id + LIVE for session in self.sessions}

    def archives_of(self, session_id: str, names: Iterable[str]) -> list[str]:
        return [name for name in names if _archived_id(name) == session_id]

    def usage(self, names: Iterable[str]) -> results.Usage:
        types, found = {s.id + LIVE: s.session_type for s in self.sessions}, results.Usage()
        for name in names:
            size = os.lstat(self.store.path(name)).st_size
            if name in types:
                found.live += size
                found.by_type[types[name]] = found.by_type.get(types[name], 0) + size
            elif parse_archive(name) is not None:
                found.archived += size
        return found

    def details(self, session: Session, now_ms: int) -> results.Details:
        self._look_inside(session)
        session.size = self.versions[session.id].size
        return results.Details({session.id + LIVE: session.size})


class TinyPlace:
    """A store as a place to restore sessions to, with the keys that were promised to others since."""

    def __init__(self, snapshot: TinySnapshot, second_names: SecondNames) -> None:
        self._store, self._second_names = snapshot.store, second_names
        self._names = set(snapshot.names)
        self._holders = {key: session.id for session in snapshot.sessions for key in session.keys}

    def obstacle(self, life: Life) -> Obstacle | None:
        return next((found for removed in life if (found := self._obstacle(removed)) is not None), None)

    def was_taken_back(self, life: Life) -> bool:
        """Returns True if removals of one session were already restored."""
        return all(removed.state == "restored" for removed in life)

    def claim(self, life: Life) -> None:
        """Marks the keys of ``life`` as taken."""
        self._holders.update((key, removed.session_id) for removed in life for key in removed.keys)

    def _obstacle(self, removed: Removed) -> Obstacle | None:
        if removed.state != REMOVED:
            return Obstacle(NOT_RESTORABLE, f"it was {removed.state}")
        if not removed.finished:
            return Obstacle(UNFINISHED, "its removal is not finished; the next call that removes something finishes it")
        for key in removed.keys:
            holder = self._holders.get(key, removed.session_id)
            if holder != removed.session_id:
                return Obstacle(KEY_TAKEN, f"its key {key} is in use by session {holder}")
        for source, target in removed.files:
            archive = self._store.archive_of(self._second_names, removed, target)
            if archive is None:
                return Obstacle(NOT_RESTORABLE, f"its archive {target} is gone")
            if source in self._names and not _are_one(self._store.path(source), archive):
                return Obstacle(FILE_EXISTS, f"a file {source} already exists")
        return None


class TinyStore(msgspec.Struct, frozen=True):
    """One agent's folder. What it does when killed follows from one rule: a session with a live name lives."""

    agent_id: str
    sessions_dir: str
    store_id: str
    mates: bool = False
    kind: str = "tiny"

    def path(self, name: str) -> str:
        return os.path.join(self.sessions_dir, name)

    def listing(self) -> list[str]:
        """Returns the names in the folder."""
        with clear_errors("list", self.sessions_dir), contextlib.suppress(FileNotFoundError):
            return sorted(name for name in os.listdir(self.sessions_dir) if name != LOCK)
        return []

    def messages(self, session_id: str) -> list[Message]:
        """Returns the messages of a session; none if it is gone."""
        try:
            lines = read_file(self.path(session_id + LIVE))[0].splitlines()[1:]
        except FileNotFoundError:
            return []
        with self._readable(session_id + LIVE):
            return [msgspec.json.decode(line, type=Message) for line in lines]

    @contextlib.contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        try:
            yield
        except (msgspec.DecodeError, OSError) as error:
            raise Damaged(f"{self.path(name)} cannot be read ({error}); nothing was changed") from error

    # --- what archives ask of a folder

    def owner(self, name: str, ids: Collection[str]) -> str | None:
        return name.removesuffix(LIVE) if name.endswith(LIVE) and name.removesuffix(LIVE) in ids else None

    def join(self, name: str, archive: str, session_id: str, number: str) -> None:
        live, part = self.path(name), self.path(f"{OWN_PREFIX}{number}{PART}")
        if not _are_one(live, archive):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        earlier, later = read_file(archive)[0], read_file(live)[0]
        if not later.startswith(earlier):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            write_new(part, earlier + later.partition(b"\n")[2], os.lstat(live))
            step("joined file written")
            if not exchange(part, live):
                raise OSError(errno.ENOTSUP, "files cannot be swapped", name)
            step("joined file in place")
        with contextlib.suppress(FileNotFoundError):
            # What the owner appended between the read and the swap is only in the file that was swapped out.
            swapped_out, joined = (
                read_file(part)[0].splitlines(keepends=True)[1:],
                read_file(live)[0].splitlines(keepends=True),
            )
            with open(live, "ab") as file:
                file.writelines(line for line in swapped_out if line not in joined)
            os.unlink(part)

    # --- reading

    def read(self, now_ms: int) -> TinySnapshot:
        names, entries, versions = self.listing(), [], {}
        for name in names:
            session_id = name.removesuffix(LIVE)
            if session_id == name:
                continue
            with contextlib.suppress(FileNotFoundError), self._readable(name):
                data, versions[session_id] = read_file(self.path(name))
                header = msgspec.json.decode(data.partition(b"\n")[0], type=Header)
                pinned = True if header.pinned else None
                entry = Entry(session_id, updated_at=header.updated_at, label=header.label, pinned_at=pinned)
                entries.append((header.key, entry))
        return TinySnapshot(self, build_sessions(self.agent_id, entries, now_ms), names, versions)

    def holds(self, name: str) -> bool:
        return name in self.listing()

    def has_unfinished(self, work: Work, names: Collection[str] | None = None) -> bool:
        here, ledger = self.listing() if names is None else names, work.existing_ledger
        open_ones = ledger is not None and ledger.has_open_attempts(self.store_id, self.agent_id, here)
        return open_ones or any(name.startswith(OWN_PREFIX) for name in here)

    def archives(self, names: Sequence[str], ledger: Ledger | None) -> tuple[list[str], list[Archived]]:
        return list(names), [] if ledger is None else ledger.archived(self.agent_id)

    def archive_of(self, second_names: SecondNames, removed: Removed, target: str) -> str | None:
        """Returns the path of an archive, under one of its two names."""
        paths = (self.path(target), second_names.path(removed.run_id, self.agent_id, target))
        return next((path for path in paths if os.path.lexists(path)), None)

    def check(self, look: results.Look) -> Iterator[Check]:
        name, snapshot = f"store {self.agent_id}", self.read(look.now_ms)
        if look.ledger is not None and look.ledger.has_open_attempts(self.store_id, self.agent_id, snapshot.names):
            yield Check(
                name, False, "a killed call left work", "any call that changes it ends that", None, self.agent_id
            )
        else:
            yield Check(name, True, f"{len(snapshot.sessions)} sessions", None, None, self.agent_id)

    def writer(self, now_ms: int) -> str | None:
        return None

    def mentions(self, snapshot: Any) -> Any:
        return None

    def orphans(self, look: results.OrphanLook) -> base.Orphans | None:
        return None

    def to_import(self) -> dict[str, str] | None:
        return None

    # --- changing

    def locked(self, work: Work, act: Callable[[Any], Done]) -> Done:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(own_lock(self.path(LOCK), work.settings.lock_timeout))
            except Timeout:
                raise Locked(f"another call holds the store of agent {self.agent_id!r}; try again") from None
            except OSError as error:
                raise explain(error, "lock", self.sessions_dir) from error
            return act(Held())

    def end_earlier(self, work: Work, lock: Guard) -> tuple[list[Removal], list[dict[str, object]], Failures]:
        names, ledger = self.read(now_ms()).names, work.existing_ledger
        recovered: list[dict[str, object]] = []
        failures: Failures = []
        for attempt in [] if ledger is None else ledger.open_attempts(self.store_id, self.agent_id, names):
            alive: set[str] = set()
            if attempt.kind == PURGE:
                failures += end_purge(self, work.ledger, attempt)
            elif attempt.kind == ERASE:
                traces = self.traces(work.second_names, attempt.removals[0].session_id)
                failures += carry_out(self, work.ledger, attempt, traces, 0).failures
            else:
                alive, failed = self._settle(work, lock, attempt)
                failures += failed
            gone = {removal.session_id for removal in attempt.removals} - alive
            done, undone = (alive, gone) if attempt.kind == RESTORE else (gone, alive)
            about = {"run_id": attempt.run_id, "agentId": self.agent_id, "what": attempt.kind}
            recovered.append({**about, "finished": sorted(done), "undone": sorted(undone)})
        for name in self.listing():
            if name.startswith(OWN_PREFIX) and name.endswith(PART):
                with clear_errors("tidy up", self.sessions_dir):
                    os.unlink(self.path(name))
        return [], recovered, failures

    def remove(self, work: Work, choose: base.Choose, shared: Collection[str] = ()) -> results.Outcome:
        return self.locked(work, lambda lock: self._remove(work, lock, choose))

    def _remove(self, work: Work, lock: Guard, choose: base.Choose, erased: str | None = None) -> results.Outcome:
        _, recovered, failures = self.end_earlier(work, lock)
        snapshot = self.read(now_ms())
        chosen = list(choose(snapshot))
        woken, failed = self._wake(work, lock, snapshot, erased)
        if woken:
            snapshot = self.read(now_ms())
            chosen = list(choose(snapshot))
        base.refuse_unobserved(session for session, _ in chosen)
        outcome = results.Outcome(snapshot, [], set(), failures + failed, recovered, [], woken)
        if chosen:
            removals = self._plan(snapshot, chosen)
            versions = [snapshot.versions[removal.session_id] for removal in removals]
            attempt = work.ledger.intend(work.run, self.store_id, self.agent_id, [], versions, removals)
            step("intent written")
            self._archive(work, lock, attempt, outcome)
            gone = {removal.session_id for removal in outcome.removed}
            outcome.woken = [one for one in woken if one.session_id not in gone]
            work.left[self] = work.left.get(self, set()) | gone
        return outcome

    def _plan(self, snapshot: TinySnapshot, chosen: Sequence[tuple[Session, str]]) -> list[Removal]:
        now = now_ms()
        return [
            Removal(s.id, reason, s.keys, [], archive_names([s.id + LIVE], snapshot.names, now), facts=facts_of(s, now))
            for s, reason in chosen
        ]

    def _archive(self, work: Work, lock: Guard, attempt: Attempt, outcome: results.Outcome) -> None:
        """Looks a second time, archives what nobody has touched since, and settles the attempt by what is true then."""
        going = [r for r in attempt.removals if self._is_untouched(attempt, r)]
        step("looked again")
        with clear_errors("archive sessions in", self.sessions_dir):
            failed = archive_files(self, lock, work.ledger, work.second_names, attempt, going, ())
        step("files archived")
        alive, unsettled = self._settle(work, lock, attempt)
        outcome.failures += failed + unsettled
        outcome.removed = [r for r in attempt.removals if r.session_id not in alive]
        # A file that could not be moved is no sign of life.
        outcome.alive = alive - {session_id for session_id, _ in failed}

    def _is_untouched(self, attempt: Attempt, removal: Removal, *, archived: bool = False) -> bool:
        (source, target), running = removal.files[0], self.path(removal.session_id + RUNNING)
        with contextlib.suppress(FileNotFoundError):
            version = identity_of(self.path(target if archived else source))
            return version in attempt.expected and (archived or not os.path.lexists(running))
        return archived

    def _settle(self, work: Work, lock: Guard, attempt: Attempt) -> tuple[set[str], Failures]:
        """Ends an attempt to remove or to restore; returns the sessions that live, and files that could not be moved.

        A session lives if it has its live name, or if a message reached its file on the way.
        """
        names = set(self.listing())
        living = [r for r in attempt.removals if r.files[0][0] in names]
        if attempt.kind == REMOVE:
            living += [
                r for r in attempt.removals if r not in living and not self._is_untouched(attempt, r, archived=True)
            ]
        with clear_errors("settle sessions in", self.sessions_dir):
            failures, taken = bring_back_files(self, work.second_names, attempt, living)
            living = [r for r in living if r.files[0][0] not in taken]
            alive = {removal.session_id for removal in living}
            work.keep_second_names(self, lock, attempt, [r for r in attempt.removals if r.session_id not in alive])
            sync_folder(self.sessions_dir)
            step("folder synced")
            forget_second_names(self, work.second_names, attempt, living)
        work.ledger.finish(attempt, alive, complete=not failures)
        step("end noted")
        return alive, failures

    def _wake(
        self, work: Work, lock: Guard, snapshot: TinySnapshot, erased: str | None
    ) -> tuple[list[results.Woken], Failures]:
        """Undoes the removals of sessions that were begun anew since; except of one that will be erased."""
        ledger = work.existing_ledger
        living = {session.id for session in snapshot.sessions} - {erased}
        standing = [] if ledger is None else ledger.standing(self.agent_id, living, REMOVED)
        place = TinyPlace(snapshot, work.second_names)
        halves = [removed for removed in standing if removed.files and place.obstacle([removed]) is None]
        if not halves:
            return [], []
        alive, failures = self._restore(work, lock, halves)
        woken = [results.Woken(self.agent_id, r.session_id, r.run_id, r.session_id in alive) for r in halves]
        return woken, failures

    def look_once_more(self, work: Work, observe: base.Choose) -> results.Outcome | None:
        step("store let go")
        back = {session_id for session_id in work.left[self] if self.holds(session_id + LIVE)}
        return self.remove(work, observe) if back else None

    # --- undoing

    def place(self, second_names: SecondNames, keep_days: int, now_ms: int) -> TinyPlace:
        return TinyPlace(self.read(now_ms), second_names)

    def restorable(self, work: Work, found: Iterable[Life], now_ms: int) -> tuple[list[Life], list[Blocked]]:
        return split(TinyPlace(self.read(now_ms), work.second_names), found)

    def restore(self, work: Work, find: Find, *, skip_conflicts: bool) -> Restored:
        def act(lock: Guard) -> Restored:
            _, recovered, failures = self.end_earlier(work, lock)
            going, blocked = self.restorable(work, find(work.ledger), now_ms())
            if blocked and not skip_conflicts:
                raise refusal(blocked)
            removed = [removal for life in going for removal in life]
            alive, failed = self._restore(work, lock, removed) if removed else (set(), [])
            ids = {r.removal_id for r in removed if r.session_id in alive}
            back = [Removal(r.session_id, r.reason, r.keys, [], r.files, r.removal_id) for r in removed]
            return Restored([r for r in back if r.removal_id in ids], blocked, recovered, failures + failed)

        return self.locked(work, act)

    def _restore(self, work: Work, lock: Guard, removed: Sequence[Removed]) -> tuple[set[str], Failures]:
        # The newest first: what came before is joined to what was begun anew.
        attempt = work.ledger.intend_restore(work.run, self.store_id, self.agent_id, [], [], removed)
        step("restore intended")
        with clear_errors("restore sessions in", self.sessions_dir):
            bring_back_files(self, work.second_names, attempt, attempt.removals[::-1])
        step("files back")
        return self._settle(work, lock, attempt)

    def give_back(self, work: Work, names: Collection[str]) -> Failures:
        return []

    def archive_last(
        self, work: Work, names: Mapping[str, str], referred_to: Callable[[], Collection[str]]
    ) -> tuple[list[Removal], Failures]:
        return [], []

    # --- erasing

    def knows(self, work: Work, session_id: str, sessions: Sequence[Session], names: Sequence[str]) -> bool:
        return (
            any(session.id == session_id for session in sessions)
            or self.has_unfinished(work, names)
            or bool(work.removed(session_id, self.agent_id))
            or self._is_left(work, session_id)
        )

    def _is_left(self, work: Work, session_id: str) -> bool:
        ledger = work.existing_ledger
        in_ledger = ledger is not None and ledger.holds(self.agent_id, session_id)
        return in_ledger or bool(self.traces(work.second_names, session_id).files)

    def erase(
        self,
        work: Work,
        session_id: str,
        choose: base.Choose,
        shared: Collection[str],
        into: results.Erasure,
        *,
        force: bool,
    ) -> None:
        def act(lock: Guard) -> None:
            outcome = self._remove(work, lock, choose, session_id)
            into.recovered += outcome.recovered
            into.gone += outcome.removed
            into.keys += len(outcome.removed)
            if outcome.alive:
                raise Refused(f"session {session_id} has just become active and was kept", code="session_busy")
            into.failures += outcome.failures
            into.known = bool(work.removed(session_id, self.agent_id))
            if self._is_left(work, session_id):
                traces = self.traces(work.second_names, session_id)
                done = erase(self, lock, work.ledger, work.run, session_id, traces, into.keys)
                into.known = into.changed = True
                into.files, into.bytes, into.entries = done.files, done.bytes, done.entries
                into.unerased += done.failures

        self.locked(work, act)

    def traces(self, second_names: SecondNames, session_id: str) -> Traces:
        """Returns a session's archives, each with both of its names."""
        here, second = self.listing(), second_names.of_agent(self.agent_id)
        names = sorted(name for name in {*here, *second} if _archived_id(name) == session_id)
        paths = {name: [self.path(name), *second.get(name, ())] for name in names}
        return Traces([Archive(name, paths[name]) for name in names], [])

    def left_of(self, session_id: str) -> list[tuple[str, str]]:
        return []


class TinyVolume:
    """A folder with a folder for each agent."""

    shared = False

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)

    def agent_ids(self) -> list[str]:
        with clear_errors("list", self.root), os.scandir(self.root) as found:
            return sorted(entry.name for entry in found if safe_name(entry.name) and entry.is_dir())

    def resolve_agent(self, agent: str) -> str:
        if not safe_name(agent):
            raise UsageError(f"{agent!r} is not an agent name")
        if agent not in self.agent_ids():
            raise NotFound(f"there is no agent {agent!r}", code="agent_not_found", agentId=agent)
        return agent

    def store(self, agent_id: str) -> TinyStore | None:
        folder = os.path.join(self.root, agent_id)
        if not os.path.isdir(folder):
            return None
        return TinyStore(agent_id, folder, f"{agent_id}:{os.stat(folder).st_ino}")

    def archive_store(self, agent_id: str) -> TinyStore | None:
        return self.store(agent_id)

    def stores(self, agent: str | None) -> Iterator[tuple[str, TinyStore | SessionManagerError | None]]:
        return self.stores_of(self.agent_ids() if agent is None else [self.resolve_agent(agent)])

    def stores_of(self, agent_ids: Iterable[str]) -> Iterator[tuple[str, TinyStore | SessionManagerError | None]]:
        return ((agent_id, self.store(agent_id)) for agent_id in agent_ids)

    def activity(self, agent_id: str, now: int) -> Mapping[str, int]:
        store = self.store(agent_id)
        return {} if store is None else {s.id: s.entry_activity or 0 for s in store.read(now).sessions}

    def living(self, agent_id: str) -> Callable[[str], bool] | None:
        with contextlib.suppress(SessionManagerError):
            live = self.activity(agent_id, now_ms())
            return lambda name: _archived_id(name) in live
        return None

    def erase_lost(self, work: Work, agent_id: str, session_id: str) -> results.Erasure:
        traces = TinyStore(agent_id, "", "").traces(work.second_names, session_id)
        done = erase_lost(work.ledger, work.run, agent_id, session_id, traces)
        return results.Erasure(True, True, 0, done.files, done.bytes, done.entries, unerased=done.failures)


def _archived_id(name: str) -> str | None:
    """Returns the session whose archive it is; None for any other file."""
    original = original_name(name)
    return original.removesuffix(LIVE) if original != name and original.endswith(LIVE) else None


def _are_one(live: str, archive: str) -> bool:
    """Returns True if two files of one session are parts of one conversation: they have the same key."""
    try:
        keys = [msgspec.json.decode(read_file(p)[0].partition(b"\n")[0], type=Header).key for p in (live, archive)]
    except msgspec.DecodeError:
        return False
    return keys[0] == keys[1]


# What mypy makes sure of: this is a store kind.
_store: base.Store = TinyStore("", "", "")
_volume: base.Volume = TinyVolume("")
