"""Transcripts that several sessions share. They are archived with the last of these, and restored with the first.

In the ledger one removal holds the archive, and the others name it (``shares``). Before a session is restored, and
before the holder of the archive is erased, the archive is handed over: to the restored session, or to one that can
still be restored. Each step leaves the archive with exactly one removal, so a killed call leaves nothing to repair.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from session_manager.archives.archive import Failures, bring_back_files, forget_second_names
from session_manager.archives.work import Work
from session_manager.core.orphans import Orphan
from session_manager.files.atomic import clear_errors, sync_folder
from session_manager.files.liveness import now_ms
from session_manager.files.steps import step
from session_manager.ledger import Archived, Ledger, Removal, Removed
from session_manager.stores.openclaw_files.changing import end_earlier
from session_manager.stores.openclaw_files.gateway_lock import StoreLock
from session_manager.stores.openclaw_files.names import session_id_of
from session_manager.stores.openclaw_files.observe import file_bytes, held_transcripts
from session_manager.stores.openclaw_files.orphan_removal import archive_orphans
from session_manager.stores.openclaw_files.store import Snapshot, Store, listing

REASON = "shared file"


def gather(work: Work, store: Store, going: Iterable[Removed]) -> None:
    """Hands over to removals about to be undone their files that others hold. Raises Refused or Failed.

    For a caller who holds the store's lock. Skips files that are live, or archived nowhere.
    """
    going, names = list(going), set(listing(store))
    names.update(source for removed in going for source, _ in removed.files)
    missing = [(removed, name) for removed in going for name in removed.shares if "/" not in name]
    missing = [(removed, name) for removed, name in missing if name not in names]
    holders = work.ledger.holders(store.agent_id, _common(store)) if missing else {}
    for removed, name in missing:
        holder = holders.pop(name, None)
        if holder is not None and _is_there(work, store, holder, name):
            _hand_over(work, name, holder, removed)


def give_back(work: Work, store: Store, lock: StoreLock, names: Iterable[str]) -> Failures:
    """Restores files of a store for a session of another agent, whichever removals hold them.

    For a caller who holds the store's lock, before the session itself is restored. If killed in between, the next call
    that takes the lock restores them. Returns failed moves. Raises Damaged, LockLost, Refused or Failed.
    """
    end_earlier(work, store, lock)
    here, ledger = set(listing(store)), work.ledger
    holders = ledger.holders(store.agent_id)
    failures: Failures = []
    for name in names:
        holder = holders.get(name)
        if name in here or holder is None or not _is_there(work, store, holder, name):
            continue
        removal = Removal(holder.session_id, REASON, [], [], [])
        attempt = ledger.intend(work.run, store.store_id, store.agent_id, [], [], [removal])
        step("shared file intended")
        _hand_over(work, name, holder, ledger.removal(removal.removal_id))
        removal.files = [(name, dict(holder.files)[name])]
        with clear_errors("bring back files in", store.sessions_dir):
            failed = bring_back_files(store, work.second_names, attempt, [removal])[0]
            sync_folder(store.sessions_dir)
            step("shared file back")
            forget_second_names(store, work.second_names, attempt, [removal])
        ledger.finish(attempt, (removal.session_id,), complete=not failed)
        failures += failed
    return failures


def pass_on(work: Work, store: Store, session_id: str) -> None:
    """Hands over the files of a session about to be erased to removals that name them and can still be undone.

    For a caller who holds the store's lock. Raises Refused or Failed.
    """
    ledger = work.existing_ledger
    if ledger is None:
        return
    sharers = ledger.sharers(store.agent_id, _common(store))
    for holder in ledger.removals(agent_id=store.agent_id, session=session_id) if sharers else ():
        for name, _ in holder.files if holder.state == "removed" else ():
            others = [s for s in sharers.get(name, ()) if (s.agent_id, s.session_id) != (store.agent_id, session_id)]
            if not others:
                continue
            taker = others[0]
            if any("/" in shared and shared.endswith(f"/{name}") for shared in taker.shares):
                # It is kept in this folder by a removal of its own, which is not reported to history.
                removal = Removal(taker.session_id, REASON, [], [], [])
                silent = msgspec.structs.replace(work.run, history=False)
                attempt = ledger.intend(silent, store.store_id, store.agent_id, [], [], [removal])
                ledger.finish(attempt, ())
                taker = ledger.removal(removal.removal_id)
            _hand_over(work, name, holder, taker)


def others_too(work: Work, store: Store, session_id: str) -> list[tuple[str, str]]:
    """Returns (agent id, present name) of the shared files that a session's removals name but do not hold.

    Raises Refused or Failed.
    """
    ledger = work.existing_ledger
    found: list[tuple[str, str]] = []
    for removal in ledger.removals(agent_id=store.agent_id, session=session_id) if ledger is not None else ():
        for shared in removal.shares:
            agent_id, _, name = shared.rpartition("/")
            agent_id = agent_id or store.agent_id
            common = _common(store) if agent_id == store.agent_id else ""
            holder = work.ledger.holders(agent_id, common).get(name)
            found.append((agent_id, name if holder is None else dict(holder.files)[name]))
    return found


def archive_last(
    work: Work,
    store: Store,
    lock: StoreLock,
    names: Mapping[str, str],
    referred_to: Callable[[], Collection[str]],
) -> tuple[list[Removal], Failures]:
    """Archives files of a store whose last session, one of another agent, was removed.

    ``names`` maps each file to that session. Archives only files that a removed session of this agent had, and skips
    those that others name (``referred_to``). For a caller who holds the lock.

    Returns the archived files, and failed moves. Raises Damaged, LockLost, Refused or Failed.
    """
    failures = end_earlier(work, store, lock)[2]
    whose = {name: owner for name, last in names.items() if (owner := _heir(work, store, name, last)) is not None}

    def choose(snapshot: Snapshot) -> list[Orphan]:
        here = snapshot.names
        in_use = snapshot.own_files()
        in_use.update(referred_to(), held_transcripts(store, here, now_ms()))
        found: dict[str, Orphan] = {}
        for name, owner in whose.items():
            if name in here and name not in in_use:
                orphan = found.setdefault(owner, Orphan(store.agent_id, owner, [], 0, None, False))
                orphan.files.append(name)
                orphan.size += file_bytes(os.path.join(store.sessions_dir, name))
        return list(found.values())

    archived, _, failed = archive_orphans(work, store, lock, choose, REASON)
    return archived, failures + failed


def _heir(work: Work, store: Store, name: str, last: str) -> str | None:
    """Returns the session to archive a file for: one that can be restored, else the last that had it."""
    ledger = work.ledger
    sharers = [s for s in ledger.sharers(store.agent_id).get(name, ()) if s.agent_id == store.agent_id]
    if sharers:
        return sharers[0].session_id
    named = session_id_of(name)
    return last if named is not None and ledger.removed(named, store.agent_id) else None


def _common(store: Store) -> str:
    """Returns the inode number of a folder that several agents share, "" for any other."""
    return store.store_id.rpartition(":")[2] if store.mates else ""


def _is_there(work: Work, store: Store, holder: Removed, name: str) -> bool:
    target = dict(holder.files)[name]
    second = work.second_names.path(holder.run_id, holder.agent_id, target)
    return os.path.lexists(os.path.join(store.sessions_dir, target)) or os.path.lexists(second)


def _hand_over(work: Work, name: str, holder: Removed, taker: Removed) -> None:
    """Hands an archive over to another removal."""
    target, second_names = dict(holder.files)[name], work.second_names
    old, new = ((removed.run_id, removed.agent_id) for removed in (holder, taker))
    with clear_errors("keep a second name in", second_names.root):
        second_names.give(target, old, new)
    step("second name given")
    work.ledger.hand_over(work.run, name, holder.removal_id, taker.removal_id)
    step("file handed over")
    if old != new:
        with contextlib.suppress(OSError):
            second_names.forget(*old, [target])


def archives(store: Store, names: Sequence[str], ledger: Ledger | None) -> tuple[list[str], list[Archived]]:
    """Returns the names in a folder that may be an agent's archives, and its removals in the ledger."""
    removed = ledger.archived(store.agent_id) if ledger is not None else []
    if not store.mates and not store.database:
        return list(names), removed
    own = {name for removal in removed for name in removal.archives}
    if store.database:
        # Files that the gateway has created there since stay.
        return [name for name in names if name in own], removed
    known = {name for removal in ledger.archived(None) for name in removal.archives} if ledger is not None else set()
    return [name for name in names if name in own or (store.keeper and name not in known)], removed
