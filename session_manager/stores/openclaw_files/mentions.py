"""Finds other files of a sessions folder that mention a session: backups of the index, caches, rescued files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence

from session_manager.archives.names import original_name
from session_manager.stores.openclaw_files.gateway_lock import KERNEL_LOCK_NAME
from session_manager.stores.openclaw_files.store import Store
from session_manager.stores.openclaw_files.whereabouts import is_transcript

_PIECE = 1024 * 1024
_BUDGET = 256 * _PIECE


def mentions(store: Store, names: Iterable[str], session_id: str) -> tuple[list[str], list[str]]:
    """Returns the names of files that contain a session id, and of files that could not be read completely.

    Skips other sessions' transcripts and archives; reads at most 256 MiB of all files together.
    """
    found, unread, left = [], [], _BUDGET
    # Some editors write UTF-16.
    wanted = [session_id.encode(encoding) for encoding in ("utf-8", "utf-16-le", "utf-16-be")]
    for name in sorted(names):
        if is_transcript(original_name(name)) or name in (KERNEL_LOCK_NAME, store.marker_name):
            continue
        try:
            holds, read = _holds(os.path.join(store.sessions_dir, name), wanted, left)
        except FileNotFoundError:
            continue
        except OSError:
            holds, read = None, 0
        left -= read
        if holds or session_id in name:
            found.append(name)
        elif holds is None:
            unread.append(name)
    return found, unread


def _holds(path: str, wanted: Sequence[bytes], budget: int) -> tuple[bool | None, int]:
    """Returns whether a file contains one of ``wanted`` (None: more than ``budget`` bytes to read), and the bytes read.

    Links are not followed. Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return None, 0
        read, tail, overlap = 0, b"", max(map(len, wanted)) - 1
        while piece := file.read(min(_PIECE, budget - read)):
            read += len(piece)
            text = tail + piece
            if any(one in text for one in wanted):
                return True, read
            tail = text[-overlap:]
        return (False if read >= status.st_size else None), read
