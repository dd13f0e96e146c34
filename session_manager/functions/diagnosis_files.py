"""The doctor's check of the file systems' capabilities, in a temporary folder of its own."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator

from session_manager.core.diagnosis import Check
from session_manager.core.errors import Refused, SessionManagerError
from session_manager.functions.context import Context
from session_manager.stores.base import Store

_ALL = "files can be swapped atomically; hard links, flock, fsync and file modes work"
_PLACE = "keep it on a local file system if you can"


def file_system_checks(context: Context) -> Iterator[Check]:
    """Yields a check for each file system that holds sessions folders, the state directory, or both."""
    stores = [s for _, s in context.volume.stores(None) if s is not None and not isinstance(s, SessionManagerError)]
    state = context.settings.state_dir
    by_device: dict[int, list[str]] = {}
    for folder in (state, *(store.sessions_dir for store in stores)):
        try:
            by_device.setdefault(os.stat(folder).st_dev, []).append(folder)
        except OSError:
            # The check that needs this folder reports why it is missing.
            continue
    for folders in by_device.values():
        # A faulty folder is reported by its own check.
        place = next((folder for folder in folders if _is_open(folder)), None)
        if place is not None:
            yield from _try_out(context, place, [store for store in stores if store.sessions_dir in folders])


def _is_open(folder: str) -> bool:
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK)


def _aside(place: str) -> str:
    """Returns the folder for temporary files if it shares the file system of ``place``, which then stays untouched."""
    temp = tempfile.gettempdir()
    return temp if os.stat(temp).st_dev == os.stat(place).st_dev and _is_open(temp) else place


def _try_out(context: Context, place: str, stores: list[Store]) -> Iterator[Check]:
    from session_manager.files.trial import has_locks, kind_of, lacks, sweep
    from session_manager.files.weaker import EXCHANGE, SENTENCES

    name = f"file_system {place}"
    try:
        sweep(place)
        aside = _aside(place)
        found = lacks(aside)
        locks = place != context.settings.state_dir or has_locks(aside)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            what = f"it could not be tested: {error.strerror or error}"
            yield Check(name, False, what, "make sure that the gateway's user can create folders there")
        return
    kind = kind_of(place) or "unknown type"
    what = f"{kind}: {'; '.join(SENTENCES[lack] for lack in SENTENCES if lack in found) or _ALL}"
    if not locks:
        no_locks = Refused(f"{place} ({kind}) supports no locks, and the ledger needs them", code="no_locks")
        yield Check(name, False, no_locks.message, "set ARIA_STATE_DIR to a folder on a local disk", no_locks)
    elif EXCHANGE in found and stores:
        yield _without_exchange(context, name, what, stores)
    else:
        yield Check(name, True, what, _PLACE if found else None)


def _without_exchange(context: Context, name: str, what: str, stores: list[Store]) -> Check:
    """Returns a check of whether changes are refused because of that."""
    from session_manager.files.weaker import ADVICE

    if context.settings.allow_no_exchange:
        return Check(name, False, f"{what}; files are changed anyway, because ARIA_ALLOW_NO_EXCHANGE is 1", _PLACE)
    for store in stores:
        try:
            who = store.writer(context.clock())
        except SessionManagerError:
            continue
        if who is not None:
            refused = Refused(f"nothing is changed in agent {store.agent_id!r}: {who}", code="no_exchange")
            return Check(name, False, f"{what}; {refused.message}", ADVICE, refused)
    return Check(name, False, what, f"stop the gateway before you change anything, or {_PLACE}")
