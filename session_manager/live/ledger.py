"""The ledger: what was removed, by which run, how far it got, and what history has still to hear.

One SQLite file in the state directory, shared by several processes. Tables:

- ``runs``: one row a run: function, time, who asked.
- ``attempts``: one row an agent and run. ``state``: ``intent`` (durable before the index is touched), then ``done``,
  or ``undone`` when nothing came of it. An attempt that is still ``intent`` belongs to a killed process, or to one
  that holds the store's lock right now.
- ``removals``: one row a session of an attempt, with its keys, its raw entries and its files from → to.
  ``state`` is ``removed`` unless the session turned out to be alive (``kept``).
- ``marks``: what history must be told, at most one a session, whoever removed it. Marks come into being in the
  transaction that ends the attempt, so a removal without its mark cannot be. ``state`` is ``pending``, then
  ``delivered``, or ``missing`` (history has had no such row for days) or ``refused`` (nor would it take the mark).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import msgspec

from session_manager.core.errors import Damaged, Refused, SessionManagerError
from session_manager.live.atomic import clear_errors, explain, keep_owner
from session_manager.live.liveness import now_ms
from session_manager.live.volume import Identity
from session_manager.settings import Settings, ledger_path

VERSION = 1
_DAY_MS = 86_400_000
_SMALL = 16 * 1024

_SCHEMA = """
CREATE TABLE runs (
  run_id TEXT PRIMARY KEY, started_at INTEGER NOT NULL, function TEXT NOT NULL,
  asked_by TEXT, user TEXT, host TEXT, pid INTEGER NOT NULL
);
CREATE TABLE attempts (
  attempt_id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs, store_id TEXT NOT NULL,
  agent_id TEXT NOT NULL, created_at INTEGER NOT NULL, state TEXT NOT NULL, history INTEGER NOT NULL,
  temps TEXT NOT NULL, expected TEXT NOT NULL
);
CREATE INDEX attempts_open ON attempts (store_id) WHERE state = 'intent';
CREATE INDEX attempts_age ON attempts (created_at);
CREATE TABLE removals (
  removal_id INTEGER PRIMARY KEY, attempt_id INTEGER NOT NULL REFERENCES attempts, agent_id TEXT NOT NULL,
  session_id TEXT NOT NULL, reason TEXT NOT NULL, state TEXT NOT NULL, keys TEXT NOT NULL, files TEXT NOT NULL,
  entries BLOB
);
CREATE INDEX removals_session ON removals (session_id);
CREATE INDEX removals_attempt ON removals (attempt_id);
CREATE INDEX removals_with_entries ON removals (attempt_id) WHERE entries IS NOT NULL;
CREATE TABLE marks (
  agent_id TEXT NOT NULL, session_id TEXT NOT NULL, status TEXT NOT NULL, state TEXT NOT NULL,
  run_id TEXT NOT NULL, changed_at INTEGER NOT NULL,
  PRIMARY KEY (agent_id, session_id)
) WITHOUT ROWID;
CREATE INDEX marks_pending ON marks (changed_at) WHERE state = 'pending';
"""


class Removal(msgspec.Struct):
    """One session that goes: its keys, its raw members (key token, value), its files from → to (base names)."""

    session_id: str
    reason: str
    keys: list[str]
    members: list[tuple[bytes, bytes]]
    files: list[tuple[str, str]]
    removal_id: int = 0


class Temp(msgspec.Struct):
    """A temporary index file: its base name and the identity that it had before it was swapped in."""

    name: str
    identity: Identity


class Attempt(msgspec.Struct):
    """One agent's part of a run. ``expected`` are the versions of the index that may be thrown away when displaced."""

    attempt_id: int
    run_id: str
    agent_id: str
    temps: list[Temp]
    expected: list[Identity]
    removals: list[Removal]


class Mark(msgspec.Struct, frozen=True):
    """One thing that history has still to hear. ``run_id`` and ``changed_at`` (epoch ms) tell it from a later one."""

    agent_id: str
    session_id: str
    status: str
    run_id: str
    changed_at: int


def new_run_id() -> str:
    """Returns a fresh run id: time first, so that ids sort by age."""
    return f"{now_ms():012x}-{os.urandom(5).hex()}"


