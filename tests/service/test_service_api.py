"""aria-api's endpoints, over a real socket and on a real PostgreSQL."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from chats import Chats
from service import Service, refused


@pytest.fixture
def agent() -> str:
    """An agent of this test's own."""
    return f"agent-{uuid.uuid4().hex[:12]}"


def create(client: httpx.Client, agent: str, sid: str | None = None, **fields: Any) -> str:
    metadata = {**fields.pop("metadata", {}), **({"aria_session_id": sid} if sid else {})}
    answer = client.post("/api/sessions", json={"agent_id": agent, "metadata": metadata, **fields})
    assert answer.status_code == 201, answer.text
    assert answer.json()["created"] is True
    return str(answer.json()["id"])


def rows(client: httpx.Client, agent: str, **query: Any) -> list[dict[str, Any]]:
    answer = client.get("/api/sessions", params={"agent_id": agent, **query})
    assert answer.status_code == 200, answer.text
    found = answer.json()["items"]
    assert isinstance(found, list)
    return found


def test_a_row_has_the_columns_of_the_contract(client: httpx.Client, agent: str) -> None:
    row_id = create(client, agent, "s1", session_type="cron", tokens_used=7, cost_usd=0.25, messages_count=3)
    (row,) = rows(client, agent)
    started = datetime.fromisoformat(row.pop("started_at"))
    assert abs(datetime.now(UTC) - started) < timedelta(minutes=5)
    assert row == {
        "id": row_id,
        "agent_id": agent,
        "session_type": "cron",
        "ended_at": None,
        "messages_count": 3,
        "tokens_used": 7,
        "cost_usd": 0.25,
        "status": "active",
        "metadata": {"aria_session_id": "s1"},
    }


def test_a_session_has_one_row(client: httpx.Client, agent: str) -> None:
    row_id = create(client, agent, "s1")
    again = client.post(
        "/api/sessions", json={"agent_id": agent, "metadata": {"aria_session_id": "s1"}, "tokens_used": 9}
    )
    assert (again.status_code, again.json()) == (200, {"id": row_id, "created": False})
    assert [row["tokens_used"] for row in rows(client, agent)] == [0]


def test_two_creations_at_once_make_one_row(client: httpx.Client, agent: str, shared_service: Service) -> None:
    answers: list[bool] = []

    def one() -> None:
        with httpx.Client(base_url=shared_service.url, trust_env=False, timeout=60) as own:
            body = {"agent_id": agent, "metadata": {"aria_session_id": "s1"}}
            answers.append(own.post("/api/sessions", json=body).json()["created"])

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * 7 + [True]
    assert len(rows(client, agent)) == 1


@pytest.mark.parametrize("status", ["ended", "completed", "error"])
def test_ending_sets_ended_at_once(client: httpx.Client, agent: str, status: str) -> None:
    row_id = create(client, agent, "s1")
    seen = []
    for _ in range(3):
        answer = client.patch(f"/api/sessions/{row_id}", json={"status": status})
        assert (answer.status_code, answer.json()) == (200, {"updated": True})
        (row,) = rows(client, agent)
        seen.append((row["status"], row["ended_at"]))
    assert len(set(seen)) == 1
    assert seen[0][0] == status
    assert seen[0][1] is not None


def test_active_clears_ended_at_and_the_next_end_is_a_new_one(client: httpx.Client, agent: str) -> None:
    row_id = create(client, agent, "s1")
    client.patch(f"/api/sessions/{row_id}", json={"status": "ended"})
    first = rows(client, agent)[0]["ended_at"]
    client.patch(f"/api/sessions/{row_id}", json={"status": "active"})
    assert rows(client, agent)[0]["ended_at"] is None
    client.patch(f"/api/sessions/{row_id}", json={"status": "ended"})
    assert rows(client, agent)[0]["ended_at"] > first


def test_counters_are_set_and_metadata_is_merged(client: httpx.Client, agent: str) -> None:
    row_id = create(client, agent, "s1", metadata={"keep": 1, "change": 1})
    body = {"messages_count": 5, "tokens_used": 2**40, "cost_usd": 1.5, "metadata": {"change": 2}}
    assert client.patch(f"/api/sessions/{row_id}", json=body).status_code == 200
    (row,) = rows(client, agent)
    assert (row["messages_count"], row["tokens_used"], row["cost_usd"]) == (5, 2**40, 1.5)
    assert row["metadata"] == {"keep": 1, "change": 2, "aria_session_id": "s1"}
    assert row["status"] == "active"


