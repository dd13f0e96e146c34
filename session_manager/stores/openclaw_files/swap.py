"""Installs a new version of the index without losing anything that a gateway wrote meanwhile.

Invariants:

- A version is discarded only if it is the file that was read (or one of our own).
- Before a swap the ledger records the attempt, and the temporary file's name tells what we wrote into it: recovery
  can tell a file of ours from one that afterwards holds the gateway's newest version.
- Before every swap the lock's marker is checked.
- The first swap is made from the newest version that we could read: a gateway that reads an older one in place
  builds on a text without its own last changes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Sequence

from session_manager.core.errors import Damaged, Locked
from session_manager.core.index import Index
from session_manager.core.layout import INDEX_NAME
from session_manager.files.atomic import OWN_PREFIX, clear_errors, exchange, sync_file, write_new
from session_manager.files.liveness import now_ms
from session_manager.files.steps import step
from session_manager.files.versions import Identity, identity_of, read_file
from session_manager.ledger import Attempt, Temp
from session_manager.stores.openclaw_files.gateway_lock import StoreLock
from session_manager.stores.openclaw_files.merge import living_ids, merge
from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import Store
from session_manager.stores.openclaw_files.transcripts import files_by_session

TEMP_SUFFIX = ".index"
# Each round keeps the displaced version until the end: at most so many of them, and of so many bytes in total.
_MOST_ROUNDS, _LEAST_ROUNDS, _ROUND_BYTES = 100, 8, 256 * 1024 * 1024
_LOOKS_AFTER = 8
# A gateway that read the old text may write its edit as soon as it has parsed it (200 MB/s, 10 ms at least).
_SETTLE_S = 0.01
_PARSE_BYTES_PER_S = 200e6


class IndexChanged(Exception):
    """Somebody wrote the index between our read and our swap; nothing was done."""


class Swap:
    """The swaps of one attempt.

    ``alive`` collects sessions that showed a sign of life meanwhile. ``installed`` is the identity of our last
    version. Every version that was visible is remembered: a gateway that read one of them may still write its edit
    of it.
    """

    def __init__(self, store: Store, lock: StoreLock, attempt: Attempt) -> None:
        self._store = store
        self._lock = lock
        self.attempt = attempt
        self._seen: list[bytes] = []
        self.alive: set[str] = set()
        self.installed: Identity | None = None

    def install(self, base: Index, read: Identity, text: bytes, temp: Temp | None = None) -> None:
        """Replaces the version ``read`` (``base``) by ``text``, which ``temp`` may hold already.

        If another version was displaced, it is merged and swapped in, until the displaced file is the expected one.
        If the gateway writes without a pause this gives up, and the gateway's newest version is in place: raises
        IndexChanged when nothing was done, else Locked, and recovery merges the versions in the temporary files.
        Also raises LockLost, Damaged and OSError.
        """
        self._seen.append(base.data)
        rounds = max(_LEAST_ROUNDS, min(_MOST_ROUNDS, _ROUND_BYTES // max(1, len(text))))
        last = None
        for _ in range(rounds):
            temp = temp or self._prepare(text)
            if self._identity() != read:
                text, read = self._caught_up(text)
                os.unlink(self._path(temp.name))
                temp = None
                continue
            outcome, displaced = self._swap(temp, read)
            if outcome == "undone":
                self._seen.insert(-1, text)
                continue
            self._seen.append(text)
            self.installed = temp.identity
            if outcome == "won":
                sync_file(self._store.index_path)
                return
            text = self.merge(self._readable(displaced, temp)) or displaced
            last, read, temp = self._path(temp.name), temp.identity, None
        if last is None:
            raise IndexChanged
        if exchange(last, self._store.index_path) and identity_of(last) != self.installed:
            exchange(last, self._store.index_path)
        raise Locked(
            f"the gateway keeps writing the index of agent {self._store.agent_id!r}; try again",
            agentId=self._store.agent_id,
        )

    def _identity(self) -> Identity:
        try:
            return identity_of(self._store.index_path)
        except FileNotFoundError:
            raise IndexChanged from None

    def _caught_up(self, text: bytes) -> tuple[bytes, Identity]:
        """Merges the edit into the version in place now; returns the text and the identity that it is to displace."""
        try:
            data, read = read_file(self._store.index_path)
            merged = self.merge(Index(data), text)
        except (FileNotFoundError, ValueError):
            raise IndexChanged from None
        # Each version of the gateway builds on the one before: the newest covers them all.
        self._seen[-1] = data
        return merged or data, read

    def merge(self, theirs: Index, wanted: bytes | None = None) -> bytes | None:
        """Merges this attempt's edit into a version that the gateway wrote; None when it already has the edit.

        ``wanted`` is the text that this attempt is about to install, which nobody has seen yet; None when it is the
        last visible version.
        """
        text = None
        *bases, last = self._seen
        if wanted is not None:
            bases.append(last)
        mine = Index(last if wanted is None else wanted)
        removals = [r for r in self.attempt.removals if r.session_id not in self.alive]
        for base in bases:
            merged = merge(theirs, removals, Index(base), mine)
            self.alive |= merged.alive
            if merged.text is not None:
                text, theirs = merged.text, Index(merged.text)
        return text

    def _swap(self, temp: Temp, read: Identity) -> tuple[str, bytes]:
        """Swaps ``temp`` in: ("won", b""), ("undone", b""), or ("lost", the text displaced instead of ``read``).

        A version displaced by mistake is put back at once, so that no gateway builds on one that lacks its changes.
        """
        temp_path = self._path(temp.name)
        self._lock.check()
        try:
            swapped = exchange(temp_path, self._store.index_path)
            if not swapped:
                if identity_of(self._store.index_path) != read:
                    raise IndexChanged
                os.replace(temp_path, self._store.index_path)
        except FileNotFoundError:
            raise IndexChanged from None
        won = not swapped or identity_of(temp_path) == read
        if not won and exchange(temp_path, self._store.index_path):
            if identity_of(temp_path) == temp.identity:
                return "undone", b""
            # Somebody has already written over our version; the merge must know that version as a base.
            exchange(temp_path, self._store.index_path)
        step("index swapped")
        return ("won", b"") if won else ("lost", read_file(temp_path)[0])

    def _readable(self, displaced: bytes, temp: Temp) -> Index:
        try:
            return Index(displaced)
        except ValueError as error:
            exchange(self._path(temp.name), self._store.index_path)
            raise Damaged(
                f"the index of agent {self._store.agent_id!r} was replaced by unreadable text while it was edited; "
                "it was left like that",
                agentId=self._store.agent_id,
            ) from error

    def _prepare(self, text: bytes) -> Temp:
        # Against a gateway that writes every few milliseconds only a short round wins: sync after the swap is won.
        # Until then recovery knows these files by their names alone.
        temp = write_temp(self._store, text, durable=False)
        self.attempt.temps.append(temp)
        self.attempt.expected.append(temp.identity)
        return temp

    def clean(self) -> None:
        """Removes the attempt's temporary files. Call it when nothing in them is needed any more."""
        for temp in self.attempt.temps:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(temp.name))

    def _path(self, name: str) -> str:
        return os.path.join(os.path.dirname(self._store.index_path), name)


