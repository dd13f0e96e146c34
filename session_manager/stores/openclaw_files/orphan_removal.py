"""Archives orphans: transcripts without an entry, so the index does not change.

Order, each step durable before the next: the intent in the ledger; a second decision from a fresh read; the renames;
a look at the index, which undoes the rename of files that an entry names by now; the end in the ledger. If killed in
between, the next call gives the files their names back: only a new decision can tell if they are still orphans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from session_manager.archives.archive import Failures, archive_files, bring_back_files, forget_second_names
from session_manager.archives.names import archive_names
from session_manager.core.orphans import ORPHAN as TRUE_ORPHAN
from session_manager.core.orphans import Orphan
from session_manager.files.atomic import clear_errors, sync_folder
from session_manager.files.liveness import now_ms
from session_manager.files.steps import step
from session_manager.ledger import Removal
from session_manager.stores.lives import LEFTOVER, ORPHAN
from session_manager.stores.openclaw_files.gateway_lock import LockLost, StoreLock
from session_manager.stores.openclaw_files.recovery import try_recover
from session_manager.stores.openclaw_files.snapshot import read_listed, read_snapshot
from session_manager.stores.openclaw_files.store import Snapshot, Store, listing
from session_manager.stores.openclaw_files.transcripts import files_by_session

if TYPE_CHECKING:
    from session_manager.archives.work import Work


ChooseOrphans = Callable[[Snapshot], Sequence[Orphan]]


def archive_orphans(
    remover: Work,
    store: Store,
    lock: StoreLock,
    choose: ChooseOrphans,
    reason: str = ORPHAN,
    *,
    history: bool = True,
) -> tuple[list[Removal], set[str], Failures]:
    """Archives the orphans that ``choose`` picks from a fresh read, and again right before the renames.

    Returns the archived orphans, the ids of chosen ones that turned out to be none, and files that could not be
    moved; their orphans stay whole. Raises whatever ``choose`` raises, LockLost, Refused, Damaged or Failed; the
    files then have their names. With ``history`` false they are no sessions, and no marks are recorded.
    """
    names = listing(store)
    chosen = choose(read_listed(store, names, now_ms()))
    if not chosen:
        return [], set(), []
    taken, now = set(names), now_ms()
    removals = [
        Removal(o.id, reason if o.kind == TRUE_ORPHAN else LEFTOVER, [], [], archive_names(o.files, taken, now))
        for o in chosen
    ]
    ledger, run = remover.ledger, remover.run
    silent = msgspec.structs.replace(run, history=run.history and history)
    attempt = ledger.intend(silent, store.store_id, store.agent_id, [], [], removals)
    run.noted = run.noted or silent.noted
    step("orphan intent written")
    try:
        with clear_errors("archive orphans in", store.sessions_dir):
            lock.check()
            again = {o.id: o.files for o in choose(read_snapshot(store, now_ms()))}
            spared = {o.id for o in chosen if again.get(o.id) != o.files}
            going = [r for r in removals if r.session_id not in spared]
            failures = archive_files(store, lock, ledger, remover.second_names, attempt, going, ())
            step("orphans archived")
            sessions = read_snapshot(store, now_ms()).sessions
            referred = files_by_session((n for r in removals for n, _ in r.files), sessions, store.sessions_dir)
            in_use = {name for files in referred.values() for name in files}
            spared |= {r.session_id for r in removals if not in_use.isdisjoint(n for n, _ in r.files)}
            kept = spared | {session_id for session_id, _ in failures if session_id is not None}
            remover.keep_second_names(store, lock, attempt, [r for r in removals if r.session_id not in kept])
            back = [r for r in removals if r.session_id in kept]
            unreturned = bring_back_files(store, remover.second_names, attempt, back)[0]
            sync_folder(store.sessions_dir)
            forget_second_names(store, remover.second_names, attempt, back)
            step("orphans' folder synced")
        ledger.finish(attempt, kept, complete=not unreturned)
        step("orphans' end noted")
    except LockLost:
        raise
    except BaseException:
        try_recover(store, lock, ledger, attempt)
        raise
    return [r for r in removals if r.session_id not in kept], spared, failures + unreturned