def test_a_row_cannot_take_another_session_s_id(client: httpx.Client, agent: str) -> None:
    create(client, agent, "s1")
    row_id = create(client, agent, "s2")
    answer = client.patch(f"/api/sessions/{row_id}", json={"metadata": {"aria_session_id": "s1"}})
    assert (answer.status_code, answer.json()["code"]) == (409, "session_exists")
    assert {row["metadata"]["aria_session_id"] for row in rows(client, agent)} == {"s1", "s2"}


def mark(client: httpx.Client, status: str, *pairs: tuple[str, str]) -> dict[str, Any]:
    sessions = [{"agent_id": agent, "aria_session_id": sid} for agent, sid in pairs]
    answer = client.patch("/api/sessions", json={"status": status, "sessions": sessions})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


def test_many_are_marked_at_once_and_a_namesake_is_not(client: httpx.Client, agent: str) -> None:
    other = f"{agent}-other"
    for name in (agent, other):
        for sid in ("s1", "s2"):
            create(client, name, sid)
    document = mark(client, "ended", (agent, "s1"), (agent, "s1"), (agent, "nobody"))
    assert document == {"updated": 1, "missing": [{"agent_id": agent, "aria_session_id": "nobody"}]}
    assert {r["metadata"]["aria_session_id"]: r["status"] for r in rows(client, agent)} == {
        "s1": "ended",
        "s2": "active",
    }
    assert {r["status"] for r in rows(client, other)} == {"active"}


def test_marking_twice_changes_nothing_and_active_reverses_it(client: httpx.Client, agent: str) -> None:
    create(client, agent, "s1")
    assert mark(client, "ended", (agent, "s1")) == {"updated": 1, "missing": []}
    first = rows(client, agent)[0]["ended_at"]
    assert mark(client, "ended", (agent, "s1")) == {"updated": 1, "missing": []}
    assert rows(client, agent)[0]["ended_at"] == first
    assert mark(client, "active", (agent, "s1")) == {"updated": 1, "missing": []}
    assert (rows(client, agent)[0]["status"], rows(client, agent)[0]["ended_at"]) == ("active", None)


def erase(client: httpx.Client, *pairs: tuple[str, str]) -> dict[str, Any]:
    sessions = [{"agent_id": agent, "aria_session_id": sid} for agent, sid in pairs]
    answer = client.post("/api/sessions/erase", json={"sessions": sessions})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert isinstance(found, dict)
    return found


def test_of_an_erased_row_only_the_id_and_the_counters_stay(client: httpx.Client, agent: str) -> None:
    other = f"{agent}-other"
    details = {"key": "agent:main:telegram:direct:42", "label": "secret", "model": "m"}
    for name, sid in ((agent, "s1"), (agent, "s2"), (other, "s1")):
        create(
            client, name, sid, metadata=details, tokens_used=7, cost_usd=0.5, messages_count=3, session_type="direct"
        )
    document = erase(client, (agent, "s1"), (agent, "s1"), (agent, "nobody"))
    assert document == {"erased": 1, "missing": [{"agent_id": agent, "aria_session_id": "nobody"}]}
    found = {row["metadata"]["aria_session_id"]: row for row in rows(client, agent)}
    erased = found["s1"]
    moment = erased["metadata"].pop("erased_at")
    assert abs(datetime.now(UTC) - datetime.fromisoformat(moment)) < timedelta(minutes=5)
    assert erased["metadata"] == {"aria_session_id": "s1"}
    assert (erased["status"], erased["tokens_used"], erased["cost_usd"], erased["messages_count"]) == (
        "ended",
        7,
        0.5,
        3,
    )
    assert erased["ended_at"] is not None
    assert found["s2"]["metadata"] == {**details, "aria_session_id": "s2"}
    assert rows(client, other)[0]["metadata"]["label"] == "secret"
    assert erase(client, (agent, "s1")) == {"erased": 1, "missing": []}
    (again,) = rows(client, agent, aria_session_id="s1")
    assert again["metadata"] == {"aria_session_id": "s1", "erased_at": moment}
    assert again["ended_at"] == erased["ended_at"]


