"""The agents directory: its agents, the paths of their stores, and which paths are safe."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from session_manager.core.errors import Damaged, Failed, NotFound, Refused, SessionManagerError, UsageError
from session_manager.core.layout import USUAL, Layout, tell_main
from session_manager.core.session import Entry, Session, bare_sessions, build_sessions, safe_name
from session_manager.live.index import Index
from session_manager.settings import Settings

INDEX_NAME = "sessions.json"
SQLITE_NAME = "openclaw-agent.sqlite"
UNSUPPORTED = "store_unsupported"
_SQLITE_HEADER = b"SQLite format 3\0"
# Gateways 2026.2.17 to 2026.4.26 in enforce mode rename the old index away before they write the new one.
MISSING_INDEX_PATIENCE_S = 1.0
_POLL_S = 0.02
# Gateway 2026.2.17 ``normalizeAgentId``.
AGENT_ID = r"[a-z0-9][a-z0-9_-]{0,63}"


class Identity(msgspec.Struct, frozen=True):
    """Distinguishes one version of a file from the next: every writer of the index renames a new file into place."""

    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Returns the identity in a stat result."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


class Store(msgspec.Struct, frozen=True):
    """One agent's sessions folder. ``index_path`` is the index itself, links resolved.

    ``store_id`` names the folder in the ledger however it is mounted: its inode number. ``agents_dir`` holds the other
    agents' folders; left out, it is two levels up. ``main_key`` is, beside ``main``, the end of a main session's key.
    If all agents share one index, ``shared_as`` assigns its keys to agents. If several agents share one folder, each
    has ``mates``, and one of them, the ``keeper``, handles files without an owner. ``gateway_dir`` is the gateway's
    own agents directory, if that is not ``agents_dir``. ``database`` is the path that the sessions have moved to, if
    they have: the folder then has no index, only earlier archives.
    """

    agent_id: str
    sessions_dir: str
    index_path: str
    store_id: str
    agents_dir: str = ""
    index_name: str = INDEX_NAME
    main_key: str | None = None
    shared_as: Layout | None = None
    mates: bool = False
    keeper: bool = True
    gateway_dir: str = ""
    database: str = ""

    @property
    def gateways(self) -> str:
        """The gateway's own agents directory; its parent is the gateway's state folder."""
        return self.gateway_dir or self.agents_dir or os.path.dirname(os.path.dirname(self.sessions_dir))

    @property
    def marker_name(self) -> str:
        """The name of the lock that gateways take on the index."""
        return self.index_name + ".lock"

    def of(self, agent_id: str) -> Store:
        """Returns another agent's part of a shared index."""
        if self.shared_as is None or agent_id == self.agent_id:
            return self
        store_id = agent_id + self.store_id.removeprefix(self.agent_id)
        keeper = agent_id == self.shared_as.default_agent
        return msgspec.structs.replace(self, agent_id=agent_id, store_id=store_id, keeper=keeper)


class Snapshot(msgspec.Struct):
    """One read of a store. ``identity`` is None when there is no index, and then there are no sessions."""

    store: Store
    index: Index | None
    identity: Identity | None
    sessions: list[Session]


def open_volume(settings: Settings) -> Volume:
    """Returns the volume that the settings name."""
    layout, agents_dir = settings.place.layout, settings.place.agents_dir
    if layout.root is None or layout.pattern == USUAL:
        return Volume(layout.root or agents_dir, layout.main_key, agents_dir)
    from session_manager.live.configured import ConfiguredVolume

    return ConfiguredVolume(layout, agents_dir)


