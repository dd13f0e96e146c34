"""An exchange is stored whole or not at all, once, and no purge takes its session away."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import msgspec
import pytest
from chats import ENCRYPTED, Chats, until_somebody_waits
from service import Databases
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from session_manager.core.errors import NotFound, Refused
from session_manager.service.db import chat_archive, chat_cleanup, chat_sessions
from session_manager.service.db.chat_exchange import (
    Committed,
    NewSession,
    commit_exchange,
    still_open,
    stored_exchange,
)
from session_manager.service.db.chat_messages import NewMessage
from session_manager.service.db.ownership import EVERYBODY, Viewer

ALL_GHOSTS = chat_cleanup.ghosts(0, whatever_ttl=True)


@pytest.fixture
def chats(database: str, server: Databases) -> Chats:
    return Chats(server, database)


def hello(key: str | None = None, content: str = "hello") -> NewMessage:
    return NewMessage("user", content, tokens=2, idempotency_key=key)


def hello_back() -> NewMessage:
    return NewMessage("assistant", "hello back", tokens=5)


def new(**fields: Any) -> NewSession:
    return NewSession(agent_id="main", **fields)


async def exchange(
    engine: AsyncEngine, session: Any, user: NewMessage, viewer: Viewer = EVERYBODY, reply: NewMessage | None = None
) -> Committed:
    async with engine.begin() as connection:
        return await commit_exchange(connection, viewer, session, user, reply or hello_back())


async def opened(engine: AsyncEngine, session_id: str, viewer: Viewer = EVERYBODY) -> Any:
    async with engine.begin() as connection:
        return still_open(await chat_sessions.find(connection, uuid.UUID(session_id), viewer))


def test_a_new_session_comes_with_both_messages(chats: Chats) -> None:
    session = new(model="m-1", user_id="u", metadata={"page": 1}, kind="page")
    done = chats.run(lambda engine: exchange(engine, session, hello()))
    assert done.created is True
    assert done.session["id"] == session.id
    names = ("title", "agent_id", "model", "user_id", "message_count", "tokens", "status")
    assert [done.session[name] for name in names] == ["hello", "main", "m-1", "u", 2, 7, "active"]
    metadata = done.session["metadata"]
    assert (metadata["has_messages"], metadata["page"], metadata["kind"]) == (True, 1, "page")
    assert metadata["first_message_at"] == done.user["created_at"].isoformat()
    assert "ttl_minutes" not in metadata
    assert [(m["position"], m["role"], m["content"]) for m in (done.user, done.assistant)] == [
        (1, "user", "hello"),
        (2, "assistant", "hello back"),
    ]
    assert chats.counts() == (1, 2)
    chats.check()


def test_a_transaction_that_fails_leaves_nothing(chats: Chats) -> None:
    async def failing(connection: AsyncConnection) -> None:
        await commit_exchange(connection, EVERYBODY, new(), hello("k"), hello_back())
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        chats.on_connection(failing)
    assert chats.counts() == (0, 0)
    chats.run(lambda engine: exchange(engine, new(), hello("k")))
    assert chats.counts() == (1, 2)


def test_an_existing_session_gets_both_messages_and_its_counters_move(chats: Chats) -> None:
    async def work(engine: AsyncEngine) -> tuple[Committed, Committed]:
        first = await exchange(engine, new(), hello())
        return first, await exchange(engine, await opened(engine, str(first.session["id"])), hello(content="more"))

    first, second = chats.run(work)
    assert second.session["metadata"] == first.session["metadata"]
    assert (second.session["title"], second.session["message_count"], second.session["tokens"]) == ("hello", 4, 14)
    assert second.session["updated_at"] == second.session["last_message_at"] == second.assistant["created_at"]
    assert second.user["created_at"] > first.assistant["created_at"]
    chats.check()


@pytest.mark.parametrize("existing", [False, True])
def test_a_retry_returns_what_the_first_attempt_stored(chats: Chats, existing: bool) -> None:
    async def work(engine: AsyncEngine) -> None:
        (ghost,) = chats.empty()
        session = await opened(engine, ghost) if existing else new()
        assert await known(engine, session) is None
        first = await exchange(engine, session, hello("k"))
        again = session if existing else new()
        other_reply = NewMessage("assistant", "another reply")
        second = await exchange(engine, again, hello("k"), reply=other_reply)
        assert (first.created, second.created) == (True, False)
        assert (second.user, second.assistant, second.session) == (first.user, first.assistant, first.session)
        found = await known(engine, again)
        assert found is not None
        assert found.assistant == first.assistant
        with pytest.raises(Refused) as conflict:
            await exchange(engine, again, hello("k", "something else"))
        assert conflict.value.code == "idempotency_conflict"

    async def known(engine: AsyncEngine, session: Any) -> Committed | None:
        async with engine.begin() as connection:
            return await stored_exchange(connection, EVERYBODY, session, hello("k"))

    chats.run(work)
    assert chats.counts()[1] == 2
    chats.check()


def test_a_retry_that_knows_the_id_by_now_finds_the_exchange_that_began_the_session(chats: Chats) -> None:
    async def work(engine: AsyncEngine) -> tuple[Committed, Committed]:
        first = await exchange(engine, new(), hello("k"))
        return first, await exchange(engine, await opened(engine, str(first.session["id"])), hello("k"))

    first, second = chats.run(work)
    assert (second.created, second.assistant) == (False, first.assistant)


@pytest.mark.parametrize("existing", [False, True])
def test_retries_at_the_same_moment_store_one_exchange(chats: Chats, existing: bool) -> None:
    async def work(engine: AsyncEngine) -> list[Committed]:
        (ghost,) = chats.empty()
        seen = await opened(engine, ghost)
        return await asyncio.gather(*(exchange(engine, seen if existing else new(), hello("k")) for _ in range(12)))

    done = chats.run(work)
    assert sorted(each.created for each in done) == [False] * 11 + [True]
    assert len({each.user["id"] for each in done}) == 1
    assert chats.counts()[1] == 2
    chats.check()


def test_a_retry_waits_for_the_attempt_under_way_and_takes_over_when_that_fails(chats: Chats) -> None:
    async def work(engine: AsyncEngine) -> Committed:
        async with engine.connect() as first:
            await commit_exchange(first, EVERYBODY, new(), hello("k"), hello_back())
            retry = asyncio.create_task(exchange(engine, new(), hello("k")))
            await until_somebody_waits(engine)
            await first.rollback()
        return await retry

    assert chats.run(work).created is True
    assert chats.counts() == (1, 2)


def test_keys_of_different_owners_do_not_meet(chats: Chats) -> None:
    async def work(engine: AsyncEngine) -> list[Committed]:
        return [
            await exchange(engine, new(user_id=user), hello("k"), Viewer(user_id=user)) for user in ("u", "v", None)
        ]

    assert [done.created for done in chats.run(work)] == [True] * 3
    assert chats.counts() == (3, 6)


def test_a_key_shows_nobody_a_session_that_is_not_theirs(chats: Chats) -> None:
    async def work(engine: AsyncEngine) -> None:
        await exchange(engine, new(user_id="u", org_id="acme"), hello("k"), Viewer("u", frozenset(("acme",))))
        with pytest.raises(Refused) as refused:
            await exchange(engine, new(user_id="u"), hello("k"), Viewer("u"))
        assert refused.value.code == "session_exists"

    chats.run(work)
    assert chats.counts() == (1, 2)


# Purges and other things that happen while a reply is written.


def test_a_session_that_is_purged_while_the_reply_is_written_comes_back_with_both_messages(chats: Chats) -> None:
    (ghost,) = chats.empty(metadata='{"ttl_minutes": 1, "kind": "page"}')

    async def work(engine: AsyncEngine) -> Committed:
        seen = await opened(engine, ghost)
        assert await chat_cleanup.purge(engine, ALL_GHOSTS) == 1
        return await exchange(engine, seen, hello())

    done = chats.run(work)
    assert str(done.session["id"]) == ghost
    assert done.session["metadata"]["kind"] == "page"
    assert (chats.ids(), chats.counts()) == ({ghost}, (1, 2))
    assert chats.run(lambda engine: chat_cleanup.purge(engine, ALL_GHOSTS)) == 0
    chats.check()


def test_a_session_that_is_archived_while_the_reply_is_written_comes_back(chats: Chats) -> None:
    async def work(engine: AsyncEngine) -> Committed:
        first = await exchange(engine, new(), hello())
        seen = await opened(engine, str(first.session["id"]))
        async with engine.begin() as connection:
            await chat_archive.archive_one(connection, seen["id"], EVERYBODY)
        # Opened once more while it is in the archive: that alone brings nothing back.
        assert (await opened(engine, str(seen["id"])))["status"] == "archived"
        assert chats.ids() == set()
        return await exchange(engine, seen, hello(content="more"))

    assert chats.run(work).session["message_count"] == 4
    assert chats.ids("chat_sessions_archive") == set()
    chats.check()


def test_two_exchanges_bring_an_archived_session_back_together(chats: Chats) -> None:
    async def work(engine: AsyncEngine) -> None:
        first = await exchange(engine, new(), hello())
        for _ in range(10):
            async with engine.begin() as connection:
                await chat_archive.archive_one(connection, first.session["id"], EVERYBODY)
            seen = await opened(engine, str(first.session["id"]))
            await asyncio.gather(*(exchange(engine, seen, hello()) for _ in range(4)))

    chats.run(work)
    assert chats.counts() == (1, 82)
    chats.check()


def test_a_session_that_is_ended_while_the_reply_is_written_takes_it_and_no_more(chats: Chats) -> None:
    async def work(engine: AsyncEngine) -> Committed:
        first = await exchange(engine, new(), hello())
        seen = await opened(engine, str(first.session["id"]))
        async with engine.begin() as connection:
            await chat_sessions.end(connection, seen["id"], EVERYBODY)
        done = await exchange(engine, seen, hello())
        with pytest.raises(Refused) as refused:
            await opened(engine, str(seen["id"]))
        assert refused.value.code == "session_ended"
        return done

    done = chats.run(work)
    assert (done.session["status"], done.session["message_count"]) == ("ended", 4)


def test_a_used_session_that_is_deleted_while_the_reply_is_written_stays_deleted(chats: Chats) -> None:
    async def work(engine: AsyncEngine) -> None:
        first = await exchange(engine, new(), hello())
        seen = await opened(engine, str(first.session["id"]))
        async with engine.begin() as connection:
            await chat_sessions.remove(connection, seen["id"], EVERYBODY)
        with pytest.raises(NotFound):
            await exchange(engine, seen, hello())

    chats.run(work)
    assert chats.counts() == (0, 0)


def test_an_encrypted_message_can_be_exchanged(chats: Chats) -> None:
    user = NewMessage("user", encrypted=ENCRYPTED, idempotency_key="k")
    reply = NewMessage("assistant", encrypted={**ENCRYPTED, "iv": "ff" * 12})
    for created in (True, False):
        retry = msgspec.structs.replace(user, id=uuid.uuid4())
        done = chats.run(lambda engine, user=retry: exchange(engine, new(), user, reply=reply))
        assert (done.created, done.user["encrypted"], done.session["title"]) == (created, ENCRYPTED, None)
        assert done.assistant["encrypted"]["iv"] == "ff" * 12


def test_purges_at_the_moment_of_the_exchange_lose_nothing(chats: Chats) -> None:
    """Sessions old enough for each purge, exchanges in them and purges, all at once, on as many connections."""
    chats.empty(120)

    async def work(engine: AsyncEngine) -> int:
        stop = asyncio.Event()
        seen = [await opened(engine, session_id) for session_id in sorted(chats.ids())]

        async def purging() -> None:
            while not stop.is_set():
                await chat_cleanup.purge(engine, ALL_GHOSTS, batch=7)

        purges = [asyncio.create_task(purging()) for _ in range(4)]
        done = await asyncio.gather(*(exchange(engine, session, hello("k")) for session in seen[::2]))
        stop.set()
        await asyncio.gather(*purges)
        await chat_cleanup.purge(engine, ALL_GHOSTS)
        return sum(each.created for each in done)

    assert chats.run(work, pool_size=12) == 60
    assert chats.counts() == (60, 120)
    chats.check()