class Ledger:
    """The ledger, opened. A context manager; leaving it closes the file.

    Every method raises Refused (``disk_full``, ``not_writable``, ``ledger_busy``), Damaged (``ledger_damaged``) or
    Failed (``io_error``), and has then changed nothing.
    """

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self._connection = connection
        self._path = path

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Opens the ledger for writing; makes it, 0600, when there is none.

        Raises also Refused (``ledger_unsupported``) when a newer version of this tool wrote it.
        """
        path = ledger_path(settings)
        with clear_errors("make the state directory", settings.state_dir):
            _make_state_dir(settings.state_dir)
            _make_private(path)
        return cls._connected(path, "rw", settings.lock_timeout)

    @classmethod
    def open_existing(cls, settings: Settings, mode: str = "rw") -> Self | None:
        """Opens the ledger if there is one (``mode`` rw or ro); makes nothing."""
        path = ledger_path(settings)
        return cls._connected(path, mode, settings.lock_timeout) if os.path.exists(path) else None

    @classmethod
    def _connected(cls, path: str, mode: str, timeout: float) -> Self:
        from urllib.parse import quote

        with _clear_sqlite_errors(path):
            connection = sqlite3.connect(
                f"file:{quote(path)}?mode={mode}", uri=True, timeout=max(timeout, 1.0), isolation_level=None
            )
            try:
                # A rollback journal: unlike a write-ahead log it needs no shared memory between containers.
                if mode == "rw":
                    connection.execute("PRAGMA journal_mode = TRUNCATE")
                    connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA secure_delete = ON")
                ledger = cls(connection, path)
                ledger._prepare(mode)
            except BaseException:
                connection.close()
                raise
        return ledger

    def _prepare(self, mode: str) -> None:
        version = self._version()
        if version == 0 and mode == "rw":
            with self._transaction():
                if self._version() == 0:
                    for statement in _SCHEMA.split(";"):
                        self._connection.execute(statement)
                    self._connection.execute(f"PRAGMA user_version = {VERSION:d}")
            version = self._version()
        if version > VERSION:
            raise Refused(
                f"the ledger {self._path} was written by a newer version of this tool (format {version}); update it",
                code="ledger_unsupported",
            )

    def _version(self) -> int:
        return int(self._connection.execute("PRAGMA user_version").fetchone()[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _clear_sqlite_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def intend(
        self,
        run: Run,
        store_id: str,
        agent_id: str,
        temps: list[Temp],
        expected: list[Identity],
        removals: list[Removal],
    ) -> Attempt:
        """Writes an intent, durably, before anything of it is done. Old entries' raw bytes are dropped on the way."""
        now = now_ms()
        with self._transaction() as c:
            c.execute(
                "INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)",
                (run.run_id, run.started_at, run.function, run.asked_by, run.user, run.host, os.getpid()),
            )
            cursor = c.execute(
                "INSERT INTO attempts (run_id, store_id, agent_id, created_at, state, history, temps, expected)"
                " VALUES (?, ?, ?, ?, 'intent', ?, ?, ?)",
                (run.run_id, store_id, agent_id, now, run.history, _json(temps), _json(expected)),
            )
            attempt_id = int(cursor.lastrowid or 0)
            first = int(c.execute("SELECT coalesce(max(removal_id), 0) + 1 FROM removals").fetchone()[0])
            for removal_id, removal in enumerate(removals, first):
                removal.removal_id = removal_id
            c.executemany(
                "INSERT INTO removals VALUES (?, ?, ?, ?, ?, 'removed', ?, ?, ?)",
                (
                    (
                        r.removal_id,
                        attempt_id,
                        agent_id,
                        r.session_id,
                        r.reason,
                        _json(r.keys),
                        _json(r.files),
                        _pack(r),
                    )
                    for r in removals
                ),
            )
            c.execute(
                "UPDATE removals INDEXED BY removals_with_entries SET entries = NULL WHERE entries IS NOT NULL"
                " AND attempt_id <= (SELECT max(attempt_id) FROM attempts WHERE created_at < ?)"
                " AND attempt_id NOT IN (SELECT attempt_id FROM attempts WHERE state = 'intent')",
                (now - run.keep_days * _DAY_MS,),
            )
        return Attempt(attempt_id, run.run_id, agent_id, temps, expected, removals)

    def note_files(self, removal: Removal) -> None:
        """Writes down new archive names before they are used."""
        with self._transaction() as c:
            c.execute("UPDATE removals SET files = ? WHERE removal_id = ?", (_json(removal.files), removal.removal_id))

    def finish(self, attempt: Attempt, kept: Iterable[str], *, complete: bool = True) -> None:
        """Ends an attempt: the sessions in ``kept`` stayed alive, all others are removed and owe history a mark.

        With ``complete`` false the marks are owed, but the attempt stays open because a file could not be moved.
        """
        kept = set(kept)
        with self._transaction() as c:
            c.executemany(
                "UPDATE removals SET state = 'kept', entries = NULL WHERE attempt_id = ? AND session_id = ?",
                [(attempt.attempt_id, session_id) for session_id in kept],
            )
            state = "undone" if all(r.session_id in kept for r in attempt.removals) else "done"
            if complete:
                c.execute("UPDATE attempts SET state = ? WHERE attempt_id = ?", (state, attempt.attempt_id))
            c.execute(
                "INSERT INTO marks SELECT r.agent_id, r.session_id, 'ended', 'pending', a.run_id, ? FROM removals r"
                " JOIN attempts a USING (attempt_id) WHERE a.attempt_id = ? AND a.history AND r.state = 'removed'"
                " ON CONFLICT (agent_id, session_id) DO UPDATE SET"
                " status = 'ended', state = 'pending', run_id = excluded.run_id, changed_at = excluded.changed_at"
                " WHERE run_id <> excluded.run_id",
                (now_ms(), attempt.attempt_id),
            )

    def owe_mark(self, run: Run, agent_id: str, session_id: str, *, again: bool = False) -> str:
        """Owes history the end of a session that somebody else removed, once; returns the mark's state.

        One that was given up or dropped is owed anew; with ``again`` that goes for a delivered one, too.
        """
        with self._transaction() as c:
            c.execute(
                "INSERT INTO marks VALUES (?, ?, 'ended', 'pending', ?, ?) ON CONFLICT (agent_id, session_id)"
                " DO UPDATE SET status = 'ended', state = 'pending', run_id = excluded.run_id,"
                " changed_at = excluded.changed_at WHERE ? OR state IN ('missing', 'refused', 'superseded')",
                (agent_id, session_id, run.run_id, now_ms(), again),
            )
            row = c.execute(
                "SELECT state FROM marks WHERE agent_id = ? AND session_id = ?", (agent_id, session_id)
            ).fetchone()
        return str(row[0])

    def note_marks(self, marks: Iterable[Mark], state: str) -> None:
        """Notes what became of pending marks; one that was changed since it was read stays pending."""
        with self._transaction() as c:
            c.executemany(
                "UPDATE marks SET state = ? WHERE agent_id = ? AND session_id = ? AND status = ? AND run_id = ?"
                " AND changed_at = ? AND state = 'pending'",
                [(state, m.agent_id, m.session_id, m.status, m.run_id, m.changed_at) for m in marks],
            )

    def open_attempts(self, store_id: str) -> list[Attempt]:
        """Returns a store's unfinished attempts, oldest first."""
        with _clear_sqlite_errors(self._path):
            rows = self._connection.execute(
                "SELECT attempt_id, run_id, agent_id, temps, expected FROM attempts"
                " WHERE store_id = ? AND state = 'intent' ORDER BY attempt_id",
                (store_id,),
            ).fetchall()
            return [
                Attempt(
                    row[0], row[1], row[2],
                    msgspec.json.decode(row[3], type=list[Temp]),
                    msgspec.json.decode(row[4], type=list[Identity]),
                    self._removals(row[0]),
                )
                for row in rows
            ]  # fmt: skip

    def has_open_attempts(self, store_id: str) -> bool:
        """Says whether a killed process left something to finish in a store."""
        with _clear_sqlite_errors(self._path):
            return bool(
                self._connection.execute(
                    "SELECT EXISTS (SELECT 1 FROM attempts WHERE store_id = ? AND state = 'intent')", (store_id,)
                ).fetchone()[0]
            )

    def _removals(self, attempt_id: int) -> list[Removal]:
        rows = self._connection.execute(
            "SELECT session_id, reason, keys, entries, files, removal_id FROM removals WHERE attempt_id = ?"
            " ORDER BY removal_id",
            (attempt_id,),
        )
        return [
            Removal(
                session_id, reason, msgspec.json.decode(keys, type=list[str]), _unpack(entries),
                msgspec.json.decode(files, type=list[tuple[str, str]]), removal_id,
            )
            for session_id, reason, keys, entries, files, removal_id in rows
        ]  # fmt: skip

    def removed(self, session: str, agent_id: str | None) -> list[tuple[str, str]]:
        """Returns (agent id, session id) of every removal of a session, named by its id or by one of its keys."""
        with _clear_sqlite_errors(self._path):
            by_key = ":" in session
            rows = self._connection.execute(
                "SELECT DISTINCT r.agent_id, r.session_id FROM removals r JOIN attempts a USING (attempt_id)"
                " WHERE a.state <> 'undone' AND r.state = 'removed' AND (? IS NULL OR r.agent_id = ?)"
                + (
                    " AND EXISTS (SELECT 1 FROM json_each(r.keys) WHERE value = ?)"
                    if by_key
                    else " AND r.session_id = ?"
                ),
                (agent_id, agent_id, session),
            )
            return [(str(a), str(s)) for a, s in rows]

    def pending(self) -> list[Mark]:
        """Returns the marks that history has still to hear, oldest first."""
        with _clear_sqlite_errors(self._path):
            rows = self._connection.execute(
                "SELECT agent_id, session_id, status, run_id, changed_at FROM marks WHERE state = 'pending'"
                " ORDER BY changed_at, agent_id, session_id"
            )
            return [Mark(str(a), str(s), str(status), str(run_id), int(at)) for a, s, status, run_id, at in rows]

    def pending_count(self, agent_id: str | None = None) -> int:
        """Returns how many marks wait, of one agent or of all."""
        with _clear_sqlite_errors(self._path):
            return int(
                self._connection.execute(
                    "SELECT count(*) FROM marks WHERE state = 'pending' AND (? IS NULL OR agent_id = ?)",
                    (agent_id, agent_id),
                ).fetchone()[0]
            )


