"""Leftovers: sidecars and temporary files whose session or writer is gone.

A sidecar (trajectory, checkpoint, ``.bak-…``) belongs to its session; gateways 2026.4 to 2026.6 leave it behind
when they remove the session. Temporary files stay when their writer is killed; some of their names hold its pid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from session_manager.archives.names import is_text
from session_manager.core.layout import INDEX_NAME
from session_manager.files.liveness import TRANSCRIPT_STALE_MS, process_lives
from session_manager.stores.openclaw_files.names import owner_of_sidecar

if TYPE_CHECKING:
    from session_manager.stores.openclaw_files.orphans import Folder, Mentions

_WRITER = re.escape(INDEX_NAME) + r"\.(?:(?P<pid>\d+)\.)?[0-9a-z-]+\.tmp\Z"
_REPAIR = r".+\.jsonl\.repair-(?P<pid>\d+)-\d+\.tmp\Z"


def is_index_temp(name: str) -> bool:
    """Returns True if a file is a gateway's temporary file for a new index."""
    return re.match(_WRITER, name) is not None


def find_leftovers(
    folder: Folder, names: Iterable[str], kept: Collection[str], live: Collection[str], mentions: Sequence[Mentions]
) -> dict[str, str]:
    """Returns the leftovers among ``names`` (sidecars, temporary files), each with its session's id.

    A writer's temporary file counts as its own id. ``kept`` are the ids of sessions that stay, ``live`` their files.
    """
    found = {}
    for name in names:
        if name in live or name not in folder.mtimes or not is_text(name):
            continue
        whose = name if is_index_temp(name) else owner_of_sidecar(name)
        if whose is None or whose in kept or any(m.any_of(name, whose, f"{whose}.jsonl") for m in mentions):
            continue
        found[name] = whose
    return found


def is_being_written(name: str, mtime: int) -> bool:
    """Returns True if the process with the pid in a temporary file's name lives here: it may be writing it.

    A process that began after the file was written (``mtime``, epoch ms) reuses the pid of one that is gone: in
    containers each gateway has the same, often 1.
    """
    match = re.match(_WRITER, name) or re.match(_REPAIR, name)
    if match is None or match["pid"] is None or not process_lives(int(match["pid"]), None):
        return False
    from session_manager.files.liveness import may_be_gateway
    from session_manager.stores.openclaw_files.gateways import began

    pid = int(match["pid"])
    since = began(pid)
    return (since <= mtime or math.isinf(since)) and (pid != 1 or may_be_gateway(pid))


def written_at(mtime: int, now_ms: int) -> int:
    """Returns the time of a leftover's last write; within half an hour its writer may still be at work."""
    return now_ms if mtime > now_ms - TRANSCRIPT_STALE_MS else mtime
