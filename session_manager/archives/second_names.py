"""Second names of archived files: ``<state dir>/archives/<run id>/<agent>/<archive name>``.

Gateways 2026.4 to 2026.6 delete archives in the sessions folder after a day. A hard link in the state directory takes
no room and survives that; across file systems, or where there are no links, it is a copy. It is made before the file is
archived, so that an archive never has one name only; if the file has grown since, the copy is made again. The path
follows from the run, the agent and the archive name, all of which are in the ledger before the file is made, and the
run's age is in its id: no file in here can be forgotten.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Sequence

import msgspec

from session_manager.archives.copying import LINKLESS, PART, Copying, holds, keep_at, own_part
from session_manager.archives.folder import Folder, Guard
from session_manager.core.progress import tracked
from session_manager.files.atomic import explain, keep_owner, opened_folder, rename_new, sync, sync_folder
from session_manager.files.steps import step
from session_manager.ledger import Attempt, Removal, run_started_at

FOLDER = "archives"
_CHECK_EVERY = 64
# Old names are removed in small batches, but faster than new ones are made.
_LEAST_DROPPED = 2_000


class AtRisk(msgspec.Struct):
    """The number of archived files without a second name, and the reason for the first of them."""

    files: int = 0
    error: str | None = None

    def add(self, other: AtRisk) -> None:
        """Adds another count."""
        self.files += other.files
        self.error = self.error or other.error

    def document(self) -> dict[str, object]:
        """Returns a result's ``at_risk``; empty when nothing is."""
        return {"at_risk": {"files": self.files, "error": self.error}} if self.files else {}


