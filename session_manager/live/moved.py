"""Agents that have moved to SQLite: how sessions that were archived from their files before are restored.

This tool never writes a gateway's database, and an index beside one keeps the gateway from starting. So a session is
restored as files: its transcripts under their live names, with no second name, because the gateway's import skips a
file that has one; and its entries in ``sessions.json.restored``, from where a person lets the gateway import them.

Order, each step durable before the next: the intent in the ledger; the files; the entries; second names; the end in the
ledger. If killed in between, the next call that takes the lock completes it, and also attempts from before the move.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from session_manager.core.errors import Refused
from session_manager.live.archive import Failures, archive_files, bring_back_files, forget_second_names
from session_manager.live.atomic import OWN_PREFIX, clear_errors, explain, private_in, sync_folder, write_new
from session_manager.live.gateway_lock import LockLost, StoreLock
from session_manager.live.index import Index
from session_manager.live.ledger import REMOVED, RESTORE, Attempt, Ledger, Removal, Removed
from session_manager.live.ledger.rows import Member
from session_manager.live.liveness import now_ms
from session_manager.live.observe import listing
from session_manager.live.second_names import PART, SecondNames, alone
from session_manager.live.snapshot import read_file, read_snapshot
from session_manager.live.steps import step
from session_manager.live.store import Snapshot, Store

if TYPE_CHECKING:
    from session_manager.live.removal import Remover
    from session_manager.live.restoration import Find, Restored

SUFFIX = ".restored"
PUT_ASIDE = "session-sqlite-import-archive"


def waiting_path(store: Store) -> str:
    """Returns the path of the file with the entries that are still to be imported."""
    return os.path.join(store.sessions_dir, store.index_name + SUFFIX)


def how_to_import(store: Store) -> str:
    """Returns a sentence on how the gateway imports the restored files."""
    return (
        f"agent {store.agent_id!r} keeps its sessions in SQLite, so only files were restored; to let the gateway "
        f"import them: stop the gateway, rename {waiting_path(store)} to {store.index_name} (the "
        "gateway does not start while it exists), run "
        f"`openclaw doctor --session-sqlite import --session-sqlite-agent {store.agent_id}`"
        ", start the gateway"
    )


def put_aside(store: Store, session_id: str) -> list[str]:
    """Returns the names of a session's files that imports have moved beside the sessions folder. Raises OSError.

    Gateway 2026.9.6: ``<key>.<id>.jsonl.imported-<time>``.
    """
    folder = os.path.join(store.gateways, store.agent_id, PUT_ASIDE)
    try:
        return sorted(name for name in os.listdir(folder) if session_id in name)
    except FileNotFoundError:
        return []


def held_keys(snapshot: Snapshot) -> dict[str, str]:
    """Returns the session of each key, in the database or among the entries still to be imported.

    Raises Refused if the file of these entries cannot be read.
    """
    waiting = _waiting(snapshot.store)
    held = {key: str(entry.session_id) for key, entry in waiting.decoded()}
    return held | {key: session.id for session in snapshot.sessions for key in session.keys}


def _waiting(store: Store) -> Index:
    path = waiting_path(store)
    try:
        return Index(read_file(path)[0])
    except FileNotFoundError:
        return Index(b"{}")
    except ValueError as error:
        raise Refused(
            f"{path} is not a JSON object ({error}); move it elsewhere and call again", code="not_restorable"
        ) from error
    except OSError as error:
        raise explain(error, "read", path) from error


def forget_waiting(store: Store, session_ids: Iterable[str]) -> None:
    """Removes sessions from the entries still to be imported. Raises Refused or Failed."""
    _edit(store, set(session_ids), {})


def _edit(store: Store, gone: set[str], put: Mapping[str, Member]) -> None:
    waiting, path = _waiting(store), waiting_path(store)
    text = waiting.edited([key for key, entry in waiting.decoded() if entry.session_id in gone], put)
    if text == waiting.data:
        return
    with clear_errors("write", path):
        if text == b"{}":
            os.unlink(path)
        else:
            temp = os.path.join(store.sessions_dir, f"{OWN_PREFIX}{os.getpid()}.{os.urandom(6).hex()}{PART}")
            write_new(temp, text, private_in(store.sessions_dir))
            os.replace(temp, path)
        sync_folder(store.sessions_dir)


def restore(remover: Remover, store: Store, lock: StoreLock, find: Find, *, skip_conflicts: bool) -> Restored:
    """Does what ``restoration.restore`` does, for a moved store."""
    from session_manager.live.restoration import LOST, Restored, refusal, split
    from session_manager.live.sharing import gather

    done, recovered, failures = remover.end_earlier(store, lock)
    going, blocked = split(remover.place(read_snapshot(store, now_ms()), listing(store)), find(remover.ledger))
    if blocked and not skip_conflicts:
        raise refusal(blocked)
    if not going:
        return Restored(done, blocked, recovered, failures)
    removed = [removal for life in going for removal in life]
    gather(remover, store, removed)
    back, failed = _execute(remover, store, lock, removed)
    alive = {removal.session_id for removal in back}
    lost = [life for life in going if life[0].session_id not in alive]
    if lost:
        place = remover.place(read_snapshot(store, now_ms()), listing(store))
        blocked += [(life, place.obstacle(life) or LOST) for life in lost]
        if not back and not done:
            raise failed[0][1] if failed else refusal(blocked)
    return Restored(done + back, blocked, recovered, failures + failed)


def _execute(
    remover: Remover, store: Store, lock: StoreLock, removed: Sequence[Removed]
) -> tuple[list[Removal], Failures]:
    attempt = remover.ledger.intend_restore(remover.run, store.store_id, store.agent_id, [], [], removed)
    step("restore intended")
    try:
        alive, failures = settle(store, lock, remover.ledger, attempt)
    except LockLost:
        raise
    except BaseException:
        # If this cannot be undone now either, the next call ends it.
        with contextlib.suppress(Exception):
            settle(store, lock, remover.ledger, attempt, forward=False)
        raise
    return [removal for removal in attempt.removals if removal.session_id in alive], failures


def settle(
    store: Store, lock: StoreLock, ledger: Ledger, attempt: Attempt, *, forward: bool = True
) -> tuple[set[str], Failures]:
    """Ends an attempt to remove or to restore; returns the live sessions, and the files that could not be moved.

    A restore is completed, unless ``forward`` is False. For a removal from before the move, the sessions that the
    gateway has taken into its database live; an orphan's files are restored. Raises LockLost, Refused, Damaged or
    Failed.
    """
    second_names = SecondNames(ledger.state_dir)
    snapshot = read_snapshot(store, now_ms())
    living = {session.id for session in snapshot.sessions}
    failures: Failures = []
    with clear_errors("recover the store in", store.sessions_dir):
        if attempt.kind == RESTORE:
            back = _back(store, snapshot, second_names, attempt, failures) if forward else []
        else:
            back = [r for r in attempt.removals if not r.keys and r.session_id not in living]
            failures += bring_back_files(store, second_names, attempt, back)[0]
        alive = {r.session_id for r in attempt.removals if r.session_id in living}
        alive |= {r.session_id for r in back}
        gone = [r for r in attempt.removals if r.session_id not in alive]
        # A file that was restored before stays where it is.
        gone = [r for r in gone if ledger.removal(r.removal_id).state == REMOVED]
        spared = _never_brought_back(store, second_names, attempt, gone)
        failures += archive_files(store, lock, ledger, second_names, attempt, gone, spared)
        second_names.keep(store, lock, attempt, gone)
        sync_folder(store.sessions_dir)
        step("files back")
        if attempt.kind == RESTORE:
            put = {k: m for r in back for k, m in zip(r.keys, r.members, strict=True)}
            _edit(store, {r.session_id for r in gone}, put)
            step("entries written")
        forget_second_names(store, second_names, attempt, back)
        failures += _without_second_names(store, back)
        step("second names dropped")
    ledger.finish(attempt, alive, complete=not failures)
    step("end noted")
    return alive, failures


def _never_brought_back(store: Store, second_names: SecondNames, attempt: Attempt, gone: Sequence[Removal]) -> set[str]:
    from session_manager.live.recovery import never_brought_back

    return never_brought_back(store, second_names, attempt, gone)


def _back(
    store: Store, snapshot: Snapshot, second_names: SecondNames, attempt: Attempt, failures: Failures
) -> list[Removal]:
    """Gives files their live names; returns the removals of complete sessions, whose keys may be restored.

    Sessions that the database has by now stay archived.
    """
    held, living = held_keys(snapshot), {session.id for session in snapshot.sessions}
    able = [r for r in attempt.removals if r.session_id not in living and len(r.members) == len(r.keys)]
    able = [r for r in able if all(held.get(key, r.session_id) == r.session_id for key in r.keys)]
    failed, taken = bring_back_files(store, second_names, attempt, able)
    failures += failed
    there = set(os.listdir(store.sessions_dir)).difference(taken)
    broken = {r.session_id for r in attempt.removals if r not in able}
    broken.update(session_id for session_id, _ in failed if session_id is not None)
    broken.update(r.session_id for r in able if not there.issuperset(source for source, _ in r.files))
    return [r for r in able if r.session_id not in broken]


def _without_second_names(store: Store, back: Iterable[Removal]) -> Failures:
    """Makes sure that files have one name only; returns the failures."""
    failures: Failures = []
    for removal in back:
        for source, _ in removal.files:
            path = os.path.join(store.sessions_dir, source)
            try:
                alone(path)
            except OSError as error:
                failures.append((removal.session_id, explain(error, "copy", path)))
    return failures
