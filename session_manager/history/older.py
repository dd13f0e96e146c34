"""Marks for an older aria-api, which updates one row at a time: matches rows here, and sends each separately."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from session_manager.history.connection import CONCURRENCY, Connection
from session_manager.history.marks import Name, Status, Tally
from session_manager.history.rows import PATH, Row


def mark_one_by_one(connection: Connection, rows: Sequence[Row], marks: Mapping[Name, Status], tally: Tally) -> None:
    """Gives every row of each session its status, a few at a time. Raises Unavailable."""
    found: dict[Name, list[Row]] = {}
    for row in rows:
        if row.name in marks:
            found.setdefault(row.name, []).append(row)
    tally.missing(*(name for name in marks if name not in found))
    work = {name: [row for row in mine if row.status != marks[name]] for name, mine in found.items()}
    tally.delivered(*(name for name, mine in work.items() if not mine))
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
                _mark(connection, name, mine, marks[name], tally)
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=run, name="history row", daemon=True) for _ in range(CONCURRENCY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _mark(connection: Connection, name: Name, rows: Sequence[Row], status: Status, tally: Tally) -> None:
    gone = 0
    for row in rows:
        answer = connection.request("PATCH", f"{PATH}/{quote(row.id, safe='')}", body={"status": status})
        if answer.status in (404, 410):
            gone += 1
        elif answer.status not in (200, 201, 202, 204):
            tally.refused(name, f"aria-api rejects this status update ({answer.status})")
            return
    if gone == len(rows):
        tally.missing(name)
    else:
        tally.delivered(name)
