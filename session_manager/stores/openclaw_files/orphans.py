"""Classes the files of a sessions folder: those of live sessions, and those left over from others.

Facts: gateway 2026.2.17 resets a session by the clock without archiving its transcript, and leaves transcripts of
expired cron runs behind; 2026.6.11 names former ids in ``usageFamilySessionIds`` and ``compactionCheckpoints``; a
forked transcript names its parent in its header (``parentSession``).
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from session_manager.archives.names import original_name, parse_archive
from session_manager.core.layout import INDEX_NAME
from session_manager.core.orphans import (
    ARCHIVES,
    CLASSES,
    LIVE,
    ORPHAN,
    OTHER,
    OWN,
    PARTIAL,
    PREVIOUS,
    SIDECAR,
    TOPIC,
    Orphan,
)
from session_manager.core.session import EARLIEST_MS, Session
from session_manager.files.atomic import OWN_PREFIX
from session_manager.stores.openclaw_files.leftovers import find_leftovers, is_being_written, written_at
from session_manager.stores.openclaw_files.names import PARTIAL_NAME, SIDECAR_NAME, TOPIC_NAME, session_id_of
from session_manager.stores.openclaw_files.observe import held_transcripts, last_timestamp
from session_manager.stores.openclaw_files.store import Store
from session_manager.stores.openclaw_files.transcripts import files_by_session, owner
from session_manager.stores.openclaw_files.whereabouts import REFUSED, Whereabouts, inside, is_transcript

_HEADER_LIMIT = 64 * 1024


class Header(msgspec.Struct, rename="camel"):
    """The first line of a transcript, each member as found."""

    type: object = None
    id: object = None
    timestamp: object = None
    parent_session: object = None


_DECODE_HEADER = msgspec.json.Decoder(Header)


class Folder(msgspec.Struct):
    """The files of a sessions folder: each name's class and size in bytes; for regular files the mtime (epoch ms)."""

    sessions_dir: str
    classes: dict[str, str]
    sizes: dict[str, int]
    mtimes: dict[str, int]
    leftovers: dict[str, str] = {}

    def counted(self) -> dict[str, tuple[int, int]]:
        """Returns count and bytes of each class."""
        found = dict.fromkeys(CLASSES, (0, 0))
        for name, kind in self.classes.items():
            count, size = found[kind]
            found[kind] = (count + 1, size + self.sizes[name])
        return found

    def only(self, names: Collection[str]) -> Folder:
        """Returns the folder reduced to ``names``."""
        kept = self.classes.keys() & set(names)
        classes, sizes = {n: self.classes[n] for n in kept}, {n: self.sizes[n] for n in kept}
        return Folder(self.sessions_dir, classes, sizes, {n: self.mtimes[n] for n in kept if n in self.mtimes})

    def transcripts(self) -> list[str]:
        """Returns the names of all transcripts of any session, without archives and sidecars."""
        kinds = (LIVE, PREVIOUS, TOPIC, ORPHAN)
        return [
            n for n, k in self.classes.items() if k in kinds and is_transcript(n) and not re.search(SIDECAR_NAME, n)
        ]

    def of_class(self, *kinds: str) -> list[str]:
        """Returns the names of the files of some classes, in order."""
        return sorted(name for name, kind in self.classes.items() if kind in kinds)


class Mentions:
    """The names that an index mentions, even if it cannot be parsed.

    Every whole string, every path's last part, and the run id in a key (``…:run:<id>``).
    """

    def __init__(self, text: bytes) -> None:
        self._text = text

    @functools.cached_property
    def _found(self) -> set[bytes]:
        found = set()
        for token in self._text.split(b'"'):
            if b"/" in token or b"\\" in token:
                found.add(_last_part(token))
            elif b":run:" in token:
                found.add(token.rpartition(b":run:")[2].partition(b":")[0])
            elif token:
                found.add(token)
        return found

    def any_of(self, *names: str) -> bool:
        """Returns True if any of these session ids and file names is mentioned."""
        return not self._found.isdisjoint(map(os.fsencode, names))


def classify(
    store: Store,
    names: Iterable[str],
    sessions: Sequence[Session],
    shared: Collection[str],
    mentions: Sequence[Mentions],
) -> Folder:
    """Classes every file of a store's folder, except our own and the store's lock.

    ``shared`` are names that other agents' entries refer to; ``mentions`` are those of all agents' indexes: an id or
    a file that one of them knows is no true orphan.
    """
    folder = Folder(store.sessions_dir, {}, {}, {})
    for name in names:
        if (name.startswith(OWN_PREFIX) and not name.endswith((".index", ".part"))) or name == store.marker_name:
            continue
        try:
            status = os.lstat(os.path.join(store.sessions_dir, name))
        except OSError:
            continue
        folder.sizes[name] = status.st_size
        if stat.S_ISREG(status.st_mode):
            folder.mtimes[name] = status.st_mtime_ns // 1_000_000
    live = {n for files in files_by_session(folder.sizes, sessions, store.sessions_dir).values() for n in files}
    live.update(shared)
    for name in folder.sizes:
        kind = class_of_name(name, live)
        folder.classes[name] = OTHER if kind == ORPHAN and name not in folder.mtimes else kind
    living = {s.id for s in sessions}
    _find_previous(folder, living, mentions)
    staying = {session_id_of(name) or "" for name in folder.of_class(LIVE, PREVIOUS, TOPIC)}
    folder.leftovers = find_leftovers(folder, folder.of_class(SIDECAR, PARTIAL), staying | living, live, mentions)
    return folder


