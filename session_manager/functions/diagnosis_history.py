"""The doctor's look at the ledger, and at history behind aria-api."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from session_manager.core.errors import Damaged, Failed, Refused, SessionManagerError
from session_manager.core.session import DAY_MS
from session_manager.functions.context import Context, iso_utc
from session_manager.functions.diagnosis import Check, age, failed, plural, size
from session_manager.live.liveness import iso_ms
from session_manager.owners import run_as
from session_manager.settings import ledger_path

if TYPE_CHECKING:
    from session_manager.history.client import Client
    from session_manager.live.ledger import Ledger, Unfinished

# A service or the next work cycle takes marks sooner, when all is well.
_PATIENCE_MS = 3_600_000
# A call that is at work is no killed one.
_AT_WORK_MS = 60_000
_SHOWN = 5
_ADVICE = {
    "ledger_unsupported": "update this tool here; nothing of what a newer one wrote is touched",
    "ledger_busy": "look again in a moment",
}
_CHANGE_S = 1.0
_POLL_S = 0.02


def ledger_checks(context: Context) -> Iterator[Check]:
    """Yields the checks of the ledger, of unfinished runs and of marks that wait. Opens it for reading only."""
    path = ledger_path(context.settings)
    yield from _delivery_lock(context)
    if left_in_the_middle(path):
        what = f"{path} was left in the middle of a change by a process that was killed, or is being changed for long"
        yield Check("ledger", False, what, "the next call that changes something takes that change back")
        return
    from session_manager.live.ledger import Ledger

    try:
        ledger = Ledger.open_existing(context.settings, "ro")
        if ledger is None:
            yield _none_yet(path)
            return
        with ledger:
            # All is read before anything is told: a ledger that fails in the middle is one bad ledger.
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
    from session_manager.live.delivery_lock import LOCK_NAME
    from session_manager.live.locks import kernel_lock_holder

    pid = kernel_lock_holder(os.path.join(context.settings.state_dir, LOCK_NAME))
    if pid is not None:
        yield Check(f"lock {LOCK_NAME}", True, f"of session_manager, pid {pid}, which is delivering marks to history")


def _none_yet(path: str) -> Check:
    if _has_second_names(os.path.dirname(path)):
        what = f"there is none at {path}, and archives of earlier removals are there: what it knew of them is gone"
        return Check(
            "ledger", False, what, "restore it from a backup; references/recovery.md says what to do without one"
        )
    what = f"there is none yet at {path}: nothing was removed so far"
    place = os.path.dirname(path)
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    if os.access(place, os.W_OK | os.X_OK):
        return Check("ledger", True, what)
    refused = Refused(f"{place} cannot be written by this user, so no ledger can be made", code="not_writable")
    return failed("ledger", refused, f"{run_as(place)}, or set ARIA_STATE_DIR to a folder that may be written")


def _has_second_names(state_dir: str) -> bool:
    from session_manager.live.second_names import FOLDER

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
    """Says whether a change of the ledger was begun and not ended, after waiting for one that is under way.

    SQLite itself would begin to take it back, or fail.
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
        refused = Refused(f"the ledger {path} cannot be written by this user", code="not_writable")
        return failed("ledger", refused, run_as(path))
    if verdict.broken is None:
        return Check("ledger", True, f"{what}; its chain is whole")
    error = Damaged(
        f"the ledger's chain breaks at {verdict.broken.place}: {verdict.broken.reason}", code="ledger_broken"
    )
    advice = "find out who changed it; it blocks nothing, and verify_ledger says more"
    return Check("ledger", False, f"{what}; {error.message}", advice, error)


def _clock(context: Context, ledger: Ledger) -> Check:
    """Looks whether the clock has jumped since the ledger was written, so that too much would be old."""
    from session_manager.live.ledger.clock import JUMP_MS

    clock = ledger.clock(context.clock())
    set_it = "set the clock if it is wrong; if it is right, nothing is to be done"
    if clock.is_ahead:
        what = f"{clock.told()}: until the ledger has been in use for a day, what is kept for a time stays"
        harmless = clock.now - clock.trusted < context.settings.keep_days * DAY_MS
        return Check("clock", harmless, what, f"{set_it}, and purge_archives takes force: true")
    if clock.last is not None and clock.last - clock.now > JUMP_MS:
        what = f"{iso_ms(clock.now)}, before the ledger's last entry ({iso_ms(clock.last)}): one of both is wrong"
        return Check("clock", False, what, set_it)
    if clock.trusted != clock.now:
        what = f"it jumped ahead within a day of use: what is kept for a time is as old as at {iso_ms(clock.trusted)}"
        return Check("clock", True, what, set_it)
    return Check("clock", True, "no jump in what the ledger has seen lately")


