"""The hash chain: every change of the ledger's facts is an event, and every event seals all earlier ones.

An event's hash is SHA-256 over the previous hash and its own columns. It is computed in the transaction that makes
the change, under SQLite's write lock, so concurrent and killed processes leave one unbroken chain. Events by kind:

- ``run``: a run began; ``digest`` over its row.
- ``intent``: an attempt began; ``digest`` over its row and over its removals' ids, sessions, reasons and digests.
- ``end``: ``state`` of the attempt, and the ids of removals that were ``kept``.
- ``file``: a removal's archive names or the owner of its files changed; its digest ``was`` and ``is``.
- ``restored``, ``purged``, ``erased``: the ids of these ``removals``, the ``run`` that did it, and how much it removed.
- ``owed``, ``heard``: marks that became pending, or were delivered, and the ``run`` that did it.
- ``seen``: the ledger was in use, see ``clock``.
- ``migrated``: the format that the ledger was converted from; older rows were not sealed before.

A removal's keys, files and facts are sealed with a salted digest: they can be erased, and the chain stays whole.
Not sealed: raw entries, which are dropped after some days; where they lie; and ``marks``, which is work still to do.
A broken chain blocks no work: the next event seals the state that it finds.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable
from typing import Any

import msgspec

from session_manager.files.liveness import now_ms

_SALT_BYTES = 16


def append(sql: sqlite3.Connection, kind: str, body: dict[str, Any]) -> int:
    """Adds an event, in the caller's transaction; returns its time (epoch ms)."""
    row = sql.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    seq, before = (row[0] + 1, row[1]) if row is not None else (1, b"")
    at, text = now_ms(), msgspec.json.encode(body).decode()
    sql.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", (seq, at, kind, text, link(before, seq, at, kind, text)))
    return at


def link(before: object, seq: object, at: object, kind: object, body: object) -> bytes:
    """Returns the hash of an event that follows one with the hash ``before``. Also takes damaged columns."""
    head = before if isinstance(before, bytes) else repr(before).encode()
    return hashlib.sha256(head + digest((seq, at, kind, body))).digest()


def digest(row: Iterable[object]) -> bytes:
    """Returns the digest of a row's columns: numbers, text, bytes or None."""
    return hashlib.sha256(msgspec.json.encode(tuple(row))).digest()


def reseal(sql: sqlite3.Connection, removal_id: int, details: bytes) -> None:
    """Replaces a removal's details and adds the event, in the caller's transaction."""
    row = sql.execute("SELECT digest FROM removals WHERE removal_id = ?", (removal_id,)).fetchone()
    sealed = seal(details)
    sql.execute(
        "UPDATE removals SET details = ?, digest = ? WHERE removal_id = ?", (details.decode(), sealed, removal_id)
    )
    was = row[0].hex() if row is not None and isinstance(row[0], bytes) else None
    append(sql, "file", {"removal": removal_id, "was": was, "is": sealed.hex()})


def seal(details: bytes) -> bytes:
    """Returns a fresh salt and the digest of ``details`` with it."""
    salt = os.urandom(_SALT_BYTES)
    return salt + hashlib.sha256(salt + details).digest()


def is_sealed(details: bytes, sealed: bytes) -> bool:
    """Returns True if ``sealed`` is a seal of ``details``."""
    salt = sealed[:_SALT_BYTES]
    return salt + hashlib.sha256(salt + details).digest() == sealed


class AttemptDigest:
    """The digest of an attempt's row (columns as in ``attempts``, state left out) and of its removals, in order."""

    def __init__(self, attempt: Iterable[object]) -> None:
        self._hash = hashlib.sha256(digest(attempt))
        self._encode = msgspec.json.Encoder().encode

    def add(self, removal_id: object, session_id: object, reason: object, sealed: object) -> None:
        """Adds a removal."""
        self._hash.update(self._encode((removal_id, session_id, reason, sealed)))

    def hex(self) -> str:
        """Returns the digest."""
        return self._hash.hexdigest()
