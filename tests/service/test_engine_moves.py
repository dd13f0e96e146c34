"""Sessions that move between two looks, into the archive or out of it, or are deleted; commits whose answer got lost.

What is asked for in such a moment is neither missed, nor doubled, nor seen by half.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from chats import BASE, Chats, create, say
from service import Service
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.requests import Request
from talking import by_stream

from session_manager.core.errors import NotFound, Refused
from session_manager.service.api.common import transaction
from session_manager.service.db import chat_archive, chat_cleanup, chat_messages, chat_sessions
from session_manager.service.db.chat_exchange import NewSession, commit_exchange, still_open
from session_manager.service.db.chat_messages import NewMessage
from session_manager.service.db.engine import make_engine, snapshot
from session_manager.service.db.ownership import EVERYBODY
from session_manager.service.model.base import End, Turn
from session_manager.service.talk import talk as talking
from session_manager.service.talk.talks import Ask, Talks

ALL_GHOSTS = chat_cleanup.ghosts(0, whatever_ttl=True)
Move = Callable[[AsyncEngine, uuid.UUID], Awaitable[None]]


async def archive(engine: AsyncEngine, session_id: uuid.UUID) -> None:
    async with engine.begin() as connection:
        await chat_archive.archive_one(connection, session_id, EVERYBODY)


async def revive(engine: AsyncEngine, session_id: uuid.UUID) -> None:
    async with engine.begin() as connection:
        assert await chat_archive.revive(connection, session_id, EVERYBODY)


class Between:
    """A connection behind whose first statement something else happens."""

    def __init__(self, connection: AsyncConnection, act: Callable[[], Awaitable[None]]) -> None:
        self._connection = connection
        self._acts = [act]

    async def _then(self, answer: Any) -> Any:
        while self._acts:
            await self._acts.pop()()
        return answer

    async def execute(self, *args: Any) -> Any:
        return await self._then(await self._connection.execute(*args))

    async def scalar(self, *args: Any) -> Any:
        return await self._then(await self._connection.scalar(*args))


def with_messages(chats: Chats, client: httpx.Client) -> uuid.UUID:
    session_id = create(client)["id"]
    say(client, session_id)
    return uuid.UUID(session_id)


@pytest.mark.parametrize("what", ["look", "change", "remove", "archive_one", "hold"])
def test_what_comes_back_between_two_looks_is_found(client: httpx.Client, chats: Chats, what: str) -> None:
    session_id = with_messages(chats, client)

    async def work(engine: AsyncEngine) -> None:
        seen = await opened(engine, session_id)
        await archive(engine, session_id)
        async with engine.begin() as connection:
            between: Any = Between(connection, lambda: revive(engine, session_id))
            if what == "look":
                assert (await chat_sessions.find(between, session_id, EVERYBODY))["status"] == "active"
            elif what == "change":
                await chat_sessions.change(between, session_id, EVERYBODY, {"title": "new"})
            elif what == "remove":
                await chat_sessions.remove(between, session_id, EVERYBODY)
            elif what == "archive_one":
                found = await chat_archive.archive_one(between, session_id, EVERYBODY)
                assert found["status"] == "archived"
            else:
                assert (await chat_messages.hold(between, session_id, EVERYBODY, seen=seen))["id"] == session_id

    chats.run(work)
    assert chats.ids() == (set() if what in ("remove", "archive_one") else {str(session_id)})
    assert chats.ids("chat_sessions_archive") == ({str(session_id)} if what == "archive_one" else set())


async def opened(engine: AsyncEngine, session_id: uuid.UUID) -> Any:
    async with snapshot(engine) as connection:
        return still_open(await chat_sessions.find(connection, session_id, EVERYBODY))


def test_what_is_read_is_of_one_moment(client: httpx.Client, chats: Chats) -> None:
    session_id = with_messages(chats, client)

    async def work(engine: AsyncEngine) -> None:
        for method in ("GET", "HEAD"):
            app = SimpleNamespace(state=SimpleNamespace(engine=engine))
            reading = transaction(Request({"type": "http", "method": method, "app": app, "headers": []}))
            connection = await anext(reading)
            row = await chat_sessions.find(connection, session_id, EVERYBODY)
            await archive(engine, session_id)
            assert len(await chat_messages.listed(connection, row, 10)) == row["message_count"] == 1
            with contextlib.suppress(StopAsyncIteration):
                await anext(reading)
            await revive(engine, session_id)
        async with engine.begin() as again:
            assert await again.scalar(text("SHOW transaction_isolation")) == "read committed"

    chats.run(work, pool_size=1)


def test_the_model_is_shown_the_whole_of_a_conversation_that_is_archived_meanwhile(
    client: httpx.Client, chats: Chats, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = with_messages(chats, client)
    last_ones = chat_messages.last_ones

    async def work(engine: AsyncEngine) -> Sequence[Turn]:
        async def late(connection: AsyncConnection, session: Any, limit: int) -> Any:
            await archive(engine, session_id)
            return await last_ones(connection, session, limit)

        monkeypatch.setattr(chat_messages, "last_ones", late)
        model = Brief()
        talk = await Talks(engine, model).begin(EVERYBODY, Ask("more", session_id))
        await talk.task
        return model.turns

    assert [turn.content for turn in chats.run(work)] == ["hello", "more"]
    assert chats.counts() == (1, 3)


class Brief:
    """A model of one word, which keeps what it was shown."""

    longest_s = 60.0
    turns: Sequence[Turn] = ()

    def named(self, asked: str | None, kept: str | None) -> str:
        return "brief"

    async def reply(self, name: str, turns: Sequence[Turn]) -> AsyncGenerator[str | End, None]:
        self.turns = turns
        yield "word"
        yield End("stop")


@pytest.mark.parametrize("back", [False, True], ids=["archived", "archived and back"])
@pytest.mark.parametrize("ended", [False, True], ids=["open", "ended"])
def test_a_retry_of_what_is_archived_is_told_what_is_stored(
    shared_service: Service, client: httpx.Client, chats: Chats, ended: bool, back: bool
) -> None:
    first = by_stream(shared_service, "hello", idempotency_key="k")
    session_id = first[-1][1]["session_id"]
    body = {"content": "one more", "idempotency_key": "m"}
    message = client.post(f"{BASE}/{session_id}/messages", json=body).json()
    if ended:
        assert client.post(f"{BASE}/{session_id}/end").status_code == 200
    assert client.post(f"{BASE}/{session_id}/archive").status_code == 200
    if back:
        chats.run(lambda engine: revive(engine, uuid.UUID(session_id)))
    places = chats.ids(), chats.ids("chat_sessions_archive")
    for where in ({}, {"session_id": session_id}):
        name, told = by_stream(shared_service, "hello", idempotency_key="k", **where)[-1]
        assert (name, told.get("replayed"), told.get("session_id")) == ("done", True, session_id), told
    again = client.post(f"{BASE}/{session_id}/messages", json=body)
    assert (again.status_code, again.json()) == (200, message)
    assert (chats.ids(), chats.ids("chat_sessions_archive")) == places
    for where in ({}, {"session_id": session_id}):
        name, told = by_stream(shared_service, "another", idempotency_key="k", **where)[-1]
        assert (name, told["code"]) == ("error", "idempotency_conflict")


def test_a_retry_beside_the_archive_begins_no_second_conversation(client: httpx.Client, chats: Chats) -> None:
    """The row is made while the first session, which has the key, is on its way into the archive."""

    async def work(engine: AsyncEngine) -> None:
        first = await exchange(engine, NewSession("main"), hello())
        async with engine.connect() as archiving:
            await archiving.begin()
            await chat_archive.archive_one(archiving, first.session["id"], EVERYBODY)
            retry = asyncio.create_task(exchange(engine, NewSession("main"), hello()))
            await until_locked(engine)
            await archiving.commit()
        told = await retry
        assert (told.created, told.session["id"]) == (False, first.session["id"])

    chats.run(work)
    assert chats.counts() == (0, 0)
    assert len(chats.ids("chat_sessions_archive")) == 1


async def until_locked(engine: AsyncEngine) -> None:
    query = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    async with asyncio.timeout(30):
        while True:
            async with engine.connect() as connection:
                if await connection.scalar(query):
                    return
            await asyncio.sleep(0.02)


def hello() -> NewMessage:
    return NewMessage("user", "hello", idempotency_key="k")


async def exchange(engine: AsyncEngine, session: Any, user: NewMessage) -> Any:
    async with engine.begin() as connection:
        return await commit_exchange(connection, EVERYBODY, session, user, NewMessage("assistant", "hello back"))


def test_an_empty_session_is_not_archived(client: httpx.Client, chats: Chats) -> None:
    session_id = create(client)["id"]
    answer = client.post(f"{BASE}/{session_id}/archive")
    assert (answer.status_code, answer.json()["code"]) == (409, "session_empty")
    assert (chats.ids(), chats.ids("chat_sessions_archive")) == ({session_id}, set())


def test_an_empty_session_that_is_deleted_stays_deleted_whatever_is_under_way(
    client: httpx.Client, chats: Chats
) -> None:
    session_id = uuid.UUID(create(client)["id"])

    async def work(engine: AsyncEngine) -> None:
        seen = await opened(engine, session_id)
        assert client.delete(f"{BASE}/{session_id}").status_code == 200
        with pytest.raises(NotFound):
            await exchange(engine, seen, hello())
        await chat_cleanup.forget_deleted(engine)
        assert chats.ids("chat_sessions_deleted") == {str(session_id)}
        chats.execute("UPDATE chat_sessions_deleted SET deleted_at = now() - interval '25 hours'")
        await chat_cleanup.forget_deleted(engine)

    chats.run(work)
    assert chats.counts() == (0, 0)
    assert chats.ids("chat_sessions_deleted") == set()


def test_a_reply_is_later_than_its_message_whatever_the_clock_does(client: httpx.Client, chats: Chats) -> None:
    session_id = with_messages(chats, client)
    chats.execute("UPDATE chat_sessions SET last_message_at = now() + interval '1 hour'")

    async def work(engine: AsyncEngine) -> Any:
        return await exchange(engine, await opened(engine, session_id), hello())

    done = chats.run(work)
    since = done.user["created_at"].isoformat()
    found = client.get(f"{BASE}/{session_id}/messages", params={"since": since}).json()
    assert [message["role"] for message in found] == ["assistant"]


# The answer of a commit gets lost.


class Cut:
    """A way to PostgreSQL on which, once when ``armed``, a commit of messages arrives and its answer does not."""

    def __init__(self, database_url: str) -> None:
        self._url = make_url(database_url)
        self.armed = False
        self.closed = False
        self.cuts = 0
        self._serving: list[asyncio.Task[None] | None] = []

    @contextlib.asynccontextmanager
    async def engine(self) -> AsyncIterator[AsyncEngine]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        url = self._url.set(host="127.0.0.1", port=port, query={}).render_as_string(hide_password=False)
        engine = make_engine(url)
        try:
            yield engine
        finally:
            await engine.dispose()
            server.close()
            await asyncio.gather(*filter(None, self._serving))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.append(asyncio.current_task())
        if self.closed:
            writer.close()
            return
        host, port = self._url.query["host"], self._url.query["port"]
        there, away = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        lost = False

        async def up() -> None:
            nonlocal lost
            with_messages = False
            while data := await reader.read(65536):
                with_messages = with_messages or b"INSERT INTO chat_messages" in data
                if b"COMMIT" in data:
                    lost = self.armed and with_messages
                    self.armed = self.armed and not lost
                    with_messages = False
                away.write(data)

        async def down() -> None:
            while data := await there.read(65536):
                if lost:
                    self.cuts += 1
                    return
                writer.write(data)

        ways = [asyncio.create_task(up()), asyncio.create_task(down())]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for end in (writer, away):
            end.close()


async def last_of(engine: AsyncEngine, ask: Ask) -> Any:
    talk = await Talks(engine, Brief()).begin(EVERYBODY, ask)
    await talk.task
    *_, last = [event async for event in talk.events(60)]
    return last


@pytest.mark.parametrize("key", [None, "k"])
@pytest.mark.parametrize("existing", [False, True], ids=["new", "existing"])
def test_a_commit_whose_answer_is_lost_is_found_again(
    client: httpx.Client, chats: Chats, existing: bool, key: str | None
) -> None:
    session_id = with_messages(chats, client) if existing else None
    cut = Cut(chats.url)

    async def work(_: AsyncEngine) -> Any:
        async with cut.engine() as engine:
            cut.armed = True
            return await last_of(engine, Ask("more", session_id, idempotency_key=key))

    last = chats.run(work)
    assert cut.cuts == 1
    assert (last.name, last.data["replayed"]) == ("done", False)
    assert chats.counts() == (1, 3 if existing else 2)
    chats.check()


def test_where_the_database_does_not_come_back_nobody_says_that_nothing_is_stored(
    client: httpx.Client, chats: Chats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(talking, "PAUSES_S", (0.01, 0.01))
    cut = Cut(chats.url)

    async def work(_: AsyncEngine) -> None:
        async with cut.engine() as engine:
            cut.armed = True
            talk = await Talks(engine, Brief()).begin(EVERYBODY, Ask("more", idempotency_key="k"))
            cut.closed = True
            await talk.task
            *_, last = [event async for event in talk.events(60)]
            assert last is not None
            assert (last.name, last.data["code"]) == ("error", "outcome_unknown")
            assert cut.cuts == 1
            cut.closed = False
            again = await last_of(engine, Ask("more", idempotency_key="k"))
            assert (again.name, again.data["replayed"]) == ("done", True)

    chats.run(work)
    assert chats.counts() == (1, 2)


def test_an_id_that_is_taken_begins_nothing(client: httpx.Client, chats: Chats) -> None:
    session_id = with_messages(chats, client)

    async def work(engine: AsyncEngine) -> None:
        with pytest.raises(Refused) as taken:
            await exchange(engine, NewSession("main", id=session_id), NewMessage("user", "hello"))
        assert taken.value.code == "session_exists"

    chats.run(work)
    assert chats.counts() == (1, 1)
