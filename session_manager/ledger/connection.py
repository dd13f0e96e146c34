"""The ledger's file: opening and creating it, its transactions, and its errors as ours."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import zlib
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import msgspec

from session_manager.core.errors import Damaged, Refused, SessionManagerError
from session_manager.files import weaker
from session_manager.files.atomic import clear_errors, explain, keep_owner, make_private, sync_file
from session_manager.ledger.schema import VERSION, create
from session_manager.settings import Settings, ledger_path


class Connection:
    """The ledger, opened. A context manager; leaving it closes the file.

    Every method raises Refused (``disk_full``, ``not_writable``, ``ledger_busy``), Damaged (``ledger_damaged``) or
    Failed (``io_error``), and has then changed nothing.
    """

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self.sql = connection
        self.path = path
        self.state_dir = os.path.dirname(path)
        self._durability_is_set = False

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Opens the ledger for writing; creates it, 0600, if there is none.

        Also raises Refused (``ledger_unsupported``) when a newer version of this tool wrote it.
        """
        path = ledger_path(settings)
        with clear_errors("make the state directory", settings.state_dir):
            make_state_dir(settings.state_dir)
            # Before SQLite opens it, so that the journal inherits its mode and owner.
            make_private(path)
            make_private(_journal(path))
        return cls._connected(path, "rw", settings.lock_timeout)

    @classmethod
    def open_existing(cls, settings: Settings, mode: str = "rw") -> Self | None:
        """Opens the ledger if there is one (``mode`` rw or ro); creates nothing.

        A state directory that cannot be read is an error: its content is unknown.
        """
        path = ledger_path(settings)
        with clear_errors("open the ledger", path):
            try:
                os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
        return cls._connected(path, mode, settings.lock_timeout)

    @classmethod
    def _connected(cls, path: str, mode: str, timeout: float) -> Self:
        from urllib.parse import quote

        # SQLite would wait for ever on a pipe.
        if _is_no_file(path):
            raise _explained(sqlite3.DatabaseError("not a regular file"), path)
        with clear_sqlite_errors(path):
            connection = sqlite3.connect(
                f"file:{quote(os.fsencode(path))}?mode={mode}",
                uri=True,
                timeout=max(timeout, 1.0),
                isolation_level=None,
            )
            try:
                # A rollback journal: unlike a write-ahead log it needs no shared memory between containers.
                if mode == "rw":
                    connection.execute("PRAGMA journal_mode = TRUNCATE")
                connection.execute("PRAGMA secure_delete = ON")
                ledger = cls(connection, path)
                ledger._prepare(mode)
            except BaseException:
                connection.close()
                raise
        return ledger

    def _prepare(self, mode: str) -> None:
        version = self._version()
        if version > VERSION:
            raise Refused(
                f"the ledger {self.path} was written by a newer version of this tool (format {version}); update it",
                code="ledger_unsupported",
            )
        if version == VERSION:
            return
        if mode == "rw":
            with self.transaction():
                self._bring_up_to_date()
        else:
            # Nothing may be written: read an older ledger through a copy in memory.
            copy = sqlite3.connect(":memory:", isolation_level=None)
            self.sql.backup(copy)
            self.sql.close()
            self.sql = copy
            self._bring_up_to_date()

    def _bring_up_to_date(self) -> None:
        """Creates the tables, or converts them from an older format, in one transaction."""
        version = self._version()
        if version == 0:
            create(self.sql)
        elif version < VERSION:
            from session_manager.ledger.migration import migrate

            migrate(self.sql)

    def _version(self) -> int:
        return int(self.sql.execute("PRAGMA user_version").fetchone()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.sql.close()

    def _set_durability(self) -> None:
        """Makes SQLite sync to disk if the file system can; otherwise every commit would fail."""
        if not self._durability_is_set:
            self.sql.execute(f"PRAGMA synchronous = {'FULL' if _syncs(self.path) else 'OFF'}")
            self._durability_is_set = True

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the ledger's write lock; undone when the body raises."""
        with clear_sqlite_errors(self.path):
            self._set_durability()
            self.sql.execute("BEGIN IMMEDIATE")
            try:
                yield self.sql
                self.sql.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self.sql.execute("ROLLBACK")
                raise


def _journal(path: str) -> str:
    return f"{path}-journal"


def _syncs(path: str) -> bool:
    """Returns True if files beside the ledger can be synced.

    Tries the journal instead of the ledger: closing the ledger would release the locks that SQLite has on it.
    """
    try:
        with weaker.noted() as noted, contextlib.suppress(FileNotFoundError):
            sync_file(_journal(path))
    except OSError as error:
        raise explain(error, "write the ledger", path) from error
    for lack in noted:
        weaker.note(lack)
    return not noted


def as_json(value: Any) -> str:
    """Writes a value as JSON text."""
    return msgspec.json.encode(value).decode()


def make_state_dir(path: str) -> None:
    """Makes the state directory, 0700, owned by the owner of its parent folder. Raises OSError."""
    parent = os.path.dirname(path)
    if os.path.isdir(path):
        return
    os.makedirs(parent, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
        keep_owner(path, os.stat(parent))


@contextlib.contextmanager
def clear_sqlite_errors(path: str) -> Iterator[None]:
    """Turns an error of SQLite, or of its content, into one of ours."""
    try:
        yield
    except (sqlite3.Error, msgspec.DecodeError, zlib.error) as error:
        raise _explained(error, path) from error


def _is_no_file(path: str) -> bool:
    """Returns True if a folder, a pipe, a socket or a device has the ledger's name."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def _has_locks(path: str) -> bool:
    from session_manager.files.trial import has_locks

    try:
        return has_locks(os.path.dirname(path))
    except OSError:
        return True


def _explained(error: Exception, path: str) -> SessionManagerError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return explain(OSError(28, "No space left on device"), "write the ledger", path)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return explain(OSError(13, str(error)), "open the ledger", path)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR) and not _has_locks(path):
        return Refused(
            f"the file system of the ledger {path} has no locks, which SQLite needs; set ARIA_STATE_DIR to a folder on "
            "a local disk",
            code="no_locks",
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Refused(f"the ledger {path} is busy; try again", code="ledger_busy")
    if code == sqlite3.SQLITE_IOERR:
        return explain(OSError(5, str(error)), "write the ledger", path)
    return Damaged(
        f"the ledger {path} cannot be read ({error}); nothing was changed: move it away to start a new one, or restore "
        "it from a backup",
        code="ledger_damaged",
    )
