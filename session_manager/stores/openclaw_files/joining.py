"""Joins two parts of a conversation into one transcript: an archived one, and one that a gateway has begun since.

A message that reaches a session while it is removed makes the gateway write its entry back and begin a new
``<id>.jsonl``; the earlier messages lie in the archive. When joined, the earlier part comes first with its header, the
later part follows without one, and its first entries get the earlier part's last one as their parent: the gateway
reads a transcript as a tree from its last entry up to an entry without a parent (pi-coding-agent 0.53 and gateway
2026.6.11, ``SessionManager``).

Invariants:

- Both parts stay where they are until the joined file is durable under the live name; the archive is removed last.
- Lines that are appended to the later part during the join are appended to the joined file, too: a second name of
  the displaced part is kept until then, and the next call reads one that a killed process has left.
- Joining two parts again changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Iterator
from hashlib import blake2b
from typing import BinaryIO

import msgspec

from session_manager.archives.folder import InUse
from session_manager.core.jsonscan import scan_object
from session_manager.core.session import epoch_ms
from session_manager.files.atomic import OWN_PREFIX, keep_mode, keep_owner, sync, sync_folder
from session_manager.files.liveness import TRANSCRIPT_STALE_MS, now_ms
from session_manager.files.lock_file import LockFile
from session_manager.files.steps import step
from session_manager.stores.openclaw_files.gateways import vouched_in
from session_manager.stores.openclaw_files.transcripts import LOCK_SUFFIX

_PIECE = 1024 * 1024
_PARENT = re.compile(rb'"parentId"\s*:\s*(?:null|"(?:[^"\\]|\\.)*")')
# An append that opened the displaced file writes within microseconds.
_LAST_APPENDS_S = 0.01


class _Line(msgspec.Struct, rename="camel"):
    type: object = None
    id: object = None
    parent_id: object = None
    timestamp: object = None


_DECODE = msgspec.json.Decoder(_Line)


def belongs(path: str, archive: str, session_id: str) -> bool:
    """Returns True if the header of ``path`` shows that it continues the session whose earlier part is ``archive``.

    A file without a header was appended to after its first part had been moved away.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        first = _first(path)
        earlier = _first(archive)
    except OSError:
        return False
    if first.type != "session":
        return first.type is not None
    return first.id == session_id or (earlier.type == "session" and first.id == earlier.id)


def join(sessions_dir: str, name: str, archive: str, number: str) -> None:
    """Adds the content of ``archive`` (a path) to the live transcript ``name``. The archive stays.

    ``number`` is unique to this pair, for the names of temporary files. Raises InUse while a gateway holds
    the transcript's lock, and OSError; both parts are then as they were.
    """
    live = os.path.join(sessions_dir, name)
    displaced = os.path.join(sessions_dir, f"{OWN_PREFIX}{number}.displaced")
    with _lock(live):
        _take_in(displaced, live)
        if not _begins_with(live, archive):
            _join(sessions_dir, live, archive, displaced, os.path.join(sessions_dir, f"{OWN_PREFIX}{number}.joined"))
        sync_folder(sessions_dir)


