"""No ghost ever, and nothing but ghosts: purge, expiry and archive against the database, over HTTP and in races."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest
from chats import BASE, Chats, create, listed, say, until_somebody_waits
from psycopg.errors import CheckViolation
from service import Databases, Service, cli, running
from sqlalchemy import Text, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from session_manager.core.errors import NotFound, UsageError
from session_manager.service.config import read_config
from session_manager.service.db import chat_archive, chat_cleanup, chat_messages, chat_sessions
from session_manager.service.db.chat_messages import NewMessage
from session_manager.service.db.ownership import EVERYBODY

SOAK = bool(os.environ.get("SOAK"))
DAY = 24 * 60
# As another program may write it.
UNCOUNTED = text("INSERT INTO chat_messages (session_id, position, role, content) VALUES (:id, 1, 'user', 'x')")
LATE = 0x1A7E


def purge(client: httpx.Client, **query: int) -> int:
    answer = client.delete(f"{BASE}/ghosts", params=query)
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document == {"deleted": document["deleted"], "status": "ok"}
    return int(document["deleted"])


def expire(client: httpx.Client) -> int:
    answer = client.delete(f"{BASE}/expired")
    assert answer.status_code == 200, answer.text
    return int(answer.json()["deleted"])


async def background_purge(engine: AsyncEngine) -> int:
    """What the job does every ten minutes."""
    return await chat_cleanup.purge(engine, chat_cleanup.ghosts(chat_cleanup.GHOST_MINUTES, whatever_ttl=False))


# Who goes.


def test_no_ghost_older_than_a_quarter_of_an_hour_survives_and_nothing_else_goes(
    client: httpx.Client, chats: Chats
) -> None:
    chats.empty(3, minutes=15.1)
    young = chats.empty(2, minutes=14.9)
    used = create(client)["id"]
    say(client, used)
    chats.age(used, 60)
    assert purge(client) == 3
    assert chats.ids() == {*young, used}
    assert purge(client) == 0


def test_the_age_can_be_chosen_and_0_is_all(client: httpx.Client, chats: Chats) -> None:
    chats.empty(1, minutes=1.1)
    fresh = create(client)["id"]
    ahead = chats.empty(1, minutes=-60)
    used = create(client)["id"]
    say(client, used)
    assert purge(client, older_than_minutes=1) == 1
    assert chats.ids() == {fresh, *ahead, used}
    assert purge(client, older_than_minutes=0) == 2
    assert chats.ids() == {used}


def test_a_session_with_a_ttl_expires_by_that_and_others_are_purged_by_age(client: httpx.Client, chats: Chats) -> None:
    short, long = (create(client, ttl_minutes=minutes)["id"] for minutes in (5, 120))
    (plain,) = chats.empty()
    for session_id in (short, long):
        chats.age(session_id, 60)
    assert chats.run(background_purge) == 1
    assert chats.ids() == {short, long}
    assert plain not in chats.ids()
    assert expire(client) == 1
    assert chats.ids() == {long}
    assert expire(client) == 0
    assert purge(client) == 1, "by hand the time to live does not count"


def test_the_ttl_is_the_one_of_the_moment_it_was_made_to_the_minute(client: httpx.Client, chats: Chats) -> None:
    early, late = (create(client, ttl_minutes=30)["id"] for _ in range(2))
    chats.age(early, 29.9)
    chats.age(late, 30.1)
    assert expire(client) == 1
    assert chats.ids() == {early}


@pytest.mark.parametrize("ttl", ['"soon"', "null", "[]", "true", '"5"'])
def test_a_ttl_that_is_none_does_not_keep_a_ghost(chats: Chats, ttl: str) -> None:
    chats.empty(metadata=f'{{"ttl_minutes": {ttl}}}')
    assert chats.run(background_purge) == 1


@pytest.mark.parametrize("ttl", ["-1", "0", "0.4", "1e300", "525600000"])
def test_an_absurd_ttl_breaks_nothing(chats: Chats, client: httpx.Client, ttl: str) -> None:
    chats.empty(metadata=f'{{"ttl_minutes": {ttl}}}')
    assert expire(client) == (0 if float(ttl) > 60 else 1)


@pytest.mark.parametrize("moment", ["-infinity", "infinity", "0044-03-15 BC", "9999-12-31"])
def test_no_time_gets_in_that_would_stop_every_purge(chats: Chats, moment: str) -> None:
    """Other programs write here, too, and what cannot be read cannot be purged."""
    with pytest.raises(CheckViolation):
        chats.execute("INSERT INTO chat_sessions (created_at) VALUES (%s)", moment)
    (session_id,) = chats.empty()
    for change in ("last_message_at", "ended_at"):
        with pytest.raises(CheckViolation):
            chats.execute(f"UPDATE chat_sessions SET {change} = %s", moment)
    said = "INSERT INTO chat_messages (session_id, position, role, created_at, content) VALUES (%s, 1, 'user', %s, 'x')"
    with pytest.raises(CheckViolation):
        chats.execute(said, session_id, moment)


@pytest.mark.parametrize("payload", ["[]", '"text"', "null", "7"])
def test_no_payload_gets_in_that_could_not_be_listed(chats: Chats, payload: str) -> None:
    (session_id,) = chats.empty()
    said = "INSERT INTO chat_messages (session_id, position, role, encrypted) VALUES (%s, 1, 'user', %s)"
    with pytest.raises(CheckViolation):
        chats.execute(said, session_id, payload)


def test_a_used_session_is_kept_for_ever(client: httpx.Client, chats: Chats) -> None:
    session_id = create(client, ttl_minutes=1)["id"]
    say(client, session_id)
    chats.age(session_id, 365 * DAY)
    assert (expire(client), purge(client), purge(client, older_than_minutes=0)) == (0, 0, 0)
    assert chats.run(background_purge) == 0
    assert chats.counts() == (1, 1)


def test_a_session_with_a_message_that_its_counter_does_not_know_is_no_ghost(
    client: httpx.Client, chats: Chats
) -> None:
    """Another program may write messages without counting them."""
    (session_id,) = chats.empty()
    chats.execute(
        "INSERT INTO chat_messages (session_id, position, role, content) VALUES (%s, 1, 'user', 'x')", session_id
    )
    assert purge(client, older_than_minutes=0) == 0
    assert chats.counts() == (1, 1)
    say(client, session_id)
    assert [m["position"] for m in client.get(f"{BASE}/{session_id}/messages").json()] == [1, 2]


def test_ghosts_are_listed_as_they_would_be_purged(client: httpx.Client, chats: Chats) -> None:
    old = [chats.empty(1, minutes=60 - n)[0] for n in range(3)]
    fresh = create(client, user_id="u")["id"]
    first = client.get(f"{BASE}/ghosts", params={"limit": 2}).json()
    assert ([s["id"] for s in first["sessions"]], first["total"], first["has_more"]) == (old[:2], 3, True)
    everything = client.get(f"{BASE}/ghosts", params={"older_than_minutes": 0}).json()["sessions"]
    assert [(s["id"], s["user_id"]) for s in everything] == [*((i, None) for i in old), (fresh, "u")]
    assert chats.counts() == (4, 0)
    assert purge(client) == 3


def test_batches_take_everything_once(chats: Chats) -> None:
    chats.empty(25)
    chats.empty(3, minutes=1)
    which = chat_cleanup.ghosts(15, whatever_ttl=False)
    assert chats.run(lambda engine: chat_cleanup.purge(engine, which, batch=4)) == 25
    assert chats.counts() == (3, 0)


def test_ghosts_of_the_same_moment_are_told_apart_by_batches(chats: Chats) -> None:
    chats.empty(25)
    chats.execute("UPDATE chat_sessions SET created_at = '2026-01-01T00:00:00Z'")
    which = chat_cleanup.ghosts(15, whatever_ttl=False)
    assert chats.run(lambda engine: chat_cleanup.purge(engine, which, batch=4)) == 25


def test_each_purge_has_a_line_in_the_log_with_short_ids(
    shared_service: Service, client: httpx.Client, chats: Chats
) -> None:
    (one,) = chats.empty()
    purge(client)
    assert f"ghost purge: deleted 1: {one[:8]}…\n" in shared_service.log
    many = chats.empty(23)
    purge(client)
    (line,) = [line for line in shared_service.log.splitlines() if "ghost purge: deleted 23: " in line]
    assert line.endswith("… and 3 more")
    assert not [session_id for session_id in (one, *many) if session_id in shared_service.log]


# Settings, restarts.


def test_expiry_works_across_restarts_and_by_the_setting(server: Databases, database: str, tmp_path: Path) -> None:
    chats = Chats(server, database)
    with running(tmp_path / "log", DATABASE_URL=database, SESSION_CLEANUP_TTL_MINUTES="7") as service:
        made = create(service.client)
        assert made["metadata"]["ttl_minutes"] == 7
        chats.age(made["id"], 8)
        service.kill()
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        assert create(service.client)["metadata"]["ttl_minutes"] == 30
        assert expire(service.client) == 1
        assert made["id"] not in chats.ids()


def test_cleanup_that_is_switched_off_keeps_what_was_made_first(
    server: Databases, database: str, tmp_path: Path
) -> None:
    chats = Chats(server, database)
    with running(tmp_path / "log", DATABASE_URL=database, SESSION_CLEANUP_ENABLED="false") as service:
        made = create(service.client)["id"]
        chats.age(made, DAY)
        answer = service.client.delete(f"{BASE}/expired")
        assert (answer.status_code, answer.json()) == (200, {"deleted": 0, "status": "disabled"})
        assert chats.run(background_purge) == 0
        assert chats.ids() == {made}
        assert purge(service.client) == 1
    words = " ".join(cli("serve", "--help").stdout.split())
    assert "SESSION_CLEANUP_ENABLED (default true; false: it stays until it is deleted by hand)" in words


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SESSION_CLEANUP_ENABLED", "perhaps"),
        ("SESSION_CLEANUP_TTL_MINUTES", "0"),
        ("SESSION_CLEANUP_TTL_MINUTES", "-1"),
        ("SESSION_CLEANUP_TTL_MINUTES", "1.5"),
        ("SESSION_CLEANUP_TTL_MINUTES", "²"),
        ("SESSION_CLEANUP_TTL_MINUTES", "43201"),
        ("SESSION_CLEANUP_TTL_MINUTES", "9" * 5000),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=name):
        read_config({name: value})


@pytest.mark.parametrize(("value", "enabled"), [("", True), ("TRUE", True), ("1", True), ("no", False), ("0", False)])
def test_the_switch(value: str, enabled: bool) -> None:
    assert read_config({"SESSION_CLEANUP_ENABLED": value}).cleanup_enabled is enabled


# Races.


def test_five_cleanups_at_once_share_the_work(shared_service: Service, chats: Chats) -> None:
    chats.empty(3000)
    kept = chats.empty(10, minutes=1)
    deleted: list[int] = []

    def one() -> None:
        with httpx.Client(base_url=shared_service.url, trust_env=False, timeout=60) as own:
            deleted.append(purge(own))

    threads = [threading.Thread(target=one) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(deleted) == 3000
    assert chats.ids() == set(kept)


async def first_message(engine: AsyncEngine, session_id: str) -> bool:
    async with engine.begin() as connection:
        added = await chat_messages.add(connection, uuid.UUID(session_id), EVERYBODY, NewMessage("user", "hello"))
        return added.created


def test_a_purge_passes_by_a_session_whose_message_is_not_committed_yet(chats: Chats) -> None:
    (session_id, other) = chats.empty(2)

    async def work(engine: AsyncEngine) -> int:
        async with engine.begin() as connection:
            await chat_messages.add(connection, uuid.UUID(session_id), EVERYBODY, NewMessage("user", "hello"))
            async with asyncio.timeout(30):
                return await background_purge(engine)

    assert chats.run(work) == 1
    assert chats.ids() == {session_id}
    assert other not in chats.ids()
    assert chats.run(background_purge) == 0
    assert chats.counts() == (1, 1)
    chats.check()


def test_a_purge_passes_by_a_session_with_an_uncounted_message_that_is_not_committed_yet(chats: Chats) -> None:
    (session_id,) = chats.empty()

    async def work(engine: AsyncEngine) -> int:
        async with engine.begin() as connection:
            await connection.execute(UNCOUNTED, {"id": session_id})
            async with asyncio.timeout(30):
                return await background_purge(engine)

    assert chats.run(work) == 0
    assert chats.counts() == (1, 1)


def purge_that_is_late(chats: Chats, change: Callable[[AsyncEngine], Awaitable[object]]) -> int:
    """Returns how many a purge deletes when ``change`` is committed after its look and before it holds the rows."""

    async def work(engine: AsyncEngine) -> int:
        which = chat_cleanup.ghosts(15, whatever_ttl=False)
        which.conditions.append(func.pg_advisory_xact_lock(LATE).cast(Text) == "")
        async with engine.connect() as gate:
            await gate.execute(select(func.pg_advisory_xact_lock(LATE)))
            purging = asyncio.create_task(chat_cleanup.purge(engine, which))
            await until_somebody_waits(engine)
            await change(engine)
        return await purging

    found = chats.run(work)
    assert isinstance(found, int)
    return found


def test_a_message_between_the_look_and_the_lock_of_a_purge_wins(chats: Chats) -> None:
    (session_id,) = chats.empty()
    assert purge_that_is_late(chats, lambda engine: first_message(engine, session_id)) == 0
    assert chats.counts() == (1, 1)
    chats.check()


def test_a_message_between_the_look_and_the_lock_wins_although_its_counter_does_not_know(chats: Chats) -> None:
    (session_id,) = chats.empty()

    async def write(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await connection.execute(UNCOUNTED, {"id": session_id})

    assert purge_that_is_late(chats, write) == 0
    assert chats.counts() == (1, 1)


def test_a_ghost_that_moves_between_the_look_and_the_lock_is_deleted_and_nothing_else(chats: Chats) -> None:
    """A changed row is another row in PostgreSQL, somewhere else."""
    (session_id, *_) = chats.empty(3)
    kept = chats.empty(3, minutes=1)

    async def rename(engine: AsyncEngine) -> None:
        async with engine.begin() as connection:
            await chat_sessions.change(connection, uuid.UUID(session_id), EVERYBODY, {"title": "x" * 5000})

    assert purge_that_is_late(chats, rename) == 3
    assert chats.ids() == set(kept)


def test_a_message_that_arrives_while_a_purge_holds_its_session_wins(chats: Chats) -> None:
    (session_id,) = chats.empty(metadata='{"kind": "page", "has_messages": false}')

    async def work(engine: AsyncEngine) -> None:
        which = chat_cleanup.ghosts(15, whatever_ttl=False)
        async with engine.connect() as purging:
            batch = await chat_cleanup.delete_empty(purging, which, 10)
            assert [str(each["id"]) for each in batch.some] == [session_id]
            messages = [asyncio.create_task(first_message(engine, session_id)) for _ in range(2)]
            # Behind a small pooler no more than two can wait beside the purge and who looks at them.
            await until_somebody_waits(engine, 2)
            await purging.commit()
        assert await asyncio.gather(*messages) == [True] * 2

    chats.run(work)
    assert chats.counts() == (1, 2)
    ((metadata,),) = chats.execute("SELECT metadata FROM chat_sessions WHERE id = %s", session_id)
    assert (metadata["kind"], metadata["has_messages"]) == ("page", True)
    chats.check()


def test_a_message_after_the_purge_is_told_that_the_session_is_gone(chats: Chats) -> None:
    (session_id,) = chats.empty()
    chats.run(background_purge)
    with pytest.raises(NotFound):
        chats.run(lambda engine: first_message(engine, session_id))
    assert chats.counts() == (0, 0)


def test_purges_and_first_messages_at_once_lose_no_message_and_no_used_session(chats: Chats) -> None:
    """Whoever was told that their message is stored finds it stored; whoever was told that it is not, does not."""
    sessions, purges = (5000, 50) if SOAK else (1000, 20)
    ids = chats.empty(sessions)

    async def work(engine: AsyncEngine) -> set[str]:
        used: set[str] = set()
        waiting = iter(ids)

        async def writer() -> None:
            for session_id in waiting:
                try:
                    assert await first_message(engine, session_id)
                    used.add(session_id)
                except NotFound:
                    assert session_id not in used

        async def purging(n: int) -> None:
            await asyncio.sleep(n * 0.01)
            await chat_cleanup.purge(engine, chat_cleanup.ghosts(15, whatever_ttl=True), batch=50 if n % 2 else 3)

        await asyncio.gather(*(writer() for _ in range(8)), *(purging(n) for n in range(purges)))
        await background_purge(engine)
        return used

    used = chats.run(work, pool_size=16)
    assert chats.ids() == used
    assert chats.counts() == (len(used), len(used))
    assert 0 < len(used) < sessions, "a race that one side always wins shows nothing"
    chats.check()


def test_young_sessions_that_are_used_while_purges_run_all_stay(chats: Chats) -> None:
    sessions, purges = (5000, 50) if SOAK else (300, 10)
    ids = chats.empty(sessions, minutes=1)

    async def work(engine: AsyncEngine) -> None:
        waiting = iter(ids)

        async def writer() -> None:
            for session_id in waiting:
                await first_message(engine, session_id)

        await asyncio.gather(*(writer() for _ in range(8)), *(background_purge(engine) for _ in range(purges)))

    chats.run(work, pool_size=16)
    assert chats.counts() == (sessions, sessions)
    chats.check()


# The archive of idle conversations.


def talk(client: httpx.Client, chats: Chats, days: float, messages: int = 1) -> str:
    session_id = str(create(client)["id"])
    for n in range(messages):
        say(client, session_id, f"m{n}")
    chats.age(session_id, days * DAY)
    return session_id


def cleanup(client: httpx.Client, **query: object) -> tuple[int, int]:
    answer = client.post(f"{BASE}/cleanup", params={name: json.dumps(value) for name, value in query.items()})
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert document["dry_run"] is query.get("dry_run", True)
    return document["pruned_count"], document["message_count"]


def test_what_is_idle_for_thirty_days_is_archived_with_its_messages(client: httpx.Client, chats: Chats) -> None:
    idle = talk(client, chats, 30.1, messages=3)
    busy = talk(client, chats, 29.9)
    ended = talk(client, chats, 20)
    client.post(f"{BASE}/{ended}/end")
    chats.age(ended, 31 * DAY)
    (ghost,) = chats.empty(minutes=40 * DAY)
    assert cleanup(client) == (2, 4)
    assert chats.counts() == (4, 5)
    assert cleanup(client, dry_run=False) == (2, 4)
    assert chats.ids() == {busy, ghost}
    assert chats.ids("chat_sessions_archive") == {idle, ended}
    assert [m["content"] for m in client.get(f"{BASE}/{idle}/messages").json()] == ["m0", "m1", "m2"]
    assert cleanup(client, dry_run=False) == (0, 0)
    assert cleanup(client, dry_run=False, days=29) == (1, 1)


def test_activity_is_more_than_messages(client: httpx.Client, chats: Chats) -> None:
    session_id = talk(client, chats, 31)
    client.patch(f"{BASE}/{session_id}/title", json={"title": "still wanted"})
    assert cleanup(client, dry_run=False) == (0, 0)


def test_the_archive_goes_in_batches(client: httpx.Client, chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {talk(client, chats, 31) for _ in range(11)}
    monkeypatch.setattr(chat_cleanup, "ARCHIVE_BATCH", 3)
    assert chats.run(chat_cleanup.archive_idle) == (11, 11)
    assert chats.ids("chat_sessions_archive") == wanted


def test_a_message_to_an_idle_session_wins_over_the_archive(client: httpx.Client, chats: Chats) -> None:
    before, after = talk(client, chats, 31), talk(client, chats, 31)

    async def work(engine: AsyncEngine) -> None:
        # One message is under way when the archive comes; the other one comes while the archive is at it.
        async with engine.connect() as writing, engine.connect() as archiving:
            await chat_messages.add(writing, uuid.UUID(before), EVERYBODY, NewMessage("user", "hello"))
            moved = await chat_archive.archive_idle(archiving, 30, EVERYBODY, 10)
            assert [str(row["id"]) for row in moved] == [after]
            late = asyncio.create_task(first_message(engine, after))
            await until_somebody_waits(engine)
            await archiving.commit()
            assert await late
            await writing.commit()

    chats.run(work)
    assert set(listed(client)) == {before, after}
    assert chats.counts() == (2, 4)
    assert chats.ids("chat_sessions_archive") == set()
    chats.check()


def test_archiving_by_hand_waits_for_the_message_under_way_and_takes_it_along(chats: Chats) -> None:
    (session_id,) = chats.empty()

    async def work(engine: AsyncEngine) -> int:
        async with engine.connect() as writing, engine.begin() as archiving:
            await chat_messages.add(writing, uuid.UUID(session_id), EVERYBODY, NewMessage("user", "hello"))
            moving = asyncio.create_task(chat_archive.archive_one(archiving, uuid.UUID(session_id), EVERYBODY))
            await until_somebody_waits(engine)
            await writing.commit()
            return int((await moving)["message_count"])

    assert chats.run(work) == 1
    assert chats.counts() == (0, 0)
    assert chats.execute("SELECT count(*) FROM chat_messages_archive") == [(1,)]


def test_an_archive_run_that_fails_half_way_moves_a_session_whole_or_not_at_all(
    client: httpx.Client, chats: Chats
) -> None:
    session_id = talk(client, chats, 31, messages=2)

    async def failing(connection: AsyncConnection) -> None:
        await chat_archive.archive_idle(connection, 30, EVERYBODY, 10)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        chats.on_connection(failing)
    assert chats.ids() == {session_id}
    assert chats.counts() == (1, 2)
    assert chats.ids("chat_sessions_archive") == set()
