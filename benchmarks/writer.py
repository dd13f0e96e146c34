"""Somebody who writes first messages all the time, with the service's own code, and how long each of them took.

Messages come when they come, however long the ones before them take, and their time counts from then.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncEngine

from session_manager.core.errors import NotFound
from session_manager.service.db import chat_messages
from session_manager.service.db.chat_messages import NewMessage
from session_manager.service.db.engine import make_engine
from session_manager.service.db.ownership import EVERYBODY

PAUSE_S = 0.03
CONNECTIONS = 40


class Written(NamedTuple):
    """A message: where to, when it came, by ``perf_counter``, how many seconds it took, and whether it is stored."""

    session_id: uuid.UUID
    at: float
    seconds: float
    stored: bool


@contextlib.contextmanager
def writing(url: str, sessions: Sequence[uuid.UUID]) -> Iterator[list[Written]]:
    """Writes a first message to one session after another until it is left; the list is complete then."""
    written: list[Written] = []
    stop = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_write(url, sessions, stop, written)))
    thread.start()
    try:
        yield written
    finally:
        stop.set()
        thread.join()


async def _write(url: str, sessions: Sequence[uuid.UUID], stop: threading.Event, written: list[Written]) -> None:
    engine = make_engine(url, CONNECTIONS)
    try:
        async with asyncio.TaskGroup() as group:
            due = time.perf_counter()
            for session_id in sessions:
                if stop.is_set():
                    break
                group.create_task(_one(engine, session_id, due, written))
                due += PAUSE_S
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
    finally:
        await engine.dispose()


async def _one(engine: AsyncEngine, session_id: uuid.UUID, due: float, written: list[Written]) -> None:
    stored = True
    try:
        async with engine.begin() as connection:
            await chat_messages.add(connection, session_id, EVERYBODY, NewMessage("user", "hello"))
    except NotFound:
        stored = False
    written.append(Written(session_id, due, time.perf_counter() - due, stored))
