"""The kind of store that OpenClaw gateways 2026.2 to 2026.7 keep: an index, and a transcript for each session."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import Snapshot, Store, listing

if TYPE_CHECKING:
    from session_manager.archives.archive import Failures
    from session_manager.archives.folder import Guard
    from session_manager.archives.second_names import SecondNames
    from session_manager.archives.work import Work
    from session_manager.core.diagnosis import Check
    from session_manager.core.session import Session
    from session_manager.ledger import Archived, Ledger, Removal
    from session_manager.stores import base
    from session_manager.stores.base import Choose, Place
    from session_manager.stores.lives import Blocked, Find, Life, Restored
    from session_manager.stores.openclaw_files.gateway_lock import StoreLock
    from session_manager.stores.openclaw_files.orphan_care import FileOrphans
    from session_manager.stores.openclaw_files.orphans import Mentions
    from session_manager.stores.results import Erasure, Look, OrphanLook, Outcome

Done = TypeVar("Done")


class FilesStore(Store, frozen=True):
    """One agent's store, see ``stores.base``. Each part is loaded when it is first asked for."""

    @property
    def kind(self) -> str:
        """The name of the kind."""
        return "openclaw_files"

    def read(self, now_ms: int) -> Snapshot:
        """Reads the index once."""
        return read_snapshot(self, now_ms)

    def remove(self, work: Work, choose: Choose, shared: Collection[str] = ()) -> Outcome:
        """Removes the sessions that ``choose`` picks."""
        from session_manager.stores.openclaw_files.removal import remove

        return remove(work, self, choose, shared)

    def look_once_more(self, work: Work, observe: Choose) -> Outcome | None:
        """Looks again, after gateways that waited for the lock had time to write."""
        from session_manager.stores.openclaw_files.removal import look_once_more

        return look_once_more(work, self, observe)

    def has_unfinished(self, work: Work, names: Collection[str] | None = None) -> bool:
        """Returns True if a killed process left work to finish."""
        from session_manager.stores.openclaw_files.changing import has_unfinished

        return has_unfinished(work, self, listing(self) if names is None else names)

    def locked(self, work: Work, act: Callable[[StoreLock], Done]) -> Done:
        """Runs ``act`` under the store's lock."""
        from session_manager.stores.openclaw_files.changing import locked

        return locked(work, self, act)

    def end_earlier(self, work: Work, guard: Guard) -> tuple[list[Removal], list[dict[str, object]], Failures]:
        """Recovers the interrupted runs, for a caller who holds the lock."""
        from session_manager.stores.openclaw_files.changing import end_earlier
        from session_manager.stores.openclaw_files.gateway_lock import StoreLock

        assert isinstance(guard, StoreLock)
        return end_earlier(work, self, guard)

    def place(self, second_names: SecondNames, keep_days: int, now_ms: int) -> Place:
        """Returns the store as a place to restore sessions to."""
        from session_manager.stores.openclaw_files.obstacles import Place

        return Place(self.read(now_ms), second_names, keep_days)

    def restorable(self, work: Work, found: Iterable[Life], now_ms: int) -> tuple[list[Life], list[Blocked]]:
        """Returns the lives that can be restored now, and the others with their obstacles."""
        from session_manager.stores.lives import split

        return split(self.place(work.second_names, work.settings.keep_days, now_ms), found)

    def restore(self, work: Work, find: Find, *, skip_conflicts: bool) -> Restored:
        """Restores what ``find`` returns: into the index, or as files if the agent has moved to SQLite."""
        if self.database:
            from session_manager.stores.openclaw_files.moved_restoration import restore_moved as restore
        else:
            from session_manager.stores.openclaw_files.restoration import restore
        return self.locked(work, lambda lock: restore(work, self, lock, find, skip_conflicts=skip_conflicts))

    def give_back(self, work: Work, names: Collection[str]) -> Failures:
        """Restores files that a session of another agent names, unless they are there."""
        from session_manager.stores.openclaw_files.sharing import give_back

        if set(names).issubset(listing(self)):
            return []
        return self.locked(work, lambda lock: give_back(work, self, lock, names))

    def archive_last(
        self, work: Work, names: Mapping[str, str], referred_to: Callable[[], Collection[str]]
    ) -> tuple[list[Removal], Failures]:
        """Archives files whose last session, one of another agent, was removed."""
        from session_manager.stores.openclaw_files.sharing import archive_last

        return self.locked(work, lambda lock: archive_last(work, self, lock, names, referred_to))

    def knows(self, work: Work, session_id: str, sessions: Sequence[Session], names: Sequence[str]) -> bool:
        """Returns True if the store or the ledger has anything of a session, or a killed process left work."""
        from session_manager.stores.openclaw_files.erasing import knows

        return knows(work, self, session_id, sessions, names)

    def holds(self, name: str) -> bool:
        """Returns True if a file lies in the folder."""
        return name in listing(self)

    def erase(
        self,
        work: Work,
        session_id: str,
        choose: Choose,
        shared: Collection[str],
        into: Erasure,
        *,
        force: bool,
    ) -> None:
        """Removes a session, and erases all that is left of it."""
        from session_manager.stores.openclaw_files.erasing import erase_in

        self.locked(work, lambda lock: erase_in(work, self, lock, session_id, choose, shared, into, held_too=force))

    def left_of(self, session_id: str) -> list[tuple[str, str]]:
        """Returns (place, reason) of what an erasure could not reach."""
        from session_manager.stores.openclaw_files.erasing import left_of

        return left_of(self, session_id)

    def check(self, look: Look) -> Iterator[Check]:
        """Yields what is wrong with the store."""
        from session_manager.stores.openclaw_files.diagnosis import check

        return check(self, look)

    def writer(self, now_ms: int) -> str | None:
        """Returns what may write the store now."""
        from session_manager.stores.openclaw_files.unguarded import writer

        return writer(self.read(now_ms))

    def mentions(self, snapshot: base.Snapshot | None) -> Mentions:
        """Returns what the index mentions."""
        from session_manager.stores.openclaw_files.orphan_care import mentions

        assert snapshot is None or isinstance(snapshot, Snapshot)
        return mentions(self, snapshot)

    def orphans(self, look: OrphanLook) -> FileOrphans:
        """Returns the store's orphans."""
        from session_manager.stores.openclaw_files.orphan_care import FileOrphans

        return FileOrphans(self, look)

    def to_import(self) -> dict[str, str] | None:
        """Returns what a person does with restored entries, if the agent has moved to SQLite."""
        if not self.database:
            return None
        from session_manager.stores.openclaw_files.waiting import how_to_import, waiting_path

        return {"agentId": self.agent_id, "index": waiting_path(self), "how": how_to_import(self)}

    def archives(self, names: Sequence[str], ledger: Ledger | None) -> tuple[list[str], list[Archived]]:
        """Returns the names in the folder that may be this agent's archives, and its removals in the ledger."""
        from session_manager.stores.openclaw_files.sharing import archives

        return archives(self, names, ledger)