class SecondNames:
    """The second names below one state directory."""

    def __init__(self, state_dir: str) -> None:
        self.root = os.path.join(state_dir, FOLDER)
        self._kept = 0
        self._copying = Copying(None)

    def path(self, run_id: str, agent_id: str, name: str) -> str:
        """Returns the path of the second name of the archive ``name``, even if it does not exist."""
        return os.path.join(self.root, run_id, agent_id, name)

    def keep_ahead(self, store: Folder, lock: Guard, run_id: str, files: Sequence[tuple[str, str]]) -> None:
        """Gives live files (live name, archive name), before they are archived, the second names of their archives.

        An archive that already exists is another file. If this fails, ``keep`` tries again and reports it. Raises
        LockLost.
        """
        self._keep(store, lock, run_id, files)
        self._kept += len(files)

    def keep(self, store: Folder, lock: Guard, attempt: Attempt, removals: Iterable[Removal]) -> AtRisk:
        """Gives the archived files of ``removals`` their second names; counts those that cannot have one.

        Skips files that have one, and files that do not exist. Raises LockLost.
        """
        at_risk = AtRisk()
        by_run: dict[str, list[tuple[str, str]]] = {}
        for removal in removals:
            if removal.files:
                names = by_run.setdefault(attempt.archive_run(removal), [])
                names += [(target, target) for _, target in removal.files]
        for run_id, files in by_run.items():
            at_risk.add(self._keep(store, lock, run_id, files))
        return at_risk

    def _keep(self, store: Folder, lock: Guard, run_id: str, files: Sequence[tuple[str, str]]) -> AtRisk:
        at_risk = AtRisk()
        if not files:
            return at_risk
        copying = self._copying_under(lock)
        folder = os.path.join(self.root, run_id, store.agent_id)
        try:
            self._make(folder)
            made = False
            with opened_folder(store.sessions_dir) as source, opened_folder(folder) as target:
                for count, (here, name) in enumerate(tracked(files, "keeping second names")):
                    if count % _CHECK_EVERY == _CHECK_EVERY - 1:
                        lock.check()
                    try:
                        if not keep_at(source, here, target, name, copying):
                            continue
                    except OSError as error:
                        at_risk.add(AtRisk(1, explain(error, "keep a second name of", name).message))
                    made = True
                    step("second name kept")
                if made:
                    sync(target)
            if made:
                sync_folder(os.path.dirname(folder))
        except OSError as error:
            # Existing names are counted, too: rather too many than too few.
            sentence = explain(error, "keep second names in", folder).message
            at_risk.add(AtRisk(max(1, len(files) - at_risk.files), sentence))
        return at_risk

    def _copying_under(self, lock: Guard) -> Copying:
        """Returns the copier to use while ``lock`` is held: one budget for all of that time."""
        if self._copying.lock is not lock:
            self._copying = Copying(lock)
        return self._copying

    def bring_back(self, store: Folder, run_id: str, name: str, source: str) -> bool:
        """Restores a file as ``source`` from the second name of its lost archive ``name``; False if there is none.

        Raises FileExistsError if that name is taken, and other OSErrors.
        """
        second, live = self.path(run_id, store.agent_id, name), os.path.join(store.sessions_dir, source)
        try:
            os.link(second, live, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno not in LINKLESS:
                raise
            part = os.path.join(store.sessions_dir, own_part())
            try:
                with opened_folder(os.path.dirname(second)) as folder, opened_folder(store.sessions_dir) as sessions:
                    Copying(None).copy(folder, name, sessions, os.path.basename(part))
                rename_new(part, live)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part)
        return True

    def give(self, name: str, of: tuple[str, str], to: tuple[str, str]) -> None:
        """Gives an archive a second name under the run and agent id ``to``, from that under ``of``. Raises OSError."""
        old, new = self.path(*of, name), self.path(*to, name)
        if old == new or not os.path.lexists(old):
            return
        self._make(os.path.dirname(new))
        with contextlib.suppress(FileExistsError):
            try:
                os.link(old, new, follow_symlinks=False)
            except OSError as error:
                if error.errno not in LINKLESS:
                    raise
                os.rename(old, new)
        sync_folder(os.path.dirname(new))

    def may_be(self, store: Folder, run_id: str, name: str, source: str) -> bool:
        """Returns True if the live file ``source`` begins with the whole content of the second name of ``name``.

        True if there is no second name.
        """
        try:
            with (
                opened_folder(os.path.dirname(self.path(run_id, store.agent_id, name))) as folder,
                opened_folder(store.sessions_dir) as sessions,
            ):
                return holds(sessions, source, folder, name)
        except FileNotFoundError:
            return True

    def of_agent(self, agent_id: str) -> dict[str, list[str]]:
        """Returns the paths of an agent's second names, by name. Raises OSError."""
        found: dict[str, list[str]] = {}
        with contextlib.suppress(FileNotFoundError):
            for run_id in sorted(os.listdir(self.root)):
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    for name in os.listdir(os.path.join(self.root, run_id, agent_id)):
                        found.setdefault(name, []).append(self.path(run_id, agent_id, name))
        return found

    def tidy(self, paths: Iterable[str]) -> None:
        """Removes the folders of removed second names that are empty."""
        for folder in {os.path.dirname(path) for path in paths if path.startswith(self.root + os.sep)}:
            self._remove_empty(folder)

    def forget(self, run_id: str, agent_id: str, names: Iterable[str]) -> int:
        """Removes second names, and rests of killed copies; returns how many there were. Raises OSError."""
        folder = os.path.join(self.root, run_id, agent_id)
        count = 0
        for name in (*names, PART):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(os.path.join(folder, name))
                count += name != PART
        self._remove_empty(folder)
        return count

    def _remove_empty(self, folder: str) -> None:
        for empty in (folder, os.path.dirname(folder)):
            with contextlib.suppress(OSError):
                os.rmdir(empty)

    def drop_old(
        self, cutoff: int, is_past: Callable[[str], bool], living: Callable[[str], Callable[[str], bool] | None]
    ) -> None:
        """Removes a batch of second names of runs before ``cutoff`` (epoch ms), but none of a live session.

        ``is_past`` tells if the ledger counts a run as old, ``living`` returns a function that tells, for an
        agent, if an archive's name is a live session's; None (not known) keeps all. Raises OSError.
        """
        known = functools.cache(living)
        try:
            runs = sorted(os.listdir(self.root))
        except FileNotFoundError:
            return
        budget = max(_LEAST_DROPPED, 2 * self._kept)
        for run_id in runs:
            at = run_started_at(run_id)
            if at is None:
                continue
            if at >= cutoff or budget <= 0:
                return
            if not is_past(run_id):
                continue
            for agent_id in os.listdir(os.path.join(self.root, run_id)):
                names = os.listdir(os.path.join(self.root, run_id, agent_id))[:budget]
                budget -= len(names)
                if names and (lives := known(agent_id)) is not None:
                    names = [name for name in names if not lives(name)]
                else:
                    names = []
                self.forget(run_id, agent_id, names)
            with contextlib.suppress(OSError):
                os.rmdir(os.path.join(self.root, run_id))

    def _make(self, folder: str) -> None:
        """Makes an agent's folder for a run, 0700, owned by the owner of the state directory."""
        state_dir = os.path.dirname(self.root)
        for path in (self.root, os.path.dirname(folder), folder):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
                keep_owner(path, os.stat(state_dir))
