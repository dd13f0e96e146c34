"""The agents directory: its agents, the paths of their stores, and which paths are safe."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from session_manager.core.errors import UNSUPPORTED, Damaged, Failed, NotFound, Refused, SessionManagerError, UsageError
from session_manager.core.keys import safe_name
from session_manager.core.layout import INDEX_NAME
from session_manager.files.liveness import now_ms
from session_manager.stores.openclaw_files.kind import FilesStore
from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import SQLITE_NAME, folder_unreadable, not_readable

if TYPE_CHECKING:
    from session_manager.archives.work import Work
    from session_manager.stores.results import Erasure

_SQLITE_HEADER = b"SQLite format 3\0"
# Gateway 2026.2.17 ``normalizeAgentId``.
AGENT_ID = r"[a-z0-9][a-z0-9_-]{0,63}"


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

    def store(self, agent_id: str) -> FilesStore | None:
        """Returns the agent's store, or None when the agent has no sessions folder.

        Raises Refused: ``outside_agents_dir`` when a symbolic link leads out, ``store_unsupported`` when the
        sessions have moved to SQLite, ``not_readable`` when this user may not look into the agent's folder.
        """
        self._check_kind(agent_id)
        return self._found(agent_id)

    def _found(self, agent_id: str) -> FilesStore | None:
        return self._store_in(self._folder(agent_id), agent_id)

    def archive_store(self, agent_id: str) -> FilesStore | None:
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

    def activity(self, agent_id: str, now: int) -> dict[str, int]:
        """Returns the last activity (epoch ms) in the entries of an agent's sessions, by session id; 0 if unknown.

        Raises what ``store`` and ``read_snapshot`` raise.
        """
        store = self.store(agent_id)
        sessions = read_snapshot(store, now).sessions if store is not None else ()
        return {session.id: session.entry_activity or 0 for session in sessions}

    def living(self, agent_id: str) -> Callable[[str], bool] | None:
        """Returns what tells if an archive belongs to a live session of an agent; None when that cannot be read."""
        from session_manager.archives.names import original_name

        with contextlib.suppress(OSError, SessionManagerError):
            store = self.archive_store(agent_id)
            if store is None:
                return lambda name: False
            ids = {session.id for session in read_snapshot(store, now_ms()).sessions}
            return lambda name: store.owner(original_name(name), ids) is not None
        return None

    def erase_lost(self, work: Work, agent_id: str, session_id: str) -> Erasure:
        """Erases the rest of a session whose agent has no store any more. If killed, nothing continues it: call again.

        Raises Refused, Damaged or Failed.
        """
        from session_manager.archives.erasing import erase_lost
        from session_manager.stores.openclaw_files.erasure import traces_of_lost
        from session_manager.stores.results import Erasure

        traces = traces_of_lost(work.ledger, agent_id, session_id)
        erased = erase_lost(work.ledger, work.run, agent_id, session_id, traces)
        return Erasure(
            known=True,
            changed=True,
            files=erased.files,
            bytes=erased.bytes,
            entries=erased.entries,
            spared=erased.spared,
            unerased=erased.failures,
        )

    def _check_kind(self, agent_id: str) -> None:
        if _moved_to_sqlite(os.path.join(self._agents_dir, agent_id)):
            raise Refused(
                f"the sessions of agent {agent_id!r} are kept in SQLite ({SQLITE_NAME}); this version edits "
                "sessions.json stores only, use the gateway's own `openclaw sessions` commands",
                code=UNSUPPORTED,
                agentId=agent_id,
            )

    def _store_in(self, folder: str, agent_id: str, index_name: str = INDEX_NAME) -> FilesStore | None:
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
        return FilesStore(
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

    def stores(self, agent: str | None) -> Iterator[tuple[str, FilesStore | SessionManagerError | None]]:
        """Yields what ``stores_of`` does, for all agents or the named one."""
        return self.stores_of(self.agent_ids() if agent is None else [self.resolve_agent(agent)])

    def stores_of(self, agent_ids: Iterable[str]) -> Iterator[tuple[str, FilesStore | SessionManagerError | None]]:
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
        return not_readable(sentence, path)
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
