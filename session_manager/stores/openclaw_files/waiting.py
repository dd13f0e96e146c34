"""Entries that wait to be imported: restored for an agent that has moved to SQLite, in ``sessions.json.restored``.

What an import of gateway 2026.9.6 puts aside, and how a person imports.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from session_manager.archives.copying import PART
from session_manager.core.errors import Refused
from session_manager.core.index import Index
from session_manager.files.atomic import OWN_PREFIX, clear_errors, explain, private_in, sync_folder, write_new
from session_manager.files.versions import read_file
from session_manager.ledger.rows import Member
from session_manager.stores.openclaw_files.store import Snapshot, Store

SUFFIX = ".restored"
PUT_ASIDE = "session-sqlite-import-archive"


def waiting_path(store: Store) -> str:
    """Returns the path of the file with the entries that are still to be imported."""
    return os.path.join(store.sessions_dir, store.index_name + SUFFIX)


def how_to_import(store: Store) -> str:
    """Returns a sentence on how the gateway imports the restored files."""
    return (
        f"agent {store.agent_id!r} keeps its sessions in SQLite, so only files were restored; to let the gateway "
        f"import them: stop the gateway, rename {waiting_path(store)} to {store.index_name} (the "
        "gateway does not start while it exists), run "
        f"`openclaw doctor --session-sqlite import --session-sqlite-agent {store.agent_id}`"
        ", start the gateway"
    )


def put_aside(store: Store, session_id: str) -> list[str]:
    """Returns the names of a session's files that imports have moved beside the sessions folder. Raises OSError.

    Gateway 2026.9.6: ``<key>.<id>.jsonl.imported-<time>``.
    """
    folder = os.path.join(store.gateways, store.agent_id, PUT_ASIDE)
    try:
        return sorted(name for name in os.listdir(folder) if session_id in name)
    except FileNotFoundError:
        return []


def held_keys(snapshot: Snapshot) -> dict[str, str]:
    """Returns the session of each key, in the database or among the entries still to be imported.

    Raises Refused if the file of these entries cannot be read.
    """
    waiting = _waiting(snapshot.store)
    held = {key: str(entry.session_id) for key, entry in waiting.decoded()}
    return held | {key: session.id for session in snapshot.sessions for key in session.keys}


def _waiting(store: Store) -> Index:
    path = waiting_path(store)
    try:
        return Index(read_file(path)[0])
    except FileNotFoundError:
        return Index(b"{}")
    except ValueError as error:
        raise Refused(
            f"{path} is not a JSON object ({error}); move it elsewhere and call again", code="not_restorable"
        ) from error
    except OSError as error:
        raise explain(error, "read", path) from error


def forget_waiting(store: Store, session_ids: Iterable[str]) -> None:
    """Removes sessions from the entries still to be imported. Raises Refused or Failed."""
    edit_waiting(store, set(session_ids), {})


def edit_waiting(store: Store, gone: set[str], put: Mapping[str, Member]) -> None:
    waiting, path = _waiting(store), waiting_path(store)
    text = waiting.edited([key for key, entry in waiting.decoded() if entry.session_id in gone], put)
    if text == waiting.data:
        return
    with clear_errors("write", path):
        if text == b"{}":
            os.unlink(path)
        else:
            temp = os.path.join(store.sessions_dir, f"{OWN_PREFIX}{os.getpid()}.{os.urandom(6).hex()}{PART}")
            write_new(temp, text, private_in(store.sessions_dir))
            os.replace(temp, path)
        sync_folder(store.sessions_dir)
