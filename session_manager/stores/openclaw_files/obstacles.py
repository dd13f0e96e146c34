"""Obstacles to the restore of a removed session."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from session_manager.archives.second_names import SecondNames
from session_manager.archives.work import Work
from session_manager.core.session import trimmed_or_none
from session_manager.ledger import Removed
from session_manager.stores.lives import FILE_EXISTS, KEY_TAKEN, NOT_RESTORABLE, UNFINISHED, Obstacle
from session_manager.stores.openclaw_files.joining import belongs
from session_manager.stores.openclaw_files.whereabouts import is_transcript

if TYPE_CHECKING:
    from session_manager.stores.openclaw_files.store import Snapshot

LOST = Obstacle("store_locked", "a gateway that takes no lock has overwritten the index without it; try again")

_ENDS = {
    "restored": "it was restored",
    "purged": "its archives were purged",
    "erased": "it was erased",
}


class Place:
    """A store as it is now, with the keys and names claimed since."""

    def __init__(self, snapshot: Snapshot, second_names: SecondNames, keep_days: int) -> None:
        self._snapshot = snapshot
        self._names = set(snapshot.names)
        self._living = {session.id for session in snapshot.sessions}
        self._second_names = second_names
        self._keep_days = keep_days
        self._claimed: dict[str, str] = {}
        if snapshot.store.database:
            from session_manager.stores.openclaw_files.waiting import held_keys

            self._claimed = held_keys(snapshot)

    def obstacle(self, life: Sequence[Removed]) -> Obstacle | None:
        """Returns the obstacle to undoing removals of one session together, or None."""
        half_back = self._is_half_back(life)
        return next((found for removed in life if (found := self._obstacle(removed, half_back)) is not None), None)

    def was_taken_back(self, life: Sequence[Removed]) -> bool:
        """Returns True if removals of one session were already restored, and completely."""
        return all(removed.state == "restored" for removed in life) and not self._is_half_back(life)

    def _is_half_back(self, life: Sequence[Removed]) -> bool:
        """Returns True if a restored session has its files and no entry.

        A gateway without a lock may overwrite a restored key that it had not read; a delete would have archived the
        transcript.
        """
        files = [source for removed in life for source, _ in removed.files]
        return (
            all(removed.state == "restored" for removed in life)
            and any(removed.keys for removed in life)
            and life[0].session_id not in self._living
            and bool(files)
            and self._names.issuperset(files)
        )

    def claim(self, life: Sequence[Removed]) -> None:
        """Marks the keys and file names of ``life`` as taken."""
        for removed in life:
            self._claimed.update(dict.fromkeys(removed.keys, removed.session_id))
            self._names.update(source for source, _ in removed.files)

    def _obstacle(self, removed: Removed, half_back: bool) -> Obstacle | None:
        if removed.state != "removed" and not half_back:
            return Obstacle(NOT_RESTORABLE, _ENDS.get(removed.state, f"it is {removed.state}"))
        if not removed.finished:
            return Obstacle(UNFINISHED, "its removal is not finished; the next call that removes something finishes it")
        if self._snapshot.store.database and removed.session_id in self._living:
            return Obstacle(
                NOT_RESTORABLE,
                "the gateway's database has it and cannot import an older part; the archive is kept and not purged",
            )
        if removed.keys and not removed.has_entries and removed.session_id not in self._living:
            days = self._keep_days
            return Obstacle(NOT_RESTORABLE, f"its index entry is no longer kept (ARIA_KEEP_DAYS is {days})")
        for key in removed.keys:
            holder = self._holder(key)
            if holder not in (None, removed.session_id):
                return Obstacle(KEY_TAKEN, f"its key {key} is in use by session {holder}")
        for source, target in removed.files:
            if half_back:
                continue
            archive = self._archive(removed, target)
            if source in self._names and (archive is None or not self._goes_on(removed, source, archive)):
                return Obstacle(FILE_EXISTS, f"a file {source} already exists")
            if archive is None:
                return Obstacle(NOT_RESTORABLE, f"its archive {target} is gone")
        return None

    def _archive(self, removed: Removed, target: str) -> str | None:
        if target in self._names:
            return os.path.join(self._snapshot.store.sessions_dir, target)
        second = self._second_names.path(removed.run_id, removed.agent_id, target)
        return second if os.path.lexists(second) else None

    def _goes_on(self, removed: Removed, source: str, archive: str) -> bool:
        """Returns True if a file with the same name continues the conversation, so that both can be joined."""
        live = os.path.join(self._snapshot.store.sessions_dir, source)
        return is_transcript(source) and belongs(live, archive, removed.session_id)

    def _holder(self, key: str) -> str | None:
        """Returns the session that has a key, or None if it is free."""
        index = self._snapshot.index
        if index is not None and key in index.entries:
            return trimmed_or_none(index.entry(key).session_id) or "(an entry without a session id)"
        return self._claimed.get(key)


def place_of(work: Work, snapshot: Snapshot) -> Place:
    """Returns a store as a place to restore sessions to."""
    return Place(snapshot, work.second_names, work.settings.keep_days)
