"""Marks that are sent to history, and their results."""

from __future__ import annotations

import threading
from typing import Literal, NamedTuple

# Agent id and session id: the same id in another agent is another session.
Name = tuple[str, str]
Status = Literal["active", "ended"]
Mark = Literal["active", "ended", "erased"]


class Results(NamedTuple):
    """The results of marks so far: ``delivered``, ``missing`` (no such row), ``refused`` each for a reason."""

    delivered: set[Name]
    missing: set[Name]
    refused: dict[Name, str]


class Tally:
    """Collects results from several threads; a mark in none of its parts was not sent yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._results = Results(set(), set(), {})

    def delivered(self, *names: Name) -> None:
        """Records rows that have their status now."""
        with self._lock:
            self._results.delivered.update(names)

    def missing(self, *names: Name) -> None:
        """Records sessions without a row in aria-api."""
        with self._lock:
            self._results.missing.update(names)

    def refused(self, name: Name, reason: str) -> None:
        """Records a mark that aria-api refuses while it accepts others."""
        with self._lock:
            self._results.refused[name] = reason

    def so_far(self) -> Results:
        """Returns a copy of the results so far."""
        with self._lock:
            found = self._results
            return Results(set(found.delivered), set(found.missing), dict(found.refused))
