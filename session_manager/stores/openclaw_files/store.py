"""One agent's store, and one read of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Self

import msgspec

from session_manager.core.errors import Damaged, Refused, SessionManagerError
from session_manager.core.index import Index
from session_manager.core.layout import INDEX_NAME, Layout
from session_manager.core.session import Session
from session_manager.files.versions import Identity

SQLITE_NAME = "openclaw-agent.sqlite"

if TYPE_CHECKING:
    from session_manager.core.retention import Cutoff
    from session_manager.core.selection import Selection
    from session_manager.stores.results import Details, Usage


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

    def owner(self, name: str, ids: Collection[str]) -> str | None:
        """Returns the one of ``ids`` that a live file belongs to, or None."""
        from session_manager.stores.openclaw_files.transcripts import owner

        return owner(name, ids)

    def join(self, name: str, archive: str, session_id: str, number: str) -> None:
        """Joins the two parts of a transcript, see ``archives.folder``."""
        from session_manager.stores.openclaw_files.joining import belongs, join
        from session_manager.stores.openclaw_files.whereabouts import is_transcript

        if not is_transcript(name) or not belongs(os.path.join(self.sessions_dir, name), archive, session_id):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
        join(self.sessions_dir, name, archive, number)

    def of(self, agent_id: str) -> Self:
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
    _names: list[str] | None = None

    @property
    def names(self) -> list[str]:
        """The names of the files in the sessions folder, listed once, after the index. Raises what ``listing`` does."""
        if self._names is None:
            self._names = listing(self.store)
        return self._names

    @property
    def agent_id(self) -> str:
        """The agent whose store it is."""
        return self.store.agent_id

    def release(self) -> None:
        """Frees the index's text; the sessions and names stay."""
        self.index = None

    def observe(self, now_ms: int, cutoff: Cutoff | None = None) -> None:
        """Completes the sessions from the files beside the index.

        Times inside transcripts, and the gateway's records of spawned sessions, are read only with a cut-off.
        """
        from session_manager.stores.openclaw_files.observe import observe_locks, observe_transcripts

        observe_locks(self, now_ms)
        if cutoff is not None:
            from session_manager.stores.openclaw_files.bindings import observe_bindings

            observe_transcripts(self, cutoff, now_ms)
            observe_bindings(self.store, self.sessions, now_ms)

    def measure(self, only: Selection, *, sizes: bool = False) -> None:
        """Sets ``size`` and ``empty`` if ``only`` asks for them; with ``sizes`` the size of every session."""
        if sizes or only.empty or only.min_bytes is not None:
            from session_manager.stores.openclaw_files.measure import measure

            measure(self, only, sizes=sizes)

    def transcript_sizes(self) -> dict[str, dict[str, int]]:
        """Returns the bytes of each transcript by session id and name."""
        from session_manager.stores.openclaw_files.observe import transcript_sizes

        return transcript_sizes(self)

    def without_messages(self, asked: Iterable[Session]) -> tuple[set[str], set[str]]:
        """Returns the ids of the sessions in ``asked`` without a message, and of those of which not all can be read."""
        from session_manager.stores.openclaw_files.emptiness import empty_or_unseen

        return empty_or_unseen(self, asked)

    def own_files(self) -> set[str]:
        """Returns the names of files that belong to a session."""
        from session_manager.stores.openclaw_files.transcripts import files_by_session

        files = files_by_session(self.names, self.sessions, self.store.sessions_dir)
        return {name for mine in files.values() for name in mine}

    def own_names(self, others: Collection[str]) -> list[str]:
        """Returns the names that are this agent's. In a shared folder, files of no agent are the keeper's."""
        if not self.store.mates:
            return list(self.names)
        own = self.own_files()
        return [name for name in self.names if name in own or (self.store.keeper and name not in others)]

    def archives_of(self, session_id: str, names: Iterable[str]) -> list[str]:
        """Returns the archives among ``names`` that record that a session was deleted or reset."""
        from session_manager.stores.openclaw_files.looking import archives_of

        return archives_of(session_id, names)

    def usage(self, names: Iterable[str]) -> Usage:
        """Returns the bytes of transcripts and archives among ``names``."""
        from session_manager.stores.openclaw_files.looking import usage

        return usage(self, names)

    def details(self, session: Session, now_ms: int) -> Details:
        """Returns a session's files; sets its size and the time of its last message."""
        from session_manager.stores.openclaw_files.looking import details

        return details(self, session, now_ms)

    def references(self, names: Sequence[str]) -> list[tuple[str, str, str]]:
        """Returns (session id, folder, file name) of transcripts in other agents' folders.

        If the folder is shared, all files of its sessions are such; ``names`` are this agent's own.
        """
        from session_manager.stores.openclaw_files.transcripts import files_by_session
        from session_manager.stores.openclaw_files.whereabouts import paths_inside

        folder, found = self.store.sessions_dir, []
        if self.store.mates:
            own = files_by_session(names, self.sessions, folder)
            found += [(session_id, folder, name) for session_id in own for name in own[session_id]]
        elsewhere = paths_inside(self, self.sessions)
        return found + [(i, *os.path.split(path)) for i, paths in elsewhere.items() for path in paths]


def listing(store: Store) -> list[str]:
    """Returns the names of the files (not folders) in the sessions folder.

    Raises Refused or Damaged when it cannot be read.
    """
    try:
        with os.scandir(store.sessions_dir) as found:
            return [entry.name for entry in found if not entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise folder_unreadable(store.agent_id, store.sessions_dir, error) from error


def folder_unreadable(agent_id: str, path: str, error: OSError) -> SessionManagerError:
    """Returns the error for a sessions folder that cannot be listed: Refused (``not_readable``) or Damaged."""
    what = f"the sessions folder of agent {agent_id!r} cannot be read: {error.strerror}"
    if isinstance(error, PermissionError):
        return not_readable(what, path, agentId=agent_id)
    return Damaged(what, agentId=agent_id)


def not_readable(what: str, path: str, **details: str) -> Refused:
    """Returns the error for a path that this user may not read; ``what`` begins its sentence."""
    from session_manager.files.owners import run_as

    return Refused(f"{what}; nothing was changed: {run_as(path)}", code="not_readable", **details)
