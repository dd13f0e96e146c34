"""Deletes archives permanently: those of removals that are old enough, and those that are not in the ledger.

Order: the intent in the ledger, durable; the files; the end in the ledger, where the removals become ``purged`` and
lose their raw entries. Killed in between, the next call that takes the store's lock removes what is left of them.
A removal goes as a whole; an archive that belongs to none goes by itself.

The gateway has no part in any of this: its marker may grow old meanwhile, and its index is never touched.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from session_manager.core.errors import SessionManagerError
from session_manager.core.progress import tracked
from session_manager.live.archive import Failures
from session_manager.live.atomic import clear_errors, explain, sync_folder
from session_manager.live.ledger import Archived, Attempt, Ledger, Run
from session_manager.live.second_names import SecondNames
from session_manager.live.steps import step
from session_manager.live.transcripts import archive_time, is_of, parse_archive
from session_manager.live.volume import Store

if TYPE_CHECKING:
    from session_manager.core.policy import Pins


class Archive(msgspec.Struct):
    """One archived file by all its names: ``paths`` lie in the sessions folder and among the second names.

    ``owner`` is the removal that it belongs to, None when no removal of the ledger knows it.
    """

    name: str
    paths: list[str]
    owner: int | None = None


class PurgePlan(msgspec.Struct):
    """What is to go of one agent: archives, and removals (ids) with all that the ledger holds of them.

    ``pinned`` and ``living`` count archives that are old enough, too, and stay because the policy pins their session,
    or because their session lives.
    """

    archives: list[Archive]
    removal_ids: list[int]
    pinned: int = 0
    living: int = 0


class Purged(msgspec.Struct):
    """What went: each archive with the bytes that came free, and the removals that went with all their files.

    ``pinned`` and ``living`` count archives that stay for that.
    """

    archives: list[tuple[Archive, int]]
    removal_ids: list[int]
    errors: list[SessionManagerError]
    pinned: int = 0
    living: int = 0

    @property
    def bytes(self) -> int:
        """How many bytes came free."""
        return sum(size for _, size in self.archives)


def plan_purge(
    store: Store,
    names: Iterable[str],
    second: Mapping[str, Sequence[str]],
    removed: Iterable[Archived],
    cutoff: int,
    pins: Pins | None,
    living: Collection[str],
) -> PurgePlan:
    """Decides what is older than ``cutoff`` (epoch ms): ``names`` lie in the sessions folder, ``second`` beside it.

    An archive of a removal follows the removal's age, and so do all others of that removal. Any other has its time in
    its name; one that cannot be read stays. What ``pins`` name stays, and what bears the id of a session in ``living``:
    that may be the part of its conversation that was not joined to it yet.
    """
    here = {name for name in names if parse_archive(name) is not None}
    owners: dict[str, int] = {}
    going: list[int] = []
    pinned: set[int] = set()
    awake: set[int] = set()
    for removal in removed:
        owners.update(dict.fromkeys(removal.archives, removal.removal_id))
        # A store that was copied elsewhere has another id, and the same files.
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
        if removal_id in awake or (removal_id is None and _is_old(name, cutoff) and _was_removed(name, living)):
            woken += 1
        elif removal_id in pinned or (removal_id is None and _is_old(name, cutoff) and _is_pinned(name, pins)):
            spared += 1
        elif removal_id in old if removal_id is not None else _is_old(name, cutoff):
            paths = [os.path.join(store.sessions_dir, name)] if name in here else []
            archives.append(Archive(name, [*paths, *second.get(name, ())], removal_id))
    return PurgePlan(archives, going, spared, woken)


def _was_removed(name: str, living: Collection[str]) -> bool:
    """Returns True if an archive is of a living session's removal; a backup, which a compaction made, is of none."""
    parsed = parse_archive(name)
    return parsed is not None and parsed[1] != "bak" and is_of(name, living)


def _is_pinned(name: str, pins: Pins | None) -> bool:
    """Returns True if an archive that the ledger does not know bears the id of a session that is pinned."""
    return pins is not None and is_of(name, pins.ids)


def _is_old(name: str, cutoff: int) -> bool:
    parsed = parse_archive(name)
    at = archive_time(parsed[2]) if parsed is not None else None
    return at is not None and at < cutoff


def preview_purge(plan: PurgePlan) -> Purged:
    """Says what would go, and counts what would come free. Raises Refused or Failed."""
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


def purge(store: Store, ledger: Ledger, run: Run, plan: PurgePlan, purged: Purged) -> None:
    """Does what ``plan`` says, for a caller who holds the store's lock. Raises Refused, Damaged or Failed.

    ``purged`` is added to as things go. What cannot be removed stays, with the whole rest of its removal in the
    ledger, and is in its errors.
    """
    attempt = ledger.intend_purge(run, store.store_id, store.agent_id, plan.removal_ids)
    step("purge intent written")
    _purge(store, ledger, attempt, plan, purged)


def end_purge(store: Store, ledger: Ledger, attempt: Attempt) -> Failures:
    """Ends a purge that was killed: removes what is left of its removals. Returns what could not be removed."""
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


def _purge(store: Store, ledger: Ledger, attempt: Attempt, plan: PurgePlan, purged: Purged) -> None:
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
        # What has gone is said all the same; the next call ends it in the ledger.
        purged.errors.append(error)


def unlink_all(paths: Iterable[str]) -> tuple[int, SessionManagerError | None]:
    """Removes one file by all its names, up to the first that cannot go.

    Returns the bytes that came free, and why a name is still there. Of a name that is not there nothing is said.
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
