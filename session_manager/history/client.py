"""The skill's client of aria-api: reports ended sessions in bulk, and looks up one.

All work runs in a separate thread that is abandoned when the time is up: neither a name server that does not answer
nor a service that sends a byte a second holds the caller for longer than its budget.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self, TypeVar

from session_manager.history.connection import CONNECT_S, Connection, Unavailable
from session_manager.history.ghosts import Ghosts, delete_ghosts, list_ghosts
from session_manager.history.health import Health, prove, read_health
from session_manager.history.marking import Mark, Outcome, Status, erase_many, mark_in_bulk, mark_one_by_one
from session_manager.history.rows import Name, Row, read_rows

Found = TypeVar("Found")


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
        outcome = Outcome()
        _, error = self._in_time(lambda: self._mark(marks, outcome))
        return outcome.so_far(error)

    def find(self, session_id: str) -> tuple[list[Row], str | None]:
        """Returns the rows of a session id in any agent, and None; or none, and why aria-api could not be reached."""

        def work() -> list[Row]:
            reading = read_rows(self._connection, session_id)
            if reading.everything:
                self._all_rows = reading.rows
            return [row for row in reading.rows if row.session_id == session_id]

        rows, error = self._in_time(work)
        return rows or [], error

    def ghosts(self, older_than_minutes: int, most: int, *, delete: bool) -> tuple[Ghosts | None, str | None]:
        """Lists the first ``most`` conversations without a message and counts all, or deletes them.

        Returns None and the reason if aria-api could not be reached or did not report what it did.
        """
        asked = self._left_behind is None

        def work() -> Ghosts:
            if delete:
                return delete_ghosts(self._connection, older_than_minutes)
            return list_ghosts(self._connection, older_than_minutes, most)

        found, error = self._in_time(work)
        if error is None:
            return found, None
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

        return self._in_time(work, patience=CONNECT_S)[1]

    def health(self) -> tuple[Health | None, str | None]:
        """Returns the state of aria-api and the token's permissions; or None and why it could not be reached."""
        return self._in_time(lambda: read_health(self._connection))

    def _in_time(self, work: Callable[[], Found], patience: float | None = None) -> tuple[Found | None, str | None]:
        """Runs ``work`` in a thread and waits while there is budget, or ``patience`` (seconds).

        Returns its result, and None; or None, and the error as a sentence.
        """
        if self._left_behind is not None:
            return None, self._left_behind
        found: list[Found] = []
        errors: list[str] = []

        def run() -> None:
            try:
                found.append(work())
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
            return None, self._left_behind
        ends_at = self._ends_at if patience is None else min(self._ends_at, now + patience)
        thread.join(max(0.0, ends_at - time.monotonic()))
        if thread.is_alive():
            waited = budget if patience is None else patience
            self._left_behind = f"aria-api did not finish within {waited:g} s (ARIA_API_TIMEOUT)"
            if patience is not None:
                # An abandoned thread must not begin another request.
                self._connection.give_up(self._left_behind)
            return None, self._left_behind
        return (None, errors[0]) if errors else (found[0], None)

    def _mark(self, marks: Mapping[Name, Mark], outcome: Outcome) -> None:
        statuses: dict[Name, Status] = {name: mark for name, mark in marks.items() if mark != "erased"}
        if statuses:
            self._mark_statuses(statuses, outcome)
        if erased := [name for name, mark in marks.items() if mark == "erased"]:
            # A service that cannot erase has at least ended them. Erasing comes last: the token may not permit it.
            ended = Outcome()
            self._mark_statuses(dict.fromkeys(erased, "ended"), ended)
            erase_many(self._connection, ended, outcome)

    def _mark_statuses(self, marks: Mapping[Name, Status], outcome: Outcome) -> None:
        by_status: dict[Status, list[Name]] = {}
        for name, status in marks.items():
            by_status.setdefault(status, []).append(name)
        # A service that has just returned all rows has ignored the filter: it is an older one.
        if self._all_rows is not None or not mark_in_bulk(self._connection, by_status, outcome):
            if self._all_rows is None:
                self._all_rows = read_rows(self._connection).rows
            mark_one_by_one(self._connection, self._all_rows, marks, outcome)
