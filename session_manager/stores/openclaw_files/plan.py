"""Plans removals: keys, raw members, files from → to, and the facts to keep."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from session_manager.archives.names import archive_names, is_text
from session_manager.core.session import Session
from session_manager.files.liveness import now_ms
from session_manager.ledger import Removal
from session_manager.ledger.facts import facts_of
from session_manager.stores.openclaw_files.store import Snapshot
from session_manager.stores.openclaw_files.transcripts import files_by_session
from session_manager.stores.openclaw_files.whereabouts import files_abroad


def plan(snapshot: Snapshot, chosen: Sequence[tuple[Session, str]], shared: Collection[str]) -> list[Removal]:
    """Returns the removals of ``chosen`` (session, reason).

    Files in ``shared``, or of sessions that stay, are kept; so are files whose names are not UTF-8.
    """
    assert snapshot.index is not None
    index, names = snapshot.index, snapshot.names
    files = files_by_session(names, snapshot.sessions, snapshot.store.sessions_dir)
    going = {session.id for session, _ in chosen}
    kept = {n for s in snapshot.sessions if s.id not in going for n in files.get(s.id, ())} | set(shared)
    abroad = files_abroad(snapshot, [session for session, _ in chosen])
    order = {key: place for place, key in enumerate(index.entries)}
    taken, now = set(names), now_ms()
    removals = []
    for session, reason in chosen:
        mine = [n for n in files.get(session.id, ()) if n not in kept and is_text(n)]
        shares = [n for n in files.get(session.id, ()) if n in kept and is_text(n)] + abroad.get(session.id, [])
        kept.update(mine)
        targets = archive_names(mine, taken, now)
        places = [order[key] for key in session.keys]
        facts = facts_of(session, now)
        removal = Removal(session.id, reason, list(session.keys), [], targets, facts=facts, places=places)
        removal.members += [index.view(key) for key in session.keys]
        removal.shares = shares
        removals.append(removal)
    return removals
