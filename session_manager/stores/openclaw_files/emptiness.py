"""Finds the sessions without any message, reading as little as possible.

If in doubt a session has a message: an unreadable line, an unknown kind of line, a long file. Line types: gateway
2026.2.17 to 2026.7.1 (``SessionEntry`` of its transcripts).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from session_manager.core.session import Session
from session_manager.stores.openclaw_files.transcripts import files_by_session
from session_manager.stores.openclaw_files.whereabouts import ELSEWHERE, REFUSED, Whereabouts, is_transcript

if TYPE_CHECKING:
    from session_manager.stores.openclaw_files.store import Snapshot

# Lines without a message are short, and few precede the first message.
LONGEST = 64 * 1024
# Names the conversation that a Codex server holds (gateway 2026.4.14 and later).
_HARNESS = ".codex-app-server.json"
_SILENT = frozenset({"session", "model_change", "thinking_level_change", "custom", "label", "session_info"})


def empty_or_unseen(snapshot: Snapshot, asked: Iterable[Session]) -> tuple[set[str], set[str]]:
    """Returns the ids of the sessions in ``asked`` whose transcripts are here and hold no message, and of those of
    which only an empty part can be read.

    A session without a transcript is not empty (it may not be written yet), nor is one in a CLI or ACP backend or with
    counted tokens (another program has its messages).
    """
    waiting = [s for s in asked if not _was_used(s)]
    if not waiting:
        return set(), set()
    store, sessions, names = snapshot.store, snapshot.sessions, snapshot.names
    files = files_by_session(names, sessions, store.sessions_dir)
    whereabouts = Whereabouts.of(store, sessions, names)
    empty, unseen = set(), set()
    for session in waiting:
        spots = whereabouts.spots(session)
        kinds = {spot.kind for spot in spots}
        mine = files.get(session.id, ())
        if any(name.endswith(_HARNESS) for name in mine):
            continue
        transcripts = set(filter(is_transcript, mine))
        transcripts.update(spot.at for spot in spots if spot.at)
        if REFUSED in kinds or not all(_is_silent(os.path.join(store.sessions_dir, name)) for name in transcripts):
            continue
        if ELSEWHERE in kinds:
            unseen.add(session.id)
        elif transcripts:
            empty.add(session.id)
    return empty, unseen


def _was_used(session: Session) -> bool:
    return session.held or any(isinstance(tokens, int | float) and tokens > 0 for tokens in session.usage[:3])


def _is_silent(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_size > LONGEST:
                return False
            text = file.read(LONGEST + 1)
    except OSError:
        return False
    return len(text) <= LONGEST and all(_says_nothing(line) for line in text.split(b"\n") if line.strip())


def _decoded(line: bytes) -> Any:
    try:
        return msgspec.json.decode(line)
    except msgspec.DecodeError:
        # JavaScript writes half an emoji, which strict parsers refuse.
        import json

        return json.loads(line.decode())


def _says_nothing(line: bytes) -> bool:
    try:
        found = _decoded(line)
    except (ValueError, RecursionError):
        return False
    if not isinstance(found, dict):
        return False
    if found.get("type") == "message":
        message = found.get("message")
        return isinstance(message, dict) and message.get("role") == "system"
    # A fork continues the messages of the session that it names.
    return found.get("type") in _SILENT and not found.get("parentSession")
