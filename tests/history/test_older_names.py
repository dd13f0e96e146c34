"""The checks of the older service's tickets as they are written there: SQL on its names, requests to its paths."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import psycopg
import pytest
from chats import BASE, Chats, create, say
from service import Databases

from session_manager.service.db.migrate import head, migrate

VIEWS = {
    "engine_chat_sessions": "chat_sessions",
    "engine_chat_session_archive": "chat_sessions_archive",
    "engine_chat_messages": "chat_messages",
    "engine_chat_message_archive": "chat_messages_archive",
}
OLD_GHOSTS = (
    "SELECT COUNT(*) FROM engine_chat_sessions WHERE message_count=0 AND created_at < NOW() - INTERVAL '15 minutes';"
)


def test_no_ghost_is_older_than_a_quarter_of_an_hour(chats: Chats, client: httpx.Client) -> None:
    ghost = create(client, agent_id="test", title="ghost-test")["id"]
    used = create(client, agent_id="aria-analyst")["id"]
    say(client, used)
    chats.age(ghost, 16)
    assert chats.execute(OLD_GHOSTS) == [(1,)]
    assert client.delete(f"{BASE}/ghosts?older_than_minutes=1").json() == {"deleted": 1, "status": "ok"}
    assert chats.execute(OLD_GHOSTS) == [(0,)]
    assert chats.execute("SELECT COUNT(*) FROM engine_chat_sessions WHERE message_count=0;") == [(0,)]
    assert chats.execute("SELECT status, COUNT(*) FROM engine_chat_sessions GROUP BY status;") == [("active", 1)]
    create(client, agent_id="test", title="ghost-test")
    assert client.delete(f"{BASE}/ghosts?older_than_minutes=0").json() == {"deleted": 1, "status": "ok"}
    assert client.get(f"{BASE}/{used}").json()["agent_id"] == "aria-analyst"


def test_what_is_archived_has_moved(chats: Chats, client: httpx.Client) -> None:
    session = create(client)["id"]
    say(client, session, tokens=7)
    (row,) = chats.execute(
        "SELECT agent_id, session_type, title, status, message_count, total_tokens, metadata->>'kind'"
        f" FROM engine_chat_sessions WHERE id='{session}';"
    )
    assert row == ("main", "chat", "hello", "active", 1, 7, "chat")
    answer = client.post(f"{BASE}/{session}/archive").json()
    assert (answer["status"], answer["session_id"]) == ("archived", session)
    assert chats.execute(f"SELECT id FROM engine_chat_sessions WHERE id='{session}';") == []
    archived = f"SELECT id, archived_at FROM engine_chat_session_archive WHERE id='{session}';"
    ((found, at),) = chats.execute(archived)
    assert (str(found), at is not None) == (session, True)
    assert chats.execute(f"SELECT COUNT(*) FROM engine_chat_messages WHERE session_id='{session}';") == [(0,)]
    messages = f"SELECT role, content FROM engine_chat_message_archive WHERE session_id='{session}';"
    assert chats.execute(messages) == [("user", "hello")]
    assert [row["id"] for row in client.get(f"{BASE}/archived").json()["sessions"]] == [session]


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_is_written_by_an_older_name(chats: Chats, client: httpx.Client, view: str) -> None:
    session = create(client)["id"]
    say(client, session)
    client.post(f"{BASE}/{session}/archive").raise_for_status()
    say(client, create(client)["id"])
    before = chats.execute(f"SELECT * FROM {VIEWS[view]}")
    assert before
    for statement in (
        f"DELETE FROM {view}",
        f"DELETE FROM {view} WHERE false",
        f"UPDATE {view} SET id = id",
        f"UPDATE {view} SET metadata = '{{}}'" if "session" in view else f"UPDATE {view} SET role = 'x'",
        f"INSERT INTO {view} (id) VALUES ('{uuid.uuid4()}')",
        f"TRUNCATE {view}",
        f"MERGE INTO {view} v USING (SELECT 1) AS one ON true WHEN MATCHED THEN DELETE",
    ):
        with pytest.raises(psycopg.Error, match=r"cannot|is not a table"):
            chats.execute(statement)
    assert chats.execute(f"SELECT * FROM {VIEWS[view]}") == before


def test_an_older_name_is_read_by_the_same_indexes(chats: Chats) -> None:
    chats.execute("INSERT INTO chat_sessions (message_count) SELECT n %% 1000 FROM generate_series(1, 20000) AS n")
    chats.execute("ANALYZE chat_sessions")
    for statement, index in (
        (OLD_GHOSTS, "idx_chat_sessions_ghosts"),
        (f"SELECT id FROM engine_chat_sessions WHERE id='{uuid.uuid4()}'", "chat_sessions_pkey"),
    ):
        plan = "\n".join(row[0] for row in chats.execute(f"EXPLAIN {statement}"))
        assert index in plan, plan


def test_tables_that_an_older_service_still_has_stay_as_they_are(server: Databases) -> None:
    url = server.create(migrated=False)
    with server.connect(url) as connection:
        connection.execute("CREATE TABLE engine_chat_sessions (id uuid PRIMARY KEY, message_count integer)")
        connection.execute("INSERT INTO engine_chat_sessions VALUES (gen_random_uuid(), 5)")
        assert migrate(url) == head()
        found: list[Any] = connection.execute("SELECT message_count FROM engine_chat_sessions").fetchall()
        assert found == [(5,)]
        assert connection.execute("SELECT count(*) FROM engine_chat_messages").fetchone() == (0,)
    server.drop(url)
