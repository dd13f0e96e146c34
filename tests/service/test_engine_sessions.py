"""/api/engine/sessions over a real socket and on a real PostgreSQL: one conversation at a time, and lists."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from chats import BASE, ENCRYPTED, Chats, create, listed, new_id, say
from service import Databases, Service, refused
from sqlalchemy.ext.asyncio import AsyncConnection

from session_manager.service.db import chat_sessions as queries
from session_manager.service.db.ownership import EVERYBODY


@pytest.fixture
def agent() -> str:
    """An agent of this test's own."""
    return f"agent-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def chats(server: Databases, shared_service: Service) -> Chats:
    assert shared_service.database_url is not None
    return Chats(server, shared_service.database_url)


def detail(client: httpx.Client, session_id: str) -> dict[str, Any]:
    answer = client.get(f"{BASE}/{session_id}")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


def texts(client: httpx.Client, session_id: str, **query: Any) -> list[str]:
    answer = client.get(f"{BASE}/{session_id}/messages", params=query)
    assert answer.status_code == 200, answer.text
    return [message["content"] for message in answer.json()]


# Made before the first message.


def test_a_session_that_is_made_first_carries_what_the_contract_says(client: httpx.Client, agent: str) -> None:
    made = create(client, agent_id=agent, title="Plans", model="m-1", session_type="page", metadata={"tab": 7})
    assert made == {
        "id": made["id"],
        "session_id": made["id"],
        "title": "Plans",
        "agent_id": agent,
        "session_type": "page",
        "model": "m-1",
        "status": "active",
        "message_count": 0,
        "tokens": 0,
        "user_id": None,
        "org_id": None,
        "created_at": made["created_at"],
        "updated_at": made["created_at"],
        "last_message_at": None,
        "ended_at": None,
        "metadata": {
            "tab": 7,
            "created_at": made["created_at"],
            "ttl_minutes": 30,
            "has_messages": False,
            "backend_created": True,
            "kind": "page",
        },
    }
    assert abs(datetime.now(UTC) - datetime.fromisoformat(made["created_at"])) < timedelta(minutes=5)
    assert detail(client, made["id"]) == {**made, "recent_messages": []}


def test_ttl_and_kind_may_stand_beside_or_in_the_metadata(client: httpx.Client, agent: str) -> None:
    beside = create(client, agent_id=agent, ttl_minutes=5, kind="voice")["metadata"]
    inside = create(client, agent_id=agent, metadata={"ttl_minutes": 5, "kind": "voice"})["metadata"]
    for metadata in (beside, inside):
        assert (metadata["ttl_minutes"], metadata["kind"]) == (5, "voice")


def test_a_client_s_word_on_the_service_s_own_facts_does_not_count(client: httpx.Client, agent: str) -> None:
    claimed = {"has_messages": True, "first_message_at": "x", "created_at": "x", "backend_created": False, "mine": 1}
    metadata = create(client, agent_id=agent, metadata=claimed)["metadata"]
    assert (metadata["has_messages"], metadata["backend_created"], metadata["mine"]) == (False, True, 1)
    assert metadata["created_at"] != "x"
    assert "first_message_at" not in metadata


def test_the_first_message_marks_the_session_used_once(client: httpx.Client, agent: str) -> None:
    made = create(client, agent_id=agent)
    first = say(client, made["id"], "How are   you?\nFine.", tokens=3)
    say(client, made["id"], "I am.", role="assistant", tokens=4)
    found = detail(client, made["id"])
    assert (found["message_count"], found["tokens"], found["title"]) == (2, 7, "How are you? Fine.")
    assert found["metadata"]["has_messages"] is True
    assert found["metadata"]["first_message_at"] == first["created_at"]
    assert found["last_message_at"] == found["updated_at"] == found["recent_messages"][-1]["created_at"]
    assert found["updated_at"] > first["created_at"] > made["created_at"]


# Messages.


