"""The skill's client of aria-api: reports ended sessions in bulk, and looks up one.

All work runs in a separate thread that is abandoned when the time is up: neither a name server that does not answer
nor a service that sends a byte a second holds the caller for longer than its budget.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import msgspec

from session_manager.history.connection import CONNECT_S, Connection, Unavailable
from session_manager.history.erasing import MANY, UNKNOWN_REQUEST, Marked, erase_many, read_missing
from session_manager.history.ghosts import Ghosts, delete_ghosts, list_ghosts
from session_manager.history.health import Health, prove, read_health
from session_manager.history.marks import Mark, Name, Results, Status, Tally
from session_manager.history.older import mark_one_by_one
from session_manager.history.rows import PATH, Row, read_rows

_TOO_MUCH_OR_WRONG = (400, 413, 422)
# The limit of one run for finding out which marks a service refuses.
_MAX_REQUESTS = 256
_MAX_REFUSALS_IN_A_ROW = 64


class Outcome(msgspec.Struct):
    """The results of the marks. ``error`` says why the marks in none of the parts were not sent, or is None."""

    delivered: set[Name]
    missing: set[Name]
    refused: dict[Name, str]
    error: str | None


class Client:
    """One run's session with aria-api. A context manager; ``budget_s`` seconds in all, from the first request.

    Nothing raises: each error is a sentence in the result.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        budget_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._connection = Connection(url, token, budget_s, clock, sleep)
        self._all_rows: list[Row] | None = None
        self._left_behind: str | None = None
        self._ends_at: float | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left_behind = self._left_behind or "this conversation with aria-api is over"
        # A thread that was abandoned, by an interrupt or because time was up, still uses it and closes it itself.
        if self._thread is None or not self._thread.is_alive():
            self._connection.close()

    @property
    def reached(self) -> bool:
        """Returns True if aria-api may have received anything in this run."""
        return self._connection.reached or (self._thread is not None and self._thread.is_alive())

    def mark(self, marks: Mapping[Name, Mark]) -> Outcome:
        """Sends marks of sessions to aria-api: in bulk, or row by row to an older service."""
        tally = Tally()
        error = self._in_time(lambda: self._mark(marks, tally))
        results: Results = tally.so_far()
        return Outcome(results.delivered, results.missing, results.refused, error)

    def find(self, session_id: str) -> tuple[list[Row], str | None]:
        """Returns the rows of a session id in any agent, and None; or none, and why aria-api could not be reached."""
        found: list[Row] = []

        def work() -> None:
            reading = read_rows(self._connection, session_id)
            if reading.everything:
                self._all_rows = reading.rows
            found.extend(row for row in reading.rows if row.session_id == session_id)

        error = self._in_time(work)
        return ([], error) if error is not None else (found, None)

    def ghosts(self, older_than_minutes: int, most: int, *, delete: bool) -> tuple[Ghosts | None, str | None]:
        """Lists the first ``most`` conversations without a message and counts all, or deletes them.

        Returns None and the reason if aria-api could not be reached or did not report what it did.
        """
        found: list[Ghosts] = []
        asked = self._left_behind is None

        def work() -> None:
            if delete:
                found.append(delete_ghosts(self._connection, older_than_minutes))
            else:
                found.append(list_ghosts(self._connection, older_than_minutes, most))

        error = self._in_time(work)
        if error is None:
            return found[0], None
        connection, thread = self._connection, self._thread
        # An abandoned thread may still send the request.
        under_way = connection.reached and thread is not None and thread.is_alive()
        if delete and asked and (connection.doubtful or under_way):
            error += "; conversations may have been deleted: run this again"
        return None, error

    def prove(self, token: str | None) -> str | None:
        """Checks that an unknown service identifies itself as aria-api; returns the error, or None.

        Only then ``token`` is sent with each request. Call it before anything else.
        """

        def work() -> None:
            prove(self._connection)
            self._connection.authorize(token)

        return self._in_time(work, patience=CONNECT_S)

    def health(self) -> tuple[Health | None, str | None]:
        """Returns the state of aria-api and the token's permissions; or None and why it could not be reached."""
        found: list[Health] = []
        error = self._in_time(lambda: found.append(read_health(self._connection)))
        return (found[0], None) if error is None else (None, error)

    def _in_time(self, work: Callable[[], None], patience: float | None = None) -> str | None:
        """Runs ``work`` in a thread and waits while there is budget, or ``patience`` (seconds).

        Returns the error as a sentence, or None.
        """
        if self._left_behind is not None:
            return self._left_behind
        errors: list[str] = []

        def run() -> None:
            try:
                work()
            except Unavailable as error:
                errors.append(str(error))
            except Exception as error:
                import traceback

                traceback.print_exc(file=sys.stderr)
                errors.append(f"internal error while asking aria-api ({type(error).__name__}); see standard error")
            finally:
                self._connection.answered.set()
                if self._left_behind is not None:
                    self._connection.close()

        budget = self._connection.budget_s
        now = time.monotonic()
        self._ends_at = self._ends_at or now + budget
        thread = self._thread = threading.Thread(target=run, name="history", daemon=True)
        thread.start()
        if not self._connection.answered.wait(min(CONNECT_S, self._ends_at - now)):
            self._left_behind = f"aria-api cannot be reached at {self._connection.url} in time; is it running?"
            return self._left_behind
        ends_at = self._ends_at if patience is None else min(self._ends_at, now + patience)
        thread.join(max(0.0, ends_at - time.monotonic()))
        if thread.is_alive():
            waited = budget if patience is None else patience
            self._left_behind = f"aria-api did not finish within {waited:g} s (ARIA_API_TIMEOUT)"
            if patience is not None:
                # An abandoned thread must not begin another request.
                self._connection.give_up(self._left_behind)
            return self._left_behind
        return errors[0] if errors else None

    def _mark(self, marks: Mapping[Name, Mark], tally: Tally) -> None:
        statuses: dict[Name, Status] = {name: mark for name, mark in marks.items() if mark != "erased"}
        if statuses:
            self._mark_statuses(statuses, tally)
        if erased := [name for name, mark in marks.items() if mark == "erased"]:
            # A service that cannot erase has at least ended them. Erasing comes last: the token may not permit it.
            ended = Tally()
            self._mark_statuses(dict.fromkeys(erased, "ended"), ended)
            erase_many(self._connection, ended.so_far(), tally)

    def _mark_statuses(self, marks: Mapping[Name, Status], tally: Tally) -> None:
        by_status: dict[Status, list[Name]] = {}
        for name, status in marks.items():
            by_status.setdefault(status, []).append(name)
        # A service that has just returned all rows has ignored the filter: it is an older one.
        if self._all_rows is not None or not self._mark_in_bulk(by_status, tally):
            if self._all_rows is None:
                self._all_rows = read_rows(self._connection).rows
            mark_one_by_one(self._connection, self._all_rows, marks, tally)

    def _mark_in_bulk(self, by_status: Mapping[Status, Sequence[Name]], tally: Tally) -> bool:
        """Returns False if the service does not know the request. Raises Unavailable."""
        chunks = deque(
            (status, names[start : start + MANY])
            for status, names in by_status.items()
            for start in range(0, len(names), MANY)
        )
        refusals = 0
        for _ in range(len(chunks) + _MAX_REQUESTS):
            if not chunks:
                return True
            status, names = chunks.popleft()
            body = {"status": status, "sessions": [{"agent_id": a, "aria_session_id": s} for a, s in names]}
            answer = self._connection.request("PATCH", PATH, body=body)
            if answer.status == 200:
                refusals = 0
                missing = read_missing(self._connection, answer, Marked) & set(names)
                tally.missing(*missing)
                tally.delivered(*(set(names) - missing))
            elif answer.status in UNKNOWN_REQUEST:
                return False
            elif answer.status not in _TOO_MUCH_OR_WRONG:
                raise self._connection.give_up(
                    f"aria-api answered {answer.status} at PATCH {self._connection.url}{PATH}"
                )
            else:
                refusals += 1
                if len(names) > 1:
                    middle = len(names) // 2
                    chunks += [(status, names[:middle]), (status, names[middle:])]
                else:
                    tally.refused(names[0], f"aria-api rejects this status update ({answer.status})")
                if refusals == _MAX_REFUSALS_IN_A_ROW:
                    break
        if chunks:
            raise self._connection.give_up("aria-api rejects too many status updates (400, 413 or 422); check its log")
        return True
