"""A crowd that talks at once, half of which goes away or meets a failing model: what is stored is what was heard."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from chats import BASE, Chats
from service import Databases, Service, running
from small_model import SmallModel, words
from talking import STREAM, events_of, parse
from websockets.asyncio.client import connect

CLIENTS = 2000 if os.environ.get("SOAK") else 200
AT_ONCE = 200
FAILURES = ("breaks-off", "ends-early", "fails-midway", "says-nothing", "sends-nonsense", "is-busy", "is-broken")
Told = dict[str, Any]


@pytest.fixture
def service(
    server: Databases, database: str, model: SmallModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("service") / "log"
    with running(log, DATABASE_URL=database, HOME=str(log.parent), **model.env) as found:
        yield found


class Crowd:
    """Its members either hear a reply to its end, and remember it, or go away without."""

    def __init__(self, service: Service, seed: int) -> None:
        self.url = service.url
        self.random = random.Random(seed)
        self.heard: list[Told] = []
        self.client = httpx.AsyncClient(
            base_url=service.url, trust_env=False, timeout=120, limits=httpx.Limits(max_connections=None)
        )

    async def member(self, n: int) -> None:
        """One client, as its number says; each says something of its own."""
        talk = self.by_stream if n % 2 else self.by_socket
        kind = n // 2 % 4
        if kind < 2:
            size = self.random.randrange(1, 30)
            told = await talk(f"say {size} for {n}")
            assert told is not None
            assert told["content"] == words(size)
            self.heard.append(told)
        elif kind == 2:
            pieces = self.random.randrange(0, 6)
            assert await talk(f"hold {max(pieces, 1)} for {n}", leave_after=pieces) is None
        else:
            assert await talk(f"{self.random.choice(FAILURES)} for {n}") is None

    async def returning(self, n: int) -> None:
        """Goes away at any moment, also while the reply is stored, and asks again with the same key until it hears."""
        talk = self.by_stream if n % 2 else self.by_socket
        body = {"message": f"say 10 for {n}", "idempotency_key": f"key {n}"}
        told, patience_s = None, 0.2
        while told is None:
            try:
                async with asyncio.timeout(self.random.uniform(0.0, patience_s)):
                    told = await talk(**body)
            except TimeoutError:
                patience_s *= 1.5
        assert told["content"] == words(10)
        self.heard.append(told)

    async def by_stream(self, message: str, leave_after: int | None = None, **fields: Any) -> Told | None:
        body = {"message": message, **fields}
        async with self.client.stream("POST", STREAM, json=body) as answer:
            assert answer.status_code == 200
            if leave_after is None:
                name, data = events_of((await answer.aread()).decode())[-1]
                return data if name == "done" else None
            text = ""
            async for part in answer.aiter_text():
                text += part
                if text.count("word-") >= leave_after:
                    return None
        return parse(text.split("\n\n")[-2])[1]

    async def by_socket(self, message: str, leave_after: int | None = None, **fields: Any) -> Told | None:
        url = self.url.replace("http://", "ws://") + "/api/engine/chat/ws"
        async with connect(url, proxy=None, open_timeout=120) as line:
            await line.send(json.dumps({"message": message, **fields}))
            pieces = 0
            async for text in line:
                frame = json.loads(text)
                if frame["event"] in ("done", "error"):
                    return dict(frame["data"]) if frame["event"] == "done" else None
                pieces += str(frame["data"].get("content", "")).count("word-")
                if leave_after is not None and pieces >= leave_after:
                    return None
        return None


def stored(chats: Chats) -> list[tuple[str, str, str]]:
    """(session, message, reply) of every exchange in the database."""
    return sorted(
        chats.execute(
            "SELECT s.id::text, u.id::text, a.id::text FROM chat_sessions s"
            " JOIN chat_messages u ON u.session_id = s.id AND u.position %% 2 = 1 AND u.role = 'user'"
            " JOIN chat_messages a ON a.session_id = s.id AND a.position = u.position + 1 AND a.role = 'assistant'"
        )
    )


def as_heard(crowd: Crowd) -> list[tuple[str, str, str]]:
    return sorted((told["session_id"], told["user_message_id"], told["message_id"]) for told in crowd.heard)


def run(service: Service, seed: int, members: int, returning: bool) -> Crowd:
    async def main() -> Crowd:
        crowd = Crowd(service, seed)
        room = asyncio.Semaphore(AT_ONCE)

        async def one(n: int) -> None:
            async with room:
                await (crowd.returning(n) if returning else crowd.member(n))

        async with crowd.client:
            await asyncio.gather(*(one(n) for n in range(members)))
        return crowd

    return asyncio.run(main())


def test_what_is_stored_is_what_was_heard(
    server: Databases, service: Service, database: str, model: SmallModel
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chats = Chats(server, database)
    model.pause_s = 0.005
    crowd = run(service, seed, CLIENTS, returning=False)
    assert len(crowd.heard) == CLIENTS // 2
    assert service.client.get(f"{BASE}/stats").json()["ghost_sessions"] == 0
    assert service.stop() == 0
    assert stored(chats) == as_heard(crowd)
    assert chats.counts() == (CLIENTS // 2, CLIENTS)
    chats.check()
    assert "Traceback" not in service.log


def test_who_comes_back_with_the_same_key_is_stored_once(
    server: Databases, service: Service, database: str, model: SmallModel
) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chats = Chats(server, database)
    model.pause_s = 0.005
    members = CLIENTS // 5
    crowd = run(service, seed, members, returning=True)
    assert len(crowd.heard) == members
    # What nobody hears any more is finished or called off by then.
    assert service.stop() == 0
    assert stored(chats) == as_heard(crowd)
    assert chats.counts() == (members, 2 * members)
    chats.check()
    assert "Traceback" not in service.log