def look_again(store: Store, swap: Swap) -> set[str]:
    """Repeats an edit in the version that a gateway wrote; returns names of removed files that are in use again."""
    if identity_of(store.index_path) == swap.installed and not swap.alive:
        return set()
    for _ in range(_LOOKS_AFTER):
        current = read_snapshot(store, now_ms())
        if current.index is None or current.identity is None:
            break
        text = None if current.identity == swap.installed else swap.merge(current.index)
        if text is None:
            break
        swap.install(current.index, current.identity, text)
    current = read_snapshot(store, now_ms())
    removals = swap.attempt.removals
    swap.alive |= living_ids(current, removals) & {r.session_id for r in removals}
    names = [source for r in removals for source, _ in r.files]
    return {n for files in files_by_session(names, current.sessions, store.sessions_dir).values() for n in files}


def parsed_by(index: Index) -> float:
    """Returns the time (monotonic seconds) at which a gateway that reads the index now has parsed it."""
    return time.monotonic() + _SETTLE_S + len(index.data) / _PARSE_BYTES_PER_S


def write_temp(
    store: Store,
    text: bytes | Sequence[bytes | memoryview],
    *,
    durable: bool = True,
    like: os.stat_result | None = None,
) -> Temp:
    """Writes a new version of the index (or its parts) to a temporary file of ours beside it. Raises Refused or Failed.

    Mode and owner are those of the index, or of ``like``.
    """
    folder = os.path.dirname(store.index_path)
    name = f"{_temp_prefix(store)}{os.getpid()}.{os.urandom(6).hex()}.{_digest(text)}{TEMP_SUFFIX}"
    with clear_errors("write the new index in", folder):
        return Temp(
            name, write_new(os.path.join(folder, name), text, like or os.stat(store.index_path), durable=durable)
        )


def is_temp(store: Store, name: str) -> bool:
    """Returns True if a name belongs to a temporary file of ours for a store's index; its folder may hold others."""
    prefix = _temp_prefix(store)
    return name.startswith(prefix) and name.endswith(TEMP_SUFFIX) and name.removeprefix(prefix).count(".") == 3


def _temp_prefix(store: Store) -> str:
    return OWN_PREFIX if store.index_name == INDEX_NAME else f"{OWN_PREFIX}{store.index_name}."


def is_ours(names: Iterable[str], text: bytes) -> bool:
    """Returns True if we wrote ``text`` into one of the temporary files ``names``, wherever it is now."""
    return _digest(text) in {name.split(".")[-2] for name in names}


def _digest(text: bytes | Iterable[bytes | memoryview]) -> str:
    found = hashlib.sha256()
    for part in (text,) if isinstance(text, bytes) else text:
        found.update(part)
    return found.hexdigest()[:16]
