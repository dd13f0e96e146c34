"""Three-way merge of an index by key, for gateways that write without taking the lock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from session_manager.core.index import Index
from session_manager.core.session import entry_activity, trimmed_or_none
from session_manager.ledger import Removal
from session_manager.stores.openclaw_files.store import Snapshot


class Merged(msgspec.Struct):
    """The merged text (None when ``theirs`` can stay as it is) and the sessions that turned out to be alive."""

    text: bytes | None
    alive: set[str]


def merge(theirs: Index, removals: Sequence[Removal], base: Index, mine: Index) -> Merged:
    """Merges our removals, and all other changes of ``mine`` since ``base``, into a version that the gateway wrote.

    A removed key that is back unchanged is the gateway's stale copy and is removed again. One that changed and still
    belongs to its session is a sign of life: the session stays, with all its keys. If both sides changed a key, theirs
    wins.
    """
    gone = {key: (r.session_id, member) for r in removals for key, member in zip(r.keys, r.members, strict=False)}
    # An entry without a session id is identified by its key.
    session_ids = {key: trimmed_or_none(entry.session_id) or key for key, entry in theirs.decoded() if key in gone}
    alive = {
        session_id
        for key, (session_id, member) in gone.items()
        if session_ids.get(key) == session_id and theirs.raw(key)[1] != bytes(member[1])
    }
    remove = {
        key
        for key, (sid, member) in gone.items()
        if sid not in alive and key in theirs.entries and theirs.raw(key)[1] == bytes(member[1])
    }
    put = {key: member for key, (sid, member) in gone.items() if sid in alive and key not in theirs.entries}
    for key in {**base.entries, **mine.entries}:
        if key in gone:
            continue
        before, ours, now = (_value(side, key) for side in (base, mine, theirs))
        if ours == before or now != before:
            continue
        if ours is None:
            remove.add(key)
        else:
            put[key] = mine.raw(key)
    return Merged(theirs.edited(remove, put) if remove or put else None, alive)


def _value(side: Index, key: str) -> bytes | None:
    return side.raw(key)[1] if key in side.entries else None


def living_ids(snapshot: Snapshot, removals: Iterable[Removal]) -> set[str]:
    """Returns the ids of all sessions in an index; for removed entries without an id (``removals``), their keys."""
    found = {session.id for session in snapshot.sessions}
    index = snapshot.index
    for removal in removals:
        (key, *more) = removal.keys or ("",)
        if index is not None and not more and key == removal.session_id and key in index.entries:
            found.update({key} if trimmed_or_none(index.entry(key).session_id) is None else ())
    return found


def union(current: Index, rescued: Index, removals: Sequence[Removal], now_ms: int) -> bytes | None:
    """Adds to ``current`` the keys that only ``rescued`` has, or has in a newer version; None if there are none.

    For two versions without a known common base: better restore a deleted key than lose a conversation.
    Removed keys that are unchanged in ``rescued`` stay removed.
    """
    gone = {key: member[1] for r in removals for key, member in zip(r.keys, r.members, strict=False)}
    put = {}
    for key in rescued.entries:
        member = rescued.raw(key)
        if key in gone and bytes(gone[key]) == member[1]:
            continue
        if key in current.entries:
            theirs = current.raw(key)[1]
            times = [entry_activity(side.entry(key), now_ms) or 0 for side in (rescued, current)]
            if theirs == member[1] or times[0] <= times[1]:
                continue
        put[key] = member
    return current.edited((), put) if put else None