class Run(msgspec.Struct, frozen=True):
    """One call of a mutating function."""

    run_id: str
    started_at: int
    function: str
    asked_by: str | None
    user: str
    host: str
    history: bool
    keep_days: int


def start_run(function: str, settings: Settings) -> Run:
    """Describes a run that starts now; nothing is written yet."""
    import platform

    return Run(
        run_id=new_run_id(),
        started_at=now_ms(),
        function=function,
        asked_by=settings.asked_by,
        user=_user_name(),
        host=platform.node(),
        history=settings.api_url is not None,
        keep_days=settings.keep_days,
    )


def _user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _pack(removal: Removal) -> bytes:
    members = b",\n".join(token + b":" + value for token, value in removal.members)
    text = b"{" + members + b"}"
    if len(text) > _SMALL:
        return zlib.compress(text, 1)
    # The usual window and hash tables are 256 KB of fresh memory: for a small text that costs more than the work.
    small = zlib.compressobj(1, zlib.DEFLATED, 12, 5)
    return small.compress(text) + small.flush()


def _unpack(blob: bytes | None) -> list[tuple[bytes, bytes]]:
    if blob is None:
        return []
    from session_manager.live.jsonscan import scan_object

    text = zlib.decompress(blob)
    return [(text[m.key_start : m.key_end], text[m.value_start : m.value_end]) for m in scan_object(text)]


def _make_state_dir(path: str) -> None:
    parent = os.path.dirname(path)
    if os.path.isdir(path):
        return
    os.makedirs(parent, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
        keep_owner(path, os.stat(parent))


def _make_private(path: str) -> None:
    """Makes the file 0600 before SQLite opens it; its journal takes over mode and owner from it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        return
    try:
        keep_owner(fd, os.stat(os.path.dirname(path)))
    finally:
        os.close(fd)


@contextlib.contextmanager
def _clear_sqlite_errors(path: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, msgspec.DecodeError, zlib.error) as error:
        raise _explained(error, path) from error


def _explained(error: Exception, path: str) -> SessionManagerError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return explain(OSError(28, "No space left on device"), "write the ledger", path)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return explain(OSError(13, str(error)), "open the ledger", path)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Refused(f"the ledger {path} is busy; try again", code="ledger_busy")
    if code == sqlite3.SQLITE_IOERR:
        return explain(OSError(5, str(error)), "write the ledger", path)
    return Damaged(
        f"the ledger {path} cannot be read ({error}); nothing was changed: move it away to start a new one, or restore "
        "it from a backup",
        code="ledger_damaged",
    )
