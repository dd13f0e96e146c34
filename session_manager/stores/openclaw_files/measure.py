"""Looks up the sizes of sessions and which have no message, for calls that ask for it."""

from __future__ import annotations

import os
from collections.abc import Sequence

from session_manager.core.progress import tracked
from session_manager.core.selection import Selection
from session_manager.core.session import Session
from session_manager.stores.openclaw_files.emptiness import empty_sessions
from session_manager.stores.openclaw_files.observe import file_bytes
from session_manager.stores.openclaw_files.store import Store
from session_manager.stores.openclaw_files.transcripts import files_by_session
from session_manager.stores.openclaw_files.whereabouts import paths_inside


def measure(
    store: Store, sessions: Sequence[Session], names: Sequence[str], only: Selection, *, sizes: bool = False
) -> None:
    """Sets ``size`` and ``empty`` if ``only`` asks for them; with ``sizes`` the size of every session.

    ``sessions`` are all of the store, ``names`` lie in its folder.
    """
    if sizes or only.min_bytes is not None:
        files = files_by_session(names, sessions, store.sessions_dir)
        others = paths_inside(store, sessions, names, sessions)
        for session in tracked(sessions, "measuring transcripts"):
            mine = (*files.get(session.id, ()), *others.get(session.id, ()))
            session.size = sum(file_bytes(os.path.join(store.sessions_dir, name)) for name in mine)
    if only.empty:
        asked = [session for session in sessions if only.names(session)]
        found = empty_sessions(store, sessions, names, asked)
        for session in asked:
            session.empty = session.id in found
