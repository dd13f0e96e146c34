"""Delivers the pending marks in the ledger to history, over any transport.

Nothing in here fails a call: undelivered marks stay pending, and the result says why. Holds no lock of a store.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Literal

import msgspec

from session_manager.core.errors import SessionManagerError
from session_manager.core.session import DAY_MS
from session_manager.files.steps import step
from session_manager.ledger import Ledger, Mark, Run
from session_manager.ledger.delivery_lock import delivery_lock
from session_manager.settings import Settings

Name = tuple[str, str]
Status = Literal["active", "ended", "erased"]
OFF = "history is turned off: ARIA_API_URL is empty"
ELSEWHERE = "another call, or aria-api itself, is delivering status updates right now"
NOT_YET = "aria-api has no row for the session yet; the update is kept and tried again"
CHANGED = "the update changed while it was being sent; the next call delivers it"
_TOLD: dict[str, Status] = {"active": "active", "erased": "erased"}


class NoConversation(Exception):
    """History cannot be reached; the message is a sentence that says why."""


class Heard(msgspec.Struct):
    """History's answers to marks: ``delivered``, ``missing`` (no such row), ``refused`` each for a reason.

    ``error`` says why the marks in none of these parts were not sent, or is None. Unless it was ``reached``, history
    cannot have received any.
    """

    delivered: set[Name]
    missing: set[Name]
    refused: dict[Name, str]
    error: str | None
    reached: bool


Tell = Callable[[dict[Name, Status]], Heard]
# Session id -> last activity in its entry (epoch ms), of an agent's live sessions. Raises SessionManagerError.
Active = Callable[[str], Mapping[str, int]]


class Delivery(msgspec.Struct):
    """The marks delivered in this call, and the pending ones, each with a reason.

    ``superseded`` are sessions that came back to life, ``unknown`` those without a row in aria-api; ``given_up`` are
    the unknown and refused ones that are not tried again. ``error`` says why marks were not delivered, or is None;
    ``failure`` is set if the ledger is the reason.
    """

    delivered: set[Name] = msgspec.field(default_factory=set)
    superseded: set[Name] = msgspec.field(default_factory=set)
    waiting: dict[Name, str] = msgspec.field(default_factory=dict)
    unknown: set[Name] = msgspec.field(default_factory=set)
    given_up: set[Name] = msgspec.field(default_factory=set)
    error: str | None = None
    failure: SessionManagerError | None = None

    @property
    def counted(self) -> bool:
        """Returns True if the pending marks could be read from the ledger."""
        return self.failure is None

    @property
    def busy(self) -> bool:
        """Returns True if the marks were left to another process that is delivering."""
        return self.error == ELSEWHERE

    def waits(self, name: Name) -> bool:
        """Returns True if a mark of this call is pending."""
        return name in self.waiting if self.counted else name not in self.delivered

    def arrived(self, name: Name) -> bool:
        """Returns True if a mark of this call was delivered, by this call or by another one."""
        return not self.waits(name) and name not in self.given_up

    def why(self, names: Collection[Name]) -> str | None:
        """Returns why marks are pending: the reason of the first pending one in ``names``, else the general reason."""
        return next((self.waiting[name] for name in names if name in self.waiting), self.error)


class Deliverer(msgspec.Struct, frozen=True):
    """Delivers the marks of one volume's ledger in one run.

    ``active`` reads an agent's live sessions. ``connect`` opens the connection to history and may raise
    NoConversation; None: there is no history layer. ``clock`` is in epoch milliseconds.
    """

    settings: Settings
    active: Active
    clock: Callable[[], int]
    run: Run
    connect: Callable[[], Tell] | None

    def deliver(self, removed: Collection[Name] = ()) -> Delivery:
        """Delivers all pending marks, of this run and of earlier ones, and records which were delivered.

        ``removed`` are sessions that this run has removed: all others may have come back since.
        """
        delivery = Delivery()
        try:
            ledger = Ledger.open_existing(self.settings)
            if ledger is not None:
                with ledger:
                    self._deliver_all(ledger, delivery, frozenset(removed))
                    _count(ledger, delivery)
        except SessionManagerError as error:
            delivery.failure = error
            delivery.error = delivery.error or error.message
        return delivery

    def _deliver_all(self, ledger: Ledger, delivery: Delivery, removed: frozenset[Name]) -> None:
        tried: set[Mark] = set()
        # A call that finds the lock taken leaves its marks to the holder, which may have read the ledger before:
        # so read it again after the lock is released.
        while delivery.error is None and not tried.issuperset(ledger.pending()):
            if self.connect is None:
                delivery.error = OFF
                return
            with delivery_lock(self.settings) as mine:
                if not mine:
                    delivery.error = ELSEWHERE
                    return
                while delivery.error is None and (new := [m for m in ledger.pending() if m not in tried]):
                    tried.update(new)
                    back = self._came_back([m for m in new if _name(m) not in removed])
                    ledger.note_marks(self.run, list(back), "superseded")
                    delivery.superseded.update(map(_name, back))
                    if going := [m for m in new if m not in back]:
                        self._deliver(self.connect, ledger, going, delivery)

    def _came_back(self, marks: list[Mark]) -> set[Mark]:
        """Returns the marks of sessions that are in their store again with activity since they ended."""
        by_agent: dict[str, list[Mark]] = {}
        for mark in marks:
            if mark.status == "ended":
                by_agent.setdefault(mark.agent_id, []).append(mark)
        back = set()
        for agent_id, ended in by_agent.items():
            try:
                active = self.active(agent_id)
            except SessionManagerError:
                # Their state is unknown, and the mark was right when it was made.
                continue
            back |= {mark for mark in ended if active.get(mark.session_id, 0) > mark.changed_at}
        return back

    def _deliver(self, connect: Callable[[], Tell], ledger: Ledger, marks: list[Mark], delivery: Delivery) -> None:
        try:
            tell = connect()
        except NoConversation as error:
            delivery.error = str(error)
            return
        unheard = ledger.note_sent(marks)
        heard = tell({_name(m): _TOLD.get(m.status, "ended") for m in marks})
        step("marks sent")
        if not heard.reached:
            ledger.note_unsent(unheard)
        delivery.error = heard.error
        long_ago = ledger.clock(self.clock()).trusted - self.settings.keep_days * DAY_MS
        delivered = [m for m in marks if _name(m) in heard.delivered]
        missing = [m for m in marks if _name(m) in heard.missing]
        refused = [m for m in marks if _name(m) in heard.refused]
        # A service that accepts no mark at all is broken; that says nothing about these marks.
        lost = (*missing, *refused) if delivered or missing else ()
        # An erasure that the service cannot do stays pending until it can.
        owed = {_name(m) for m in refused if m.status == "erased"}
        given_up = {_name(m) for m in lost if m.changed_at < long_ago} - owed
        if delivered or given_up:
            ledger.note_marks(self.run, delivered, "delivered")
            ledger.note_marks(self.run, [m for m in missing if _name(m) in given_up], "missing")
            ledger.note_marks(self.run, [m for m in refused if _name(m) in given_up], "refused")
            step("marks noted")
        delivery.delivered |= heard.delivered
        delivery.unknown |= heard.missing
        delivery.given_up |= given_up
        delivery.waiting |= dict.fromkeys(heard.missing, NOT_YET) | heard.refused


def _count(ledger: Ledger, delivery: Delivery) -> None:
    """Reads the pending marks from the ledger: one that changed while it was being sent is still pending."""
    waiting = {_name(m): delivery.waiting.get(_name(m), delivery.error or CHANGED) for m in ledger.pending()}
    delivery.waiting = waiting
    delivery.delivered -= waiting.keys()
    delivery.superseded -= waiting.keys()
    delivery.given_up -= waiting.keys()


def _name(mark: Mark) -> Name:
    return (mark.agent_id, mark.session_id)
