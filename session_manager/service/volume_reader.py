"""Reads the agents directory as rows for history. Read-only; takes no lock."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from session_manager.core.errors import NotFound, SessionManagerError, failure, printable
from session_manager.core.session import Session, count_or_none, epoch_ms
from session_manager.files.liveness import now_ms
from session_manager.files.versions import Identity
from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import Store
from session_manager.stores.openclaw_files.volume import Volume

# The most characters of a session's id, and of an agent's or a type's name, in history.
ID_LIMIT = 256
NAME_LIMIT = 200
# Change this whenever the same entry gives a different row.
_FORMAT = "2"
_ABSENT = f"{_FORMAT}:absent"


class _Counters(msgspec.Struct, rename="camel"):
    """The counters of a SessionEntry, each as found (gateway 2026.2.17 to 2026.9.6)."""

    input_tokens: Any = None
    output_tokens: Any = None
    total_tokens: Any = None
    estimated_cost_usd: Any = None
    session_started_at: Any = None
    started_at: Any = None
    created_at: Any = None


_COUNTERS = msgspec.json.Decoder(_Counters)


class VolumeRead(msgspec.Struct):
    """One read of all indexes.

    ``versions`` maps each agent whose index is new to history to the version that was read, and ``rows`` are all
    their sessions; ``unchanged`` counts indexes that were not opened; ``skipped`` counts sessions whose id no database
    can hold; ``errors`` are the agents that could not be read.
    """

    versions: dict[str, str]
    rows: list[dict[str, Any]]
    unchanged: int
    skipped: int
    errors: list[dict[str, Any]]


def read_volume(volume: Volume, known: Mapping[str, str]) -> VolumeRead:
    """Reads every index whose version is not the ``known`` one of its agent.

    An unreadable index is an error of that agent, and says nothing about its sessions. Raises Failed when the directory
    itself cannot be read.
    """
    read = VolumeRead({}, [], 0, 0, [])
    agents = volume.agent_ids()
    absent = set(known).difference(agents)
    if volume.shared:
        # An agent without a key left in a shared index still has an empty part in it.
        agents, absent = [*agents, *sorted(absent)], set()
    for agent_id, store in volume.stores_of(agents):
        try:
            if isinstance(store, SessionManagerError):
                raise store
            if store is not None and is_storable(agent_id):
                _read_store(store, known.get(agent_id), read)
        except SessionManagerError as error:
            read.errors.append(failure(error, agent_id))
    for agent_id in sorted(absent):
        sentence = (
            f"the folder of agent {agent_id!r} is gone; its rows in history stay as they are until somebody marks them"
        )
        read.errors.append(failure(NotFound(sentence, code="agent_not_found"), agent_id))
    return read


def _read_store(store: Store, known: str | None, read: VolumeRead) -> None:
    if known is not None and known == _version_now(store):
        read.unchanged += 1
        return
    now = now_ms()
    snapshot = read_snapshot(store, now)
    version = _ABSENT if snapshot.identity is None else _version(snapshot.identity)
    if version == known:
        read.unchanged += 1
        return
    read.versions[store.agent_id] = version
    for session in snapshot.sessions:
        if not is_storable(session.id):
            read.skipped += 1
            continue
        assert snapshot.index is not None
        read.rows.append(_row(session, snapshot.index.entries[session.key], now))


def _version_now(store: Store) -> str | None:
    try:
        return _version(Identity.of(os.stat(store.index_path)))
    except OSError:
        return None


def _version(identity: Identity) -> str:
    return f"{_FORMAT}:{identity.inode}:{identity.size}:{identity.mtime_ns}"


def _row(session: Session, raw: Any, now: int) -> dict[str, Any]:
    counters = _counters(raw)
    times = (counters.session_started_at, counters.started_at, counters.created_at)
    started = next((at for value in times if (at := epoch_ms(value, now)) is not None), None)
    return {
        "agent_id": session.agent_id,
        "sid": session.id,
        "session_type": session.session_type,
        "started_at": _moment(started),
        "last_activity_at": _moment(session.entry_activity),
        "tokens_used": _tokens(counters),
        "cost_usd": _cost(counters.estimated_cost_usd),
        "metadata": {
            "aria_session_id": session.id,
            "key": storable_text(session.key),
            "label": _text_or_none(session.label),
            "model": _text_or_none(session.model),
            "context_tokens": session.context_tokens,
        },
    }


def _counters(raw: Any) -> _Counters:
    try:
        return _COUNTERS.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Counters()


def _tokens(counters: _Counters) -> int | None:
    parts = [_count(counters.input_tokens), _count(counters.output_tokens)]
    known = [n for n in parts if n is not None]
    return sum(known) if known else _count(counters.total_tokens)


def _count(value: object) -> int | None:
    number = count_or_none(value)
    return int(number) if number is not None and number >= 0 else None


def _cost(value: object) -> float | None:
    number = count_or_none(value)
    return round(float(number), 6) if number is not None and 0 <= number < 1e9 else None


def _moment(epoch: int | None) -> str | None:
    return None if epoch is None else datetime.fromtimestamp(epoch / 1000, UTC).isoformat(timespec="milliseconds")


def storable_text(value: str) -> str:
    """Returns text that PostgreSQL stores: U+FFFD stands for NUL and for halves of a surrogate pair."""
    return printable(value.replace("\0", "\ufffd"))


def _text_or_none(value: str | None) -> str | None:
    return None if value is None else storable_text(value)


def is_storable(name: str, limit: int = ID_LIMIT) -> bool:
    """Returns whether history can hold a name or an id as it is."""
    return 0 < len(name) <= limit and storable_text(name) == name