class Volume:
    """The agents directory (``<root>/<agent>/sessions/sessions.json``).

    ``agents_dir`` is the gateway's own, if that is another folder: its databases are there. With one ``shared`` index
    for all agents, an agent exists as long as the index does.
    """

    shared = False

    def __init__(self, root: str, main_key: str | None = None, agents_dir: str | None = None) -> None:
        self.root = os.path.realpath(root)
        self._main_key = main_key
        # Links unresolved: files beside it lie beside a link, too.
        self._gateway_dir = self.root if agents_dir is None else agents_dir
        self._agents_dir = os.path.realpath(self._gateway_dir)

    def agent_ids(self) -> list[str]:
        """Returns the agents that have a store, in order of name; a link to a folder inside does not count.

        Raises Refused (``not_readable``) or Failed (``io_error``) when the directory cannot be read.
        """
        try:
            with os.scandir(self.root) as found:
                names = [e.name for e in found if safe_name(e.name) and self._is_agent(e)]
        except OSError as error:
            raise unlistable("the agents directory", self.root, error) from error
        return sorted(without_twins({name: self._folder(name) for name in names}))

    def _folder(self, agent_id: str) -> str:
        return os.path.join(self.root, agent_id, "sessions")

    def _is_agent(self, entry: os.DirEntry[str]) -> bool:
        if entry.is_symlink() and self._inside(os.path.realpath(entry.path)):
            return False
        try:
            os.lstat(os.path.join(entry.path, "sessions"))
        except PermissionError:
            # Report that it cannot be read; but not for every closed folder, such as lost+found.
            return re.fullmatch(AGENT_ID, entry.name) is not None
        except OSError:
            return os.path.exists(_sqlite_path(os.path.join(self._agents_dir, entry.name)))
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
                return self._owner(os.path.basename(real), known)
            if name in known or os.path.isdir(os.path.join(self.root, name)):
                return name
        raise unknown_agent(agent, known)

    def _owner(self, name: str, known: list[str]) -> str:
        """Returns the agent that owns an agent's sessions folder: another one if the folder is a link to that one's."""
        if name not in known and os.path.islink(folder := self._folder(name)):
            real = os.path.realpath(folder)
            return next((each for each in known if os.path.realpath(self._folder(each)) == real), name)
        return name

    def store(self, agent_id: str) -> Store | None:
        """Returns the agent's store, or None when the agent has no sessions folder.

        Raises Refused: ``outside_agents_dir`` when a symbolic link leads out, ``store_unsupported`` when the
        sessions have moved to SQLite, ``not_readable`` when this user may not look into the agent's folder.
        """
        self._check_kind(agent_id)
        return self._found(agent_id)

    def _found(self, agent_id: str) -> Store | None:
        return self._store_in(self._folder(agent_id), agent_id)

    def archive_store(self, agent_id: str) -> Store | None:
        """Does what ``store`` does, but for sessions that have moved to SQLite returns the folder that they left.

        Use only the archives in it then. Raises if several agents share that folder.
        """
        try:
            return self.store(agent_id)
        except Refused as error:
            store = self._found(agent_id) if error.code == UNSUPPORTED else None
            if store is None or store.mates:
                raise
        return msgspec.structs.replace(store, database=_sqlite_path(os.path.join(self._agents_dir, agent_id)))

    def _check_kind(self, agent_id: str) -> None:
        if _moved_to_sqlite(os.path.join(self._agents_dir, agent_id)):
            raise Refused(
                f"the sessions of agent {agent_id!r} are kept in SQLite ({SQLITE_NAME}); this version edits "
                "sessions.json stores only, use the gateway's own `openclaw sessions` commands",
                code=UNSUPPORTED,
                agentId=agent_id,
            )

    def _store_in(self, folder: str, agent_id: str, index_name: str = INDEX_NAME) -> Store | None:
        sessions_dir = self._contained(folder, agent_id)
        try:
            status = os.stat(sessions_dir)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise folder_unreadable(agent_id, sessions_dir, error) from error
        if not stat.S_ISDIR(status.st_mode):
            raise Damaged(f"{sessions_dir} of agent {agent_id!r} is not a folder")
        index_path = self._contained(os.path.join(sessions_dir, index_name), agent_id)
        store_id = f"{agent_id}:{status.st_ino}"
        return Store(
            agent_id,
            sessions_dir,
            index_path,
            store_id,
            self.root,
            index_name,
            self._main_key,
            gateway_dir=self._gateway_dir,
        )

    def _contained(self, path: str, agent_id: str) -> str:
        real = os.path.realpath(path)
        if not self._inside(real):
            raise Refused(
                f"{path} leads out of the agents directory (to {real}); it is not touched",
                code="outside_agents_dir",
                agentId=agent_id,
            )
        return real

    def stores(self, agent: str | None) -> Iterator[tuple[str, Store | SessionManagerError | None]]:
        """Yields what ``stores_of`` does, for all agents or the named one."""
        return self.stores_of(self.agent_ids() if agent is None else [self.resolve_agent(agent)])

    def stores_of(self, agent_ids: Iterable[str]) -> Iterator[tuple[str, Store | SessionManagerError | None]]:
        """Yields (agent id, its store; or the error or None if it has none)."""
        for agent_id in agent_ids:
            try:
                yield agent_id, self.store(agent_id)
            except SessionManagerError as error:
                yield agent_id, error


