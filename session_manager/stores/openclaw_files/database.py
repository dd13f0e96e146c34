"""Reads the sessions in a gateway's database, for an agent that has moved to SQLite. Never writes it.

The way depends on the files (measured with gateways 2026.8.1 and 2026.9.6): beside a ``-shm`` a reader makes no file
and sees the log. Without one ``mode=ro`` would make files, and ``immutable=1`` sees no log and no writer: it is right
only if there is no log, and nothing changed meanwhile. A log alone, left by a kill or a copy, is read in a copy.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from urllib.parse import quote

from session_manager.core.errors import UNSUPPORTED, Refused
from session_manager.core.session import Entry, build_sessions
from session_manager.files.versions import Identity
from session_manager.stores.openclaw_files.store import Snapshot, Store

# Gateways 2026.8.1 (19) and 2026.9.6 (23).
_OLDEST_SCHEMA, _NEWEST_SCHEMA = 19, 23
_LOOKS = 5
_PIECE = 1024 * 1024
_NEEDED = {
    "session_nodes": {"session_key", "current_session_id", "entry_valid"},
    "session_windows": {"session_key", "session_id"},
}
# A row that is no session has -1; the gateway can restore an archived one at any moment.
_SESSIONS = "SELECT session_key, current_session_id FROM session_nodes WHERE entry_valid <> -1"
_EARLIER = (
    "SELECT w.session_key, w.session_id FROM session_windows w JOIN session_nodes n USING (session_key)"
    " WHERE n.entry_valid <> -1 AND w.session_id <> n.current_session_id"
)

Rows = list[tuple[str, str]]


class _Changed(Exception):
    """The database was written to meanwhile: the rows read may be wrong."""


def read_database(store: Store, now_ms: int) -> Snapshot:
    """Returns the sessions in the database of a moved store, live or archived there.

    Includes, without a key, sessions whose key has moved on to another: the gateway has their conversations, too.
    Raises Refused (``store_unsupported``) if the database cannot be read.
    """
    try:
        current, earlier = _read(store.database)
    except (OSError, sqlite3.Error, ValueError) as error:
        raise Refused(
            f"the sessions of agent {store.agent_id!r} are kept in SQLite, and its database cannot be read "
            f"({error}); nothing was changed: use the gateway's own `openclaw sessions` commands",
            code=UNSUPPORTED,
            agentId=store.agent_id,
        ) from error
    found = build_sessions(store.agent_id, [(key, Entry(session_id=i)) for key, i in current], now_ms)
    ids = {session.id for session in found}
    left = build_sessions(store.agent_id, [(key, Entry(session_id=i)) for key, i in earlier if i not in ids], now_ms)
    for session in left:
        session.keys = []
    return Snapshot(store, None, None, found + left)


def _read(path: str) -> tuple[Rows, Rows]:
    for _ in range(_LOOKS):
        with contextlib.suppress(_Changed):
            if os.path.exists(path + "-shm"):
                return _ask(path, "mode=ro")
            before = _state(path)
            if before[1] is None or before[1].size == 0:
                return _unchanged(path, before)
            return _in_a_copy(path, before)
    raise ValueError("it changes all the time; try again")


_State = tuple[Identity, Identity | None, bool]


def _state(path: str) -> _State:
    log = None
    with contextlib.suppress(FileNotFoundError):
        log = Identity.of(os.stat(path + "-wal"))
    return Identity.of(os.stat(path)), log, os.path.exists(path + "-shm")


def _unchanged(path: str, before: _State) -> tuple[Rows, Rows]:
    try:
        found = _ask(path, "mode=ro&immutable=1")
    except sqlite3.Error:
        if _state(path) != before:
            raise _Changed from None
        raise
    if _state(path) != before:
        raise _Changed
    return found


def _in_a_copy(path: str, before: _State) -> tuple[Rows, Rows]:
    with tempfile.TemporaryDirectory(prefix="session_manager.") as folder:
        copy = os.path.join(folder, "copy.sqlite")
        for end in ("", "-wal"):
            with open(path + end, "rb") as source, open(copy + end, "xb") as target:
                while piece := source.read(_PIECE):
                    target.write(piece)
        if _state(path) != before:
            raise _Changed
        return _ask(copy, "mode=rw")


def _ask(path: str, how: str) -> tuple[Rows, Rows]:
    """Reads in one transaction. Raises sqlite3.Error, or ValueError for a database of an unknown kind."""
    with contextlib.closing(sqlite3.connect(f"file:{quote(os.fsencode(path))}?{how}", uri=True)) as connection:
        connection.execute("BEGIN")
        schema = connection.execute("PRAGMA user_version").fetchone()[0]
        if not _OLDEST_SCHEMA <= schema <= _NEWEST_SCHEMA:
            raise ValueError(f"its schema is version {schema}; supported are {_OLDEST_SCHEMA} to {_NEWEST_SCHEMA}")
        for table, needed in _NEEDED.items():
            columns = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            if missing := sorted(needed - columns):
                raise ValueError(f"its table {table} has no {missing[0]}")
        current, earlier = (
            [(str(key), str(session_id)) for key, session_id in connection.execute(sql)]
            for sql in (_SESSIONS, _EARLIER)
        )
        return current, earlier
