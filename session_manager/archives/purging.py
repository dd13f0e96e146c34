"""Deletes archives permanently: those of old removals, and old ones that are not in the ledger.

Order: the intent in the ledger, durable; the files; the end in the ledger, where the removals become ``purged`` and
lose their raw entries. If killed in between, the next call that takes the store's lock removes the rest of the files.
A removal is purged as a whole; an archive that belongs to none is purged alone.

The gateway does not matter here: its marker may grow old meanwhile, and its index is never touched.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from session_manager.archives.archive import Failures
from session_manager.archives.folder import Folder
from session_manager.archives.names import archive_time, original_name, parse_archive
from session_manager.archives.second_names import SecondNames
from session_manager.core.errors import SessionManagerError
from session_manager.core.progress import tracked
from session_manager.files.atomic import clear_errors, explain, sync_folder
from session_manager.files.steps import step
from session_manager.ledger import Archived, Attempt, Ledger, Run

if TYPE_CHECKING:
    from session_manager.core.policy import Pins


class Archive(msgspec.Struct):
    """One archived file with all its names: ``paths`` lie in the sessions folder and among the second names.

    ``owner`` is the removal that it belongs to, or None if no removal of the ledger has it.
    """

    name: str
    paths: list[str]
    owner: int | None = None


class PurgePlan(msgspec.Struct):
    """What to purge of one agent: archives, and removals (ids) with their raw entries in the ledger.

    ``pinned`` and ``living`` count archives that are also old enough, but stay because their session is pinned by the
    policy, or live.
    """

    archives: list[Archive]
    removal_ids: list[int]
    pinned: int = 0
    living: int = 0


class Purged(msgspec.Struct):
    """The result: each purged archive with the freed bytes, and the removals purged with all their files.

    ``pinned`` and ``living`` count archives that stay for these reasons.
    """

    archives: list[tuple[Archive, int]]
    removal_ids: list[int]
    errors: list[SessionManagerError]
    pinned: int = 0
    living: int = 0

    @property
    def bytes(self) -> int:
        """The number of freed bytes."""
        return sum(size for _, size in self.archives)


def plan_purge(
    store: Folder,
    names: Iterable[str],
    second: Mapping[str, Sequence[str]],
    removed: Iterable[Archived],
    cutoff: int,
    pins: Pins | None,
    living: Collection[str],
) -> PurgePlan:
    """Selects archives older than ``cutoff`` (epoch ms): ``names`` lie in the sessions folder, ``second`` beside it.

    All archives of a removal have the removal's age. Any other archive has its time in its name; without a readable
    time it stays. Archives of sessions in ``pins`` stay, and those with the id of a session in ``living``: they may be
    a part of its conversation that is not joined yet.
    """
    here = {name for name in names if parse_archive(name) is not None}
    owners: dict[str, int] = {}
    going: list[int] = []
    pinned: set[int] = set()
    awake: set[int] = set()
    for removal in removed:
        owners.update(dict.fromkeys(removal.archives, removal.removal_id))
        # A copied store has another id, but the same files.
        mine = removal.store_id == store.store_id or not here.isdisjoint(removal.archives)
        if mine and removal.finished and removal.removed_at < cutoff:
            if removal.session_id in living:
                awake.add(removal.removal_id)
            elif pins is not None and pins.name(removal.session_id, removal.keys, (removal.label,)):
                pinned.add(removal.removal_id)
            else:
                going.append(removal.removal_id)
    archives = []
    old, spared, woken = set(going), 0, 0
    for name in sorted(here | second.keys()):
        removal_id = owners.get(name)
        if removal_id in awake or (removal_id is None and _is_old(name, cutoff) and _was_removed(store, name, living)):
            woken += 1
        elif removal_id in pinned or (removal_id is None and _is_old(name, cutoff) and _is_pinned(store, name, pins)):
            spared += 1
        elif removal_id in old if removal_id is not None else _is_old(name, cutoff):
            paths = [os.path.join(store.sessions_dir, name)] if name in here else []
            archives.append(Archive(name, [*paths, *second.get(name, ())], removal_id))
    return PurgePlan(archives, going, spared, woken)


def _was_removed(store: Folder, name: str, living: Collection[str]) -> bool:
    """Returns True if an archive comes from a live session's removal; a compaction's backup does not."""
    parsed = parse_archive(name)
    return parsed is not None and parsed[1] != "bak" and store.owner(original_name(name), living) is not None


def _is_pinned(store: Folder, name: str, pins: Pins | None) -> bool:
    """Returns True if an archive that the ledger does not know bears the id of a pinned session."""
    return pins is not None and store.owner(original_name(name), pins.ids) is not None


def _is_old(name: str, cutoff: int) -> bool:
    parsed = parse_archive(name)
    at = archive_time(parsed[2]) if parsed is not None else None
    return at is not None and at < cutoff


def preview_purge(plan: PurgePlan) -> Purged:
    """Returns what would be purged, and the bytes that it would free. Raises Refused or Failed."""
    left: dict[tuple[int, int], int] = {}
    found = []
    for archive in tracked(plan.archives, "looking at archives"):
        freed = 0
        for path in archive.paths:
            with clear_errors("look at", path):
                try:
                    status = os.lstat(path)
                except FileNotFoundError:
                    continue
            inode = (status.st_dev, status.st_ino)
            left[inode] = left.get(inode, status.st_nlink) - 1
            if left[inode] == 0 and stat.S_ISREG(status.st_mode):
                freed += status.st_size
        found.append((archive, freed))
    return Purged(found, plan.removal_ids, [], plan.pinned, plan.living)


def purge(store: Folder, ledger: Ledger, run: Run, plan: PurgePlan, purged: Purged) -> None:
    """Carries out ``plan``, for a caller who holds the store's lock. Raises Refused, Damaged or Failed.

    Adds each purged file to ``purged`` at once. A file that cannot be removed is in its errors, and stays with the
    rest of its removal in the ledger.
    """
    attempt = ledger.intend_purge(run, store.store_id, store.agent_id, plan.removal_ids)
    step("purge intent written")
    _purge(store, ledger, attempt, plan, purged)


def end_purge(store: Folder, ledger: Ledger, attempt: Attempt) -> Failures:
    """Ends a killed purge: removes the remaining files of its removals. Returns those that could not be removed."""
    second_names = SecondNames(ledger.state_dir)
    archives = []
    for removal in attempt.removals:
        for _, name in removal.files:
            second = second_names.path(attempt.archive_run(removal), store.agent_id, name)
            archives.append(Archive(name, [os.path.join(store.sessions_dir, name), second], removal.removal_id))
    plan = PurgePlan(archives, [removal.removal_id for removal in attempt.removals])
    purged = Purged([], [], [])
    _purge(store, ledger, attempt, plan, purged)
    return [(None, error) for error in purged.errors]


def _purge(store: Folder, ledger: Ledger, attempt: Attempt, plan: PurgePlan, purged: Purged) -> None:
    failed: set[int | None] = set()
    for archive in tracked(plan.archives, "removing archives"):
        if archive.owner is not None and archive.owner in failed:
            continue
        freed, error = unlink_all(archive.paths)
        step("archive removed")
        if error is None:
            purged.archives.append((archive, freed))
        else:
            purged.errors.append(error)
            failed.add(archive.owner)
    SecondNames(ledger.state_dir).tidy(path for archive in plan.archives for path in archive.paths)
    gone = [removal_id for removal_id in plan.removal_ids if removal_id not in failed]
    try:
        with clear_errors("purge archives in", store.sessions_dir):
            sync_folder(store.sessions_dir)
        step("purged folder synced")
        ledger.finish_purge(attempt, gone, {"files": len(purged.archives), "bytes": purged.bytes})
        step("purge noted")
        purged.removal_ids += gone
    except SessionManagerError as error:
        # Report the purged files anyway; the next call records the end in the ledger.
        purged.errors.append(error)


def unlink_all(paths: Iterable[str]) -> tuple[int, SessionManagerError | None]:
    """Removes all names of one file, up to the first that cannot be removed.

    Returns the freed bytes, and the error for a name that is still there. Skips names that do not exist.
    """
    freed = 0
    for path in paths:
        try:
            status = os.lstat(path)
            os.unlink(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            return freed, explain(error, "remove", path)
        if status.st_nlink == 1 and stat.S_ISREG(status.st_mode):
            freed += status.st_size
    return freed, None