def unlistable(what: str, path: str, error: OSError) -> SessionManagerError:
    """Returns the error for a folder of many agents that cannot be listed."""
    sentence = f"{what} {path} cannot be read: {error.strerror}"
    if isinstance(error, PermissionError):
        return _not_readable(sentence, path)
    return Failed(sentence, code="io_error")


def unknown_agent(agent: str, known: list[str]) -> NotFound:
    """Returns the error for an unknown agent."""
    from difflib import get_close_matches

    near = get_close_matches(agent, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known agents: {', '.join(known) or 'none'}"
    return NotFound(f"there is no agent {agent!r}{hint}", code="agent_not_found", agentId=agent)


def without_twins(folders: Mapping[str, str]) -> Iterator[str]:
    """Yields the agents (name -> sessions folder), except those whose folder is only a link to another's."""
    real = {name: os.path.realpath(folder) for name, folder in folders.items()}
    seen: set[str] = set()
    for name in sorted(folders, key=lambda n: (real[n] != folders[n], n)):
        if real[name] not in seen:
            yield name
        seen.add(real[name])


def _sqlite_path(agent_dir: str) -> str:
    return os.path.join(agent_dir, "agent", SQLITE_NAME)


def _moved_to_sqlite(agent_dir: str) -> bool:
    """Returns True if sessions live in the agent's database (gateway 2026.7.2-beta.1 and later).

    Earlier gateways have the same file without these tables, beside a live sessions.json.
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
        # SQLite itself would treat a file that was cut off within its first page as an empty one.
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
        # A database that cannot be read may hold the sessions: better refuse than edit the files beside it.
        return True
    return row is not None or _log_creates(path + "-wal", names)


def _log_creates(path: str, names: tuple[str, ...]) -> bool:
    """Returns True if a write-ahead log creates one of these tables, which may exist only there so far."""
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


def read_snapshot(store: Store, now_ms: int, known: tuple[bytes, Identity] | None = None) -> Snapshot:
    """Reads a store's index once, or a moved store's database.

    If the version in place is ``known``, its text is not read again.

    Raises Damaged (``index_damaged``) when it cannot be read, is no JSON object, or is missing although
    transcripts lie beside it; Refused (``not_readable``) when this user may not read it.
    """
    if store.database:
        from session_manager.live.database import read_database

        return read_database(store, now_ms)
    found = known if known is not None and _identity(store) == known[1] else _read_patiently(store)
    if found is None:
        return Snapshot(store, None, None, [])
    data, identity = found
    try:
        index = Index(data)
    except ValueError as error:
        from session_manager.live.wrapping import trouble

        what = trouble(data) or f"is not a readable JSON object ({error})"
        raise _damaged(store, what if data else "has 0 bytes") from error
    return Snapshot(store, index, identity, sessions_of(store, index, now_ms))


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
            raise _not_readable(what, store.index_path, agentId=store.agent_id) from error
        except OSError as error:
            what = f"cannot be read: {error.strerror}"
            raise _damaged(store, what, f"fix that, or restore {store.index_name} from a backup") from error


def folder_unreadable(agent_id: str, path: str, error: OSError) -> SessionManagerError:
    """Returns the error for a sessions folder that cannot be listed: Refused (``not_readable``) or Damaged."""
    what = f"the sessions folder of agent {agent_id!r} cannot be read: {error.strerror}"
    if isinstance(error, PermissionError):
        return _not_readable(what, path, agentId=agent_id)
    return Damaged(what, agentId=agent_id)


def _not_readable(what: str, path: str, **details: str) -> Refused:
    from session_manager.owners import run_as

    return Refused(f"{what}; nothing was changed: {run_as(path)}", code="not_readable", **details)


_REBUILD = "stop the gateway, then call readopt_orphans with rebuild: true, which keeps the damaged file"


def _damaged(store: Store, what: str, advice: str = _REBUILD) -> Damaged:
    return Damaged(
        f"the index of agent {store.agent_id!r} {what}; nothing was written: {advice}", agentId=store.agent_id
    )


def read_file(path: str) -> tuple[bytes, Identity]:
    """Reads a whole regular file; returns its text and the identity of that version. Raises OSError."""
    # O_NONBLOCK: a FIFO in place of the file must be an error, not block.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(fd, "rb", buffering=0) as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(22, "not a regular file", path)
        return file.read(), Identity.of(status)
