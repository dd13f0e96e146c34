"""Moves a session's files between their live names and their archive names, by rename, never over another file."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterable, Iterator, Sequence

from session_manager.archives.folder import Folder, Guard, InUse
from session_manager.archives.names import archive_names
from session_manager.archives.second_names import SecondNames
from session_manager.core.errors import Refused, SessionManagerError
from session_manager.core.progress import tracked
from session_manager.files.atomic import explain, opened_folder, rename_new
from session_manager.files.liveness import now_ms
from session_manager.files.steps import step
from session_manager.ledger import RESTORE, Attempt, Ledger, Removal

# Reading the marker costs about as much as a rename: often enough against a 30 s staleness, not at every file.
_CHECK_EVERY = 64

# (session id, or None if it concerns the whole attempt; error)
Failures = list[tuple[str | None, SessionManagerError]]


def archive_files(
    store: Folder,
    lock: Guard,
    ledger: Ledger,
    second_names: SecondNames,
    attempt: Attempt,
    removals: Iterable[Removal],
    spared: Collection[str],
) -> Failures:
    """Archives the files of ``removals`` (from → to as in the ledger), except the names in ``spared``.

    They get their second names before; ``SecondNames.keep`` reports afterwards which have none. A file that is already
    archived, or gone, is no failure. Returns (session id, error) for files that could not be moved; raises LockLost.
    """
    failures: Failures = []
    going = list(_files(removals, spared))
    by_run: dict[str, list[tuple[str, str]]] = {}
    for removal, position in going:
        by_run.setdefault(attempt.archive_run(removal), []).append(removal.files[position])
    for run_id, files in by_run.items():
        second_names.keep_ahead(store, lock, run_id, files)
        step("second names kept")
    with opened_folder(store.sessions_dir) as folder:
        for count, (removal, position) in enumerate(tracked(going, "archiving transcripts"), 1):
            if count % _CHECK_EVERY == 0:
                lock.check()
            try:
                while not _archived(folder, *removal.files[position]):
                    source, _ = removal.files[position]
                    removal.files[position] = archive_names([source], os.listdir(store.sessions_dir), now_ms())[0]
                    ledger.note_files(removal)
                    second_names.keep_ahead(store, lock, attempt.archive_run(removal), [removal.files[position]])
            except OSError as error:
                path = os.path.join(store.sessions_dir, removal.files[position][0])
                failures.append((removal.session_id, explain(error, "archive", path)))
            step("file archived")
    return failures


def _files(removals: Iterable[Removal], spared: Collection[str]) -> Iterator[tuple[Removal, int]]:
    for removal in removals:
        for position, (source, _) in enumerate(removal.files):
            if source not in spared:
                yield removal, position


def _archived(folder: int, source: str, target: str) -> bool:
    """Archives a file unless it is gone; False if the archive's name is taken. Raises OSError."""
    try:
        rename_new(source, target, folder)
    except FileNotFoundError:
        return True
    except FileExistsError:
        return False
    return True


def bring_back_files(
    store: Folder, second_names: SecondNames, attempt: Attempt, removals: Sequence[Removal]
) -> tuple[Failures, list[str]]:
    """Gives archived files their live names back; a lost archive is restored from its second name.

    A transcript that a gateway has begun anew is joined to its earlier part. Returns files that could not be moved,
    and names that another file has taken since: that file and the archive stay.
    """
    failures: Failures = []
    taken: list[str] = []
    if not removals:
        return failures, taken
    with opened_folder(store.sessions_dir) as folder:
        for removal in tracked(removals, "restoring files"):
            run_id = attempt.archive_run(removal)
            for position, (source, target) in enumerate(removal.files):
                try:
                    try:
                        _bring_back(store, folder, second_names, run_id, source, target)
                    except FileExistsError:
                        _join(store, second_names, run_id, removal, position)
                except FileExistsError:
                    taken.append(source)
                except InUse:
                    failures.append((removal.session_id, in_use(removal.session_id)))
                except OSError as error:
                    failures.append(
                        (removal.session_id, explain(error, "bring back", os.path.join(store.sessions_dir, target)))
                    )
                step("file brought back")
    return failures, taken


def _archive_of(store: Folder, second_names: SecondNames, run_id: str, target: str) -> str | None:
    """Returns the path of an archive, under one of its two names."""
    paths = (os.path.join(store.sessions_dir, target), second_names.path(run_id, store.agent_id, target))
    return next((path for path in paths if os.path.lexists(path)), None)


def _join(store: Folder, second_names: SecondNames, run_id: str, removal: Removal, position: int) -> None:
    """Joins an archive and the file with its live name. Raises FileExistsError if they are two conversations."""
    source, target = removal.files[position]
    archive = _archive_of(store, second_names, run_id, target)
    if archive is None:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source)
    store.join(source, archive, removal.session_id, f"{removal.removal_id}.{position}")
    for path in (os.path.join(store.sessions_dir, target), second_names.path(run_id, store.agent_id, target)):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    step("transcript joined")


def in_use(session_id: str) -> Refused:
    """Returns the error of a session whose transcript cannot be joined now."""
    return Refused(
        f"session {session_id} received a message during its removal and is busy: the next call joins its transcript "
        "with the archived part",
        code="session_busy",
    )


def _bring_back(store: Folder, folder: int, second_names: SecondNames, run_id: str, source: str, target: str) -> None:
    try:
        rename_new(target, source, folder)
    except FileNotFoundError:
        if not os.path.lexists(os.path.join(store.sessions_dir, source)):
            second_names.bring_back(store, run_id, target, source)
        elif not second_names.may_be(store, run_id, target, source):
            # The archive is gone, and this file is not the same.
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source) from None


def forget_second_names(
    store: Folder, second_names: SecondNames, attempt: Attempt, removals: Iterable[Removal]
) -> None:
    """Removes second names of files that are durably live again; a later run retries what fails."""
    by_run: dict[str, list[tuple[str, str]]] = {}
    for removal in removals:
        by_run.setdefault(attempt.archive_run(removal), []).extend(removal.files)
    with contextlib.suppress(OSError):
        names = set(os.listdir(store.sessions_dir)) if by_run else set()
        for run_id, files in by_run.items():
            # If the archive is gone and another file has the live name, the second name is the only one.
            back = [t for s, t in files if s in names and t not in names and second_names.may_be(store, run_id, t, s)]
            second_names.forget(run_id, store.agent_id, back)


def never_brought_back(store: Folder, second_names: SecondNames, attempt: Attempt, gone: Iterable[Removal]) -> set[str]:
    """Returns live names that a restore found taken by other files, which must not be archived."""
    if attempt.kind != RESTORE:
        return set()
    return {
        source
        for removal in gone
        for source, target in removal.files
        if os.path.lexists(os.path.join(store.sessions_dir, target))
        or not second_names.may_be(store, attempt.archive_run(removal), target, source)
    }
