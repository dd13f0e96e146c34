"""/metrics: what is counted, and that no label can grow without bounds."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from service import Databases, Service, running
from support import Skill, StoreBuilder
from talking import by_stream
from test_service_security import asks, created

from session_manager.service import metrics

Labels = tuple[tuple[str, str], ...]
MADE = datetime(2026, 2, 15, 18, tzinfo=UTC)
FIRST = {"message_count": 2, "created_at": MADE, "last_message_at": MADE + timedelta(seconds=2.5)}


def read(service: Service) -> dict[tuple[str, Labels], float]:
    """All samples by name and labels."""
    answer = service.client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = (s for family in text_string_to_metric_families(answer.text) for s in family.samples)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for s in samples}


def requests(samples: dict[tuple[str, Labels], float]) -> dict[tuple[str, str, str], float]:
    """How many requests were counted, by method, route and status class."""
    found = {}
    for (name, labels), value in samples.items():
        if name == "aria_http_request_seconds_count":
            by = dict(labels)
            found[by["method"], by["route"], by["status"]] = value
    return found


def one(samples: dict[tuple[str, Labels], float], name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def test_requests_are_counted_by_method_route_and_status_class(database: str, tmp_path: Path) -> None:
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        client = service.client
        row = client.post("/api/sessions", json={"agent_id": "a"}).json()["id"]
        client.patch(f"/api/sessions/{row}", json={"status": "ended"})
        for n in range(20):
            client.patch(f"/api/sessions/{n}", json={"status": "ended"})
            client.delete(f"/api/sessions/00000000-0000-4000-8000-{n:012}")
            client.get(f"/api/nothing/{n}")
            client.get(f"/nothing{n}?a={n}")
            client.request(f"BREW{n}", "/api/sessions")
        client.post("/api/sessions", json={"agent_id": "a"}, headers={"Origin": "https://evil.example"})
        assert requests(read(service)) == {
            ("POST", "/api/sessions", "2xx"): 1,
            ("PATCH", "/api/sessions/{id}", "2xx"): 1,
            ("PATCH", "/api/sessions/{id}", "4xx"): 20,
            ("DELETE", "/api/sessions/{id}", "4xx"): 20,
            ("GET", "none", "4xx"): 40,
            ("other", "/api/sessions", "4xx"): 20,
            ("POST", "none", "4xx"): 1,
        }
        assert ("GET", "/metrics", "2xx") in requests(read(service))


def test_metrics_need_a_token_with_read(database: str, tmp_path: Path) -> None:
    reader, deleter = created(database, "--scope", "read"), created(database, "--scope", "delete")
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        assert [asks(service, token, path="/metrics") for token in (None, deleter, reader)] == [401, 403, 200]


def test_jobs_and_their_failures_are_counted(database: str, server: Databases, tmp_path: Path) -> None:
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        assert service.client.post("/api/jobs/closing/run").status_code == 200
        before = read(service)
        assert one(before, "aria_job_seconds_count", job="closing") == 1
        assert ("aria_job_failures_total", (("job", "closing"),)) in before
        with server.connect(database) as connection:
            connection.execute("ALTER TABLE agent_sessions RENAME TO hidden")
        answer = service.client.post("/api/jobs/closing/run")
        assert (answer.status_code, answer.json()["code"]) == (503, "job_failed")
        assert "agent_sessions" in answer.json()["error"]
        after = read(service)
        assert one(after, "aria_job_seconds_count", job="closing") == 2
        assert one(after, "aria_job_failures_total", job="closing") == 1


def test_syncs_are_counted(database: str, agents: Path, tmp_path: Path) -> None:
    good, bad = StoreBuilder(agents, "good"), StoreBuilder(agents, "bad")
    for n in range(3):
        good.add(f"cron:{n}", 50, transcript=False)
    good.write()
    bad.index.write_bytes(b"[]")
    env = {"DATABASE_URL": database, "ARIA_AGENTS_DIR": str(agents), "ARIA_SYNC_SECONDS": "0"}
    with running(tmp_path / "log", **env) as service:
        service.client.post("/api/sessions/sync")
        del good.entries["agent:good:cron:1"]
        good.write()
        service.client.post("/api/sessions/sync")
        samples = read(service)
        assert [one(samples, "aria_sync_rows_total", change=c) for c in ("created", "updated", "ended")] == [3, 0, 1]
        assert one(samples, "aria_sync_seconds_count") == 2
        assert one(samples, "aria_sync_unreadable_agents") == 1


def test_marks_that_wait_are_read_from_the_ledger(database: str, agents: Path, skill: Skill, tmp_path: Path) -> None:
    store = StoreBuilder(agents)
    ids = [store.add(f"cron:{n}", 120) for n in range(2)]
    store.write()
    env = {"DATABASE_URL": database, "ARIA_AGENTS_DIR": str(agents), "ARIA_SYNC_SECONDS": "0"}
    with running(tmp_path / "log", **env) as service:
        assert one(read(service), "aria_marks_pending") == 0
        assert not (agents / ".session_manager").exists(), "a look makes no ledger"
        for session_id in ids:
            assert skill("delete_session", {"session_id": session_id}).document["pg_pending"] is True
        assert one(read(service), "aria_marks_pending") == 2
        assert skill("deliver_history", ARIA_API_URL=service.api).exit_code == 0
        assert one(read(service), "aria_marks_pending") == 2, "history has had no such rows yet"
        for session_id in ids:
            row = {"agent_id": "main", "metadata": {"aria_session_id": session_id}}
            service.client.post("/api/sessions", json=row)
        assert skill("deliver_history", ARIA_API_URL=service.api).exit_code == 0
        assert one(read(service), "aria_marks_pending") == 0
        (agents / ".session_manager" / "ledger.sqlite").write_bytes(b"no database at all" * 100)
        assert math.isnan(one(read(service), "aria_marks_pending"))


def test_a_request_that_raises_is_counted_as_5xx(database: str, server: Databases, tmp_path: Path) -> None:
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        with server.connect(database) as connection:
            connection.execute("ALTER TABLE agent_sessions RENAME TO hidden")
        assert service.client.get("/api/sessions").status_code == 500
        assert requests(read(service))["GET", "/api/sessions", "5xx"] == 1


@pytest.mark.parametrize(
    ("tell", "name", "by"),
    [
        (lambda: metrics.ghosts_purged(7), "aria_ghosts_purged_total", 7),
        (metrics.session_created, "aria_chat_sessions_created_total", 1),
        (lambda: metrics.messages_added(FIRST, 2), "aria_chat_sessions_used_total", 1),
        (lambda: metrics.messages_added(FIRST, 2), "aria_chat_first_message_seconds_sum", 2.5),
        (lambda: metrics.messages_added(FIRST, 1), "aria_chat_sessions_used_total", 0),
    ],
)
def test_what_others_tell_is_counted(tell: object, name: str, by: float) -> None:
    before = REGISTRY.get_sample_value(name) or 0.0
    assert callable(tell)
    tell()
    assert REGISTRY.get_sample_value(name) == before + by


def test_a_conversation_is_counted_when_it_is_stored(database: str, tmp_path: Path) -> None:
    names = (
        "aria_chat_sessions_created_total",
        "aria_chat_sessions_used_total",
        "aria_chat_first_message_seconds_count",
    )
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        first = by_stream(service, "hello", idempotency_key="k")
        again = by_stream(service, "hello", idempotency_key="k")
        by_stream(service, "more", session_id=first[-1][1]["session_id"])
        assert [first[-1][0], again[-1][1]["replayed"]] == ["done", True]
        samples = read(service)
        assert [one(samples, name) for name in names] == [1, 1, 1]


def test_the_page_of_metrics_is_text_for_browsers_too(shared_service: Service) -> None:
    answer = httpx.get(f"{shared_service.url}/metrics", headers={"Accept": "text/html"}, trust_env=False)
    assert answer.headers["content-type"].startswith("text/plain")
    assert "python_info" in answer.text
