"""Runs that changed nothing: a process keeps only the last of each job, in memory.

A run without a change or a new finding writes nothing, not even its own record. A replica that does not know of such a
run checks for itself.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec

from session_manager.service.db.jobs import Key, Run


class Result(msgspec.Struct, frozen=True):
    """What a step of a job did, as counts."""

    @property
    def wrote(self) -> bool:
        """Whether it changed anything."""
        return any(msgspec.structs.astuple(self))


class QuietRuns:
    """The last quiet run of each job in this process."""

    def __init__(self) -> None:
        self._runs: dict[Key, Run] = {}

    def latest(self, key: Key, noted: Run) -> Run:
        """Returns a job's last run: the database's, or a later one kept here."""
        own = self._runs.get(key)
        if own is None or own.ended_at is None or noted.ended_at is None or own.ended_at <= noted.ended_at:
            return noted
        return msgspec.structs.replace(own, now=noted.now, running=noted.running)

    def keep(
        self, key: Key, before: Run, result: Any, told: dict[str, Any], took_s: float, pause_s: float | None
    ) -> bool:
        """Keeps a run that ends now, after ``took_s`` seconds, if it is quiet; else returns False: record it.

        A quiet run changed nothing, and its ``told`` equals that of the run before, except for the duration.
        """
        quiet = isinstance(result, Result) and not result.wrote and before.outcome == "ok"
        if not quiet or _said(before.result) != _said(told):
            return False
        ended_at = before.now + timedelta(seconds=took_s)
        next_run_at = before.next_run_at if pause_s is None else ended_at + timedelta(seconds=pause_s)
        self._runs[key] = msgspec.structs.replace(
            before, started_at=before.now, ended_at=ended_at, result=told, next_run_at=next_run_at
        )
        return True


def _said(result: dict[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (result or {}).items() if name != "seconds"}
