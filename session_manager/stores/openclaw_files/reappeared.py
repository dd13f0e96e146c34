"""Sessions that a gateway wrote back from its cache after we removed them.

Such a ghost has a key that we removed within the last minutes, no transcript, and no sign of life that is newer than
its removal. A restored session is no ghost; nor is one in an index that is older than the removal: that is a backup
which somebody restored on purpose.
"""

from __future__ import annotations

from collections.abc import Collection, Set

from session_manager.core.protection import protection
from session_manager.core.session import Session
from session_manager.files.liveness import now_ms
from session_manager.ledger import Ledger, Removed
from session_manager.stores.openclaw_files.observe import observe_locks
from session_manager.stores.openclaw_files.store import Snapshot
from session_manager.stores.openclaw_files.transcripts import files_by_session

WINDOW_MS = 5 * 60_000


def ghosts(ledger: Ledger, snapshot: Snapshot, current: Set[str], chosen: Collection[str]) -> list[Session]:
    """Returns the sessions of a store that came back without new activity and are not protected.

    ``current`` are the callers' ids and keys; ``chosen`` are session ids that are removed even if protected.
    """
    store, now = snapshot.store, now_ms()
    live = {s.id: s for s in snapshot.sessions}
    removed = {r.session_id: r for r in ledger.recent_removals(store.store_id, now - WINDOW_MS, live)}
    found = [live[session_id] for session_id, r in removed.items() if _came_back(live[session_id], r, snapshot)]
    if not found:
        return []
    files = files_by_session(snapshot.names, snapshot.sessions, store.sessions_dir)
    observe_locks(snapshot, now)
    return [s for s in found if not files.get(s.id) and (s.id in chosen or protection(s, current) is None)]


def _came_back(session: Session, removed: Removed, snapshot: Snapshot) -> bool:
    last, before = session.last_activity, removed.facts.activity
    return (
        set(session.keys) <= set(removed.keys)
        and (last is None if before is None else last is not None and last <= before)
        and snapshot.identity is not None
        and snapshot.identity.mtime_ns // 1_000_000 >= removed.removed_at
    )
