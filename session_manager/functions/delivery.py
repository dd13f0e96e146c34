"""Joins the two layers: delivers the marks that wait in the ledger to aria-api, after the live work is done.

Nothing in here fails a call: what cannot be delivered waits, and the result says why. No lock of a store is held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from session_manager.core.errors import SessionManagerError
from session_manager.core.session import DAY_MS
from session_manager.functions.context import Context
from session_manager.live.delivery_lock import delivery_lock
from session_manager.live.ledger import Ledger, Mark, Run
from session_manager.live.steps import step
from session_manager.live.volume import read_snapshot

if TYPE_CHECKING:
    from session_manager.history.client import Client
    from session_manager.history.ghosts import Ghosts
    from session_manager.history.marks import Mark as Told
    from session_manager.history.rows import Row

Name = tuple[str, str]
OFF = "there is no history layer: ARIA_API_URL is empty"
ELSEWHERE = "another call is delivering history marks right now"
_TOLD: dict[str, Told] = {"active": "active", "erased": "erased"}
NOT_YET = "aria-api has no row of the session yet; the mark is kept and tried again"
CHANGED = "the mark was changed while it was on its way; the next call delivers it"


class NoConversation(Exception):
    """aria-api cannot be asked at all; the message is a sentence that says why."""


class Delivery(msgspec.Struct):
    """What was delivered in this call, and which marks wait, each for a reason.

    ``unknown`` are sessions that aria-api has no row of; ``given_up`` are those of them, and of those that it
    refuses, that are not tried again. ``error`` says what kept marks from being delivered, or is None; ``failure`` is
    set when that is the ledger.
    """

    delivered: set[Name] = msgspec.field(default_factory=set)
    waiting: dict[Name, str] = msgspec.field(default_factory=dict)
    unknown: set[Name] = msgspec.field(default_factory=set)
    given_up: set[Name] = msgspec.field(default_factory=set)
    error: str | None = None
    failure: SessionManagerError | None = None

    @property
    def counted(self) -> bool:
        """Says whether the ledger has told what waits."""
        return self.failure is None

    def waits(self, name: Name) -> bool:
        """Says whether a mark that was owed in this call waits."""
        return name in self.waiting if self.counted else name not in self.delivered

    def arrived(self, name: Name) -> bool:
        """Says whether a mark that was owed in this call has arrived, by this call or by another one."""
        return not self.waits(name) and name not in self.given_up

    def why(self, names: Collection[Name]) -> str | None:
        """Returns why marks wait: what concerns the first of ``names`` that does, else what concerns all."""
        return next((self.waiting[name] for name in names if name in self.waiting), self.error)


class History:
    """The history layer in one run: one conversation with aria-api, and one budget. A context manager."""

    def __init__(self, context: Context, run: Run) -> None:
        self._run = run
        self._settings = context.settings
        self._volume = context.volume
        self._clock = context.clock
        self._client: Client | None = None
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    def find(self, session_id: str) -> tuple[list[Row], str | None]:
        """Returns history's rows of a session id, in all agents, and None; or why aria-api could not be asked."""
        try:
            return self._connected().find(session_id)
        except NoConversation as error:
            return [], str(error)

    def ghosts(self, older_than_minutes: int, most: int, *, delete: bool) -> tuple[Ghosts | None, str | None]:
        """Counts aria-api's own conversations without a message, or deletes them; None and why it was not possible."""
        try:
            return self._connected().ghosts(older_than_minutes, most, delete=delete)
        except NoConversation as error:
            return None, str(error)

    def deliver(self, removed: Collection[Name] = ()) -> Delivery:
        """Delivers all marks that wait, of this run and of earlier ones, and notes which arrived.

        ``removed`` are sessions that this very run has removed: all others may have come back since.
        """
        delivery = Delivery()
        try:
            ledger = Ledger.open_existing(self._settings)
            if ledger is not None:
                with ledger:
                    self._deliver_all(ledger, delivery, frozenset(removed))
                    self._count(ledger, delivery)
        except SessionManagerError as error:
            delivery.failure = error
            delivery.error = delivery.error or error.message
        return delivery

    def _deliver_all(self, ledger: Ledger, delivery: Delivery, removed: frozenset[Name]) -> None:
        tried: set[Mark] = set()
        # A call that finds the lock taken leaves its marks to the holder, who may have read the ledger before that:
        # so it is read once more when the lock has been given back.
        while delivery.error is None and not tried.issuperset(ledger.pending()):
            if self._settings.api_url is None:
                delivery.error = OFF
                return
            with delivery_lock(self._settings) as mine:
                if not mine:
                    delivery.error = ELSEWHERE
                    return
                while delivery.error is None and (new := [m for m in ledger.pending() if m not in tried]):
                    tried.update(new)
                    back = self._came_back([m for m in new if _name(m) not in removed])
                    ledger.note_marks(self._run, list(back), "superseded")
                    if going := [m for m in new if m not in back]:
                        self._deliver(ledger, going, delivery)

    def _came_back(self, marks: list[Mark]) -> set[Mark]:
        """Returns the marks of sessions that are in their index again and have done something since they ended."""
        by_agent: dict[str, list[Mark]] = {}
        for mark in marks:
            if mark.status == "ended":
                by_agent.setdefault(mark.agent_id, []).append(mark)
        back = set()
        for agent_id, ended in by_agent.items():
            try:
                store = self._volume.store(agent_id)
                sessions = read_snapshot(store, self._clock()).sessions if store is not None else []
            except SessionManagerError:
                # Nothing is known of them, and the mark was right when it was made.
                continue
            active = {session.id: session.entry_activity or 0 for session in sessions}
            back |= {mark for mark in ended if active.get(mark.session_id, 0) > mark.changed_at}
        return back

    def _deliver(self, ledger: Ledger, marks: list[Mark], delivery: Delivery) -> None:
        try:
            client = self._connected()
        except NoConversation as error:
            delivery.error = str(error)
            return
        unheard = ledger.note_sent(marks)
        outcome = client.mark({_name(m): _TOLD.get(m.status, "ended") for m in marks})
        step("marks sent")
        if not client.reached:
            ledger.note_unsent(unheard)
        delivery.error = outcome.error
        long_ago = self._clock() - self._settings.keep_days * DAY_MS
        delivered = [m for m in marks if _name(m) in outcome.delivered]
        missing = [m for m in marks if _name(m) in outcome.missing]
        refused = [m for m in marks if _name(m) in outcome.refused]
        # A service that takes nothing at all is broken; that is no word about these marks.
        lost = (*missing, *refused) if delivered or missing else ()
        # An erasure that a service cannot do is owed until it can.
        owed = {_name(m) for m in refused if m.status == "erased"}
        given_up = {_name(m) for m in lost if m.changed_at < long_ago} - owed
        if delivered or given_up:
            ledger.note_marks(self._run, delivered, "delivered")
            ledger.note_marks(self._run, [m for m in missing if _name(m) in given_up], "missing")
            ledger.note_marks(self._run, [m for m in refused if _name(m) in given_up], "refused")
            step("marks noted")
        delivery.delivered |= outcome.delivered
        delivery.unknown |= outcome.missing
        delivery.given_up |= given_up
        delivery.waiting |= dict.fromkeys(outcome.missing, NOT_YET) | outcome.refused

    def _count(self, ledger: Ledger, delivery: Delivery) -> None:
        """Takes from the ledger what waits now: a mark that was changed while it was on its way still does."""
        waiting = {_name(m): delivery.waiting.get(_name(m), delivery.error or CHANGED) for m in ledger.pending()}
        delivery.waiting = waiting
        delivery.delivered -= waiting.keys()
        delivery.given_up -= waiting.keys()

    def _connected(self) -> Client:
        """Returns the conversation, begun now if need be. Raises NoConversation."""
        if self._client is None:
            settings = self._settings
            if settings.api_url is None:
                raise NoConversation(OFF)
            try:
                from session_manager.history.client import Client
                from session_manager.history.connection import Unavailable
            except ImportError as error:
                name = (error.name or "").partition(".")[0]
                how = f"install it: python3 -m pip install {name}"
                raise NoConversation(f"the Python package {name!r} is missing or broken ({error}); {how}") from error
            try:
                client = Client(settings.api_url, settings.api_token, settings.api_timeout)
            except Unavailable as error:
                raise NoConversation(str(error)) from error
            self._client = self._closing.enter_context(client)
        return self._client


