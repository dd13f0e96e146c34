"""Delivery: the volume's service delivers the marks that the skill could not, because no service answered.

The marks are pending in the ledger beside the agents directory. History's rows are committed first, then the ledger:
after a kill in between, the marks are delivered again, which changes only the time of the last report.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from session_manager.files.liveness import now_ms
from session_manager.ledger import start_run
from session_manager.ledger.delivery import Deliverer, Delivery, Heard, Name, Status, Tell
from session_manager.service.config import Config
from session_manager.service.db import sessions as queries
from session_manager.service.db.engine import limited, server_message
from session_manager.service.jobs.quiet import Result
from session_manager.service.volume_reader import ID_LIMIT, NAME_LIMIT, is_storable
from session_manager.settings import Settings
from session_manager.stores.registry import open_volume

BATCH = 10_000
REFUSED = "no row can have this agent and session id"
_STATUSES: tuple[Status, ...] = ("active", "ended", "erased")
_log = logging.getLogger(__name__)


class Delivered(Result, frozen=True):
    """How many marks history has taken, and how many wait: ``missing`` has no row of theirs yet.

    ``superseded`` are sessions that came back to life, ``given_up`` those that had no row for days. ``busy``: a call
    of the skill was delivering; it has taken what this run would have.
    """

    delivered: int = 0
    superseded: int = 0
    given_up: int = 0
    missing: int = 0
    pending: int = 0
    busy: bool = False

    @property
    def wrote(self) -> bool:
        """Whether anything was delivered or recorded."""
        return bool(self.delivered or self.superseded or self.given_up)


async def deliver_marks(engine: AsyncEngine, config: Config) -> Delivered:
    """Delivers the pending marks in the volume's ledger, if there is one.

    Raises Refused (``no_volume``), and the ledger's and the database's errors. Marks delivered by then are recorded.
    """
    settings, history = config.volume_settings(), _Here(engine)
    # The ledger and its locks block a thread, but neither the service nor a transaction.
    done = await asyncio.to_thread(_deliver, settings, history.tell)
    if done.failure is not None:
        raise done.failure
    if history.failure is not None:
        raise history.failure
    result = Delivered(
        delivered=len(done.delivered),
        superseded=len(done.superseded),
        given_up=len(done.given_up),
        missing=len(done.unknown & done.waiting.keys()),
        pending=len(done.waiting),
        busy=done.busy,
    )
    if result.wrote:
        _log.info(
            "delivery: %d status updates delivered, %d superseded, %d given up, %d pending",
            result.delivered,
            result.superseded,
            result.given_up,
            result.pending,
        )
    return result


def _deliver(settings: Settings, tell: Tell) -> Delivery:
    run = start_run("delivery", settings)
    volume = open_volume(settings)
    return Deliverer(settings, lambda agent: volume.activity(agent, now_ms()), now_ms, run, lambda: tell).deliver()


class _Here:
    """The history in this service's own database; ``failure`` is the database's error."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self.failure: SQLAlchemyError | None = None

    def tell(self, marks: dict[Name, Status]) -> Heard:
        """Delivers the marks from the thread that has the ledger open."""
        refused = {name: REFUSED for name in marks if not _possible(name)}
        heard = Heard(set(), set(), refused, error=None, reached=False)
        told = {name: status for name, status in marks.items() if name not in refused}
        try:
            asyncio.run_coroutine_threadsafe(_mark(self._engine, told, heard), self._loop).result()
        except SQLAlchemyError as error:
            self.failure = error
        return heard


def _possible(name: Name) -> bool:
    """Returns whether the API would accept such a mark."""
    return is_storable(name[0], NAME_LIMIT) and is_storable(name[1], ID_LIMIT)


async def _mark(engine: AsyncEngine, marks: Mapping[Name, Status], heard: Heard) -> None:
    """Records committed marks in ``heard``, one transaction per batch. Raises the database's errors."""
    for status in _STATUSES:
        names = [name for name, told in marks.items() if told == status]
        for start in range(0, len(names), BATCH):
            some = names[start : start + BATCH]
            try:
                async with limited(engine) as connection:
                    heard.reached = True
                    missing = await _change(connection, status, some)
            except SQLAlchemyError as error:
                heard.error = server_message(error)
                raise
            heard.missing |= missing
            heard.delivered |= set(some) - missing


async def _change(connection: AsyncConnection, status: Status, names: Sequence[Name]) -> set[Name]:
    """Returns the sessions that have no row."""
    if status != "erased":
        _, missing = await queries.mark_many(connection, status, names)
        return set(missing)
    # As over HTTP: only rows that could be ended are erased.
    absent = await _change(connection, "ended", names)
    found = [name for name in names if name not in absent]
    _, missing = await queries.erase_many(connection, found)
    return absent | set(missing)
