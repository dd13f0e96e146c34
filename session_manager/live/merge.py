"""Three-way merge of an index by key, for gateways that write without asking for the lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from session_manager.core.session import text_or_none
from session_manager.live.index import Index
from session_manager.live.ledger import Removal

Members = Mapping[str, tuple[bytes, bytes]]


class Merged(msgspec.Struct):
    """The merged text (None when ``theirs`` can stay as it is) and the sessions that turned out to be alive."""

    text: bytes | None
    alive: set[str]


def merge(theirs: Index, removals: Sequence[Removal], base: Mapping[str, Any], mine: Mapping[str, Any]) -> Merged:
    """Brings our removals, and whatever else ``mine`` changed since ``base``, into a version that the gateway wrote.

    ``base`` and ``mine`` map keys to raw values. A removed key that is there unchanged is the gateway's stale copy
    and goes again. One that changed and still belongs to its session is a sign of life: the session stays, with
    all its keys. Where both sides changed a key, theirs wins.
    """
    gone = {key: (r.session_id, member) for r in removals for key, member in zip(r.keys, r.members, strict=False)}
    session_ids = {key: text_or_none(entry.session_id) for key, entry in theirs.decoded() if key in gone}
    alive = {
        session_id
        for key, (session_id, member) in gone.items()
        if session_ids.get(key) == session_id and theirs.raw(key)[1] != member[1]
    }
    remove = {
        key
        for key, (sid, member) in gone.items()
        if sid not in alive and key in theirs.entries and theirs.raw(key)[1] == member[1]
    }
    put = {key: member for key, (sid, member) in gone.items() if sid in alive and key not in theirs.entries}
    for key in {**base, **mine}:
        if key in gone:
            continue
        before, ours, now = (_value(side, key) for side in (base, mine, theirs.entries))
        if ours == before or now != before:
            continue
        if ours is None:
            remove.add(key)
        else:
            put[key] = (_token(key), ours)
    return Merged(theirs.edited(remove, put) if remove or put else None, alive)


def _value(side: Mapping[str, Any], key: str) -> bytes | None:
    value = side.get(key)
    return None if value is None else bytes(value)


def _token(key: str) -> bytes:
    return msgspec.json.encode(key)
