"""The grammar of file names in a sessions folder: which file belongs to which session, and archive names.

Names: gateway 2026.2.17 to 2026.7.1 (transcripts, topics, sidecars, ``<path>.<reason>.<timestamp>`` archives).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from functools import cache

from session_manager.core.session import Session
from session_manager.stores.openclaw_files.whereabouts import Whereabouts, is_transcript

LOCK_SUFFIX = ".lock"
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_CHECKPOINT = rf"(?i)^(?P<id>.+)\.checkpoint\.{_UUID}\Z"
STAMPED_NAME = r"^\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-\d{3}Z_(?P<id>.+)\Z"
_TRAJECTORY = r"^(?P<id>.+)\.trajectory\Z"
_SIDECAR = r"\.jsonl\.(?:bak-\d+-\d+|repair-\d+-\d+\.tmp|truncate-tmp|manual-compaction-tmp|codex-app-server\.json)\Z"
_TRAJECTORY_POINTER = ".trajectory-path.json"


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compiles a pattern at its first use: most calls need none of them."""
    return re.compile(pattern)


def no_texts_of(ids: Collection[str], sessions_dir: str) -> list[str]:
    """Returns the files of some sessions that no removal moves, because their names are not UTF-8.

    Returns none if the folder cannot be listed by now: the removal itself has reported that, or is done.
    """
    from session_manager.archives.names import is_text

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
