"""Joins the two layers: delivers the pending marks in the ledger to aria-api, after the live work is done.

Nothing here fails a call: an undelivered mark stays pending, and the result says why. No store lock is held.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from session_manager.core.errors import SessionManagerError
from session_manager.core.progress import stage
from session_manager.functions.context import Context
from session_manager.ledger import Ledger, Run
from session_manager.ledger.delivery import OFF, Deliverer, Delivery, Heard, Name, NoConversation, Status, Tell

if TYPE_CHECKING:
    from session_manager.history.client import Client
    from session_manager.history.ghosts import Ghosts
    from session_manager.history.rows import Row


# The members of a document about marks when history is turned off.
UNTOLD = {"pg_status_updated": False, "pg_updated": 0, "pg_pending": 0}


class History:
    """The history layer in one run: one conversation with aria-api, and one budget. A context manager.

    Without a configured URL, aria-api is looked for at the default address, and gets no data and no token before it has
    identified itself. If it does not, and was never reached before, there is no history layer.
    """

    def __init__(self, context: Context, run: Run) -> None:
        self._run = run
        self._settings = context.settings
        self._volume = context.volume
        self._clock = context.clock
        self._client: Client | None = None
        self._why_not: str | None = None
        self._closing = contextlib.ExitStack()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.__exit__(kind, error, trace)

    @property
    def there(self) -> bool:
        """Whether there is a history service. May send a request to the default address: use it after the live work."""
        if not (self._run.history or self._settings.api_url is None):
            with contextlib.suppress(NoConversation):
                self._connected()
        return self._run.history or self._client is not None

    def find(self, session_id: str) -> tuple[list[Row], str | None]:
        """Returns history's rows of a session id, in all agents, and None; or none, and why aria-api did not answer."""
        try:
            return self._connected().find(session_id)
        except NoConversation as error:
            return [], str(error)

    def ghosts(self, older_than_minutes: int, most: int, *, delete: bool) -> tuple[Ghosts | None, str | None]:
        """Counts or deletes aria-api's own conversations without a message; None and the reason when that fails."""
        try:
            return self._connected().ghosts(older_than_minutes, most, delete=delete)
        except NoConversation as error:
            return None, str(error)

    def deliver(self, removed: Collection[Name] = ()) -> Delivery:
        """Delivers all pending marks, of this run and of earlier ones, and records which arrived.

        ``removed`` are sessions that this run has removed: all others may have come back since.
        """
        stage("updating history")
        if removed and not self._run.history and self.there:
            self._owe(removed)
        connect = None if self._settings.api_url is None else self._connect
        return Deliverer(self._settings, self._active, self._clock, self._run, connect).deliver(removed)

    def _active(self, agent_id: str) -> Mapping[str, int]:
        return self._volume.activity(agent_id, self._clock())

    def tell(self, removed: Collection[Name]) -> dict[str, Any]:
        """Delivers all pending marks; returns the members of a document that count those of ``removed``."""
        if not (self._run.history or (removed and self.there)):
            return dict(UNTOLD)
        return counted(self.deliver(removed), removed)

    def _owe(self, removed: Collection[Name]) -> None:
        """Records the marks of this run, once it is known that there is a history service."""
        with contextlib.suppress(SessionManagerError):
            ledger = Ledger.open_existing(self._settings)
            if ledger is not None:
                with ledger:
                    ledger.owe_unknown(self._run, removed)

    def _connect(self) -> Tell:
        client = self._connected()

        def tell(marks: dict[Name, Status]) -> Heard:
            outcome = client.mark(marks)
            return Heard(outcome.delivered, outcome.missing, outcome.refused, outcome.error, client.reached)

        return tell

    def _connected(self) -> Client:
        """Returns the conversation, opening it if necessary. Raises NoConversation."""
        if self._why_not is not None:
            raise NoConversation(self._why_not)
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
            token = settings.api_token if settings.api_named else None
            try:
                client = self._closing.enter_context(Client(settings.api_url, token, settings.api_timeout))
            except Unavailable as error:
                raise NoConversation(str(error)) from error
            if not settings.api_named:
                self._why_not = client.prove(settings.api_token)
                if self._why_not is not None:
                    raise NoConversation(self._why_not)
            self._client = client
        return self._client


def told(delivery: Delivery, names: Collection[Name]) -> dict[str, Any]:
    """Returns the members of a delete's document that report whether history recorded it.

    ``pg_pending`` and ``pg_error`` are there only when a mark is pending.
    """
    document: dict[str, Any] = {"pg_status_updated": all(delivery.arrived(name) for name in names)}
    if any(delivery.waits(name) for name in names):
        document["pg_pending"] = True
        document["pg_error"] = delivery.why(names)
    return document


def tell(context: Context, run: Run, removed: Collection[Name]) -> dict[str, Any]:
    """Delivers all pending marks; returns the members of a document that count those of ``removed``."""
    with History(context, run) as history:
        return history.tell(removed)


def counted(delivery: Delivery, removed: Collection[Name]) -> dict[str, Any]:
    """Returns the members of a document that count the delivered and the pending marks of ``removed``."""
    updated = sum(delivery.arrived(name) for name in removed)
    document: dict[str, Any] = {
        "pg_status_updated": bool(removed) and updated == len(removed),
        "pg_updated": updated,
        "pg_pending": sum(delivery.waits(name) for name in removed),
    }
    why = delivery.why(removed)
    return document if why is None else {**document, "pg_error": why}
