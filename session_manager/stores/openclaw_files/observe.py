"""Reads the state beside the index: held transcript locks and the times inside transcripts."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from session_manager.core.progress import tracked
from session_manager.core.session import RUN_STALE_MS, epoch_ms
from session_manager.files.liveness import TRANSCRIPT_STALE_MS, is_held, read_marker
from session_manager.stores.openclaw_files.transcripts import LOCK_SUFFIX, files_by_session
from session_manager.stores.openclaw_files.whereabouts import (
    ELSEWHERE,
    Whereabouts,
    inside,
    is_transcript,
    paths_inside,
)

if TYPE_CHECKING:
    from session_manager.core.retention import Cutoff
    from session_manager.stores.openclaw_files.store import Snapshot, Store

_WINDOW = 64 * 1024
_WINDOW_LIMIT = 16 * 1024 * 1024
_HEAD = rb'^\{"type":"[^"\\]{1,64}"(?:,"[A-Za-z]{1,32}":(?:"[^"\\]{0,256}"|null|\d{1,20}(?:\.\d{1,9})?)){0,6}'


class _Line(msgspec.Struct):
    timestamp: object = None


_DECODE_LINE = msgspec.json.Decoder(_Line)


def observe_locks(snapshot: Snapshot, now_ms: int) -> None:
    """Sets ``busy`` on every session with a held transcript lock (``<file>.jsonl.lock``), and ``elsewhere`` on those
    that may have a transcript in a place that cannot be read.

    Also sets ``busy`` if the entry says running and a transcript was written lately, though nobody holds its lock.
    """
    store, sessions, names = snapshot.store, snapshot.sessions, snapshot.names
    strange = list(Whereabouts.of(store, sessions, names).strange(sessions))
    others = {session.id: inside(spots) for session, spots in strange}
    held = held_transcripts(
        store, [*names, *(path + LOCK_SUFFIX for paths in others.values() for path in paths)], now_ms
    )
    if held:
        owners = files_by_session(held, sessions, store.sessions_dir)
        for session in sessions:
            session.busy = session.busy or session.id in owners
    for session, spots in strange:
        session.busy = session.busy or not set(held).isdisjoint(others[session.id])
        session.elsewhere = any(spot.kind == ELSEWHERE for spot in spots)
    quiet = [session for session in sessions if session.running and not session.busy]
    if quiet:
        files = files_by_session(names, sessions, store.sessions_dir)
        limit = now_ms - RUN_STALE_MS
        for session in quiet:
            transcripts = (*filter(is_transcript, files.get(session.id, ())), *others.get(session.id, ()))
            times = (_newer_than(os.path.join(store.sessions_dir, name), limit, now_ms) for name in transcripts)
            session.busy = any(time is not None and time >= limit for time in times)


def held_transcripts(store: Store, names: Iterable[str], now_ms: int) -> list[str]:
    """Returns the transcripts (names in the store's folder, or paths) whose lock a live process holds."""
    locked = [name for name in names if name.endswith(".jsonl" + LOCK_SUFFIX)]
    if not locked:
        return []
    from session_manager.stores.openclaw_files.gateways import vouched_in

    vouched = vouched_in(store.sessions_dir, store.gateways)
    held = []
    for name in locked:
        marker = read_marker(os.path.join(store.sessions_dir, name))
        if marker is not None and is_held(marker, TRANSCRIPT_STALE_MS, now_ms, vouched):
            held.append(name.removesuffix(LOCK_SUFFIX))
    return held


def observe_transcripts(snapshot: Snapshot, cutoff: Cutoff, now_ms: int) -> None:
    """Sets ``transcript_activity`` on the sessions that look older than ``cutoff`` but may have newer files.

    The tail of a transcript is read only when its mtime is newer than the cut-off: an old mtime proves
    that nothing new is inside.
    """
    store, sessions, names = snapshot.store, snapshot.sessions, snapshot.names
    old = []
    for session in sessions:
        if session.entry_activity is not None:
            limit = cutoff if isinstance(cutoff, int) else cutoff(session)
            if session.entry_activity < limit:
                old.append((session, limit))
    if not old:
        return
    # The grammar needs all ids, or it would read a topic-like id as another session's topic.
    files = files_by_session(names, sessions, store.sessions_dir)
    others = paths_inside(snapshot, (session for session, _ in old))
    for session, limit in tracked(old, "looking into transcripts"):
        mine = (name for name in files.get(session.id, ()) if is_transcript(name))
        for name in (*mine, *others.get(session.id, ())):
            seen = _newer_than(os.path.join(store.sessions_dir, name), limit, now_ms)
            session.transcript_activity = max(session.transcript_activity or 0, seen or 0) or None


def transcript_sizes(snapshot: Snapshot) -> dict[str, dict[str, int]]:
    """Returns the bytes of each transcript by session id and name; one may belong to several sessions.

    A file that is gone counts 0.
    """
    folder = snapshot.store.sessions_dir
    files = files_by_session(snapshot.names, snapshot.sessions, folder)
    return {
        session_id: {name: file_bytes(os.path.join(folder, name)) for name in mine if is_transcript(name)}
        for session_id, mine in files.items()
    }


def file_bytes(path: str) -> int:
    """Returns a file's size in bytes, 0 if it is gone or cannot be read."""
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def _newer_than(path: str, cutoff: int, now_ms: int) -> int | None:
    try:
        mtime_ms = min(os.lstat(path).st_mtime_ns // 1_000_000, now_ms)
        if mtime_ms < cutoff:
            return None
    except OSError:
        return None
    try:
        return last_timestamp(path, now_ms, mtime_ms)
    except FileNotFoundError:
        return None
    except OSError:
        # A file that cannot be read, or a link, may have new content.
        return mtime_ms


def last_timestamp(path: str, now_ms: int, unread_ms: int) -> int | None:
    """Returns the newest time at the end of a transcript (epoch ms), or None if it holds none.

    The newest time of the last lines counts, because that of the very last line may be absurd. Reads backwards from the
    end until it finds a plausible time, 16 MiB at most; a transcript without one in this part counts as active at
    ``unread_ms``. Links are not followed. Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        window = _WINDOW
        while True:
            start = max(0, size - window)
            file.seek(start)
            found = _newest_in(file.read(window), start == 0, now_ms)
            if found is not None or start == 0:
                return found
            if window >= _WINDOW_LIMIT:
                return unread_ms
            window *= 4


def _newest_in(text: bytes, whole: bool, now_ms: int) -> int | None:
    lines = text.split(b"\n")
    times = (_line_time(line, now_ms) for line in (lines if whole else lines[1:]) if line)
    return max((time for time in times if time is not None), default=None)


def _line_time(line: bytes, now_ms: int) -> int | None:
    try:
        value = _DECODE_LINE.decode(line).timestamp
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # A line still being written, or one that only JavaScript can read: its first members still count.
        head = re.match(_HEAD, line)
        if head is None:
            return None
        try:
            value = _DECODE_LINE.decode(head[0] + b"}").timestamp
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
    return epoch_ms(value, now_ms)