def class_of_name(name: str, live: Collection[str]) -> str:
    """Returns a file's class by its name alone; ``live`` are the names that belong to living sessions."""
    archive = parse_archive(name)
    if archive is not None:
        return ARCHIVES[archive[1]]
    if name.startswith(OWN_PREFIX):
        return OWN
    if re.search(PARTIAL_NAME, name) or (name.startswith(INDEX_NAME + ".") and name.endswith(".tmp")):
        return PARTIAL
    if name in live:
        return LIVE
    if re.search(SIDECAR_NAME, name) and not name.startswith("."):
        return SIDECAR
    if session_id_of(name) is None:
        return OTHER
    return TOPIC if re.match(TOPIC_NAME, name.removesuffix(".jsonl")) else ORPHAN


def _find_previous(folder: Folder, living: Collection[str], mentions: Sequence[Mentions]) -> None:
    """Turns orphans into previous generations if an index or the header of another transcript names them."""
    orphans = {name: session_id_of(name) or "" for name in folder.of_class(ORPHAN)}
    if not orphans:
        return
    for name, session_id in orphans.items():
        header = read_header(os.path.join(folder.sessions_dir, name))
        known = any(m.any_of(name, session_id) for m in mentions)
        if known or (header is not None and header.id in living):
            folder.classes[name] = PREVIOUS
    waiting = folder.of_class(LIVE, PREVIOUS)
    while waiting:
        name = waiting.pop()
        header = read_header(os.path.join(folder.sessions_dir, name)) if is_transcript(name) else None
        if header is None or not isinstance(header.parent_session, str):
            continue
        parent = header.parent_session.replace("\\", "/").rpartition("/")[2]
        if folder.classes.get(parent) == ORPHAN:
            folder.classes[parent] = PREVIOUS
            waiting.append(parent)


def read_header(path: str) -> Header | None:
    """Returns the header of a transcript, or None if it has no readable one. Links are not followed."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(fd, "rb", buffering=0) as file:
            line = file.read(_HEADER_LIMIT).split(b"\n", 1)[0]
    except OSError:
        return None
    try:
        header = _DECODE_HEADER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return header if header.type == "session" and isinstance(header.id, str) else None


def orphans_in(store: Store, folder: Folder, names: Iterable[str], cutoff: int, now_ms: int) -> list[Orphan]:
    """Returns a folder's true orphans and leftovers, one per session id.

    Reads the times inside transcripts only if the mtime is old.
    """
    grouped: dict[str, list[str]] = {}
    for name in folder.of_class(ORPHAN):
        grouped.setdefault(session_id_of(name) or "", []).append(name)
    for name, session_id in folder.leftovers.items():
        grouped.setdefault(session_id, []).append(name)
    busy = held_ids(store, names, grouped, now_ms)
    found = []
    for session_id, files in grouped.items():
        times = [_activity(folder, name, cutoff, now_ms) for name in files]
        newest = None if None in times else max(t for t in times if t is not None)
        size = sum(folder.sizes[name] for name in files)
        held = session_id in busy or any(is_being_written(name, folder.mtimes[name]) for name in files)
        found.append(Orphan(store.agent_id, session_id, files, size, newest, held, folder.classes[files[0]]))
    return found


def _activity(folder: Folder, name: str, cutoff: int, now_ms: int) -> int | None:
    mtime = folder.mtimes[name]
    if name in folder.leftovers:
        return written_at(mtime, now_ms)
    if mtime >= cutoff:
        return min(mtime, now_ms)
    try:
        newest = max(mtime, last_timestamp(os.path.join(folder.sessions_dir, name), now_ms, now_ms) or 0)
    except OSError:
        return None
    return newest if newest >= EARLIEST_MS else None


def held_ids(store: Store, names: Iterable[str], ids: Collection[str], now_ms: int) -> set[str]:
    """Returns those of ``ids`` that have a file whose lock is held."""
    return {whose for name in held_transcripts(store, names, now_ms) if (whose := owner(name, ids)) is not None}


def with_traces(
    store: Store, folder: Folder, sessions: Sequence[Session], entries: Mapping[str, Sequence[bytes]]
) -> set[str]:
    """Returns the ids of sessions that have anything besides the entry, as far as it can be seen.

    That is a transcript, topic file or sidecar, an archive of one, a file of an earlier generation that the entry
    mentions (``entries``: session id → its raw entries), an existing ``sessionFile`` in another folder, or a
    conversation in a CLI or ACP backend.
    """
    found = set(files_by_session(folder.sizes, sessions, store.sessions_dir))
    originals = {original_name(name) for name in folder.of_class(*ARCHIVES.values())}
    found.update(files_by_session(originals, sessions, store.sessions_dir))
    names = {*folder.sizes, *originals}
    whereabouts = Whereabouts.of(store, sessions, names)
    names |= {session_id for name in names if (session_id := session_id_of(name)) is not None}
    known = {os.fsencode(name) for name in names}
    for session in sessions:
        if session.id in found:
            continue
        spots = whereabouts.spots(session)
        abroad = any(map(os.path.lexists, inside(spots))) or any(spot.kind == REFUSED for spot in spots)
        strings = {_last_part(s) for raw in entries.get(session.id, ()) for s in raw.split(b'"')}
        if session.held or abroad or not known.isdisjoint(strings):
            found.add(session.id)
    return found


def _last_part(path: bytes) -> bytes:
    return path.rpartition(b"\\")[2].rpartition(b"/")[2]
