"""One session's way out of a store for ever: removed like any other, then erased with all that is left of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from session_manager.archives.erasing import Traces, erase
from session_manager.archives.work import Work
from session_manager.core.errors import UNSUPPORTED, Refused
from session_manager.core.protection import BUSY, Protection, refusal
from session_manager.core.session import Session
from session_manager.files.liveness import now_ms
from session_manager.stores.base import Choose
from session_manager.stores.openclaw_files.changing import end_earlier, has_unfinished
from session_manager.stores.openclaw_files.erasure import also_of, find_traces
from session_manager.stores.openclaw_files.gateway_lock import StoreLock
from session_manager.stores.openclaw_files.mentions import mentions
from session_manager.stores.openclaw_files.orphans import held_ids
from session_manager.stores.openclaw_files.removal import remove_locked
from session_manager.stores.openclaw_files.sharing import others_too, pass_on
from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import SQLITE_NAME, Store, listing
from session_manager.stores.openclaw_files.waiting import PUT_ASIDE, put_aside
from session_manager.stores.results import Erasure

_IN_SQLITE = "only the gateway writes its database, which may still hold the session"


def knows(work: Work, store: Store, session_id: str, sessions: Sequence[Session], names: Sequence[str]) -> bool:
    """Returns True if the store or the ledger has anything of a session, or a killed process left work to finish."""
    return (
        any(session.id == session_id for session in sessions)
        or has_unfinished(work, store, names)
        or _is_in_ledger(work, store, session_id)
        or bool(work.removed(session_id, store.agent_id))
        or bool(_traces(work, store, sessions, names, session_id, ()).files)
    )


def erase_in(
    work: Work,
    store: Store,
    lock: StoreLock,
    session_id: str,
    choose: Choose,
    shared: Collection[str],
    into: Erasure,
    *,
    held_too: bool,
) -> None:
    """Removes the live session and erases the rest, for a caller that holds the lock. Raises LockLost, too.

    ``held_too``: even if a program holds its files.
    """
    keys = _remove(work, store, lock, session_id, choose, shared, into)
    pass_on(work, store, session_id)
    into.shared += others_too(work, store, session_id)
    names = listing(store)
    if not held_too and held_ids(store, names, (session_id,), now_ms()):
        raise refusal(Protection(BUSY, overridable=True), session_id, "erased")
    traces = _traces(work, store, read_snapshot(store, now_ms()).sessions, names, session_id, shared)
    if traces.files or _is_in_ledger(work, store, session_id):
        erased = erase(store, lock, work.ledger, work.run, session_id, traces, keys, also_of(store, session_id))
        into.known = into.changed = True
        into.files, into.bytes, into.entries = erased.files, erased.bytes, erased.entries
        into.spared, into.unerased = erased.spared, erased.failures
    else:
        into.known = bool(work.removed(session_id, store.agent_id))


def _remove(
    work: Work,
    store: Store,
    lock: StoreLock,
    session_id: str,
    choose: Choose,
    shared: Collection[str],
    into: Erasure,
) -> int:
    """Removes the session from the index; returns how many keys it had there."""
    if store.database:
        _leave_to_gateway(work, store, lock, session_id, into)
        return 0
    outcome = remove_locked(work, store, lock, choose, shared, erased=session_id)
    into.recovered += outcome.recovered
    into.reappeared += outcome.reappeared
    into.gone += [removal for removal in outcome.removed if removal.session_id == session_id]
    keys = sum(len(removal.keys) for removal in outcome.removed)
    into.keys += keys
    if outcome.alive:
        raise Refused(f"session {session_id} has just become active and was kept", code="session_busy")
    for failed, error in outcome.failures:
        if failed == session_id:
            raise error
        into.failures.append((failed, error))
    return keys


def _leave_to_gateway(work: Work, store: Store, lock: StoreLock, session_id: str, into: Erasure) -> None:
    """Recovers an interrupted run. Raises Refused when the gateway's database has the session."""
    _, recovered, failures = end_earlier(work, store, lock)
    into.recovered += recovered
    into.failures += failures
    if any(session.id == session_id for session in read_snapshot(store, now_ms()).sessions):
        raise Refused(
            f"session {session_id} of agent {store.agent_id!r} is in the gateway's database, which only the "
            "gateway may edit; delete it there (`openclaw sessions`), then call again",
            code=UNSUPPORTED,
            agentId=store.agent_id,
        )


def _is_in_ledger(work: Work, store: Store, session_id: str) -> bool:
    ledger = work.existing_ledger
    return ledger is not None and ledger.holds(store.agent_id, session_id)


def _traces(
    work: Work,
    store: Store,
    sessions: Sequence[Session],
    names: Sequence[str],
    session_id: str,
    shared: Collection[str],
) -> Traces:
    return find_traces(store, sessions, names, session_id, work.existing_ledger, work.second_names, shared)


def left_of(store: Store, session_id: str) -> list[tuple[str, str]]:
    """Returns (place, reason) of what an erasure could not reach."""
    holding, unread = mentions(store, listing(store), session_id)
    found = _with_gateway(store, session_id) if store.database else []
    folder = f"{store.agent_id}/sessions"
    found += [(f"{folder}/{name}", "it contains the session's id") for name in holding]
    return found + [(f"{folder}/{name}", "it could not be read completely") for name in unread]


def _with_gateway(store: Store, session_id: str) -> list[tuple[str, str]]:
    """Returns where a gateway may have a session of an agent that has moved to SQLite."""
    found = [(f"{store.agent_id}/agent/{SQLITE_NAME}", _IN_SQLITE)]
    folder = f"{store.agent_id}/{PUT_ASIDE}"
    try:
        names = put_aside(store, session_id)
    except OSError as error:
        return [*found, (folder, f"it could not be read: {error.strerror}")]
    return found + [(f"{folder}/{name}", "an import put it aside") for name in names]
