"""doctor: finds problems and says how to fix them."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from session_manager.archives.names import parse_archive
from session_manager.core.errors import Damaged, Locked, Refused, SessionManagerError
from session_manager.files.owners import run_as
from session_manager.functions.context import Context
from session_manager.functions.diagnosis import Check, age, failed, page, plural, size
from session_manager.settings import ledger_path
from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import Snapshot, Store, listing
from session_manager.stores.openclaw_files.whereabouts import is_transcript

if TYPE_CHECKING:
    from session_manager.ledger import Ledger

DESCRIPTION = (
    "Finds problems and says how to fix them. Checks the agents directory, every store, locks, the retention policy, "
    "free space, what the file systems can do, the ledger, the clock, unfinished runs, pending history marks, "
    "aria-api, its token and its database. Changes nothing."
)

_UNREADABLE = (
    "stop the gateway, then call readopt_orphans with rebuild: true or put a backup of sessions.json back; until then "
    "nothing is written to it"
)
_OTHER_USER = "run as the gateway's user, where the agents directory is mounted"
_ADVICE = {
    "store_unsupported": "list and delete them with the gateway's own `openclaw sessions`; other agents are unaffected",
    "outside_agents_dir": "mount the folder itself in the agents directory; links that lead outside are not followed",
}
# Longer than any gateway or call of ours locks a whole store.
_LONG_MS = 30_000
_SHOWN = 5


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of doctor: none."""


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns ``ok`` and ``checks``; a partial success when work is only pending.

    Raises the first failure that a function would meet, with all checks as its details.
    """
    from session_manager.functions.diagnosis_files import file_system_checks
    from session_manager.functions.diagnosis_history import history_checks, ledger_checks
    from session_manager.functions.diagnosis_settings import config_checks, disk_checks, policy_check

    checks = [_agents_dir(context), *config_checks(context)]
    if checks[0].ok:
        with _ledger(context) as ledger:
            for agent_id, store in context.volume.stores(None):
                checks += _agent(context, agent_id, store, ledger)
    checks.append(policy_check(context))
    checks += disk_checks(context)
    checks += file_system_checks(context)
    checks += ledger_checks(context)
    checks += history_checks(context)
    return page(checks)


def _agents_dir(context: Context) -> Check:
    settings = context.settings
    layout, passed_over = settings.place.layout, settings.place.passed_over
    root, named_by = settings.agents_dir if layout.root is None else layout.text, settings.agents_dir_from
    try:
        agents = context.volume.agent_ids()
    except SessionManagerError as error:
        return failed("agents_dir", error, _run_as(error, root))
    what = f"{root} ({named_by}): {plural(len(agents), 'agent')}"
    if passed_over:
        what += f"; no gateway uses {' or '.join(passed_over)} while this one exists"
    if not agents:
        return Check(
            "agents_dir",
            True,
            what,
            "if there should be some, set ARIA_AGENTS_DIR to the folder that holds <agent>/sessions",
        )
    return Check("agents_dir", True, what)


@contextlib.contextmanager
def _ledger(context: Context) -> Iterator[Ledger | None]:
    """Yields the ledger, read-only; None when there is none, or when its own check reports a problem."""
    from session_manager.functions.diagnosis_history import left_in_the_middle
    from session_manager.ledger import Ledger

    ledger = None
    if not left_in_the_middle(ledger_path(context.settings)):
        with contextlib.suppress(SessionManagerError):
            ledger = Ledger.open_existing(context.settings, "ro")
    with ledger or contextlib.nullcontext():
        yield ledger


def _agent(
    context: Context, agent_id: str, store: Store | SessionManagerError | None, ledger: Ledger | None
) -> Iterator[Check]:
    name = f"store {agent_id}"
    if store is None:
        yield Check(name, True, "no sessions folder", None, None, agent_id)
    elif isinstance(store, SessionManagerError):
        path = os.path.join(context.volume.root, agent_id, "sessions")
        yield failed(name, store, _ADVICE.get(store.code) or _run_as(store, path), agent_id)
    else:
        try:
            names = listing(store)
            found = _store(context, name, store)
            if isinstance(found, Check):
                yield found
            else:
                yield _described(name, found)
                yield from _privacy(found)
                yield from _halves(context, found, ledger)
            # Locks of a folder that agents share are reported once.
            yield from _locks(context, store, names) if store.keeper else ()
        except SessionManagerError as error:
            yield failed(name, error, _run_as(error, store.sessions_dir), agent_id)


def _run_as(error: SessionManagerError, path: str) -> str:
    return run_as(path) if error.code in ("not_readable", "not_writable") else _OTHER_USER


def _store(context: Context, name: str, store: Store) -> Snapshot | Check:
    try:
        return read_snapshot(store, context.clock())
    except Damaged as error:
        return failed(name, error, _UNREADABLE, store.agent_id)
    except Refused as error:
        return failed(name, error, _run_as(error, store.index_path), store.agent_id)


def _halves(context: Context, snapshot: Snapshot, ledger: Ledger | None) -> Iterator[Check]:
    """Yields a check for removed sessions with new messages, and for those with a transcript but no entry."""
    from session_manager.archives.second_names import SecondNames
    from session_manager.functions.reading import foreign_references, names_referred_to, read_view
    from session_manager.ledger import REMOVED, RESTORED
    from session_manager.stores.openclaw_files.waking import half_removed, strays

    store = snapshot.store
    if ledger is None:
        return
    try:
        second_names = SecondNames(context.settings.state_dir)
        halves = {r.session_id for r in half_removed(ledger, snapshot, snapshot.sessions, second_names)}
        lost = strays(ledger, snapshot, (REMOVED, RESTORED), ())
        if lost:
            references = foreign_references(read_view(context, None).agents)
            shared = names_referred_to(references, store, ())
            lost = strays(ledger, snapshot, (REMOVED, RESTORED), shared)
    except SessionManagerError:
        return
    if halves:
        woken = plural(len(halves), "session")
        what = f"{woken} received a message while removed, and the earlier messages are still in an archive"
        advice = (
            "the next prune_sessions joins both parts once the session is idle; restore_session does it for one session"
        )
        yield Check(f"woken {store.agent_id}", False, f"{what}: {_some(halves)}", advice, None, store.agent_id)
    if lost:
        have = "has" if len(lost) == 1 else "have"
        what = f"{plural(len(lost), 'removed session')} {have} a transcript but no index entry: {_some(lost)}"
        advice = "restore_session restores a session completely; cleanup_orphans archives the transcripts"
        yield Check(f"strays {store.agent_id}", False, what, advice, None, store.agent_id)


def _privacy(snapshot: Snapshot) -> Iterator[Check]:
    """Yields a warning when other users of this machine can read the index or transcripts."""
    store = snapshot.store
    places = [store.sessions_dir]
    while (parent := os.path.dirname(places[-1])) != places[-1]:
        places.append(parent)
    # A folder closed to others protects its files, whatever their modes.
    if not all(_mode(place) & stat.S_IXOTH for place in places):
        return
    files = [os.path.basename(store.index_path), *(name for name in snapshot.names if is_transcript(name))]
    open_files = [name for name in files if _mode(os.path.join(store.sessions_dir, name)) & stat.S_IROTH]
    if open_files:
        what = f"every user of this machine can read {plural(len(open_files), 'file')}, such as {open_files[0]}"
        advice = f"chmod 700 {store.sessions_dir}, as the gateway's user"
        yield Check(f"privacy {store.agent_id}", True, what, advice, None, store.agent_id)


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def _some(ids: Collection[str]) -> str:
    shown = sorted(ids)[:_SHOWN]
    more = f" and {len(ids) - len(shown)} more" if len(ids) > len(shown) else ""
    return ", ".join(shown) + more


def _described(name: str, snapshot: Snapshot) -> Check:
    store, names = snapshot.store, snapshot.names
    if store.shared_as is not None and not store.keeper:
        shared = f"{plural(len(snapshot.sessions), 'session')} in {store.index_name}, which all agents share"
        return Check(name, True, shared, None, None, store.agent_id)
    index_bytes = 0 if snapshot.index is None else len(snapshot.index.data)
    live = [n for n in names if parse_archive(n) is None and is_transcript(n)]
    archived = [n for n in names if parse_archive(n) is not None]
    what = (
        f"{store.index_name}, {size(index_bytes)}: {plural(len(snapshot.sessions), 'session')}; "
        f"{plural(len(live), 'transcript')}, {size(_bytes(store, live))}; "
        f"{plural(len(archived), 'archive')}, {size(_bytes(store, archived))}"
    )
    if snapshot.index is None:
        what = f"no index yet; {what}"
    kept = sorted(n for n in names if n.startswith((f"{store.index_name}.found.", f"{store.index_name}.damaged.")))
    if kept:
        what += f"; {plural(len(kept), 'index')} kept aside ({kept[-1]})".replace("indexs", "indexes")
    # Root may write everything.
    if not os.access(store.sessions_dir, os.W_OK | os.X_OK):
        refused = Refused(f"this user cannot write to {store.sessions_dir}", code="not_writable")
        return Check(name, False, f"{what}; {refused.message}", run_as(store.sessions_dir), refused, store.agent_id)
    return Check(name, True, what, None, None, store.agent_id)


def _bytes(store: Store, names: list[str]) -> int:
    total = 0
    for name in names:
        try:
            total += os.lstat(os.path.join(store.sessions_dir, name)).st_size
        except OSError:
            continue
    return total


def _locks(context: Context, store: Store, names: list[str]) -> Iterator[Check]:
    from session_manager.files.liveness import TRANSCRIPT_STALE_MS
    from session_manager.stores.openclaw_files.locks import ALIVE, STALE, UNSEEN, locks

    for lock in locks(store, names, context.clock()):
        name = f"lock {store.agent_id}/{lock.name}"
        pid = "an unknown process" if lock.pid is None else f"pid {lock.pid}"
        since = "" if lock.age_ms is None else f", {age(lock.age_ms)} old"
        told = {
            ALIVE: "which is running",
            UNSEEN: "which is not visible from here but may run in another container, so the lock is respected",
            STALE: "which has ended; the lock is no longer respected",
        }
        what = f"held by {lock.who}, {pid}{since}, {told[lock.state]}"
        advice = None
        if lock.program is not None:
            what += f"; here {pid} is {lock.program}, not a gateway"
            if lock.state == ALIVE and (lock.age_ms or 0) > TRANSCRIPT_STALE_MS:
                advice = f"if no gateway elsewhere uses this store, delete {lock.name}: nothing else will"
        if not lock.store:
            yield Check(name, True, what, advice, None, store.agent_id)
        elif lock.state == STALE:
            yield Check(name, False, what, "the next call that changes something removes it", None, store.agent_id)
        elif lock.age_ms is not None and lock.age_ms > _LONG_MS:
            error = Locked(f"the store of agent {store.agent_id!r} is locked: {what}")
            hangs = f"see what {pid} is doing; end it if it hangs"
            yield Check(name, False, what, advice or hangs, error, store.agent_id)
        else:
            yield Check(name, True, what, None, None, store.agent_id)
