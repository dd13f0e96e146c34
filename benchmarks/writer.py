"""People who write first messages all the time, with the service's own code, and how long each message took."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from session_manager.core.errors import NotFound
from session_manager.service.db import chat_messages
from session_manager.service.db.chat_messages import NewMessage
from session_manager.service.db.engine import LIMITS, make_engine
from session_manager.service.db.ownership import EVERYBODY

WRITERS = 6
PAUSE_S = 0.4


class Written(NamedTuple):
    """A message: to which group of sessions, when it came, by ``perf_counter``, and how many seconds it took."""

    group: str
    at: float
    seconds: float


@contextlib.contextmanager
def writing(url: str, groups: dict[str, Sequence[uuid.UUID]]) -> Iterator[list[Written]]:
    """Lets some write to the sessions of each group, until it is left; the list of what is stored is complete then.

    Each is at home in one group, so that waiting in one delays nobody in another.
    """
    written: list[Written] = []
    stop = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(lambda: asyncio.run(_write(url, groups, stop, written)))
        try:
            yield written
        finally:
            stop.set()
        done.result()


async def _write(
    url: str, groups: dict[str, Sequence[uuid.UUID]], stop: threading.Event, written: list[Written]
) -> None:
    engine = make_engine(url, WRITERS * len(groups))

    async def one_after_another(group: str, sessions: Iterator[uuid.UUID], pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        for session_id in sessions:
            if stop.is_set():
                return
            begin = time.perf_counter()
            if await _add(engine, session_id):
                written.append(Written(group, begin, time.perf_counter() - begin))
            await asyncio.sleep(PAUSE_S)

    try:
        async with asyncio.TaskGroup() as tasks:
            for group, sessions in groups.items():
                shared = iter(sessions)
                for number in range(WRITERS):
                    tasks.create_task(one_after_another(group, shared, PAUSE_S * number / WRITERS))
    finally:
        await engine.dispose()


async def _add(engine: AsyncEngine, session_id: uuid.UUID) -> bool:
    try:
        async with engine.begin() as connection:
            await connection.execute(LIMITS)
            await chat_messages.add(connection, session_id, EVERYBODY, NewMessage("user", "hello"))
    except NotFound:
        return False
    return True
