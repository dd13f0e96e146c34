"""Marks that are sent to history, and their results."""

from __future__ import annotations

import threading
from typing import Literal, NamedTuple

# Agent id and session id: the same id in another agent is another session.
Name = tuple[str, str]
Status = Literal["active", "ended"]
Mark = Literal["active", "ended", "erased"]


class Results(NamedTuple):
    """What became of marks so far: ``delivered``, ``missing`` (no such row), ``refused`` each for a reason."""

    delivered: set[Name]
    missing: set[Name]
    refused: dict[Name, str]


class Tally:
    """Collects results from several threads; what is in none of its parts has not been told yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._results = Results(set(), set(), {})

    def delivered(self, *names: Name) -> None:
        """Notes rows that have their status now."""
        with self._lock:
            self._results.delivered.update(names)

    def missing(self, *names: Name) -> None:
        """Notes sessions that aria-api has no row of."""
        with self._lock:
            self._results.missing.update(names)

    def refused(self, name: Name, reason: str) -> None:
        """Notes a mark that aria-api does not take while it takes others."""
        with self._lock:
            self._results.refused[name] = reason

    def so_far(self) -> Results:
        """Returns a copy of what is known by now."""
        with self._lock:
            found = self._results
            return Results(set(found.delivered), set(found.missing), dict(found.refused))
