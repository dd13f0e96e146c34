"""The agents directory: which agents there are, where their stores lie, and which paths are safe."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator

import msgspec

from session_manager.core.errors import Damaged, Failed, NotFound, Refused, SessionManagerError, UsageError
from session_manager.core.session import Session, build_sessions, safe_name
from session_manager.live.index import Index

INDEX_NAME = "sessions.json"
SQLITE_NAME = "openclaw-agent.sqlite"
_SQLITE_HEADER = b"SQLite format 3\0"
# Gateways 2026.2.17 to 2026.4.26 in enforce mode rename the index away before they write the new one.
MISSING_INDEX_PATIENCE_S = 1.0
_POLL_S = 0.02
# Gateway 2026.2.17 ``normalizeAgentId``.
_AGENT_ID = r"[a-z0-9][a-z0-9_-]{0,63}"


class Identity(msgspec.Struct, frozen=True):
    """What tells one version of a file from the next: every writer of the index renames a new file into place."""

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Reads the identity off a stat result."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class Store(msgspec.Struct, frozen=True):
    """One agent's sessions folder. ``index_path`` is the index itself, links resolved.

    ``store_id`` names the folder in the ledger however it is mounted: its inode number. ``agents_dir`` holds the other
    agents' folders; left out, it is two levels up.
    """

    agent_id: str
    sessions_dir: str
    index_path: str
    store_id: str
    agents_dir: str = ""


class Snapshot(msgspec.Struct):
    """One read of a store. ``identity`` is None when there is no index, and then there are no sessions."""

    store: Store
    index: Index | None
    identity: Identity | None
    sessions: list[Session]


class Volume:
    """The agents directory (``<root>/<agent>/sessions/sessions.json``)."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)

    def agent_ids(self) -> list[str]:
        """Returns the agents that have a store, in order of name; a link to a folder inside is none.

        Raises Refused (``not_readable``) or Failed (``io_error``) when the directory cannot be read.
        """
        try:
            with os.scandir(self.root) as found:
                names = [e.name for e in found if safe_name(e.name) and self._is_agent(e)]
        except OSError as error:
            what = f"the agents directory {self.root} cannot be read: {error.strerror}"
            if isinstance(error, PermissionError):
                raise _not_readable(what, self.root) from error
            raise Failed(what, code="io_error") from error
        return sorted(names)

    def _is_agent(self, entry: os.DirEntry[str]) -> bool:
        if entry.is_symlink() and self._inside(os.path.realpath(entry.path)):
            return False
        try:
            os.lstat(os.path.join(entry.path, "sessions"))
        except PermissionError:
            # It cannot be looked into, which must be said; but not of every closed folder, such as lost+found.
            return re.fullmatch(_AGENT_ID, entry.name) is not None
        except OSError:
            return os.path.exists(_sqlite_path(entry.path))
        return True

    def _inside(self, path: str) -> bool:
        return path == self.root or path.startswith(self.root + os.sep)

    def resolve_agent(self, agent: str) -> str:
        """Returns the folder name of a named agent.

        Raises UsageError for a name that is no plain name, NotFound (``agent_not_found``) for an unknown one.
        """
        if not safe_name(agent):
            raise UsageError(f"{agent!r} is not an agent name: plain names only, no path, no leading dot or dash")
        known = self.agent_ids()
        for name in (agent, agent.lower()):
            real = os.path.realpath(os.path.join(self.root, name))
            if os.path.dirname(real) == self.root and os.path.isdir(real):
                return os.path.basename(real)
            if name in known or os.path.isdir(os.path.join(self.root, name)):
                return name
        from difflib import get_close_matches

        near = get_close_matches(agent, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known agents: {', '.join(known) or 'none'}"
        raise NotFound(f"there is no agent {agent!r}{hint}", code="agent_not_found", agentId=agent)

    def store(self, agent_id: str) -> Store | None:
        """Returns the agent's store, or None when the agent has no sessions folder.

        Raises Refused: ``outside_agents_dir`` when a symbolic link leads out, ``store_unsupported`` when the
        sessions have moved to SQLite, ``not_readable`` when this user may not look into the agent's folder.
        """
        agent_dir = os.path.join(self.root, agent_id)
        if _moved_to_sqlite(agent_dir):
            raise Refused(
                f"the sessions of agent {agent_id!r} are kept in SQLite ({SQLITE_NAME}); this version edits "
                "sessions.json stores only, use the gateway's own `openclaw sessions` commands",
                code="store_unsupported",
                agentId=agent_id,
            )
        sessions_dir = self._contained(os.path.join(agent_dir, "sessions"), agent_id)
        try:
            status = os.stat(sessions_dir)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise folder_unreadable(agent_id, sessions_dir, error) from error
        if not stat.S_ISDIR(status.st_mode):
            raise Damaged(f"{sessions_dir} of agent {agent_id!r} is not a folder")
        index_path = self._contained(os.path.join(sessions_dir, INDEX_NAME), agent_id)
        return Store(agent_id, sessions_dir, index_path, f"{agent_id}:{status.st_ino}", self.root)

    def _contained(self, path: str, agent_id: str) -> str:
        real = os.path.realpath(path)
        if not self._inside(real):
            raise Refused(
                f"{path} leads out of the agents directory (to {real}); it is left alone",
                code="outside_agents_dir",
                agentId=agent_id,
            )
        return real

    def stores(self, agent: str | None) -> Iterator[tuple[str, Store | SessionManagerError | None]]:
        """Yields (agent id, its store, or why it has none), for all agents or the named one."""
        for agent_id in self.agent_ids() if agent is None else [self.resolve_agent(agent)]:
            try:
                yield agent_id, self.store(agent_id)
            except SessionManagerError as error:
                yield agent_id, error


def _sqlite_path(agent_dir: str) -> str:
    return os.path.join(agent_dir, "agent", SQLITE_NAME)


def _moved_to_sqlite(agent_dir: str) -> bool:
    """Says whether sessions live in the agent's database (gateway 2026.7.2-beta.1 and later).

    The same file existed before, without these tables, beside a living sessions.json.
    """
    path = _sqlite_path(agent_dir)
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            header = file.read(len(_SQLITE_HEADER))
    except OSError:
        return True
    if header != _SQLITE_HEADER:
        # SQLite itself would take a file that was cut off within its first page for an empty one.
        return bool(header)
    import sqlite3
    from urllib.parse import quote

    names = ("session_nodes", "session_entries")
    try:
        # immutable: neither a lock nor a -shm file is made beside the gateway's database.
        connection = sqlite3.connect(f"file:{quote(os.fsencode(path))}?mode=ro&immutable=1", uri=True)
        try:
            row = connection.execute(
                "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name IN (?, ?)", names
            ).fetchone()
        finally:
            connection.close()
    except sqlite3.Error:
        # A database that cannot be read may well hold the sessions: better refused than edited behind its back.
        return True
    return row is not None or _log_creates(path + "-wal", names)


def _log_creates(path: str, names: tuple[str, ...]) -> bool:
    """Looks for tables that exist only in a write-ahead log so far."""
    try:
        with open(path, "rb") as log:
            overlap = b""
            while chunk := log.read(1 << 20):
                text = overlap + chunk
                if any(b"CREATE TABLE " + quote + n.encode() in text for n in names for quote in (b"", b'"')):
                    return True
                overlap = text[-64:]
    except OSError:
        pass
    return False


def read_snapshot(store: Store, now_ms: int) -> Snapshot:
    """Reads a store's index once.

    Raises Damaged (``index_damaged``) when it cannot be read, is no JSON object, or is missing although
    transcripts lie beside it; Refused (``not_readable``) when this user may not read it.
    """
    found = _read_patiently(store)
    if found is None:
        return Snapshot(store, None, None, [])
    data, identity = found
    try:
        index = Index(data)
    except ValueError as error:
        from session_manager.live.wrapping import trouble

        what = trouble(data) or f"is no readable JSON object ({error})"
        raise _damaged(store, what if data else "has 0 bytes") from error
    return Snapshot(store, index, identity, build_sessions(store.agent_id, index.decoded(), now_ms))


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
            evidence = [n for n in names if n.startswith(INDEX_NAME) or n.endswith(".jsonl")]
            if not evidence:
                return None
            if time.monotonic() > deadline:
                if any(n.endswith(".jsonl") for n in evidence):
                    raise _damaged(store, "is missing although transcripts lie beside it") from None
                return None
            time.sleep(_POLL_S)
        except PermissionError as error:
            what = f"the index of agent {store.agent_id!r} cannot be read: {error.strerror}"
            raise _not_readable(what, store.index_path, agentId=store.agent_id) from error
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            raise _damaged(store, what, f"mend that, or restore {INDEX_NAME} from a backup") from error


def folder_unreadable(agent_id: str, path: str, error: OSError) -> SessionManagerError:
    """Returns the error for a sessions folder that the system will not show: Refused (``not_readable``) or Damaged."""
    what = f"the sessions folder of agent {agent_id!r} cannot be read: {error.strerror}"
    if isinstance(error, PermissionError):
        return _not_readable(what, path, agentId=agent_id)
    return Damaged(what, agentId=agent_id)


def _not_readable(what: str, path: str, **details: str) -> Refused:
    from session_manager.owners import run_as

    return Refused(f"{what}; nothing was changed: {run_as(path)}", code="not_readable", **details)


_REBUILD = "stop the gateway, then call readopt_orphans with rebuild: true, which keeps the damaged file beside"


def _damaged(store: Store, what: str, advice: str = _REBUILD) -> Damaged:
    return Damaged(
        f"the index of agent {store.agent_id!r} {what}; nothing was written: {advice}", agentId=store.agent_id
    )


def read_file(path: str) -> tuple[bytes, Identity]:
    """Reads a regular file whole, with the identity of the version that was read. Raises OSError."""
    # O_NONBLOCK: a FIFO in place of the file must be an error, not a wait.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(22, "not a regular file", path)
        return file.read(), Identity.of(status)