def _unfinished(context: Context, ledger: Ledger) -> Check:
    runs = ledger.unfinished()
    if not runs:
        return Check("unfinished_runs", True, "none")
    shown = "; ".join(_told(run, context.clock()) for run in runs[:_SHOWN])
    more = "" if len(runs) <= _SHOWN else f"; and {len(runs) - _SHOWN} more"
    what = f"{plural(len(runs), 'run')} not finished: {shown}{more}"
    if all(context.clock() - run.begun_at < _AT_WORK_MS for run in runs):
        return Check("unfinished_runs", False, what, "look again in a minute: it may be at work")
    agents = ", ".join(sorted({run.agent_id for run in runs}))
    advice = f"the next call that changes something for {agents} finishes or undoes it, such as prune_sessions"
    return Check("unfinished_runs", False, what, advice)


def _told(run: Unfinished, now_ms: int) -> str:
    since = age(now_ms - run.begun_at)
    return f"{run.function} of agent {run.agent_id} ({run.run_id}, pid {run.pid}, begun {since} ago)"


def _marks(context: Context, ledger: Ledger) -> Check:
    marks = ledger.pending()
    if not marks:
        return Check("history_marks", True, "none waits")
    oldest = min(mark.changed_at for mark in marks)
    waits = age(context.clock() - oldest)
    what = f"{plural(len(marks), 'mark')} for history waiting, the oldest for {waits}, since {iso_utc(oldest)}"
    if context.settings.api_url is None:
        return Check("history_marks", False, what, "set ARIA_API_URL: without it they wait for ever")
    if context.clock() - oldest < _PATIENCE_MS:
        return Check("history_marks", True, what)
    return Check("history_marks", False, what, "deliver_history delivers them, and says why any still waits")


def history_checks(context: Context) -> Iterator[Check]:
    """Yields the checks of aria-api, of what the token may do there, and of the database behind it."""
    from session_manager.live.ledger import is_owed

    settings = context.settings
    if settings.api_url is None:
        yield Check("aria_api", True, "ARIA_API_URL is empty: there is no history layer")
        return
    try:
        client = _client(context)
    except SessionManagerError as error:
        yield failed("aria_api", error, "install what is missing, or check ARIA_API_URL")
        return
    with client:
        nobody = None if settings.api_named else client.prove(settings.api_token)
        if nobody is not None and not is_owed(settings):
            what = f"ARIA_API_URL is not set, and no aria-api answers at {settings.api_url}: there is no history layer"
            yield Check("aria_api", True, what)
            return
        health, why = (None, nobody) if nobody is not None else client.health()
    if health is None:
        unreachable = Failed(why or "aria-api cannot be asked", code="aria_api_unreachable")
        yield failed(
            "aria_api", unreachable, "start aria-api (session-manager serve), or set ARIA_API_URL to where it is"
        )
        return
    version = "its version unknown" if health.version is None else f"version {health.version}"
    yield Check("aria_api", True, f"{settings.api_url} answers, {version}")
    has = "no token is set" if settings.api_token is None else "ARIA_API_TOKEN is set"
    if health.token is not None:
        refused = Refused(f"{health.token}; {has}", code="aria_api_token")
        yield failed(
            "aria_api_token",
            refused,
            "do as it says, or set ARIA_API_TOKEN to one with read and write: session-manager token create",
        )
    else:
        may = {True: "and may change history", None: "whether it may change history is not known", False: ""}
        yield Check("aria_api_token", True, f"{has}, {may[health.may_write]}")
    if health.database is not None:
        unready = Failed(health.database, code="database_unavailable")
        yield failed("database", unready, "see to the database that DATABASE_URL names where aria-api runs")
    else:
        said = "aria-api says that it is ready" if health.ready else "this aria-api does not say how it is"
        yield Check("database", True, said)


def _client(context: Context) -> Client:
    """Begins the conversation with aria-api. Raises Failed when that is not possible."""
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
