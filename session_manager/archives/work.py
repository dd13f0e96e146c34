"""A run at work: its ledger, its second names, its clock, and what turned out weaker; whatever store it changes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any, Self

from session_manager.archives.folder import Folder, Guard
from session_manager.archives.second_names import AtRisk, SecondNames
from session_manager.core.errors import SessionManagerError
from session_manager.core.session import DAY_MS
from session_manager.files import weaker
from session_manager.files.liveness import now_ms
from session_manager.ledger import Attempt, Clock, Ledger, Removal, Run
from session_manager.settings import Settings

# Of an agent: tells if an archive's name is a live session's; None when that cannot be read.
Living = Callable[[str], Callable[[str], bool] | None]


class Work:
    """One run at work. A context manager that keeps the ledger open in between stores.

    ``living`` protects the second names of live sessions. ``force`` says that no gateway writes meanwhile, where its
    writes could be overwritten. ``left`` is for the kinds: how this run left each store.
    """

    def __init__(self, settings: Settings, run: Run, living: Living, *, force: bool = False) -> None:
        self.settings = settings
        self.run = run
        self.unguarded = force or settings.allow_no_exchange
        self.second_names = SecondNames(settings.state_dir)
        self.left: dict[Any, Any] = {}
        self._living = living
        self._ledger: Ledger | None = None
        self._at_risk = AtRisk()
        self._clock: Clock | None = None
        self._weaker: set[str] = set()
        self._noting = contextlib.ExitStack()

    def __enter__(self) -> Self:
        # Report a broken ledger before anything is touched.
        ledger = self.existing_ledger
        self._clock = None if ledger is None else ledger.clock(now_ms())
        self._weaker = self._noting.enter_context(weaker.noted())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._noting.close()
        if self._ledger is not None:
            if error is None:
                self._drop_old(self._ledger)
            self._ledger.__exit__(kind, error, trace)

    def _drop_old(self, ledger: Ledger) -> None:
        """Drops entries and second names past their time; a later run retries what fails."""
        clock, keep_days = self._clock, self.settings.keep_days
        if clock is None:
            # This call made the ledger: nothing in it is old.
            return
        with contextlib.suppress(OSError, SessionManagerError):
            if not self.run.noted:
                ledger.note_use(clock)
                ledger.drop_old_entries(clock, keep_days)
            cutoff = clock.trusted - keep_days * DAY_MS
            self.second_names.drop_old(cutoff, lambda run_id: ledger.is_past(run_id, clock, keep_days), self._living)

    @property
    def ledger(self) -> Ledger:
        """The ledger, created if there is none."""
        if self._ledger is None:
            self._ledger = Ledger.open(self.settings)
        return self._ledger

    @property
    def existing_ledger(self) -> Ledger | None:
        """The ledger, or None if there is none yet. Looks again each time, as another call may have created it."""
        if self._ledger is None:
            self._ledger = Ledger.open_existing(self.settings)
        return self._ledger

    def keep_second_names(self, store: Folder, lock: Guard, attempt: Attempt, removals: Sequence[Removal]) -> None:
        """Gives archived files their second names; ``notes`` reports those that cannot have one."""
        self._at_risk.add(self.second_names.keep(store, lock, attempt, removals))

    def notes(self) -> dict[str, object]:
        """Returns the result members that report weaker guarantees; empty when there are none."""
        clock = {} if self._clock is None else self._clock.document()
        return self._at_risk.document() | clock | weaker.document(self._weaker)

    def removed(self, session: str, agent_id: str | None) -> list[tuple[str, str]]:
        """Returns (agent id, session id) of earlier removals of a session, named by its id or one of its keys."""
        ledger = self.existing_ledger
        return ledger.removed(session, agent_id) if ledger is not None else []

    def owe_marks(self, sessions: Collection[tuple[str, str]], *, again: bool = False) -> set[tuple[str, str]]:
        """Records pending marks for ended sessions (agent id, session id); returns those already delivered.

        With ``again`` delivered marks become pending again, because history says that it lacks them.
        """
        return {s for s in sorted(sessions) if self.ledger.owe_mark(self.run, *s, again=again) == "delivered"}
