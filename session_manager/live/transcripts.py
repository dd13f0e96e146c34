"""The grammar of file names in a sessions folder: which file belongs to which session, and archive names.

Names: gateway 2026.2.17 to 2026.7.1 (transcripts, topics, sidecars, ``<path>.<reason>.<timestamp>`` archives).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from functools import cache, lru_cache

from session_manager.core.session import EARLIEST_MS, Session
from session_manager.live.whereabouts import Whereabouts, is_transcript

LOCK_SUFFIX = ".lock"
_TIMESTAMP = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d{3})?Z"
# The gateway's own rule (2026.6.11); a 2026.9 archive adds a generation and may be compressed.
_ARCHIVE = rf"^(?P<path>.+)\.(?P<reason>deleted|reset|bak)\.(?P<at>{_TIMESTAMP})(?:\.[0-9a-f]{{32}}(?:\.zst)?)?\Z"
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_CHECKPOINT = rf"(?i)^(?P<id>.+)\.checkpoint\.{_UUID}\Z"
STAMPED_NAME = r"^\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-\d{3}Z_(?P<id>.+)\Z"
_TRAJECTORY = r"^(?P<id>.+)\.trajectory\Z"
_SIDECAR = r"\.jsonl\.(?:bak-\d+-\d+|repair-\d+-\d+\.tmp|truncate-tmp|manual-compaction-tmp|codex-app-server\.json)\Z"
# In bytes: a longer name has no room for the suffix of an archive.
LONGEST_NAME = 255 - len(".deleted.2026-02-15T18-00-00.123Z")
_TRAJECTORY_POINTER = ".trajectory-path.json"


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compiles a pattern at its first use: most calls need none of them."""
    return re.compile(pattern)


def parse_archive(name: str) -> tuple[str, str, str] | None:
    """Splits an archive's name into (original name, reason, timestamp); None if it is no archive."""
    match = _compiled(_ARCHIVE).match(name)
    return (match["path"], match["reason"], match["at"]) if match else None


def original_name(name: str) -> str:
    """Returns the live name of an archive, or of an archive of one; any other name is returned as it is."""
    while (archive := parse_archive(name)) is not None:
        name = archive[0]
    return name


def archive_time(timestamp: str) -> int | None:
    """Returns the time (epoch ms) in an archive's name, or None if it is invalid or absurd."""
    date, _, time = timestamp.partition("T")
    try:
        moment = int(datetime.fromisoformat(f"{date}T{time.replace('-', ':')}").timestamp() * 1000)
    except ValueError:
        return None
    return moment if moment >= EARLIEST_MS else None


@lru_cache(maxsize=1)
def archive_timestamp(epoch_ms: int) -> str:
    """Writes a time as the gateway does in archive names: ``2026-02-15T18-00-00.123Z``."""
    moment = datetime.fromtimestamp(epoch_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H-%M-%S}.{epoch_ms % 1000:03d}Z"


def archive_names(names: Iterable[str], taken: Collection[str], now_ms: int) -> list[tuple[str, str]]:
    """Returns each name with its archive name (reason ``deleted``), which is never one of ``taken``."""
    suffix = f".deleted.{archive_timestamp(now_ms)}"
    return [(n, n + suffix) if n + suffix not in taken else (n, _free(n, taken, now_ms)) for n in names]


def _free(name: str, taken: Collection[str], moment: int) -> str:
    while (target := f"{name}.deleted.{archive_timestamp(moment)}") in taken:
        moment += 1
    return target


def is_text(name: str) -> bool:
    """Returns True if a file's name is UTF-8, so that the ledger and an index can hold it."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def no_texts_of(ids: Collection[str], sessions_dir: str) -> list[str]:
    """Returns the files of some sessions that no removal moves, because their names are not UTF-8.

    Returns none if the folder cannot be listed by now: the removal itself has reported that, or is done.
    """
    try:
        names = os.listdir(sessions_dir)
    except OSError:
        return []
    return [n for n in names if not is_text(n) and owner(n, ids) is not None]


def owner(name: str, ids: Collection[str]) -> str | None:
    """Returns the one of ``ids`` that a live file belongs to, or None.

    Covers ``<id>.jsonl``, ``<id>-topic-<t>.jsonl``, ``<timestamp>_<id>.jsonl`` and the sidecars. Ids may
    themselves look like a topic or sidecar name, so the longest reading wins.
    """
    if name.endswith(".jsonl"):
        return _owner_of_stem(name.removesuffix(".jsonl"), ids)
    if name.endswith(_TRAJECTORY_POINTER):
        return _owner_of_stem(name.removesuffix(_TRAJECTORY_POINTER), ids)
    cut = name.rfind(".jsonl.")
    return _owner_of_stem(name[:cut], ids) if cut > 0 and _compiled(_SIDECAR).match(name, cut) else None


def is_of(archive: str, ids: Collection[str]) -> bool:
    """Returns True if an archive's name belongs to a file of one of ``ids``."""
    return owner(original_name(archive), ids) is not None


def _owner_of_stem(stem: str, ids: Collection[str]) -> str | None:
    if stem in ids:
        return stem
    for wrapping in (STAMPED_NAME, _CHECKPOINT, _TRAJECTORY):
        if (match := _compiled(wrapping).match(stem)) and (found := _owner_of_stem(match["id"], ids)) is not None:
            return found
    cut = stem.rfind("-topic-")
    while cut > 0:
        if stem[:cut] in ids:
            return stem[:cut]
        cut = stem.rfind("-topic-", 0, cut)
    return None


def files_by_session(names: Iterable[str], sessions: Iterable[Session], sessions_dir: str) -> dict[str, list[str]]:
    """Finds the live files of ``sessions`` among ``names``: session id -> file names, transcripts before sidecars."""
    known = list(sessions)
    present = set(names)
    stems = {s.id: s.id for s in known}
    ids = set(stems)
    referred: list[tuple[str, str]] = []
    whereabouts = Whereabouts(sessions_dir, known, present)
    for session in known:
        for session_file in session.session_files:
            # The usual case, decided by the name alone: asking the file system about every session would be slow.
            if session_file.rpartition("/")[2] == session.id + ".jsonl":
                continue
            file_name = whereabouts.own_name(session_file)
            if file_name is not None:
                referred.append((session.id, file_name))
                stems.setdefault(file_name.removesuffix(".jsonl"), session.id)
    found: dict[str, list[str]] = {}
    for name in present:
        if (stem := owner(name, stems)) is None:
            continue
        found.setdefault(stems[stem], []).append(name)
        # Another session's topic file that this session's entry names also stays with the other.
        if stem not in ids and (named := owner(name, ids)) is not None and named != stems[stem]:
            found.setdefault(named, []).append(name)
    for session_id, name in referred:
        if name not in found.setdefault(session_id, []):
            found[session_id].append(name)
    for files in found.values():
        files.sort(key=lambda n: (not is_transcript(n), n))
    return found