def _name(mark: Mark) -> Name:
    return (mark.agent_id, mark.session_id)


def told(delivery: Delivery, names: Collection[Name]) -> dict[str, Any]:
    """Returns the members of a delete's document that say whether history has heard of it.

    ``pg_pending`` and ``pg_error`` are there only when a mark waits.
    """
    document: dict[str, Any] = {"pg_status_updated": all(delivery.arrived(name) for name in names)}
    if any(delivery.waits(name) for name in names):
        document["pg_pending"] = True
        document["pg_error"] = delivery.why(names)
    return document


def tell(context: Context, run: Run, removed: Collection[Name]) -> dict[str, Any]:
    """Delivers all marks that wait; returns the members of a document that count those of ``removed``."""
    if context.settings.api_url is None:
        return {"pg_status_updated": False, "pg_updated": 0, "pg_pending": 0}
    with History(context, run) as history:
        return counted(history.deliver(removed), removed)


def counted(delivery: Delivery, removed: Collection[Name]) -> dict[str, Any]:
    """Returns the members of a document that count the marks of ``removed`` that arrived, and those that wait."""
    updated = sum(delivery.arrived(name) for name in removed)
    document: dict[str, Any] = {
        "pg_status_updated": bool(removed) and updated == len(removed),
        "pg_updated": updated,
        "pg_pending": sum(delivery.waits(name) for name in removed),
    }
    why = delivery.why(removed)
    return document if why is None else {**document, "pg_error": why}
