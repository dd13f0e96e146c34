"""The doctor's checks of the ledger, and of history behind aria-api."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from session_manager.core.diagnosis import Check, age, failed, plural, size
from session_manager.core.errors import Damaged, Failed, Refused, SessionManagerError
from session_manager.core.session import DAY_MS
from session_manager.files.liveness import iso_ms
from session_manager.files.owners import run_as
from session_manager.functions.context import Context, iso_utc
from session_manager.settings import ledger_path

if TYPE_CHECKING:
    from session_manager.history.client import Client
    from session_manager.ledger import Ledger, Unfinished

# Normally a service or the next work cycle delivers marks sooner.
_PATIENCE_MS = 3_600_000
# A call in progress must not be reported as killed.
_AT_WORK_MS = 60_000
_SHOWN = 5
_ADVICE = {
    "ledger_unsupported": "update this tool on this machine; it does not touch what a newer version wrote",
    "ledger_busy": "run doctor again in a moment",
}
_CHANGE_S = 1.0
_POLL_S = 0.02


def ledger_checks(context: Context) -> Iterator[Check]:
    """Yields the checks of the ledger, of unfinished runs and of pending marks. Opens the ledger read-only."""
    path = ledger_path(context.settings)
    yield from _delivery_lock(context)
    if left_in_the_middle(path):
        what = f"a killed process left a transaction open in {path}, or one is taking long"
        yield Check("ledger", False, what, "the next call that changes something rolls it back")
        return
    from session_manager.ledger import Ledger

    try:
        ledger = Ledger.open_existing(context.settings, "ro")
        if ledger is None:
            yield _none_yet(path)
            return
        with ledger:
            # Read everything before the first check: a ledger that fails midway is one bad ledger.
            checks = [
                _whole(ledger, path),
                _clock(context, ledger),
                _unfinished(context, ledger),
                _marks(context, ledger),
            ]
    except SessionManagerError as error:
        yield _unreadable(error, path)
    else:
        yield from checks


def _delivery_lock(context: Context) -> Iterator[Check]:
    from session_manager.files.liveness import kernel_lock_holder
    from session_manager.ledger.delivery_lock import LOCK_NAME

    pid = kernel_lock_holder(os.path.join(context.settings.state_dir, LOCK_NAME))
    if pid is not None:
        yield Check(
            f"lock {LOCK_NAME}",
            True,
            f"held by session_manager, pid {pid}, which is delivering status updates to history",
        )


def _none_yet(path: str) -> Check:
    if _has_second_names(os.path.dirname(path)):
        what = f"there is no ledger at {path}, but there are archives of earlier removals: its records of them are lost"
        return Check(
            "ledger", False, what, "restore it from a backup; references/recovery.md says what to do without one"
        )
    what = f"there is no ledger at {path} yet: nothing has been removed so far"
    place = os.path.dirname(path)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if os.access(place, os.W_OK | os.X_OK):
        return Check("ledger", True, what)
    refused = Refused(f"this user cannot write to {place}, so no ledger can be created", code="not_writable")
    return failed("ledger", refused, f"{run_as(place)}, or set ARIA_STATE_DIR to a writable folder")


def _has_second_names(state_dir: str) -> bool:
    from session_manager.archives.second_names import FOLDER

    try:
        with os.scandir(os.path.join(state_dir, FOLDER)) as found:
            return any(found)
    except OSError:
        return False


def _unreadable(error: SessionManagerError, path: str) -> Check:
    if error.code == "not_writable":
        return failed("ledger", error, run_as(path))
    return failed("ledger", error, _ADVICE.get(error.code, "move it away, or restore it from a backup"))


def left_in_the_middle(path: str) -> bool:
    """Returns whether the ledger has an interrupted transaction, after waiting for one in progress.

    SQLite itself would start to roll it back, or fail.
    """
    deadline = time.monotonic() + _CHANGE_S
    while _has_journal(path):
        if time.monotonic() > deadline:
            return True
        time.sleep(_POLL_S)
    return False


def _has_journal(path: str) -> bool:
    try:
        return os.stat(f"{path}-journal").st_size > 0
    except OSError:
        return False


def _whole(ledger: Ledger, path: str) -> Check:
    verdict = ledger.verify()
    try:
        bytes_ = size(os.stat(path).st_size)
    except OSError:
        bytes_ = "size unknown"
    what = f"{path}, {bytes_}: {plural(verdict.runs, 'run')}, {plural(verdict.removals, 'removal')}"
    if verdict.broken is None and not os.access(path, os.W_OK):
        refused = Refused(f"this user cannot write to the ledger {path}", code="not_writable")
        return failed("ledger", refused, run_as(path))
    if verdict.broken is None:
        return Check("ledger", True, f"{what}; its hash chain is intact")
    error = Damaged(
        f"the ledger's hash chain is broken at {verdict.broken.place}: {verdict.broken.reason}", code="ledger_broken"
    )
    advice = "find out who changed the ledger; other calls still work, and verify_ledger shows the details"
    return Check("ledger", False, f"{what}; {error.message}", advice, error)


def _clock(context: Context, ledger: Ledger) -> Check:
    """Checks whether the clock has jumped since the ledger was written, so that too much would count as old."""
    from session_manager.ledger.clock import JUMP_MS

    clock = ledger.clock(context.clock())
    set_it = "correct the clock if it is wrong; if it is right, there is nothing to do"
    if clock.is_ahead:
        what = f"{clock.told()}: nothing expires until the ledger has been in use for a day"
        harmless = clock.now - clock.trusted < context.settings.keep_days * DAY_MS
        return Check("clock", harmless, what, f"{set_it}; purge_archives works with force: true")
    if clock.last is not None and clock.last - clock.now > JUMP_MS:
        what = (
            f"{iso_ms(clock.now)}, earlier than the ledger's last entry ({iso_ms(clock.last)}): one of the two is wrong"
        )
        return Check("clock", False, what, set_it)
    if clock.trusted != clock.now:
        ages = f"until the ledger has been in use for a day, ages count as of {iso_ms(clock.trusted)}"
        return Check("clock", True, f"it has jumped ahead: {ages}", set_it)
    return Check("clock", True, "no jump in the ledger's latest entries")


def _unfinished(context: Context, ledger: Ledger) -> Check:
    runs = ledger.unfinished()
    if not runs:
        return Check("unfinished_runs", True, "none")
    shown = "; ".join(_told(run, context.clock()) for run in runs[:_SHOWN])
    more = "" if len(runs) <= _SHOWN else f"; and {len(runs) - _SHOWN} more"
    what = f"{plural(len(runs), 'unfinished run')}: {shown}{more}"
    if all(context.clock() - run.begun_at < _AT_WORK_MS for run in runs):
        return Check("unfinished_runs", False, what, "run doctor again in a minute: it may still be running")
    agents = ", ".join(sorted({run.agent_id for run in runs}))
    advice = f"the next call that changes {agents}, such as prune_sessions, finishes or undoes it"
    return Check("unfinished_runs", False, what, advice)


def _told(run: Unfinished, now_ms: int) -> str:
    since = age(now_ms - run.begun_at)
    return f"{run.function} of agent {run.agent_id} ({run.run_id}, pid {run.pid}, started {since} ago)"


def _marks(context: Context, ledger: Ledger) -> Check:
    marks = ledger.pending()
    if not marks:
        return Check("history_marks", True, "no status updates are pending")
    oldest = min(mark.changed_at for mark in marks)
    waits = age(context.clock() - oldest)
    what = f"{plural(len(marks), 'status update')} for history pending, the oldest for {waits}, since {iso_utc(oldest)}"
    if context.settings.api_url is None:
        return Check("history_marks", False, what, "set ARIA_API_URL: they cannot be delivered without it")
    if context.clock() - oldest < _PATIENCE_MS:
        return Check("history_marks", True, what)
    return Check(
        "history_marks",
        False,
        what,
        "call deliver_history: it delivers them, and gives the reason for any that stay pending",
    )


def history_checks(context: Context) -> Iterator[Check]:
    """Yields the checks of aria-api, of the token's scopes, and of the database behind it."""
    from session_manager.ledger import is_owed

    settings = context.settings
    if settings.api_url is None:
        yield Check("aria_api", True, "ARIA_API_URL is empty: history is turned off")
        return
    try:
        client = _client(context)
    except SessionManagerError as error:
        yield failed("aria_api", error, "install what is missing, or check ARIA_API_URL")
        return
    with client:
        nobody = None if settings.api_named else client.prove(settings.api_token)
        if nobody is not None and not is_owed(settings):
            what = (
                f"ARIA_API_URL is not set, and no aria-api answers at {settings.api_url}: there is no history service"
            )
            yield Check("aria_api", True, what)
            return
        health, why = (None, nobody) if nobody is not None else client.health()
    if health is None:
        unreachable = Failed(why or "aria-api cannot be reached", code="aria_api_unreachable")
        yield failed(
            "aria_api", unreachable, "start aria-api (session-manager serve), or set ARIA_API_URL to its address"
        )
        return
    version = "unknown version" if health.version is None else f"version {health.version}"
    yield Check("aria_api", True, f"{settings.api_url} answers, {version}")
    has = "no token is set" if settings.api_token is None else "ARIA_API_TOKEN is set"
    if health.token is not None:
        refused = Refused(f"{health.token}; {has}", code="aria_api_token")
        yield failed(
            "aria_api_token",
            refused,
            "set ARIA_API_TOKEN to a token with the scopes read and write: session-manager token create makes one",
        )
    else:
        may = {True: "this tool can change history", None: "unknown whether this tool can change history", False: ""}
        yield Check("aria_api_token", True, f"{has}; {may[health.may_write]}")
    if health.database is not None:
        unready = Failed(health.database, code="database_unavailable")
        yield failed("database", unready, "check the database that aria-api uses (its DATABASE_URL)")
    else:
        said = "aria-api is ready" if health.ready else "this aria-api does not report its state"
        yield Check("database", True, said)


def _client(context: Context) -> Client:
    """Opens the conversation with aria-api. Raises Failed when that is not possible."""
    settings = context.settings
    assert settings.api_url is not None
    try:
        from session_manager.history.client import Client
        from session_manager.history.connection import Unavailable
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        raise Failed(f"the Python package {name!r} is missing or broken ({error})", code="missing_package") from error
    try:
        return Client(settings.api_url, settings.api_token if settings.api_named else None, settings.api_timeout)
    except Unavailable as error:
        raise Failed(str(error), code="bad_setting") from error
