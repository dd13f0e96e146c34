"""Sends marks of sessions to history: in bulk, or row by row to an older aria-api, which knows no bulk requests."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import quote

import msgspec

from session_manager.history.connection import CONCURRENCY, Answer, Connection
from session_manager.history.rows import PATH, Name, Row

Status = Literal["active", "ended"]
Mark = Literal["active", "ended", "erased"]

MANY = 10_000
TOO_OLD = "aria-api is too old to erase a session: its row was ended, and its details stay until aria-api is updated"
_UNKNOWN_REQUEST = (404, 405, 501)
_TOO_MUCH_OR_WRONG = (400, 413, 422)
# The limit of one run for finding out which marks a service refuses.
_MAX_REQUESTS = 256
_MAX_REFUSALS_IN_A_ROW = 64


class Outcome(msgspec.Struct):
    """The results of marks: ``delivered``, ``missing`` (no such row), ``refused`` each for a reason.

    ``error`` says why the marks in none of the parts were not sent, or is None. Several threads add results, each with
    one call of a set or a dict, which no other thread interrupts.
    """

    delivered: set[Name] = set()
    missing: set[Name] = set()
    refused: dict[Name, str] = {}
    error: str | None = None

    def so_far(self, error: str | None) -> Outcome:
        """Returns a copy that no other thread changes."""
        return Outcome(set(self.delivered), set(self.missing), dict(self.refused), error)


class _Session(msgspec.Struct):
    agent_id: str
    aria_session_id: str


class _Marked(msgspec.Struct):
    updated: int
    missing: list[_Session]


class _Erased(msgspec.Struct):
    erased: int
    missing: list[_Session]


def mark_in_bulk(connection: Connection, by_status: Mapping[Status, Sequence[Name]], outcome: Outcome) -> bool:
    """Gives sessions their status; returns False if the service does not know the request. Raises Unavailable."""
    chunks = deque((status, some) for status, names in by_status.items() for some in _chunks(names))
    refusals = 0
    for _ in range(len(chunks) + _MAX_REQUESTS):
        if not chunks:
            return True
        status, names = chunks.popleft()
        answer = connection.request("PATCH", PATH, body={"status": status, **_body(names)})
        if answer.status == 200:
            refusals = 0
            _record(connection, answer, _Marked, names, outcome)
        elif answer.status in _UNKNOWN_REQUEST:
            return False
        elif answer.status not in _TOO_MUCH_OR_WRONG:
            raise connection.give_up(f"aria-api answered {answer.status} at PATCH {connection.url}{PATH}")
        else:
            refusals += 1
            if len(names) > 1:
                middle = len(names) // 2
                chunks += [(status, names[:middle]), (status, names[middle:])]
            else:
                outcome.refused[names[0]] = f"aria-api rejects this status update ({answer.status})"
            if refusals == _MAX_REFUSALS_IN_A_ROW:
                break
    if chunks:
        raise connection.give_up("aria-api rejects too many status updates (400, 413 or 422); check its log")
    return True


def erase_many(connection: Connection, ended: Outcome, outcome: Outcome) -> None:
    """Erases the sessions that were ``ended`` just now; passes on the results of those that could not be ended.

    Raises Unavailable.
    """
    outcome.missing.update(ended.missing)
    outcome.refused.update(ended.refused)
    chunks = _chunks(sorted(ended.delivered))
    for place, names in enumerate(chunks):
        answer = connection.request("POST", f"{PATH}/erase", body=_body(names))
        if answer.status in _UNKNOWN_REQUEST:
            outcome.refused.update(dict.fromkeys((name for rest in chunks[place:] for name in rest), TOO_OLD))
            return
        if answer.status != 200:
            raise connection.give_up(f"aria-api answered {answer.status} at POST {connection.url}{PATH}/erase")
        _record(connection, answer, _Erased, names, outcome)


def _chunks(names: Sequence[Name]) -> list[Sequence[Name]]:
    return [names[start : start + MANY] for start in range(0, len(names), MANY)]


def _body(names: Sequence[Name]) -> dict[str, object]:
    return {"sessions": [{"agent_id": agent_id, "aria_session_id": session_id} for agent_id, session_id in names]}


def _record(
    connection: Connection, answer: Answer, kind: type[_Marked | _Erased], names: Sequence[Name], outcome: Outcome
) -> None:
    rows = connection.json(answer, kind).missing
    missing = {(row.agent_id, row.aria_session_id) for row in rows} & set(names)
    outcome.missing.update(missing)
    outcome.delivered.update(set(names) - missing)


def mark_one_by_one(
    connection: Connection, rows: Sequence[Row], marks: Mapping[Name, Status], outcome: Outcome
) -> None:
    """Gives every row of each session its status, a few at a time. Raises Unavailable."""
    found: dict[Name, list[Row]] = {name: [] for name in marks}
    for row in rows:
        if row.name in marks:
            found[row.name].append(row)
    outcome.missing.update(name for name, mine in found.items() if not mine)
    work = {name: [row for row in mine if row.status != marks[name]] for name, mine in found.items() if mine}
    outcome.delivered.update(name for name, mine in work.items() if not mine)
    jobs = iter([(name, mine) for name, mine in work.items() if mine])
    lock = threading.Lock()
    errors: list[Exception] = []

    def run() -> None:
        while not errors:
            with lock:
                job = next(jobs, None)
            if job is None:
                return
            name, mine = job
            try:
                _mark(connection, name, mine, marks[name], outcome)
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=run, name="history row", daemon=True) for _ in range(CONCURRENCY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _mark(connection: Connection, name: Name, rows: Sequence[Row], status: Status, outcome: Outcome) -> None:
    gone = 0
    for row in rows:
        answer = connection.request("PATCH", f"{PATH}/{quote(row.id, safe='')}", body={"status": status})
        if answer.status in (404, 410):
            gone += 1
        elif answer.status not in (200, 201, 202, 204):
            outcome.refused[name] = f"aria-api rejects this status update ({answer.status})"
            return
    (outcome.missing if gone == len(rows) else outcome.delivered).add(name)