def _join(sessions_dir: str, live: str, archive: str, displaced: str, joined: str) -> None:
    with _opened(live) as theirs:
        parts = [archive, live]
        if _begun(live) < _begun(archive):
            parts.reverse()
        seam = _Seam(*parts)
        like = os.fstat(theirs.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.unlink(joined)
        try:
            read = _write(joined, parts, seam, like, live)
            step("joined transcript prepared")
            with contextlib.suppress(OSError):
                # Where there are no links, keep the file open instead.
                os.link(live, displaced, follow_symlinks=False)
            os.replace(joined, live)
        except BaseException:
            for path in (joined, displaced):
                with contextlib.suppress(OSError):
                    os.unlink(path)
            raise
        step("joined transcript in place")
        theirs.seek(read)
        # Lines that a process which had opened the displaced file has written to it since.
        rest = b""
        while True:
            time.sleep(_LAST_APPENDS_S)
            late = theirs.read()
            *lines, rest = (rest + late).split(b"\n")
            if not late and rest:
                lines, rest = [rest], b""
            _append(live, (seam.adapted(line) for line in lines))
            if not late:
                break
        sync_folder(sessions_dir)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(displaced)


def _take_in(displaced: str, live: str) -> None:
    """Appends to a joined transcript the lines that only the part displaced by a killed process holds."""
    try:
        if not os.path.samefile(displaced, live):
            seam = _Seam(live, displaced)
            with _opened(displaced) as theirs:
                _append(live, (seam.adapted(line) for line in theirs))
    except FileNotFoundError:
        return
    os.unlink(displaced)


class _Seam:
    """The join between the earlier and the later part of a conversation. Reads both once, line by line."""

    def __init__(self, earlier: str, later: str) -> None:
        found = {_digest(line): _decoded(line).id for line in _lines(later)}
        ids = {i for i in found.values() if isinstance(i, str)}
        self._known: set[bytes] = set()
        self._leaf: str | None = None
        self._renamed: dict[str, str] = {}
        self.has_header = False
        for count, line in enumerate(_lines(earlier)):
            entry = _decoded(line)
            self.has_header = self.has_header or (count == 0 and entry.type == "session")
            digest = _digest(line)
            if digest in found:
                self._known.add(digest)
            if isinstance(entry.id, str) and entry.type != "session":
                self._leaf = entry.id
                if entry.id in ids and digest not in found:
                    # Two entries have the same random id: the later one gets a new one.
                    self._renamed[entry.id] = os.urandom(8).hex()

    def adapted(self, line: bytes) -> bytes:
        """Returns a line of the later part, adapted to follow the earlier one; empty if the earlier part has it."""
        entry = _decoded(line)
        if not line.strip() or entry.type == "session" or _digest(line) in self._known:
            return b""
        change: dict[bytes, str] = {}
        if isinstance(entry.id, str) and entry.id in self._renamed:
            change[b'"id"'] = self._renamed[entry.id]
        if isinstance(entry.parent_id, str) and entry.parent_id in self._renamed:
            change[b'"parentId"'] = self._renamed[entry.parent_id]
        elif entry.parent_id is None and isinstance(entry.id, str) and self._leaf is not None:
            change[b'"parentId"'] = self._leaf
        text = _changed(line, change) if change else line
        return text if text.endswith(b"\n") else text + b"\n"


def _write(path: str, parts: list[str], seam: _Seam, like: os.stat_result, live: str) -> int:
    """Writes the joined transcript durably; returns the number of bytes of the live one that are in it."""
    read = 0
    with _created(path, like) as file:
        if not seam.has_header and (first := next(_lines(parts[1]), b"")) and _decoded(first).type == "session":
            file.write(first if first.endswith(b"\n") else first + b"\n")
        for part in parts:
            for line in _lines(part):
                whole = line.endswith(b"\n")
                if part == live:
                    if not whole:
                        # This line is still being written: the next read takes it whole.
                        break
                    read += len(line)
                file.write(seam.adapted(line) if part == parts[1] else line if whole else line + b"\n")
    return read


@contextlib.contextmanager
def _created(path: str, like: os.stat_result) -> Iterator[BinaryIO]:
    """Creates a file with the owner, mode and times of another one; durable afterwards."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        keep_owner(fd, like)
        with contextlib.suppress(OSError):
            keep_mode(fd, like)
        yield file
        file.flush()
        os.utime(fd, ns=(like.st_atime_ns, like.st_mtime_ns))
        sync(fd)


def _append(path: str, lines: Iterator[bytes]) -> None:
    """Appends lines durably, each in one write: a gateway may be appending, too."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    with open(fd, "wb", buffering=0) as file:
        for line in lines:
            if line:
                file.write(line)
        sync(fd)


def _changed(line: bytes, change: dict[bytes, str]) -> bytes:
    """Returns a line with new values for some of its members; every other byte stays."""
    try:
        members = scan_object(line)
    except ValueError:
        return line
    text, missing = bytearray(line), dict(change)
    for member in reversed(members):
        value = missing.pop(line[member.key_start : member.key_end], None)
        if value is not None:
            text[member.value_start : member.value_end] = msgspec.json.encode(value)
    if (parent := missing.get(b'"parentId"')) is not None and members:
        text[members[0].key_start : members[0].key_start] = b'"parentId":' + msgspec.json.encode(parent) + b","
    return bytes(text)


def _digest(line: bytes) -> bytes:
    """Returns a digest that identifies a line, whatever its parent is."""
    return blake2b(_PARENT.sub(b"", line.strip(), count=1), digest_size=16).digest()


def _decoded(line: bytes) -> _Line:
    try:
        return _DECODE.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    import json

    try:
        # JavaScript writes half an emoji, which strict parsers refuse.
        found = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return _Line()
    if not isinstance(found, dict):
        return _Line()
    return _Line(found.get("type"), found.get("id"), found.get("parentId"), found.get("timestamp"))


def _first(path: str) -> _Line:
    return _decoded(next(_lines(path), b""))


def _begun(path: str) -> float:
    """Returns the first time in a transcript (epoch ms); one without a time counts as the latest."""
    for line in _lines(path):
        moment = epoch_ms(_decoded(line).timestamp, now_ms())
        if moment is not None:
            return moment
    return float("inf")


def _begins_with(path: str, beginning: str) -> bool:
    with _opened(path) as file, _opened(beginning) as wanted:
        while piece := wanted.read(_PIECE):
            if file.read(len(piece)) != piece:
                return False
    return True


def _lines(path: str) -> Iterator[bytes]:
    with _opened(path) as file:
        yield from file


def _opened(path: str) -> BinaryIO:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return os.fdopen(fd, "rb")


@contextlib.contextmanager
def _lock(transcript: str) -> Iterator[None]:
    """Holds a transcript's lock as a gateway does before a run. Raises InUse.

    Gateways 2026.2.17 to 2026.5 respect it. Gateway 2026.6.11 removes it if its owner is no gateway: there the
    transcript stays whole only because lines appended meanwhile are kept.
    """
    lock = LockFile(transcript + LOCK_SUFFIX, vouched_in(os.path.dirname(transcript)), TRANSCRIPT_STALE_MS)
    # Where files cannot be exchanged the first attempt only removes a dead one.
    if not (lock.take() or lock.take()):
        raise InUse(errno.EBUSY, "a gateway is at work in it", transcript)
    try:
        yield
    finally:
        lock.drop()
