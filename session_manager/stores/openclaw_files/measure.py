"""Looks up the sizes of sessions and which have no message, for calls that ask for it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from session_manager.core.progress import tracked
from session_manager.core.selection import Selection
from session_manager.stores.openclaw_files.emptiness import empty_or_unseen
from session_manager.stores.openclaw_files.observe import file_bytes
from session_manager.stores.openclaw_files.transcripts import files_by_session
from session_manager.stores.openclaw_files.whereabouts import paths_inside

if TYPE_CHECKING:
    from session_manager.stores.openclaw_files.store import Snapshot


def measure(snapshot: Snapshot, only: Selection, *, sizes: bool = False) -> None:
    """Sets ``size`` and ``empty`` if ``only`` asks for them; with ``sizes`` the size of every session."""
    store, sessions = snapshot.store, snapshot.sessions
    if sizes or only.min_bytes is not None:
        files = files_by_session(snapshot.names, sessions, store.sessions_dir)
        others = paths_inside(snapshot, sessions)
        for session in tracked(sessions, "measuring transcripts"):
            mine = (*files.get(session.id, ()), *others.get(session.id, ()))
            session.size = sum(file_bytes(os.path.join(store.sessions_dir, name)) for name in mine)
    if only.empty:
        asked = [session for session in sessions if only.names(session)]
        found = empty_or_unseen(snapshot, asked)[0]
        for session in asked:
            session.empty = session.id in found
