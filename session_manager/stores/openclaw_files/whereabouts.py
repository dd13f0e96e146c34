"""Finds a session's transcript: one answer for locks, times, sizes, emptiness, orphans, references and archives.

A ``sessionFile`` is a path as some gateway sees it: relative, absolute, below a mount that is not here, or Windows.
How gateways resolve it: 2026.2.17 and 2026.6.11 ``resolveSessionFilePath``, see references/store-format.md.
"""

from __future__ import annotations

import functools
import math
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

import msgspec

from session_manager.core.keys import safe_name
from session_manager.core.layout import INDEX_NAME
from session_manager.core.session import Session

if TYPE_CHECKING:
    from session_manager.stores.openclaw_files.store import Snapshot, Store

# In the agent's own folder; elsewhere in the agents directory; in an unreadable place; where no gateway keeps it.
OWN, INSIDE, ELSEWHERE, REFUSED = "own", "inside", "elsewhere", "refused"
_ABSENT, _OUTSIDE = "absent", "outside"
_FOLDER = "sessions"
_DRIVE = r"[A-Za-z]:/"


class Spot(msgspec.Struct, frozen=True):
    """One place where a transcript is, or would be. ``at``: its name there when OWN, its path when INSIDE."""

    kind: str
    at: str = ""


class _Folder(msgspec.Struct):
    """A folder as a ``sessionFile`` names it. ``path`` is the real one when INSIDE or OUTSIDE.

    An OUTSIDE one is here, and some gateway keeps sessions in it. An ABSENT one is not here. If its path names an
    agent, ``mount`` is its part for the agents directory, and ``path`` that agent's folder here, empty if that is the
    agent's own; ``usual``: gateways write such paths.
    """

    kind: str
    path: str = ""
    mount: str = ""
    usual: bool = False

    @property
    def is_own(self) -> bool:
        """Returns True if a name in it stands for a file of that name in the agent's own folder."""
        return self.kind in (OWN, _ABSENT) and not self.path