def test_messages_keep_their_order_and_can_be_read_in_parts(client: httpx.Client, agent: str, chats: Chats) -> None:
    session_id = create(client, agent_id=agent)["id"]
    said = [say(client, session_id, f"m{n}", role=("user", "assistant")[n % 2]) for n in range(7)]
    assert [message["position"] for message in said] == [1, 2, 3, 4, 5, 6, 7]
    assert texts(client, session_id) == [f"m{n}" for n in range(7)]
    assert texts(client, session_id, limit=2, offset=3) == ["m3", "m4"]
    assert texts(client, session_id, since=said[4]["created_at"]) == ["m5", "m6"]
    assert texts(client, session_id, since=said[6]["created_at"]) == []
    as_it_stands = f"{BASE}/{session_id}/messages?since={said[4]['created_at']}"
    assert "+00:00" in as_it_stands
    assert [message["content"] for message in client.get(as_it_stands).json()] == ["m5", "m6"]
    assert texts(client, session_id, offset=100) == []
    chats.check()


def test_a_session_s_detail_holds_its_last_messages(client: httpx.Client, agent: str) -> None:
    session_id = create(client, agent_id=agent)["id"]
    for n in range(23):
        say(client, session_id, f"m{n}")
    assert [m["content"] for m in detail(client, session_id)["recent_messages"]] == [f"m{n}" for n in range(3, 23)]


def test_times_follow_the_positions_even_when_the_clock_goes_back(
    client: httpx.Client, agent: str, chats: Chats
) -> None:
    session_id = create(client, agent_id=agent)["id"]
    say(client, session_id, "first")
    chats.age(session_id, -60)
    chats.execute(
        "UPDATE chat_messages SET created_at = created_at + interval '1 hour' WHERE session_id = %s", session_id
    )
    last = detail(client, session_id)["last_message_at"]
    assert say(client, session_id, "second")["created_at"] > last
    assert texts(client, session_id, since=last) == ["second"]


def test_a_retry_with_its_key_adds_nothing(client: httpx.Client, agent: str, chats: Chats) -> None:
    session_id, other = create(client, agent_id=agent)["id"], create(client, agent_id=agent)["id"]
    stored = say(client, session_id, "once", idempotency_key="k")
    again = client.post(f"{BASE}/{session_id}/messages", json={"content": "once", "idempotency_key": "k"})
    assert (again.status_code, again.json()) == (200, stored)
    for different in ({"content": "twice"}, {"content": "once", "role": "assistant"}, {"encrypted": ENCRYPTED}):
        refused = client.post(f"{BASE}/{session_id}/messages", json={"idempotency_key": "k", **different})
        assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_conflict")
    say(client, other, "elsewhere", idempotency_key="k")
    assert texts(client, session_id) == ["once"]
    chats.check()


def test_retries_at_the_same_moment_add_one_message(shared_service: Service, agent: str, chats: Chats) -> None:
    session_id = create(shared_service.client, agent_id=agent)["id"]
    answers: list[tuple[int, str]] = []

    def one() -> None:
        with httpx.Client(base_url=shared_service.url, trust_env=False, timeout=60) as own:
            body = {"content": "once", "idempotency_key": "k"}
            answer = own.post(f"{BASE}/{session_id}/messages", json=body)
            answers.append((answer.status_code, answer.json()["id"]))

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(status for status, _ in answers) == [200] * 7 + [201]
    assert len({message_id for _, message_id in answers}) == 1
    assert texts(shared_service.client, session_id) == ["once"]
    chats.check()


