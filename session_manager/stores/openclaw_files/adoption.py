"""Decides which transcripts without an entry get a new one, and what is in it."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

import msgspec

from session_manager.archives.names import is_text
from session_manager.core.keys import safe_name
from session_manager.core.orphans import ORPHAN, TOPIC
from session_manager.core.session import epoch_ms
from session_manager.stores.openclaw_files.names import session_id_of
from session_manager.stores.openclaw_files.observe import last_timestamp
from session_manager.stores.openclaw_files.orphans import Folder, Header, held_ids, read_header
from session_manager.stores.openclaw_files.store import Snapshot
from session_manager.stores.results import Adoption


class Unfit(Exception):
    """A transcript gets no entry; the message is the reason."""


def member(adoption: Adoption) -> tuple[bytes, bytes]:
    """Returns the raw member, with the gateway's indentation."""
    entry: dict[str, Any] = {"sessionId": adoption.id, "updatedAt": adoption.updated_at}
    if adoption.file != f"{adoption.id}.jsonl":
        entry["sessionFile"] = adoption.file
    if adoption.started_at is not None:
        entry["sessionStartedAt"] = adoption.started_at
    text = msgspec.json.format(msgspec.json.encode(entry), indent=2)
    return msgspec.json.encode(adoption.key), text.replace(b"\n", b"\n  ")


def decide(
    snapshot: Snapshot, folder: Folder, session_id: str | None, now: int
) -> tuple[list[Adoption], list[tuple[str, str]]]:
    """Picks the transcripts that get an entry: idle orphans and topic files that name their session.

    Returns also (file, reason) of those that get none. ``session_id``: only this session's.
    """
    store = snapshot.store
    # In a shared folder the keeper adopts files that belong to no agent.
    files = {name: session_id_of(name) or "" for name in folder.of_class(ORPHAN, TOPIC) if store.keeper}
    busy = held_ids(store, snapshot.names, set(files.values()), now)
    taken = set(snapshot.index.entries) if snapshot.index else set()
    living = {s.id for s in snapshot.sessions}
    adopted: dict[str, Adoption] = {}
    skipped = []

    def rank(name: str) -> tuple[bool, bool, int]:
        # A session's own file comes before its others, and before its topic files; then the newest.
        return (folder.classes[name] == TOPIC, name != f"{files[name]}.jsonl", -folder.mtimes.get(name, 0))

    for name in sorted(files, key=rank):
        path = os.path.join(store.sessions_dir, name)
        header = read_header(path)
        if session_id not in (None, files[name], header.id if header else None):
            continue
        try:
            if not is_text(name):
                raise Unfit("name is not UTF-8")
            if files[name] in busy:
                raise Unfit("busy")
            adoption = _adoption(store.agent_id, path, header, now, taken)
            if adoption.id in living:
                raise Unfit("has an entry")
            if adoption.id in adopted:
                raise Unfit("another file of the session was taken")
        except Unfit as why:
            skipped.append((name, str(why)))
        else:
            adopted[adoption.id] = adoption
            taken.add(adoption.key)
    return list(adopted.values()), skipped


def _adoption(agent_id: str, path: str, header: Header | None, now_ms: int, taken: Collection[str]) -> Adoption:
    """Derives the entry from a transcript. Raises Unfit."""
    if header is None or not isinstance(header.id, str):
        raise Unfit("no header")
    if session_id_of(f"{header.id}.jsonl") != header.id or not safe_name(header.id):
        raise Unfit("unsafe id")
    try:
        mtime_ms = os.lstat(path).st_mtime_ns // 1_000_000
        last = last_timestamp(path, now_ms, mtime_ms) or min(mtime_ms, now_ms)
    except OSError:
        raise Unfit("unreadable") from None
    started = epoch_ms(header.timestamp, now_ms)
    return Adoption(header.id, agent_id, _key(agent_id, header.id, taken), os.path.basename(path), last, started)


def _key(agent_id: str, session_id: str, taken: Collection[str]) -> str:
    """Returns a free key of type ``ui``, as a person's own chats have: no prune removes it by age."""
    plain = f"agent:{agent_id}:dashboard:{session_id}".lower()
    key, number = plain, 1
    while key in taken:
        number += 1
        key = f"{plain}-{number}"
    return key