class Whereabouts:
    """Looks for the transcripts of one store's ``sessions``; ``names`` lie in its folder.

    ``agents_dir`` may be left out if only names in the agent's own folder are needed.
    """

    def __init__(
        self, sessions_dir: str, sessions: Iterable[Session], names: Collection[str], agents_dir: str = ""
    ) -> None:
        self._dir = sessions_dir
        self._sessions = sessions
        self._names = names if isinstance(names, set | frozenset | dict) else set(names)
        self._agent = os.path.basename(os.path.dirname(sessions_dir))
        self._root = agents_dir or os.path.dirname(os.path.dirname(sessions_dir))
        self._folders: dict[str, _Folder] = {}

    @classmethod
    def of(cls, store: Store, sessions: Iterable[Session], names: Collection[str]) -> Self:
        """Returns an instance for a store: ``sessions`` are all of its sessions, ``names`` all files in its folder."""
        return cls(store.sessions_dir, sessions, names, store.agents_dir)

    def own_name(self, session_file: str) -> str | None:
        """Returns the name of a ``sessionFile`` in the agent's own folder, if it lies there.

        If its folder is not here, a file of that name in the own folder counts: the same volume, mounted elsewhere.
        """
        if not session_file.isprintable():
            return None
        if "\\" in session_file and is_transcript(session_file) and session_file in self._names:
            return session_file
        folder, name = self._folder(session_file)
        is_here = is_transcript(name) and name in self._names
        return name if is_here and folder.kind in (OWN, _ABSENT, _OUTSIDE) else None

    def strange(self, sessions: Iterable[Session]) -> Iterator[tuple[Session, list[Spot]]]:
        """Yields the sessions with a transcript outside the agent's own folder, each with all its spots."""
        folders, names = self._folders, self._names
        for session in sessions:
            for file in session.session_files:
                # The usual case, decided by the name alone: asking the file system about every session would be slow.
                cut = file.rfind("/") + 1
                folder, name = folders.get(file[:cut]), file[cut:]
                if folder is not None and folder.is_own and name in names and is_transcript(name):
                    continue
                spots = self.spots(session)
                if any(spot.kind != OWN for spot in spots):
                    yield session, spots
                break

    def spots(self, session: Session) -> list[Spot]:
        """Returns the spots of all files that a session's entries name."""
        return list(dict.fromkeys(spot for file in session.session_files for spot in self.spots_of(session.id, file)))

    def spots_of(self, session_id: str, session_file: str) -> list[Spot]:
        """Returns the spots of one ``sessionFile`` of a session: two if it is unclear which applies."""
        if not session_file.isprintable():
            return [Spot(ELSEWHERE)]
        if "\\" in session_file and is_transcript(session_file) and session_file in self._names:
            return [Spot(OWN, session_file)]
        folder, name = self._folder(session_file)
        if folder.kind == _ABSENT:
            return self._spots_of_absent(folder, name, session_id)
        if folder.kind == _OUTSIDE:
            return self._spots_outside(folder, name)
        if folder.kind == OWN and is_transcript(name):
            return [Spot(OWN, name)]
        if folder.kind not in (OWN, INSIDE):
            return [Spot(folder.kind)]
        path = os.path.join(self._dir if folder.kind == OWN else folder.path, name)
        return [Spot(REFUSED) if name in ("", INDEX_NAME) or os.path.isdir(path) else Spot(INSIDE, path)]

    def _spots_of_absent(self, folder: _Folder, name: str, session_id: str) -> list[Spot]:
        """Looks for a file whose folder is not here, as if the agents directory were mounted elsewhere."""
        if not is_transcript(name):
            return [Spot(ELSEWHERE)]
        found = [Spot(OWN, name)] if name in self._names else []
        if folder.path:
            path = os.path.join(folder.path, name)
            if os.path.lexists(path) or os.path.lexists(path + ".lock"):
                found.append(Spot(INSIDE, path))
        if found:
            return found
        if folder.mount and folder.mount in self._mounts:
            return [Spot(INSIDE, os.path.join(folder.path, name)) if folder.path else Spot(OWN, name)]
        # The usual path of a gateway for its own session, unless there are signs that its folder is another one.
        mine = folder.usual and not folder.path and _stem_is_of(name, session_id)
        return [Spot(OWN, name) if mine and not self._mounts else Spot(ELSEWHERE)]

    def _spots_outside(self, folder: _Folder, name: str) -> list[Spot]:
        """Distinguishes an older state folder, still in use by a gateway, from the original of which this is a copy."""
        theirs, ours = os.path.join(folder.path, name), os.path.join(self._dir, name)
        if not is_transcript(name):
            return [Spot(ELSEWHERE)]
        written, locked = _mtime(theirs), os.path.lexists(theirs + ".lock")
        copied = name in self._names and not locked and (_mtime(ours) or 0) >= (written or 0)
        return [Spot(OWN, name) if copied or not (written or locked) else Spot(ELSEWHERE)]

    @functools.cached_property
    def _mounts(self) -> set[str]:
        """The paths of the agents directory where the gateway runs, as entries name them for files that are here."""
        found = set()
        for session in self._sessions:
            for file in session.session_files:
                folder, name = self._folder(file)
                if folder.kind == _ABSENT and folder.mount and not folder.path and name in self._names:
                    found.add(folder.mount)
        return found

    def _folder(self, session_file: str) -> tuple[_Folder, str]:
        """Returns a path's folder, and its last part. Both separators count: the gateway may run on Windows."""
        windows = "\\" in session_file
        path = session_file.replace("\\", "/") if windows else session_file
        cut = path.rfind("/") + 1
        text = path[:cut]
        found = self._folders.get(text)
        if found is None:
            found = self._folders[text] = self._look(text, windows=windows)
        return found, path[cut:]

    def _look(self, text: str, *, windows: bool) -> _Folder:
        if re.match(_DRIVE, text):
            return self._absent(text, windows=True)
        path = os.path.normpath(os.path.join(self._dir, text))
        if path == self._dir:
            return _Folder(OWN)
        absolute, within = text.startswith("/"), self._is_within(path)
        try:
            here = stat.S_ISDIR(os.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            here = False
        except (OSError, ValueError):
            return self._absent(path, windows=windows) if absolute and not within else _Folder(ELSEWHERE)
        if not here:
            if within:
                return _Folder(INSIDE, path)
            return self._absent(path, windows=windows) if absolute else _outside(text, path)
        real = os.path.realpath(path)
        # One folder may be mounted twice.
        theirs = os.path.join(self._root, os.path.basename(os.path.dirname(real)), _FOLDER)
        if _is_same(real, self._dir):
            return _Folder(OWN)
        if self._is_within(real) or _is_same(real, theirs):
            real = real if self._is_within(real) else theirs
            return _Folder(INSIDE, real) if _is_open(real) else _Folder(ELSEWHERE)
        return _Folder(ELSEWHERE) if within else _outside(text, path, real)

    def _is_within(self, path: str) -> bool:
        return path == self._root or path.startswith(self._root.rstrip(os.sep) + os.sep)

    def _absent(self, path: str, *, windows: bool) -> _Folder:
        above, _, last = path.rstrip("/").rpartition("/")
        mount, _, agent = above.rpartition("/")
        if windows:
            last, agent, mount = last.lower(), agent.lower(), mount.lower()
        if last != _FOLDER or not safe_name(agent):
            return _Folder(_ABSENT)
        usual = mount.rpartition("/")[2] == "agents"
        real = os.path.realpath(os.path.join(self._root, agent, _FOLDER))
        if agent == self._agent or real == self._dir:
            return _Folder(_ABSENT, mount=mount, usual=usual)
        if not self._is_within(real) or (os.path.isdir(real) and not _is_open(real)):
            return _Folder(_ABSENT)
        return _Folder(_ABSENT, real, mount)


def inside(spots: Iterable[Spot]) -> list[str]:
    """Returns the paths of the spots that lie in the agents directory but outside the agent's own folder."""
    return [spot.at for spot in spots if spot.kind == INSIDE]


def paths_inside(snapshot: Snapshot, asked: Iterable[Session]) -> dict[str, list[str]]:
    """Returns the paths of transcripts of the sessions in ``asked`` that lie in other folders of the agents directory,
    by session id.
    """
    whereabouts = Whereabouts.of(snapshot.store, snapshot.sessions, snapshot.names)
    found = ((session.id, inside(spots)) for session, spots in whereabouts.strange(asked))
    return {session_id: paths for session_id, paths in found if paths}


def files_abroad(snapshot: Snapshot, asked: Iterable[Session]) -> dict[str, list[str]]:
    """Returns the transcripts in other agents' folders as ``<agent>/<name>``, by session id; see ``paths_inside``."""
    store = snapshot.store
    root = store.agents_dir or os.path.dirname(os.path.dirname(store.sessions_dir))
    found: dict[str, list[str]] = {}
    for session_id, paths in paths_inside(snapshot, asked).items():
        for path in paths:
            agent, *rest = os.path.relpath(path, root).split(os.sep)
            if len(rest) == 2 and rest[0] == _FOLDER and is_transcript(rest[1]):
                found.setdefault(session_id, []).append(f"{agent}/{rest[1]}")
    return found


def outside_files(
    store: Store, everyone: Iterable[Session], gone: Sequence[Session], archived: Iterable[str]
) -> dict[str, list[str]]:
    """Returns the ``sessionFile`` values of removed sessions that stay outside the agent's own folder.

    Each comes with its paths inside the agents directory. ``everyone`` are all sessions of the store before the
    removal, ``archived`` are names of files that have been archived since.
    """
    if next(Whereabouts.of(store, everyone, ()).strange(gone), None) is None:
        return {}
    whereabouts = Whereabouts.of(store, everyone, {*archived, *os.listdir(store.sessions_dir)})
    spots = {file: whereabouts.spots_of(session.id, file) for session in gone for file in session.session_files}
    return {file: inside(found) for file, found in spots.items() if any(spot.kind != OWN for spot in found)}


def is_transcript(name: str) -> bool:
    """Returns True if a name belongs to a live transcript (not an archive, lock, sidecar or index)."""
    return name.endswith(".jsonl") and not name.startswith(".") and len(name) > len(".jsonl")


def _mtime(path: str) -> float | None:
    """Returns a file's mtime, links not followed; None if it does not exist, infinity if unknown."""
    try:
        return os.lstat(path).st_mtime
    except FileNotFoundError:
        return None
    except OSError:
        return math.inf


def _stem_is_of(name: str, session_id: str) -> bool:
    return name == f"{session_id}.jsonl" or name.startswith(f"{session_id}-topic-")


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _is_open(folder: str) -> bool:
    return os.access(folder, os.R_OK | os.X_OK)


def _outside(text: str, *paths: str) -> _Folder:
    """Judges a folder outside the agents directory. No gateway accepts a relative path that leaves its own folder, or
    an absolute one that is not ``…/agents/<agent>/sessions/…``; it uses ``<session id>.jsonl`` instead.
    """
    taken = (
        any(_is_kept_by_gateways(path.split(os.sep)) for path in paths) if text.startswith("/") else text[:2] != ".."
    )
    return _Folder(_OUTSIDE, paths[-1]) if taken else _Folder(REFUSED)


def _is_kept_by_gateways(parts: Sequence[str]) -> bool:
    last = max((i for i, part in enumerate(parts) if part == _FOLDER), default=0)
    return last > 1 and parts[last - 2] == "agents"
