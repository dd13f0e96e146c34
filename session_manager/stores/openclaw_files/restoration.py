"""Undoes removals: keys return to the index, byte for byte, and files to their names.

Order, each step durable before the next: the intent in the ledger; the new index beside the old one; the files, so
that no gateway meets an entry without its transcript; the index; and then recovery, which ends the attempt by the
content of the index. If killed anywhere, the next call runs recovery: every session is wholly live or wholly removed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping

import msgspec

from session_manager.archives.archive import Failures, bring_back_files
from session_manager.archives.second_names import SecondNames
from session_manager.archives.work import Work
from session_manager.core.errors import Locked, Refused, SessionManagerError
from session_manager.core.progress import stage
from session_manager.files.atomic import clear_errors, sync_folder
from session_manager.files.liveness import now_ms
from session_manager.files.steps import step
from session_manager.files.versions import Identity, read_file
from session_manager.ledger import Attempt, Removal, Removed
from session_manager.ledger.rows import Member
from session_manager.stores.lives import FILE_EXISTS, NOT_RESTORABLE, Find, Life, Obstacle, Restored, refusal, split
from session_manager.stores.openclaw_files.changing import end_earlier, refuse_unguarded
from session_manager.stores.openclaw_files.gateway_lock import LockLost, StoreLock
from session_manager.stores.openclaw_files.obstacles import LOST, place_of
from session_manager.stores.openclaw_files.recovery import places_of, recover_attempt, try_recover
from session_manager.stores.openclaw_files.sharing import gather
from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import Snapshot, Store
from session_manager.stores.openclaw_files.swap import IndexChanged, Swap, look_again, parsed_by, write_temp

_FRESH_STARTS = 20
_LOOKS_AFTER = 20


def restore(work: Work, store: Store, lock: StoreLock, find: Find, *, skip_conflicts: bool) -> Restored:
    """Undoes the removals that ``find`` returns, after recovering killed runs. ``find`` gets a fresh read each time.

    Raises Refused (``key_taken``, ``file_exists``, ``not_restorable``) when something is in the way and
    ``skip_conflicts`` is not set; Damaged, Locked, LockLost, Refused or Failed; nothing is restored then.
    """
    done, recovered, failures = end_earlier(work, store, lock)
    for _ in range(_FRESH_STARTS):
        snapshot = read_snapshot(store, now_ms())
        if snapshot.index is None:
            raise Refused(
                f"agent {store.agent_id!r} has no index to restore into; let the gateway write one, then call again",
                code=NOT_RESTORABLE,
                agentId=store.agent_id,
            )
        going, blocked = split(place_of(work, snapshot), find(work.ledger))
        if blocked and not skip_conflicts:
            raise refusal(blocked)
        if not going:
            return Restored(done, blocked, recovered, failures)
        refuse_unguarded(work, snapshot)
        lock.check()
        sessions = {life[0].removal_id: life[0].session_id for life in going}
        removed = [removal for life in going for removal in life]
        # With very many sessions each of these is as large as the index: free them as soon as possible.
        del going
        gather(work, store, removed)
        try:
            back, failed = _execute(work, snapshot, lock, removed)
        except IndexChanged:
            continue
        alive = {removal.session_id for removal in back}
        lost = _lost(work, store, find, {n for n, session_id in sessions.items() if session_id not in alive})
        if lost and not back and not done:
            if lost[0][1] != LOST:
                raise refusal(lost)
            break
        return Restored(done + back, [*blocked, *lost], recovered, failures + failed)
    raise Locked(f"the gateway keeps writing the index of agent {store.agent_id!r}; try again", agentId=store.agent_id)


def _lost(work: Work, store: Store, find: Find, missing: Collection[int]) -> list[tuple[Life, Obstacle]]:
    """Returns the lives that were not restored because a gateway wrote meanwhile, each with its obstacle.

    ``missing`` are the newest removals of these lives.
    """
    if not missing:
        return []
    place = place_of(work, read_snapshot(store, now_ms()))
    lost = [life for life in find(work.ledger) if life[0].removal_id in missing]
    return [(life, place.obstacle(life) or LOST) for life in lost]


def _execute(work: Work, snapshot: Snapshot, lock: StoreLock, removed: list[Removed]) -> tuple[list[Removal], Failures]:
    """Returns the restored removals, and errors after the index was written. Raises when nothing was restored.

    Empties ``removed``.
    """
    store, identity = snapshot.store, snapshot.identity
    assert identity is not None
    ledger = work.ledger
    stage(f"recording the restore of {store.agent_id}")
    attempt = ledger.intend_restore(work.run, store.store_id, store.agent_id, [], [identity], _drained(removed))
    step("restore intended")
    try:
        with clear_errors("restore sessions in", store.sessions_dir):
            swap_in, known = _prepared(snapshot, lock, attempt)
            _bring_back(store, work.second_names, attempt)
            stage(f"writing the index of {store.agent_id}")
            swap_in()
            alive, failures = recover_attempt(store, lock, ledger, attempt, known)
    except LockLost:
        raise
    except BaseException as error:
        alive, failures = try_recover(store, lock, ledger, attempt)
        if not alive or not isinstance(error, SessionManagerError):
            raise
        # The index is already written: report the restored sessions as restored, beside the error.
        failures = [*failures, (None, error)]
    return [r for r in attempt.removals if r.session_id in alive], failures


def _drained(removed: list[Removed]) -> Iterator[Removed]:
    removed.reverse()
    while removed:
        yield removed.pop()


def _prepared(
    snapshot: Snapshot, lock: StoreLock, attempt: Attempt
) -> tuple[Callable[[], None], tuple[bytes, Identity] | None]:
    """Writes the new index beside the old one; returns the function that installs it, and its text and identity."""
    store, index, identity = snapshot.store, snapshot.index, snapshot.identity
    assert index is not None
    assert identity is not None
    put: dict[str, Member] = {}
    for removal in attempt.removals:
        if len(removal.members) != len(removal.keys):
            raise Refused(f"the index entry of session {removal.session_id} has just been deleted", code=NOT_RESTORABLE)
        # A session's newest removal comes last.
        put |= {k: m for k, m in zip(removal.keys, removal.members, strict=True) if k not in index.entries}
    if not put:
        return lambda: None, None
    parts, begins = index.parts_edited((), put, places_of(attempt.removals))
    temp = write_temp(store, parts)
    attempt.temps.append(temp)
    attempt.expected.append(temp.identity)
    step("restored index prepared")
    del parts
    text = _read_back(os.path.join(os.path.dirname(store.index_path), temp.name), begins, put, attempt.removals)

    def swap_in() -> None:
        # A swap takes an attempt's removals for keys to remove.
        swap = Swap(store, lock, msgspec.structs.replace(attempt, removals=[]))
        swap.install(index, identity, text, temp)
        for _ in range(_LOOKS_AFTER):
            installed = swap.installed
            time.sleep(max(0.0, parsed_by(index) - time.monotonic()))
            look_again(store, swap)
            # Each repeated edit can meet a gateway that has read the text before it.
            if swap.installed == installed:
                break
        step("restored index in place")

    return swap_in, (text, temp.identity)


def _read_back(path: str, begins: Mapping[str, int], put: dict[str, Member], removals: list[Removal]) -> bytes:
    """Returns the text that was written, and makes the members in it (``put``) slices of that text.

    Frees the buffers that they were slices of first: with very many sessions these are as large as the index. Nothing
    is restored yet at that point, so a failed read leaves no restore to undo.
    """
    spots = []
    for removal in removals:
        for n, (key, member) in enumerate(zip(removal.keys, removal.members, strict=True)):
            if put.get(key) is member:
                spots.append((removal.members, n, begins[key], len(member[1])))
                removal.members[n] = member[0], b""
    put.clear()
    try:
        text = read_file(path)[0]
    except BaseException:
        removals.clear()
        raise
    view = memoryview(text)
    for members, n, begin, length in spots:
        members[n] = members[n][0], view[begin : begin + length]
    return text


def _bring_back(store: Store, second_names: SecondNames, attempt: Attempt) -> None:
    """Gives all files their live names back, durably. Raises Refused or Failed if one name cannot be restored."""
    failures, taken = bring_back_files(store, second_names, attempt, attempt.removals)
    for _, error in failures:
        raise error
    names = set(os.listdir(store.sessions_dir))
    missing = [source for removal in attempt.removals for source, _ in removal.files if source not in names]
    if taken or missing:
        what = f"a file {taken[0]} exists by now" if taken else f"the archive of {missing[0]} has just disappeared"
        raise Refused(f"cannot restore in {store.sessions_dir}: {what}", code=FILE_EXISTS if taken else NOT_RESTORABLE)
    step("files back")
    sync_folder(store.sessions_dir)
    step("files back synced")
