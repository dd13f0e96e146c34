"""Reads from a gateway's files outside the index which of its spawned sessions people still use.

Files, all below the state folder: ``subagents/runs.json`` and ``<channel>/thread-bindings….json`` (2026.2.17 to
2026.5), and ``state/openclaw.sqlite`` with the tables ``subagent_runs``, ``acp_sessions``,
``current_conversation_bindings`` and ``plugin_state_entries`` (2026.6.11). A file whose content has moved into the
database is gone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from session_manager.core.backends import SPAWNED, observe
from session_manager.core.session import Session
from session_manager.files.versions import read_file

if TYPE_CHECKING:
    from session_manager.stores.openclaw_files.store import Store

_RUNS = os.path.join("subagents", "runs.json")
_DATABASE = os.path.join("state", "openclaw.sqlite")
_PATIENCE_S = 2.0
# Each yields (session key, True if a person still uses it); later ones override earlier ones.
_QUERIES = {
    "subagent_runs": "SELECT child_session_key, spawn_mode = 'session' FROM subagent_runs ORDER BY created_at",
    "acp_sessions": "SELECT session_key, mode <> 'oneshot' FROM acp_sessions",
    "current_conversation_bindings": "SELECT target_session_key, 1 FROM current_conversation_bindings"
    " WHERE expires_at IS NULL OR expires_at > :now",
    "plugin_state_entries": "SELECT json_extract(value_json, '$.targetSessionKey'), 1 FROM plugin_state_entries"
    " WHERE namespace LIKE '%thread-bindings' AND json_valid(value_json) AND (expires_at IS NULL OR expires_at > :now)",
}


def observe_bindings(store: Store, sessions: Sequence[Session], now_ms: int) -> None:
    """Sets or clears ``bound`` of a store's spawned sessions, as the gateway's files say.

    If its files cannot be read, each session may be bound: then all of them are.
    """
    spawned = [session for session in sessions if not SPAWNED.isdisjoint(session.kinds)]
    if spawned:
        observe(spawned, _bindings(os.path.dirname(store.gateways), now_ms))


def _bindings(state_dir: str, now_ms: int) -> dict[str, bool] | None:
    """Returns a gateway's bindings (bound or not) by session key in lower case; None if they cannot be read."""
    try:
        told = [*_runs(state_dir), *_threads(state_dir)]
        path = os.path.join(state_dir, _DATABASE)
        if os.path.isfile(path):
            told += _rows(path, now_ms)
    except (OSError, ValueError, RecursionError):
        return None
    return {key.strip().lower(): bound for key, bound in told if isinstance(key, str)}


def _runs(state_dir: str) -> Iterator[tuple[object, bool]]:
    found = _document(os.path.join(state_dir, _RUNS))
    runs = found.get("runs") if isinstance(found, dict) else None
    for run in runs.values() if isinstance(runs, dict) else ():
        if isinstance(run, dict):
            yield run.get("childSessionKey"), run.get("spawnMode") == "session"


def _threads(state_dir: str) -> Iterator[tuple[object, bool]]:
    """Yields bindings of channels: each file holds objects with a ``targetSessionKey``, in a list or by thread."""
    from glob import escape, iglob

    for path in iglob(os.path.join(escape(state_dir), "*", "thread-bindings*.json")):
        found = _document(path)
        bindings = found.get("bindings") if isinstance(found, dict) else None
        each = bindings.values() if isinstance(bindings, dict) else bindings if isinstance(bindings, list) else ()
        for binding in each:
            if isinstance(binding, dict):
                yield binding.get("targetSessionKey"), True


def _document(path: str) -> Any:
    """Reads a JSON file; None when there is none. Raises OSError, ValueError or RecursionError."""
    try:
        data = read_file(path)[0]
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        # JavaScript writes half an emoji, which strict parsers refuse.
        import json

        return json.loads(data)


def _rows(path: str, now_ms: int) -> Iterator[tuple[object, bool]]:
    """Queries the gateway's own database, without making a file beside it. Raises OSError."""
    import sqlite3
    from urllib.parse import quote

    # Without a log nobody has it open, and the file is complete.
    mode = "mode=ro" if os.path.exists(path + "-wal") else "mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(f"file:{quote(os.fsencode(path))}?{mode}", uri=True, timeout=_PATIENCE_S)
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            for table, query in _QUERIES.items():
                if table in tables:
                    for key, bound in connection.execute(query, {"now": now_ms} if ":now" in query else {}):
                        yield key, bool(bound)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise OSError(str(error)) from error
