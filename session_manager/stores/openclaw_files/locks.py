"""Lists the locks of a store and their holders, without taking any."""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec

from session_manager.files.liveness import (
    OWNER,
    STORE_STALE_MS,
    TRANSCRIPT_STALE_MS,
    Marker,
    is_held,
    kernel_lock_holder,
    owner_lives,
    process_lives,
    read_marker,
    written_at,
)
from session_manager.stores.openclaw_files.gateway_lock import KERNEL_LOCK_NAME
from session_manager.stores.openclaw_files.gateways import vouched_in
from session_manager.stores.openclaw_files.store import Store
from session_manager.stores.openclaw_files.transcripts import LOCK_SUFFIX

ALIVE, UNSEEN, STALE = "alive", "unseen", "stale"


class Lock(msgspec.Struct, frozen=True):
    """One lock. ``who`` is ``gateway``, ``session_manager`` or ``unknown``; ``age_ms`` is None if unknown.

    ``state`` is ``alive`` (its holder lives here), ``unseen`` (respected, though its holder is not visible here: it may
    live in another container) or ``stale`` (nobody respects it any more). ``store``: it locks the whole store, not one
    transcript. ``program`` is what the pid in a gateway's lock runs here, if that is no gateway.
    """

    name: str
    who: str
    pid: int | None
    age_ms: int | None
    state: str
    store: bool
    program: str | None = None


def locks(store: Store, names: Iterable[str], now_ms: int) -> list[Lock]:
    """Returns the locks, held or left over, of a store with ``names`` in its folder; those of the whole store first."""
    found = [_marker(store, store.marker_name, STORE_STALE_MS, now_ms)]
    pid = kernel_lock_holder(os.path.join(store.sessions_dir, KERNEL_LOCK_NAME))
    if pid is not None:
        found.append(Lock(KERNEL_LOCK_NAME, OWNER, pid, None, ALIVE, True))
    found += [
        _marker(store, name, TRANSCRIPT_STALE_MS, now_ms)
        for name in sorted(names)
        if name.endswith(".jsonl" + LOCK_SUFFIX)
    ]
    return [lock for lock in found if lock is not None]


def _marker(store: Store, name: str, stale_ms: int, now_ms: int) -> Lock | None:
    marker = read_marker(os.path.join(store.sessions_dir, name))
    if marker is None:
        return None
    payload = marker.payload
    if payload is not None and owner_lives(payload):
        state = ALIVE
    else:
        vouched = vouched_in(store.sessions_dir, store.gateways)
        state = UNSEEN if is_held(marker, stale_ms, now_ms, vouched) else STALE
    who = str(marker.holder()["who"])
    age = max(0, now_ms - written_at(marker, now_ms))
    pid = None if payload is None else payload.pid
    return Lock(name, who, pid, age, state, name == store.marker_name, _stranger(marker))


def _stranger(marker: Marker) -> str | None:
    payload = marker.payload
    if payload is None or marker.ours or not process_lives(payload.pid, payload.starttime):
        return None
    from session_manager.files.liveness import may_be_gateway, program_of

    return None if may_be_gateway(payload.pid) else program_of(payload.pid)