def test_messages_at_the_same_moment_all_get_a_place(shared_service: Service, agent: str, chats: Chats) -> None:
    session_id = create(shared_service.client, agent_id=agent)["id"]

    def many(name: int) -> None:
        with httpx.Client(base_url=shared_service.url, trust_env=False, timeout=60) as own:
            for n in range(10):
                say(own, session_id, f"{name}-{n}", tokens=1)

    threads = [threading.Thread(target=many, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts(shared_service.client, session_id)) == sorted(f"{a}-{b}" for a in range(6) for b in range(10))
    chats.check()


def test_an_encrypted_payload_comes_back_as_it_went_in(client: httpx.Client, agent: str, chats: Chats) -> None:
    session_id = create(client, agent_id=agent)["id"]
    answer = client.post(f"{BASE}/{session_id}/messages", json={"encrypted": ENCRYPTED})
    assert answer.status_code == 201, answer.text
    for message in (answer.json(), *client.get(f"{BASE}/{session_id}/messages").json()):
        assert (message["content"], message["encrypted"]) == (None, ENCRYPTED)
    ((content, stored),) = chats.execute(
        "SELECT content, encrypted FROM chat_messages WHERE session_id = %s", session_id
    )
    assert (content, stored) == (None, ENCRYPTED)
    found = detail(client, session_id)
    assert (found["title"], found["message_count"]) == (None, 1)
    assert listed(client, search=ENCRYPTED["ciphertext"][:40]) == []


# Lists.


def test_filters_and_search(client: httpx.Client, agent: str) -> None:
    report = create(client, agent_id=agent, title="Quarterly REPORT, 100% sure_")["id"]
    plan = create(client, agent_id=agent, title="A plan", session_type="cron")["id"]
    untitled = create(client, agent_id=agent)["id"]

    def found(**query: Any) -> list[str]:
        return listed(client, agent_id=agent, sort="created_at", order="asc", **query)

    assert found() == [report, plan, untitled]
    assert found(session_type="cron") == [plan]
    assert found(search="arterly rep") == [report]
    assert found(search="PLAN") == [plan]
    assert found(search="pl") == [plan]
    assert found(search="%") == [report]
    assert found(search="0% s") == [report]
    assert found(search="e_") == [report]
    assert found(search="reparterly") == []
    assert found(search=untitled) == [untitled]
    assert found(search="") == [report, plan, untitled]


def test_a_rare_and_a_common_term_are_both_found(
    client: httpx.Client, agent: str, chats: Chats, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(8):
        create(client, agent_id=agent, title=f"{agent} number {n}")

    def found(term: str) -> list[str]:
        async def work(connection: AsyncConnection) -> list[Any]:
            condition = await queries.search(connection, term, EVERYBODY)
            return [row["title"] for row in await queries.page(connection, [condition], "title", "asc", 100, 0)]

        titles = chats.on_connection(work)
        assert isinstance(titles, list)
        return titles

    everything = [f"{agent} number {n}" for n in range(8)]
    for rare in (1000, 3):
        monkeypatch.setattr(queries, "_RARE", rare)
        assert found(agent.upper()) == everything
        assert found(f"{agent[-5:]} number 7") == everything[-1:]
        assert found(f"{agent} number 8") == []


def test_the_search_is_answered_by_an_index(chats: Chats) -> None:
    plan = chats.execute(
        "EXPLAIN SELECT id FROM chat_sessions WHERE title IS NOT NULL"
        " AND chat_trigrams(title) @> chat_trigrams('needle')"
    )
    assert "idx_chat_sessions_search" in str(plan)


def test_dates_are_of_creation_and_a_date_is_a_whole_day(client: httpx.Client, agent: str, chats: Chats) -> None:
    made = [create(client, agent_id=agent)["id"] for _ in range(3)]
    for session_id, day in zip(
        made, ("2026-02-14T23:59:59Z", "2026-02-15T12:00:00Z", "2026-02-16T00:00:00Z"), strict=True
    ):
        chats.execute("UPDATE chat_sessions SET created_at = %s WHERE id = %s", day, session_id)

    def found(**query: Any) -> list[str]:
        return listed(client, agent_id=agent, sort="created_at", order="asc", **query)

    assert found(date_from="2026-02-15") == made[1:]
    assert found(date_to="2026-02-15") == made[:2]
    assert found(date_from="2026-02-15", date_to="2026-02-15") == made[1:2]
    assert found(date_from="2026-02-15T12:00:00Z", date_to="2026-02-16T01:00:00+01:00") == made[1:]


def test_sorting(client: httpx.Client, agent: str) -> None:
    a, b, c = (create(client, agent_id=agent, title=title)["id"] for title in ("b", "c", "a"))
    say(client, b, "1")
    say(client, a, "1")
    say(client, a, "2")

    def by(sort: str, order: str) -> list[str]:
        return listed(client, agent_id=agent, sort=sort, order=order)

    assert listed(client, agent_id=agent) == by("updated_at", "desc") == [a, b, c]
    assert by("updated_at", "asc") == [c, b, a]
    assert by("created_at", "asc") == [a, b, c]
    assert by("created_at", "desc") == [c, b, a]
    assert by("message_count", "desc") == [a, b, c]
    assert by("title", "asc") == [c, a, b]
    assert by("last_message_at", "desc") == [*by("last_message_at", "asc")[1::-1], c] == [a, b, c]


def test_pages_add_up(client: httpx.Client, agent: str) -> None:
    made = [create(client, agent_id=agent)["id"] for _ in range(7)]
    pages = [
        client.get(
            BASE, params={"agent_id": agent, "limit": 3, "offset": n, "order": "asc", "sort": "created_at"}
        ).json()
        for n in (0, 3, 6, 9)
    ]
    assert [s["id"] for page in pages for s in page["sessions"]] == made
    assert [(p["total"], p["limit"], p["offset"], p["has_more"]) for p in pages] == [
        (7, 3, 0, True),
        (7, 3, 3, True),
        (7, 3, 6, False),
        (7, 3, 9, False),
    ]


def test_stats(client: httpx.Client, chats: Chats) -> None:
    chats.clear()
    assert client.get(f"{BASE}/stats").json() == {
        "total_sessions": 0,
        "total_messages": 0,
        "active_agents": 0,
        "ghost_sessions": 0,
        "oldest_session": None,
        "newest_activity": None,
    }
    first, second = create(client, agent_id="a"), create(client, agent_id="b")
    create(client, agent_id="a")
    say(client, first["id"])
    last = say(client, first["id"])
    client.post(f"{BASE}/{second['id']}/end")
    found = client.get(f"{BASE}/stats").json()
    assert found.pop("newest_activity") > last["created_at"]
    assert found == {
        "total_sessions": 3,
        "total_messages": 2,
        "active_agents": 1,
        "ghost_sessions": 2,
        "oldest_session": first["created_at"],
    }


# Changes.


def test_title_and_model_can_be_changed(client: httpx.Client, agent: str) -> None:
    made = create(client, agent_id=agent, title="old", model="m-1")
    changed = client.patch(f"{BASE}/{made['id']}", json={"model": "m-2"}).json()
    assert (changed["title"], changed["model"]) == ("old", "m-2")
    renamed = client.patch(f"{BASE}/{made['id']}/title", json={"title": "new"}).json()
    assert (renamed["title"], renamed["model"], renamed["metadata"]) == ("new", "m-2", made["metadata"])
    assert renamed["updated_at"] > changed["updated_at"] > made["updated_at"]
    say(client, made["id"], "a title that comes too late")
    assert detail(client, made["id"])["title"] == "new"


def test_an_ended_session_takes_no_message(client: httpx.Client, agent: str) -> None:
    session_id = create(client, agent_id=agent)["id"]
    stored = say(client, session_id, "last", idempotency_key="k")
    first, second = (client.post(f"{BASE}/{session_id}/end").json() for _ in range(2))
    assert first["status"] == second["status"] == "ended"
    assert first["ended_at"] == second["ended_at"] is not None
    refused = client.post(f"{BASE}/{session_id}/messages", json={"content": "too late"})
    assert (refused.status_code, refused.json()["code"]) == (409, "session_ended")
    retry = {"content": "last", "idempotency_key": "k"}
    assert client.post(f"{BASE}/{session_id}/messages", json=retry).json() == stored
    client.post(f"{BASE}/{session_id}/archive")
    refused = client.post(f"{BASE}/{session_id}/messages", json={"content": "too late"})
    assert (refused.status_code, refused.json()["code"]) == (409, "session_ended")
    assert detail(client, session_id)["status"] == "archived"
    assert "restores it" not in client.post(f"{BASE}/{session_id}/end").json()["error"]
    assert texts(client, session_id) == ["last"]


def test_the_archive_keeps_everything_and_a_new_message_brings_it_back(
    client: httpx.Client, agent: str, chats: Chats
) -> None:
    session_id = create(client, agent_id=agent, title="kept")["id"]
    say(client, session_id, "one", tokens=2, idempotency_key="k")
    client.post(f"{BASE}/{session_id}/messages", json={"encrypted": ENCRYPTED})
    before, messages = detail(client, session_id), client.get(f"{BASE}/{session_id}/messages").json()
    for _ in range(2):
        moved = client.post(f"{BASE}/{session_id}/archive")
        assert moved.status_code == 200, moved.text
        assert moved.json()["status"] == "archived"
    assert detail(client, session_id) == {**before, "status": "archived"}
    assert client.get(f"{BASE}/{session_id}/messages").json() == messages
    assert listed(client, agent_id=agent) == []
    page = client.get(f"{BASE}/archived", params={"agent_id": agent}).json()
    assert [(s["id"], s["status"], s["message_count"]) for s in page["sessions"]] == [(session_id, "archived", 2)]
    assert page["sessions"][0]["archived_at"] > before["updated_at"]
    assert (page["total"], page["has_more"]) == (1, False)
    for method, path, body in (
        ("PATCH", f"{BASE}/{session_id}", {"model": "x"}),
        ("PATCH", f"{BASE}/{session_id}/title", {"title": "x"}),
        ("POST", f"{BASE}/{session_id}/end", None),
    ):
        refused = client.request(method, path, json=body)
        assert (refused.status_code, refused.json()["code"]) == (409, "session_archived")
    again = client.post(f"{BASE}/{session_id}/messages", json={"content": "one", "idempotency_key": "k", "tokens": 2})
    assert (again.status_code, again.json()) == (200, messages[0])
    say(client, session_id, "three")
    after = detail(client, session_id)
    assert (after["status"], after["title"], after["message_count"]) == ("active", "kept", 3)
    assert after["metadata"] == before["metadata"]
    assert client.get(f"{BASE}/{session_id}/messages").json()[:2] == messages
    assert client.get(f"{BASE}/archived", params={"agent_id": agent}).json()["total"] == 0
    assert chats.execute("SELECT 1 FROM chat_messages_archive WHERE session_id = %s", session_id) == []
    chats.check()


@pytest.mark.parametrize("archived", [False, True])
def test_deleting_takes_the_messages_along(client: httpx.Client, agent: str, chats: Chats, archived: bool) -> None:
    session_id = create(client, agent_id=agent)["id"]
    say(client, session_id)
    if archived:
        client.post(f"{BASE}/{session_id}/archive")
    assert client.delete(f"{BASE}/{session_id}").json() == {"deleted": True}
    again = client.delete(f"{BASE}/{session_id}")
    assert (again.status_code, again.json()["code"]) == (404, "session_not_found")
    for table in ("chat_messages", "chat_messages_archive"):
        assert chats.execute(f"SELECT 1 FROM {table} WHERE session_id = %s", session_id) == []


def test_fixed_names_are_no_ids(client: httpx.Client) -> None:
    for path, member in (("stats", "ghost_sessions"), ("archived", "sessions"), ("ghosts", "sessions")):
        answer = client.get(f"{BASE}/{path}")
        assert (answer.status_code, member in answer.json()) == (200, True), answer.text
    assert client.delete(f"{BASE}/ghosts").json()["status"] == "ok"
    assert client.delete(f"{BASE}/expired").json()["status"] == "ok"
    assert client.post(f"{BASE}/cleanup").json()["dry_run"] is True


# Bad input.


def payload(**changes: Any) -> dict[str, Any]:
    return {"encrypted": {name: value for name, value in {**ENCRYPTED, **changes}.items() if value is not None}}


def bad_requests() -> Iterator[Any]:
    sid = "00000000-0000-4000-8000-000000000000"
    cases: list[tuple[str, str, Any, int, str | None]] = [
        ("GET", "?limit=0", None, 422, "limit"),
        ("GET", "?limit=201", None, 422, "limit"),
        ("GET", "?offset=-1", None, 422, "offset"),
        ("GET", "?offset=99999999999999999999", None, 422, "offset"),
        ("GET", "?sort=id", None, 422, "sort"),
        ("GET", "?order=up", None, 422, "order"),
        ("GET", "?search=%00", None, 422, "search"),
        ("GET", f"?search={'x' * 201}", None, 422, "search"),
        ("GET", "?agent_id=%00", None, 422, "agent_id"),
        ("GET", "?date_from=yesterday", None, 422, "date_from"),
        ("GET", "?date_from=1700000000", None, 422, "date_from"),
        ("GET", "?date_to=0.5", None, 422, "date_to"),
        ("GET", "?date_to=0001-01-01", None, 422, "date_to"),
        ("GET", "?date_to=2026-02-31", None, 422, "date_to"),
        ("GET", "/archived?limit=0", None, 422, "limit"),
        ("GET", "/ghosts?older_than_minutes=-1", None, 422, "older_than_minutes"),
        ("DELETE", "/ghosts?older_than_minutes=-1", None, 422, "older_than_minutes"),
        ("DELETE", "/ghosts?older_than_minutes=x", None, 422, "older_than_minutes"),
        ("DELETE", "/ghosts?older_than_minutes=1.5", None, 422, "older_than_minutes"),
        ("DELETE", "/ghosts?older_than_minutes=99999999999", None, 422, "older_than_minutes"),
        ("DELETE", "/ghosts?older_then_minutes=1440", None, 422, "older_then_minutes"),
        ("POST", "/cleanup?dry_run=false&day=365", None, 422, "day"),
        ("POST", "/cleanup?days=0&dry_run=false", None, 422, "days"),
        ("POST", "/cleanup?days=-1&dry_run=false", None, 422, "days"),
        ("POST", "/cleanup?days=9999999&dry_run=false", None, 422, "days"),
        ("POST", "/cleanup?dry_run=perhaps", None, 422, "dry_run"),
        ("GET", "/abc", None, 400, None),
        ("DELETE", "/abc", None, 400, None),
        ("POST", "/abc/end", None, 400, None),
        ("POST", "/'; DROP TABLE chat_sessions; --/archive", None, 400, None),
        ("GET", f"/{sid}", None, 404, None),
        ("GET", f"/{sid}/messages", None, 404, None),
        ("POST", f"/{sid}/messages", {"content": "x"}, 404, None),
        ("PATCH", f"/{sid}", {"title": "x"}, 404, None),
        ("PATCH", f"/{sid}/title", {"title": "x"}, 404, None),
        ("POST", f"/{sid}/end", None, 404, None),
        ("POST", f"/{sid}/archive", None, 404, None),
        ("DELETE", f"/{sid}", None, 404, None),
        ("POST", "", [], 422, "body"),
        ("POST", "", {"agent_id": ""}, 422, "agent_id"),
        ("POST", "", {"title": "a\0"}, 422, "title"),
        ("POST", "", {"title": "x" * 301}, 422, "title"),
        ("POST", "", {"ttl_minutes": 0}, 422, "ttl_minutes"),
        ("POST", "", {"ttl_minutes": -5}, 422, "ttl_minutes"),
        ("POST", "", {"ttl_minutes": 43_201}, 422, "ttl_minutes"),
        ("POST", "", {"ttl_minutes": True}, 422, "ttl_minutes"),
        ("POST", "", {"metadata": {"ttl_minutes": "soon"}}, 422, "ttl_minutes"),
        ("POST", "", {"metadata": {"a": "\0"}}, 422, "metadata"),
        ("POST", "", b'{"metadata": {"a": NaN}}', 422, "metadata"),
        ("POST", "", {"metadata": [1]}, 422, "metadata"),
        ("POST", "", {"id": sid}, 422, "id"),
        ("POST", "", {"message_count": 1}, 422, "message_count"),
        ("PATCH", f"/{sid}", {}, 422, "body"),
        ("PATCH", f"/{sid}", {"title": None}, 422, "body"),
        ("PATCH", f"/{sid}", {"status": "ended"}, 422, "status"),
        ("PATCH", f"/{sid}/title", {}, 422, "title"),
        ("PATCH", f"/{sid}/title", {"title": ""}, 422, "title"),
        ("GET", f"/{sid}/messages?limit=201", None, 422, "limit"),
        ("GET", f"/{sid}/messages?since=yesterday", None, 422, "since"),
        ("POST", f"/{sid}/messages", {}, 422, "body"),
        ("POST", f"/{sid}/messages", {"content": ""}, 422, "content"),
        ("POST", f"/{sid}/messages", {"content": "\0"}, 422, "content"),
        ("POST", f"/{sid}/messages", b'{"content": "\\ud83d"}', 422, "content"),
        ("POST", f"/{sid}/messages", {"content": "x" * (2**18 + 1)}, 422, "content"),
        ("POST", f"/{sid}/messages", {"content": "x", "role": "boss"}, 422, "role"),
        ("POST", f"/{sid}/messages", {"content": "x", "tokens": -1}, 422, "tokens"),
        ("POST", f"/{sid}/messages", {"content": "x", "idempotency_key": ""}, 422, "idempotency_key"),
        ("POST", f"/{sid}/messages", {"content": "x", "created_at": "2026-01-01"}, 422, "created_at"),
        ("POST", f"/{sid}/messages", {"content": "x", **payload()}, 422, "body"),
        ("POST", f"/{sid}/messages", payload(iv="0g" * 12), 422, "encrypted.iv"),
        ("POST", f"/{sid}/messages", payload(iv="00" * 12 + "\n"), 422, "encrypted.iv"),
        ("POST", f"/{sid}/messages", payload(iv="0" * 25), 422, "encrypted.iv"),
        ("POST", f"/{sid}/messages", payload(iv="00" * 7), 422, "encrypted.iv"),
        ("POST", f"/{sid}/messages", payload(iv="00" * 33), 422, "encrypted.iv"),
        ("POST", f"/{sid}/messages", payload(iv=7), 422, "encrypted.iv"),
        ("POST", f"/{sid}/messages", payload(ciphertext=""), 422, "encrypted.ciphertext"),
        ("POST", f"/{sid}/messages", payload(ciphertext="00" * (2**18 + 1)), 422, "encrypted.ciphertext"),
        ("POST", f"/{sid}/messages", payload(auth_tag=None), 422, "encrypted.auth_tag"),
        ("POST", f"/{sid}/messages", payload(hkdf_salt="\N{FULLWIDTH DIGIT ZERO}" * 32), 422, "encrypted.hkdf_salt"),
        ("POST", f"/{sid}/messages", payload(ephemeral_public_key="00" * 31), 422, "encrypted.ephemeral_public_key"),
        ("POST", f"/{sid}/messages", payload(more="00"), 422, "encrypted.more"),
        ("PUT", f"/{sid}", {}, 405, None),
    ]
    for method, path, body, status, field in cases:
        yield pytest.param(method, BASE + path, body, status, field, id=f"{method} {path[:44]} {str(body)[:44]!r}")


@pytest.mark.parametrize(("method", "path", "body", "status", "field"), list(bad_requests()))
def test_bad_input_is_refused_with_the_field_named(
    client: httpx.Client, chats: Chats, method: str, path: str, body: Any, status: int, field: str | None
) -> None:
    before = chats.counts()
    refused(client, method, path, body, status, field)
    assert chats.counts() == before


def test_no_line_of_the_log_holds_a_text_a_title_or_a_whole_id(shared_service: Service, agent: str) -> None:
    client = shared_service.client
    secret, title, key = "what was said in private", "a private title", f"key-{new_id()}"
    session_id = create(client, agent_id=agent, title=title)["id"]
    say(client, session_id, secret, idempotency_key=key)
    client.post(f"{BASE}/{session_id}/messages", json={"content": "other", "idempotency_key": key})
    client.post(f"{BASE}/{session_id}/messages", json={"encrypted": ENCRYPTED})
    client.get(BASE, params={"search": title})
    ghost = create(client, agent_id=agent)["id"]
    client.delete(f"{BASE}/ghosts", params={"older_than_minutes": 0})
    client.post(f"{BASE}/{session_id}/archive")
    client.delete(f"{BASE}/{session_id}")
    log = shared_service.log
    assert f"ghost purge: deleted 1: {ghost[:8]}…" in log or f", {ghost[:8]}…" in log
    for word in (secret, title, key, session_id, ghost, ENCRYPTED["ciphertext"]):
        assert word not in log
