"""Whether a lock file is held: by a living process here, or by one elsewhere that may still live."""

from __future__ import annotations

import functools
from collections.abc import Callable

from session_manager.live.liveness import Marker, Payload, process_lives, written_at


def is_held(marker: Marker, stale_ms: int, now_ms: int, vouched: Callable[[], bool]) -> bool:
    """Returns True if a lock file must be respected.

    A living process's lock always must. A dead one's is free at once only if its pid is meaningful here: this tool
    wrote the lock, or a gateway of this very store runs in this process namespace (``vouched``, see ``vouched_in``).
    Otherwise, and for garbage, the gateway's own staleness time must have passed, because a pid of another container
    looks dead here.
    """
    payload = marker.payload
    if payload is not None:
        if owner_lives(payload):
            return True
        if marker.ours or vouched():
            return False
    return 0 <= now_ms - written_at(marker, now_ms) < stale_ms


def vouched_in(sessions_dir: str, gateway_dir: str = "") -> Callable[[], bool]:
    """Returns a function that tells if a gateway of a store is visible here; it looks once, at its first call."""

    @functools.cache
    def looked() -> bool:
        from session_manager.live.gateways import vouches

        return vouches(sessions_dir, gateway_dir)

    return looked


def owner_lives(payload: Payload) -> bool:
    """Returns True if the process that a lock names lives here.

    Each container has a pid 1: if the one here is no gateway, it has not written a gateway's lock. Gateway 2026.6.11
    judges any pid like this, by the process's arguments.
    """
    if payload.pid == 1 and payload.starttime is None and process_lives(1, None):
        from session_manager.live.gateways import may_be_gateway

        return may_be_gateway(1)
    return process_lives(payload.pid, payload.starttime)