def test_an_end_that_was_there_before_the_erasure_stays(client: httpx.Client, agent: str) -> None:
    create(client, agent, "s1")
    mark(client, "ended", (agent, "s1"))
    before = rows(client, agent)[0]["ended_at"]
    erase(client, (agent, "s1"))
    assert rows(client, agent)[0]["ended_at"] == before


def test_duplicates_of_an_older_service_are_erased_too(client: httpx.Client, agent: str) -> None:
    create(client, agent, "s1", metadata={"label": "secret"})
    create(client, agent, metadata={"duplicate_of_aria_session_id": "s1", "label": "secret"})
    assert erase(client, (agent, "s1")) == {"erased": 2, "missing": []}
    assert sorted(sorted(row["metadata"]) for row in rows(client, agent)) == [
        ["aria_session_id", "erased_at"],
        ["duplicate_of_aria_session_id", "erased_at"],
    ]


@pytest.mark.parametrize(
    "body",
    [{}, {"sessions": []}, {"sessions": [{"agent_id": "a"}]}, {"sessions": [{"aria_session_id": "a"}]}, [],
     {"sessions": [{"agent_id": "a", "aria_session_id": "b"}], "status": "ended"}],
)  # fmt: skip
def test_an_erasure_that_does_not_say_what_is_refused(client: httpx.Client, body: Any) -> None:
    assert client.post("/api/sessions/erase", json=body).status_code == 422


def test_ten_thousand_are_marked_by_one_request_and_one_more_is_refused(client: httpx.Client, agent: str) -> None:
    create(client, agent, "s7")
    pairs = [(agent, f"s{n}") for n in range(10_000)]
    document = mark(client, "ended", *pairs)
    assert (document["updated"], len(document["missing"])) == (1, 9_999)
    sessions = [{"agent_id": agent, "aria_session_id": f"s{n}"} for n in range(10_001)]
    answer = client.patch("/api/sessions", json={"status": "ended", "sessions": sessions})
    assert (answer.status_code, answer.json()["field"]) == (422, "sessions")


