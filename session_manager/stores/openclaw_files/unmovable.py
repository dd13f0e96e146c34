"""Finds sessions whose files cannot be archived, before any of them is touched.

An archive's name is the transcript's with a suffix, and must not exceed the file system's limit. On a file system that
treats two spellings as one name (macOS, SMB, a case-folding ext4) two sessions may mean one file, and its owner is
unknown.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence

from session_manager.archives.names import LONGEST_NAME
from session_manager.core.errors import Refused, SessionManagerError
from session_manager.core.session import Session
from session_manager.stores.openclaw_files.store import Snapshot
from session_manager.stores.openclaw_files.transcripts import files_by_session

Chosen = Sequence[tuple[Session, str]]


def set_aside(snapshot: Snapshot, chosen: Chosen) -> tuple[Chosen, list[tuple[str | None, SessionManagerError]]]:
    """Returns the removable ones of ``chosen``, and (session id, error) of the others."""
    found = _too_long(snapshot)
    found |= {session_id: _ambiguous(session_id) for session_id in _ambiguous_ids(snapshot)}
    if not found:
        return chosen, []
    staying = [session.id for session, _ in chosen if session.id in found]
    return [each for each in chosen if each[0].id not in found], [(i, found[i]) for i in staying]


def _too_long(snapshot: Snapshot) -> dict[str, SessionManagerError]:
    long = [name for name in snapshot.names if len(name) > LONGEST_NAME // 4 and len(os.fsencode(name)) > LONGEST_NAME]
    if not long:
        return {}
    files = files_by_session(long, snapshot.sessions, snapshot.store.sessions_dir)
    return {
        session_id: Refused(
            f"session {session_id} was not changed: the name of its file {found[0]} leaves no room for the archive's "
            f"ending (at most {LONGEST_NAME} bytes); stop the gateway, give the file and its entry a shorter name, and "
            "call again",
            code="name_too_long",
        )
        for session_id, found in files.items()
    }


def _ambiguous_ids(snapshot: Snapshot) -> set[str]:
    """Returns the sessions whose transcript exists but is listed in another spelling, and those with that spelling."""
    unusual = [s.id for s in snapshot.sessions if not s.id.isascii() or s.id != s.id.lower()]
    if not unusual:
        return set()
    listed = set(snapshot.names)
    hidden = [i for i in unusual if f"{i}.jsonl" not in listed and _exists(snapshot, f"{i}.jsonl")]
    if not hidden:
        return set()
    spelt = {_folded(i) for i in hidden}
    return {session.id for session in snapshot.sessions if _folded(session.id) in spelt}


def _exists(snapshot: Snapshot, name: str) -> bool:
    folder = snapshot.store.sessions_dir
    try:
        os.lstat(os.path.join(folder, name))
    except (OSError, ValueError):
        return False
    # A gateway may have created it since.
    return name not in os.listdir(folder)


def _folded(session_id: str) -> str:
    return unicodedata.normalize("NFC", session_id).casefold()


def _ambiguous(session_id: str) -> SessionManagerError:
    return Refused(
        f"session {session_id} was not changed: its transcript is listed under another spelling, so it may be another "
        "session's; stop the gateway, give the file the name that the index has, and call again",
        code="name_ambiguous",
    )
