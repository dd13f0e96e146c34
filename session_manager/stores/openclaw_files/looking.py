"""Looks closely at a store for a person: one session's files, and the bytes of all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from session_manager.archives.names import parse_archive
from session_manager.core.session import Session
from session_manager.stores.openclaw_files.observe import file_bytes, last_timestamp
from session_manager.stores.openclaw_files.transcripts import files_by_session, owner
from session_manager.stores.openclaw_files.whereabouts import OWN, Whereabouts, inside, is_transcript
from session_manager.stores.results import Details, Usage

if TYPE_CHECKING:
    from session_manager.stores.openclaw_files.store import Snapshot


def details(snapshot: Snapshot, session: Session, now_ms: int) -> Details:
    """Returns a session's files; sets its size and the time of its last message."""
    folder = snapshot.store.sessions_dir
    files = files_by_session(snapshot.names, snapshot.sessions, folder).get(session.id, ())
    paths = {name: os.path.join(folder, name) for name in files}
    sizes = {name: file_bytes(path) for name, path in paths.items()}
    whereabouts = Whereabouts.of(snapshot.store, snapshot.sessions, snapshot.names)
    spots = {file: whereabouts.spots_of(session.id, file) for file in session.session_files}
    others = {file: inside(found) for file, found in spots.items() if any(spot.kind != OWN for spot in found)}
    paths_elsewhere = {path for found in others.values() for path in found}
    session.size = sum(sizes.values()) + sum(map(file_bytes, paths_elsewhere))
    transcripts = [path for name, path in paths.items() if is_transcript(name)]
    seen = [_last_written(path, now_ms) for path in (*transcripts, *paths_elsewhere)]
    session.transcript_activity = max(seen, default=0) or None
    # An unreadable file has no size.
    return Details(sizes, {file: sum(map(file_bytes, paths)) if paths else None for file, paths in others.items()})


def _last_written(path: str, now_ms: int) -> int:
    try:
        return last_timestamp(path, now_ms, 0) or 0
    except OSError:
        return 0


def usage(snapshot: Snapshot, names: Iterable[str]) -> Usage:
    """Returns the bytes of transcripts and archives among ``names``."""
    folder, found = snapshot.store.sessions_dir, Usage()
    files = files_by_session(names, snapshot.sessions, folder)
    # A transcript that several sessions share counts once.
    types = {name: s.session_type for s in reversed(snapshot.sessions) for name in files.get(s.id, ())}
    for name in names:
        is_archive = parse_archive(name) is not None
        if not is_archive and not is_transcript(name):
            continue
        try:
            size = os.lstat(os.path.join(folder, name)).st_size
        except OSError:
            continue
        if is_archive:
            found.archived += size
            continue
        found.live += size
        if name in types:
            found.by_type[types[name]] = found.by_type.get(types[name], 0) + size
    return found


def archives_of(session_id: str, names: Iterable[str]) -> list[str]:
    """Returns the archives among ``names`` that record that a session was deleted or reset."""
    found = []
    for name in names:
        parsed = parse_archive(name)
        if parsed is not None and parsed[1] != "bak" and owner(parsed[0], (session_id,)) == session_id:
            found.append(name)
    return found