def test_bulk_marks_that_overlap_do_not_wait_for_each_other_in_a_circle(shared_service: Service, agent: str) -> None:
    sids = [f"s{n}" for n in range(300)]
    for sid in sids:
        create(shared_service.client, agent, sid)
    statuses: list[int] = []

    def run(order: list[str]) -> None:
        with httpx.Client(base_url=shared_service.url, trust_env=False, timeout=60) as own:
            for _ in range(5):
                body = {"status": "ended", "sessions": [{"agent_id": agent, "aria_session_id": s} for s in order]}
                statuses.append(own.patch("/api/sessions", json=body).status_code)

    threads = [threading.Thread(target=run, args=(order,)) for order in (sids, sids[::-1], sids[150:] + sids[:150])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 15


def test_deleting_is_for_one_row_and_404_afterwards(client: httpx.Client, agent: str) -> None:
    row_id = create(client, agent, "s1")
    assert client.delete(f"/api/sessions/{row_id}").json() == {"deleted": True}
    again = client.delete(f"/api/sessions/{row_id}")
    assert (again.status_code, again.json()["code"]) == (404, "session_not_found")
    assert client.patch(f"/api/sessions/{row_id}", json={"status": "ended"}).status_code == 404


def test_filters(client: httpx.Client, agent: str) -> None:
    create(client, agent, "s1", session_type="cron", metadata={"label": "Täglicher Bericht", "key": "agent:x:cron:1"})
    create(client, agent, "s2", session_type="heartbeat")
    create(client, agent, "s3", session_type="direct", status="completed", metadata={"label": "100% sure_"})

    def found(**query: Any) -> list[str]:
        return [row["metadata"]["aria_session_id"] for row in rows(client, agent, **query)]

    assert found() == ["s1", "s2", "s3"]
    assert found(order="desc") == ["s3", "s2", "s1"]
    assert found(status="completed") == ["s3"]
    assert found(session_type="cron") == ["s1"]
    assert found(aria_session_id="s2") == ["s2"]
    assert found(search="bericht") == ["s1"]
    assert found(search="AGENT:X:CRON") == ["s1"]
    assert found(search="%") == ["s3"]
    assert found(search="e_") == ["s3"]
    assert found(search="") == ["s1", "s2", "s3"]
    assert found(include_cron_events="false") == ["s2", "s3"]
    assert found(include_runtime_events="false") == ["s1", "s3"]
    assert found(include_cron_events="true", include_runtime_events="true") == ["s1", "s2", "s3"]


def test_pages_add_up(client: httpx.Client, agent: str) -> None:
    made = [create(client, agent, f"s{n}") for n in range(7)]
    documents = [
        client.get("/api/sessions", params={"agent_id": agent, "limit": 3, "page": n}).json() for n in (1, 2, 3, 4)
    ]
    assert [row["id"] for document in documents for row in document["items"]] == made
    assert {(d["total"], d["limit"], d["pages"]) for d in documents} == {(7, 3, 3)}
    assert [d["page"] for d in documents] == [1, 2, 3, 4]


def test_no_row_is_missed_or_seen_twice_while_rows_are_inserted(shared_service: Service, agent: str) -> None:
    client = shared_service.client
    before = {create(client, agent, f"before-{n}") for n in range(60)}
    stop = threading.Event()

    def insert(name: str) -> None:
        with httpx.Client(base_url=shared_service.url, trust_env=False, timeout=60) as own:
            number = 0
            while not stop.is_set():
                create(own, agent, f"{name}-{number}")
                number += 1

    threads = [threading.Thread(target=insert, args=(f"t{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            seen: list[str] = []
            page = 1
            while True:
                items = rows(client, agent, limit=7, page=page)
                seen += [row["id"] for row in items]
                if len(items) < 7:
                    break
                page += 1
            assert len(seen) == len(set(seen))
            assert before <= set(seen)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_sums_beyond_64_bits(client: httpx.Client, agent: str, chats: Chats) -> None:
    row = create(client, agent, tokens_used=2**53)
    chats.execute(
        "INSERT INTO agent_sessions (agent_id, session_type, tokens_used)"
        " SELECT agent_id, session_type, tokens_used FROM agent_sessions, generate_series(1, 1030) WHERE id = %s",
        row,
    )
    assert client.get("/api/sessions/stats").json()["total_tokens"] > 2**63


def test_stats_and_hours(client: httpx.Client, agent: str) -> None:
    before = client.get("/api/sessions/stats").json()
    create(client, agent, "s1", session_type="cron", tokens_used=10, cost_usd=0.5, messages_count=2)
    create(client, agent, "s2", session_type="cron", status="error")
    after = client.get("/api/sessions/stats").json()
    assert after["total_sessions"] - before["total_sessions"] == 2
    assert after["total_tokens"] - before["total_tokens"] == 10
    assert after["total_messages"] - before["total_messages"] == 2
    assert after["total_cost_usd"] - before["total_cost_usd"] == pytest.approx(0.5)
    assert after["by_agent"][agent] == 2
    assert after["by_status"]["error"] - before["by_status"].get("error", 0) == 1
    assert after["active_sessions"] - before["active_sessions"] == 1
    hourly = client.get("/api/sessions/hourly", params={"hours": 3, "agent_id": agent}).json()
    assert hourly["hours"] == 3
    assert sum(item["sessions"] for item in hourly["items"]) == 2
    assert [item["hour"][14:] for item in hourly["items"]] == ["00:00+00:00"] * 3


def bad_requests() -> Iterator[Any]:
    sid = "00000000-0000-4000-8000-000000000000"
    one = {"agent_id": "a", "aria_session_id": "s"}
    cases: list[tuple[str, str, Any, int, str | None]] = [
        ("GET", "/api/sessions?page=0", None, 422, "page"),
        ("GET", "/api/sessions?page=x", None, 422, "page"),
        ("GET", "/api/sessions?page=99999999999999999999999", None, 422, "page"),
        ("GET", "/api/sessions?limit=0", None, 422, "limit"),
        ("GET", "/api/sessions?limit=1001", None, 422, "limit"),
        ("GET", "/api/sessions?status=gone", None, 422, "status"),
        ("GET", "/api/sessions?order=up", None, 422, "order"),
        ("GET", "/api/sessions?search=%00", None, 422, "search"),
        ("GET", "/api/sessions?agent_id=%00", None, 422, "agent_id"),
        ("GET", "/api/sessions?aria_session_id=%00", None, 422, "aria_session_id"),
        ("GET", "/api/sessions?include_cron_events=perhaps", None, 422, "include_cron_events"),
        ("GET", "/api/sessions/hourly?hours=0", None, 422, "hours"),
        ("PATCH", "/api/sessions/1", {"status": "ended"}, 400, None),
        ("PATCH", "/api/sessions/%00", {"status": "ended"}, 400, None),
        ("PATCH", "/api/sessions/'; DROP TABLE agent_sessions; --", {"status": "ended"}, 400, None),
        ("DELETE", "/api/sessions/abc", None, 400, None),
        ("PATCH", f"/api/sessions/{sid}", {}, 422, "body"),
        ("PATCH", f"/api/sessions/{sid}", {"status": None}, 422, "body"),
        ("PATCH", f"/api/sessions/{sid}", {"status": "gone"}, 422, "status"),
        ("PATCH", f"/api/sessions/{sid}", {"state": "ended"}, 422, "state"),
        ("PATCH", f"/api/sessions/{sid}", {"tokens_used": -1}, 422, "tokens_used"),
        ("PATCH", f"/api/sessions/{sid}", {"tokens_used": 2**70}, 422, "tokens_used"),
        ("PATCH", f"/api/sessions/{sid}", {"messages_count": 2**31}, 422, "messages_count"),
        ("PATCH", f"/api/sessions/{sid}", b'{"cost_usd": NaN}', 422, "cost_usd"),
        ("PATCH", f"/api/sessions/{sid}", b'{"cost_usd": 1e400}', 422, "cost_usd"),
        ("PATCH", f"/api/sessions/{sid}", {"cost_usd": False}, 422, "cost_usd"),
        ("PATCH", f"/api/sessions/{sid}", {"messages_count": 372.0}, 422, "messages_count"),
        ("PATCH", f"/api/sessions/{sid}", b'{"metadata": {"a": [NaN]}}', 422, "metadata"),
        ("POST", "/api/sessions", {"agent_id": "a", "started_at": 0}, 422, "started_at"),
        ("POST", "/api/sessions", {"agent_id": "a", "started_at": "1700000000"}, 422, "started_at"),
        ("POST", "/api/sessions", {"agent_id": "a", "started_at": "0001-01-01T00:00:00Z"}, 422, "started_at"),
        ("PATCH", f"/api/sessions/{sid}", b'{"metadata": {"a": "\\u0000"}}', 422, "metadata"),
        ("PATCH", f"/api/sessions/{sid}", b'{"metadata": {"\\u0000": 1}}', 422, "metadata"),
        ("PATCH", f"/api/sessions/{sid}", b'{"metadata": {"a": "\\ud83d"}}', 422, "metadata"),
        ("PATCH", f"/api/sessions/{sid}", {"metadata": {"a": "x" * 70_000}}, 422, "metadata"),
        ("PATCH", f"/api/sessions/{sid}", {"metadata": {"a": 2**70}}, 422, "metadata"),
        ("PATCH", f"/api/sessions/{sid}", {"metadata": {"aria_session_id": 7}}, 422, "metadata"),
        ("PATCH", f"/api/sessions/{sid}", {"metadata": [1]}, 422, "metadata"),
        ("PATCH", f"/api/sessions/{sid}", b"[" * 5000, 422, "body"),
        ("PATCH", f"/api/sessions/{sid}", b"\xff\xfe", 422, "body"),
        ("PATCH", f"/api/sessions/{sid}", b"1" * 5000, 422, "body"),
        ("PATCH", f"/api/sessions/{sid}", b"", 422, "body"),
        ("POST", "/api/sessions", {}, 422, "agent_id"),
        ("POST", "/api/sessions", {"agent_id": ""}, 422, "agent_id"),
        ("POST", "/api/sessions", {"agent_id": "a\0"}, 422, "agent_id"),
        ("POST", "/api/sessions", {"agent_id": "a" * 201}, 422, "agent_id"),
        ("POST", "/api/sessions", b'{"agent_id": "\\ud83d"}', 422, "agent_id"),
        ("POST", "/api/sessions", {"agent_id": "a", "started_at": "9999-12-31T23:59:59-12:00"}, 422, "started_at"),
        ("POST", "/api/sessions", {"agent_id": "a", "id": sid}, 422, "id"),
        ("POST", "/api/sessions", [], 422, "body"),
        ("PATCH", "/api/sessions", {"status": "ended", "sessions": []}, 422, "sessions"),
        ("PATCH", "/api/sessions", {"status": "completed", "sessions": [one]}, 422, "status"),
        ("PATCH", "/api/sessions", {"sessions": [one]}, 422, "status"),
        ("PATCH", "/api/sessions", {"status": "ended", "sessions": ["s"]}, 422, "sessions.0"),
        ("PATCH", "/api/sessions", {"status": "ended", "sessions": [{**one, "x": 1}]}, 422, "sessions.0.x"),
        (
            "PATCH",
            "/api/sessions",
            {"status": "ended", "sessions": [{"agent_id": "a", "aria_session_id": "s" * 257}]},
            422,
            "sessions.0.aria_session_id",
        ),
        ("PUT", "/api/sessions", {}, 405, None),
        ("GET", "/api/nothing", None, 404, None),
    ]
    for method, path, body, status, field in cases:
        yield pytest.param(method, path, body, status, field, id=f"{method} {path[:40]} {str(body)[:40]!r}")


@pytest.mark.parametrize(("method", "path", "body", "status", "field"), list(bad_requests()))
def test_bad_input_is_refused_with_the_field_named(
    client: httpx.Client, method: str, path: str, body: Any, status: int, field: str | None
) -> None:
    before = client.get("/api/sessions/stats").json()["total_sessions"]
    refused(client, method, path, body, status, field)
    assert client.get("/api/sessions/stats").json()["total_sessions"] == before


def test_an_oversized_body_is_refused_declared_or_not(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 2**20

    declared = client.post("/api/sessions", content=b" " * (17 * 2**20), headers={"content-type": "application/json"})
    assert (declared.status_code, declared.json()["code"]) == (413, "too_large")
    streamed = client.post("/api/sessions", content=chunks(), headers={"content-type": "application/json"})
    assert (streamed.status_code, streamed.json()["code"]) == (413, "too_large")


def test_a_service_without_a_volume_says_so(client: httpx.Client) -> None:
    answer = client.post("/api/sessions/sync")
    assert (answer.status_code, answer.json()["code"]) == (409, "no_volume")


def test_health(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}


OPERATIONS = """
GET /healthz
GET /readyz
GET /metrics
GET /api/sessions
POST /api/sessions
PATCH /api/sessions
PATCH /api/sessions/{id}
DELETE /api/sessions/{id}
GET /api/sessions/stats
GET /api/sessions/hourly
POST /api/sessions/erase
POST /api/sessions/sync
GET /api/engine/sessions
POST /api/engine/sessions
GET /api/engine/sessions/stats
GET /api/engine/sessions/archived
GET /api/engine/sessions/ghosts
DELETE /api/engine/sessions/ghosts
DELETE /api/engine/sessions/expired
POST /api/engine/sessions/cleanup
GET /api/engine/sessions/{id}
PATCH /api/engine/sessions/{id}
DELETE /api/engine/sessions/{id}
PATCH /api/engine/sessions/{id}/title
GET /api/engine/sessions/{id}/messages
POST /api/engine/sessions/{id}/messages
POST /api/engine/sessions/{id}/end
POST /api/engine/sessions/{id}/archive
POST /api/engine/chat/stream
GET /api/jobs
POST /api/jobs/{name}/run
"""


def test_every_operation_is_described(client: httpx.Client) -> None:
    api = client.get("/openapi.json").json()
    operations = {f"{m.upper()} {path}": op for path, methods in api["paths"].items() for m, op in methods.items()}
    assert set(operations) == set(OPERATIONS.split("\n")[1:-1])
    for place, operation in operations.items():
        assert operation["summary"], place
        assert operation["description"], place
        for parameter in operation.get("parameters", []):
            assert parameter["description"], (place, parameter["name"])
        for status, answer in operation["responses"].items():
            for kind, content in answer["content"].items():
                if kind == "application/json":
                    schema = json.dumps(content["schema"])
                    assert "$ref" in schema, (place, status)
                    assert int(status) < 400 or schema.endswith('/Problem"}'), (place, status)


def test_the_dashboard_and_the_description_are_pages(client: httpx.Client, agent: str) -> None:
    create(client, agent, "<script>alert(1)</script>", metadata={"label": "<b>x</b>"})
    page = client.get("/sessions", params={"agent_id": agent, "status": "", "search": ""})
    assert page.status_code == 200
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
    assert "<script>" not in page.text
    assert "<b>x" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "No session matches" in client.get("/sessions", params={"search": "nobody at all"}).text
    assert client.get("/sessions", params={"status": "gone", "search": "\0"}).status_code == 200
    assert "/api/sessions/{id}" in client.get("/docs").text
    assert client.get("/", follow_redirects=False).headers["location"] == "/sessions"
