"""What is wrong with a store, and what to do about it; for the doctor."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator

from session_manager.archives.names import parse_archive
from session_manager.core.diagnosis import Check, age, failed, plural, size
from session_manager.core.errors import Damaged, Locked, Refused, SessionManagerError
from session_manager.files.liveness import TRANSCRIPT_STALE_MS
from session_manager.files.owners import advice_about, run_as
from session_manager.ledger import REMOVED, RESTORED
from session_manager.stores.openclaw_files.locks import ALIVE, STALE, UNSEEN, locks
from session_manager.stores.openclaw_files.snapshot import read_listed
from session_manager.stores.openclaw_files.store import Snapshot, Store, listing
from session_manager.stores.openclaw_files.waking import half_removed, strays
from session_manager.stores.openclaw_files.whereabouts import is_transcript
from session_manager.stores.results import Look

_UNREADABLE = (
    "stop the gateway, then call readopt_orphans with rebuild: true or put a backup of sessions.json back; until then "
    "nothing is written to it"
)
# Longer than any gateway or call of ours locks a whole store.
_LONG_MS = 30_000
_SHOWN = 5


def check(store: Store, look: Look) -> Iterator[Check]:
    """Yields the checks of one store. Raises what reading its folder raises."""
    name, names = f"store {store.agent_id}", listing(store)
    try:
        snapshot = read_listed(store, names, look.now_ms)
    except Damaged as error:
        yield failed(name, error, _UNREADABLE, store.agent_id)
    except Refused as error:
        yield failed(name, error, advice_about(error, store.index_path), store.agent_id)
    else:
        yield _described(name, snapshot)
        yield from _privacy(snapshot)
        yield from _halves(snapshot, look)
    # Locks of a folder that agents share are reported once.
    yield from _locks(store, names, look.now_ms) if store.keeper else ()


def _halves(snapshot: Snapshot, look: Look) -> Iterator[Check]:
    """Yields a check for removed sessions with new messages, and for those with a transcript but no entry."""
    store, ledger = snapshot.store, look.ledger
    if ledger is None:
        return
    try:
        halves = {r.session_id for r in half_removed(ledger, snapshot, snapshot.sessions, look.second_names)}
        lost = strays(ledger, snapshot, (REMOVED, RESTORED), ())
        if lost:
            lost = strays(ledger, snapshot, (REMOVED, RESTORED), look.shared())
    except SessionManagerError:
        return
    if halves:
        woken = plural(len(halves), "session")
        what = f"{woken} received a message while removed, and the earlier messages are still in an archive"
        advice = (
            "the next prune_sessions joins both parts once the session is idle; restore_session does it for one session"
        )
        yield Check(f"woken {store.agent_id}", False, f"{what}: {_some(halves)}", advice, None, store.agent_id)
    if lost:
        have = "has" if len(lost) == 1 else "have"
        what = f"{plural(len(lost), 'removed session')} {have} a transcript but no index entry: {_some(lost)}"
        advice = "restore_session restores a session completely; cleanup_orphans archives the transcripts"
        yield Check(f"strays {store.agent_id}", False, what, advice, None, store.agent_id)


def _privacy(snapshot: Snapshot) -> Iterator[Check]:
    """Yields a warning when other users of this machine can read the index or transcripts."""
    store = snapshot.store
    places = [store.sessions_dir]
    while (parent := os.path.dirname(places[-1])) != places[-1]:
        places.append(parent)
    # A folder closed to others protects its files, whatever their modes.
    if not all(_mode(place) & stat.S_IXOTH for place in places):
        return
    files = [os.path.basename(store.index_path), *(name for name in snapshot.names if is_transcript(name))]
    open_files = [name for name in files if _mode(os.path.join(store.sessions_dir, name)) & stat.S_IROTH]
    if open_files:
        what = f"every user of this machine can read {plural(len(open_files), 'file')}, such as {open_files[0]}"
        advice = f"chmod 700 {store.sessions_dir}, as the gateway's user"
        yield Check(f"privacy {store.agent_id}", True, what, advice, None, store.agent_id)


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def _some(ids: Collection[str]) -> str:
    shown = sorted(ids)[:_SHOWN]
    more = f" and {len(ids) - len(shown)} more" if len(ids) > len(shown) else ""
    return ", ".join(shown) + more


def _described(name: str, snapshot: Snapshot) -> Check:
    store, names = snapshot.store, snapshot.names
    if store.shared_as is not None and not store.keeper:
        shared = f"{plural(len(snapshot.sessions), 'session')} in {store.index_name}, which all agents share"
        return Check(name, True, shared, None, None, store.agent_id)
    index_bytes = 0 if snapshot.index is None else len(snapshot.index.data)
    live = [n for n in names if parse_archive(n) is None and is_transcript(n)]
    archived = [n for n in names if parse_archive(n) is not None]
    what = (
        f"{store.index_name}, {size(index_bytes)}: {plural(len(snapshot.sessions), 'session')}; "
        f"{plural(len(live), 'transcript')}, {size(_bytes(store, live))}; "
        f"{plural(len(archived), 'archive')}, {size(_bytes(store, archived))}"
    )
    if snapshot.index is None:
        what = f"no index yet; {what}"
    kept = sorted(n for n in names if n.startswith((f"{store.index_name}.found.", f"{store.index_name}.damaged.")))
    if kept:
        what += f"; {plural(len(kept), 'index')} kept aside ({kept[-1]})".replace("indexs", "indexes")
    # Root may write everything.
    if not os.access(store.sessions_dir, os.W_OK | os.X_OK):
        refused = Refused(f"this user cannot write to {store.sessions_dir}", code="not_writable")
        return Check(name, False, f"{what}; {refused.message}", run_as(store.sessions_dir), refused, store.agent_id)
    return Check(name, True, what, None, None, store.agent_id)


def _bytes(store: Store, names: list[str]) -> int:
    total = 0
    for name in names:
        try:
            total += os.lstat(os.path.join(store.sessions_dir, name)).st_size
        except OSError:
            continue
    return total


def _locks(store: Store, names: list[str], now_ms: int) -> Iterator[Check]:
    for lock in locks(store, names, now_ms):
        name = f"lock {store.agent_id}/{lock.name}"
        pid = "an unknown process" if lock.pid is None else f"pid {lock.pid}"
        since = "" if lock.age_ms is None else f", {age(lock.age_ms)} old"
        told = {
            ALIVE: "which is running",
            UNSEEN: "which is not visible from here but may run in another container, so the lock is respected",
            STALE: "which has ended; the lock is no longer respected",
        }
        what = f"held by {lock.who}, {pid}{since}, {told[lock.state]}"
        advice = None
        if lock.program is not None:
            what += f"; here {pid} is {lock.program}, not a gateway"
            if lock.state == ALIVE and (lock.age_ms or 0) > TRANSCRIPT_STALE_MS:
                advice = f"if no gateway elsewhere uses this store, delete {lock.name}: nothing else will"
        if not lock.store:
            yield Check(name, True, what, advice, None, store.agent_id)
        elif lock.state == STALE:
            yield Check(name, False, what, "the next call that changes something removes it", None, store.agent_id)
        elif lock.age_ms is not None and lock.age_ms > _LONG_MS:
            error = Locked(f"the store of agent {store.agent_id!r} is locked: {what}")
            hangs = f"see what {pid} is doing; end it if it hangs"
            yield Check(name, False, what, advice or hangs, error, store.agent_id)
        else:
            yield Check(name, True, what, None, None, store.agent_id)
