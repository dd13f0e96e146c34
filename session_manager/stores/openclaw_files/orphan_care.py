"""Orphans of one store: classified, judged, archived, or given an entry again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from session_manager.core.errors import Damaged
from session_manager.core.orphans import CLASSES, ORPHAN, Orphan, judge_entries, judge_orphans
from session_manager.core.session import Session
from session_manager.files.versions import Identity, read_file
from session_manager.stores import base
from session_manager.stores.openclaw_files.adoption import decide, member
from session_manager.stores.openclaw_files.orphans import Folder, Mentions, classify, orphans_in, with_traces
from session_manager.stores.openclaw_files.snapshot import bare_entries
from session_manager.stores.openclaw_files.store import Snapshot, Store
from session_manager.stores.openclaw_files.wrapping import unwrapped
from session_manager.stores.results import Adoption, OrphanLook, OrphanPlan, OrphansRemoved, Readopted

if TYPE_CHECKING:
    from session_manager.archives.work import Work
    from session_manager.stores.openclaw_files.gateway_lock import StoreLock

Choose = Callable[[OrphanPlan], tuple[list[Orphan], list[Session]]]


def mentions(store: Store, snapshot: Snapshot | None) -> Mentions:
    """Returns what an index mentions; without a read, what the bytes of a damaged one do."""
    if snapshot is not None:
        return Mentions(snapshot.index.data if snapshot.index else b"")
    try:
        return Mentions(unwrapped(read_file(store.index_path)[0]))
    except OSError:
        return Mentions(b"")


class FileOrphans:
    """Decides for one store, repeatedly: for a dry run, under the lock, and right before the change."""

    def __init__(self, store: Store, look: OrphanLook) -> None:
        self._store = store
        self._look = look
        self._mentions: tuple[Identity | None, Mentions] | None = None

    def plan(self, snapshot: base.Snapshot) -> OrphanPlan:
        """Classifies the folder and decides about its orphans and the entries without a transcript."""
        assert isinstance(snapshot, Snapshot)
        look, store = self._look, self._store
        now, current = look.clock(), look.current
        cutoff = look.policy.cutoff(now)
        look.observe(snapshot)
        folder = self._classify(snapshot)
        found_orphans = orphans_in(store, folder, snapshot.names, cutoff, now) if store.keeper else []
        orphans = judge_orphans(found_orphans, cutoff, current, look.pins)
        bare = bare_entries(snapshot, now)
        for session in bare:
            # Without a session id there is no transcript that a run could hold.
            session.observed = True
        listed = [*snapshot.sessions, *bare]
        raws = (
            {s.id: [snapshot.index.raw(key)[1] for key in s.keys] for s in listed if not _has_file(folder, s)}
            if snapshot.index
            else {}
        )
        found = with_traces(store, folder, listed, raws)
        entries = judge_entries(listed, found, look.policy, now, current, look.kin)
        part = folder.only(snapshot.own_names(look.shared))
        classes = {**dict.fromkeys(CLASSES, (0, 0)), **part.counted()}
        transcripts = len(folder.transcripts())
        return OrphanPlan(classes, orphans, entries, transcripts, lambda name: part.classes[name] == ORPHAN)

    def _classify(self, snapshot: Snapshot) -> Folder:
        if self._mentions is None or self._mentions[0] != snapshot.identity:
            self._mentions = (snapshot.identity, mentions(self._store, snapshot))
        everywhere = [self._mentions[1], *(each for each in self._look.mentioned if isinstance(each, Mentions))]
        return classify(self._store, snapshot.names, snapshot.sessions, self._look.shared, everywhere)

    def remove(self, work: Work, choose: Choose, into: OrphansRemoved) -> None:
        """Removes what ``choose`` picks from a plan under the lock."""
        from session_manager.stores.openclaw_files.changing import locked

        locked(work, self._store, lambda lock: self._remove(work, lock, choose, into))

    def _remove(self, work: Work, lock: StoreLock, choose: Choose, into: OrphansRemoved) -> None:
        from session_manager.stores.openclaw_files.orphan_removal import archive_orphans
        from session_manager.stores.openclaw_files.removal import remove_locked

        chosen: dict[str, Orphan] = {}

        def choose_sessions(snapshot: base.Snapshot) -> list[tuple[Session, str]]:
            assert isinstance(snapshot, Snapshot)
            sessions = choose(self.plan(snapshot))[1]
            into.by_id.update({s.id: s for s in (*snapshot.sessions, *sessions)})
            return [(session, "entry without transcript") for session in sessions]

        def choose_orphans(of_sessions: bool, snapshot: Snapshot) -> list[Orphan]:
            orphans = [o for o in choose(self.plan(snapshot))[0] if o.is_session == of_sessions]
            chosen.update({o.id: o for o in orphans})
            return orphans

        into.outcomes.append(remove_locked(work, self._store, lock, choose_sessions, self._look.shared))
        for of_sessions in (True, False):
            archived, spared, failures = archive_orphans(
                work, self._store, lock, partial(choose_orphans, of_sessions), history=of_sessions
            )
            into.archived += [(chosen[removal.session_id], removal) for removal in archived]
            into.spared += [chosen[session_id] for session_id in spared]
            into.failures += failures

    def adoptable(self, read: base.Snapshot | None, error: Damaged | None, session_id: str | None) -> Readopted:
        """Returns what ``readopt`` would do, from what can be read of the index."""
        salvaged = 0
        if error is not None:
            from session_manager.stores.openclaw_files.readoption import salvage

            found, _ = salvage(self._store, error)
            salvaged = len(found.index.entries) if found.index else 0
            read = found
        assert isinstance(read, Snapshot)
        return Readopted(*decide(read, self._classify(read), session_id, self._look.clock()), salvaged=salvaged)

    def readopt(self, work: Work, session_id: str | None, *, rebuild: bool) -> Readopted:
        """Gives idle transcripts without an entry one."""
        from session_manager.stores.openclaw_files.changing import locked
        from session_manager.stores.openclaw_files.readoption import readopt

        last: tuple[list[Adoption], list[tuple[str, str]]] = ([], [])

        def choose(snapshot: Snapshot) -> Mapping[str, tuple[bytes, bytes]]:
            nonlocal last
            last = decide(snapshot, self._classify(snapshot), session_id, self._look.clock())
            return {adoption.key: member(adoption) for adoption in last[0]}

        store = self._store
        done = locked(work, store, lambda lock: readopt(work, store, lock, choose, rebuild=rebuild))
        adopted = [adoption for adoption in last[0] if adoption.key in done.members]
        return Readopted(adopted, last[1], done.kept_as, done.salvaged, done.recovered, done.failures)


def _has_file(folder: Folder, session: Session) -> bool:
    return session.id + ".jsonl" in folder.sizes
