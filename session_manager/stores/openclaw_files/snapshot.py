"""Reading the index of a store, whatever state it is in."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import msgspec

from session_manager.core.errors import Damaged
from session_manager.core.index import Index
from session_manager.core.layout import tell_main
from session_manager.core.session import Entry, Session, bare_sessions, build_sessions
from session_manager.files.versions import Identity, read_file
from session_manager.stores.openclaw_files.store import Snapshot, Store, folder_unreadable, not_readable

# Gateways 2026.2.17 to 2026.4.26 in enforce mode rename the old index away before they write the new one.
MISSING_INDEX_PATIENCE_S = 1.0
_POLL_S = 0.02


def read_snapshot(store: Store, now_ms: int, known: tuple[bytes, Identity] | None = None) -> Snapshot:
    """Reads a store's index once, or a moved store's database.

    If the version in place is ``known``, its text is not read again.

    Raises Damaged (``index_damaged``) when it cannot be read, is no JSON object, or is missing although
    transcripts lie beside it; Refused (``not_readable``) when this user may not read it.
    """
    if store.database:
        from session_manager.stores.openclaw_files.database import read_database

        return read_database(store, now_ms)
    found = known if known is not None and _identity(store) == known[1] else _read_patiently(store)
    if found is None:
        return Snapshot(store, None, None, [])
    data, identity = found
    try:
        index = Index(data)
    except ValueError as error:
        from session_manager.stores.openclaw_files.wrapping import trouble

        what = trouble(data) or f"is not a readable JSON object ({error})"
        raise _damaged(store, what if data else "has 0 bytes") from error
    return Snapshot(store, index, identity, sessions_of(store, index, now_ms))


def read_listed(store: Store, names: list[str], now_ms: int) -> Snapshot:
    """Does what ``read_snapshot`` does, for a folder that was listed before.

    A session that begins in between has its entry in this read: its file is no orphan.
    """
    return msgspec.structs.replace(read_snapshot(store, now_ms), _names=names)


def _entries(store: Store, index: Index) -> Iterator[tuple[str, Entry]]:
    if (layout := store.shared_as) is None:
        return index.decoded()
    return ((k, index.entry(k)) for k in index.entries if layout.agent_of(k) == store.agent_id)


def sessions_of(store: Store, index: Index, now_ms: int) -> list[Session]:
    """Returns the sessions of a store's agent in an index."""
    sessions = build_sessions(store.agent_id, _entries(store, index), now_ms)
    if store.main_key is not None:
        tell_main(sessions, store.main_key)
    return sessions


def bare_entries(snapshot: Snapshot, now_ms: int) -> list[Session]:
    """Returns the entries of a store's agent that have no session id, each as a session whose id is its key."""
    if snapshot.index is None:
        return []
    return bare_sessions(snapshot.store.agent_id, _entries(snapshot.store, snapshot.index), now_ms)


def _identity(store: Store) -> Identity | None:
    try:
        return Identity.of(os.lstat(store.index_path))
    except OSError:
        return None


def _read_patiently(store: Store) -> tuple[bytes, Identity] | None:
    deadline = time.monotonic() + MISSING_INDEX_PATIENCE_S
    while True:
        try:
            return read_file(store.index_path)
        except FileNotFoundError:
            try:
                names = os.listdir(store.sessions_dir)
            except OSError as error:
                raise folder_unreadable(store.agent_id, store.sessions_dir, error) from error
            own = store.shared_as is not None or not store.mates
            evidence = [n for n in names if n.startswith(store.index_name) or (own and n.endswith(".jsonl"))]
            if not evidence:
                return None
            if time.monotonic() > deadline:
                if any(n.endswith(".jsonl") for n in evidence):
                    raise _damaged(store, "is missing although there are transcripts beside it") from None
                return None
            time.sleep(_POLL_S)
        except PermissionError as error:
            what = f"the index of agent {store.agent_id!r} cannot be read: {error.strerror}"
            raise not_readable(what, store.index_path, agentId=store.agent_id) from error
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            raise _damaged(store, what, f"fix that, or restore {store.index_name} from a backup") from error


_REBUILD = "stop the gateway, then call readopt_orphans with rebuild: true, which keeps the damaged file"


def _damaged(store: Store, what: str, advice: str = _REBUILD) -> Damaged:
    return Damaged(
        f"the index of agent {store.agent_id!r} {what}; nothing was written: {advice}", agentId=store.agent_id
    )
