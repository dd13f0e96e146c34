"""Both layers together: the real runner, the real service, a real PostgreSQL."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from revive import revive
from service import Databases, Service, running
from small_aria import SmallAria
from support import Skill, StoreBuilder

AGENTS = ("main", "analyst", "aria-talk", "aria-memeothy")
EACH = 750
YOUNG_EVERY = 10


@pytest.fixture
def volume(agents: Path) -> dict[str, StoreBuilder]:
    """3,000 sessions of 4 agents: 2,700 of them old enough to go. The same ids in each agent."""
    stores = {}
    for agent in AGENTS:
        store = stores[agent] = StoreBuilder(agents, agent)
        for n in range(EACH):
            age = 5 if n % YOUNG_EVERY == 0 else 90 + n
            store.add(f"cron:{n}", age, session_id=f"session-{n}", transcript=n % 50 == 1)
        store.write()
    return stores


def young(n: int) -> bool:
    return n % YOUNG_EVERY == 0


def expected() -> dict[tuple[str, str], str]:
    return {(a, f"session-{n}"): "active" if young(n) else "ended" for a in AGENTS for n in range(EACH)}


class History:
    """What history says, read from the database itself."""

    def __init__(self, server: Databases, url: str) -> None:
        self._server = server
        self.url = url

    def statuses(self) -> dict[tuple[str, str], str]:
        with self._server.connect(self.url) as connection:
            found = connection.execute("SELECT agent_id, metadata->>'aria_session_id', status FROM agent_sessions")
            return {(agent, sid): status for agent, sid, status in found.fetchall()}

    def status(self, agent: str, sid: str) -> str | None:
        return self.statuses().get((agent, sid))


@pytest.fixture
def history(server: Databases, database: str) -> History:
    return History(server, database)


def service_for(database: str, agents: Path, log: Path) -> dict[str, Any]:
    return {"log": log, "DATABASE_URL": database, "ARIA_AGENTS_DIR": str(agents), "ARIA_SYNC_SECONDS": "0"}


def bulk_requests(service: Service) -> int:
    return sum("PATCH /api/sessions " in line for line in service.log.splitlines())


def test_a_prune_ends_exactly_its_rows_in_one_bulk_request(
    volume: dict[str, StoreBuilder], skill: Skill, agents: Path, database: str, history: History, tmp_path: Path
) -> None:
    with running(**service_for(database, agents, tmp_path / "log")) as service:
        assert service.client.post("/api/sessions/sync").json()["created"] == 3_000
        answer = skill("prune_sessions", {"max_age_minutes": 60}, ARIA_API_URL=service.api)
        document = answer.document
        assert (answer.exit_code, document["pruned_count"], document["kept_count"]) == (0, 2_700, 300), document
        assert document["pg_status_updated"] is True
        assert "pg_error" not in document
        assert history.statuses() == expected()
        assert bulk_requests(service) == 1
        assert service.client.post("/api/sessions/sync").json()["ended"] == 0
        assert history.statuses() == expected()
        assert skill("get_session_stats", ARIA_API_URL=service.api).document["pending_history_marks"] == 0


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("delete_session", {"session_id": "session-0", "agent": "main"}),
        ("cleanup_after_delegation", {"session_id": "session-10", "agent": "main"}),
        ("prune_sessions", {}),
        ("deliver_history", {}),
    ],
)
def test_marks_wait_while_the_service_is_down_and_are_delivered_by_the_next_call(
    call: str,
    arguments: dict[str, str],
    volume: dict[str, StoreBuilder],
    skill: Skill,
    agents: Path,
    database: str,
    history: History,
    tmp_path: Path,
) -> None:
    with running(**service_for(database, agents, tmp_path / "log")) as service:
        assert service.client.post("/api/sessions/sync").json()["created"] == 3_000
        url = service.api
    answer = skill("prune_sessions", {"max_age_minutes": 60}, ARIA_API_URL=url)
    document = answer.document
    assert (answer.exit_code, document["pruned_count"]) == (0, 2_700)
    assert (document["pg_status_updated"], document["pg_pending"]) == (False, 2_700)
    assert all(young(int(key.rpartition(":")[2])) for store in volume.values() for key in store.read())
    assert set(history.statuses().values()) == {"active"}
    assert skill("get_session_stats", ARIA_API_URL=url).document["pending_history_marks"] == 2_700

    with running(**service_for(database, agents, tmp_path / "log2")) as service:
        assert skill(call, arguments, ARIA_API_URL=service.api).exit_code == 0
        gone = {("main", arguments["session_id"]): "ended"} if arguments else {}
        assert history.statuses() == expected() | gone
        assert bulk_requests(service) == 1
        assert skill("get_session_stats", ARIA_API_URL=service.api).document["pending_history_marks"] == 0
        again = skill("deliver_history", ARIA_API_URL=service.api).document
        assert (again["delivered"], again["pending"]) == (0, 0)
        assert bulk_requests(service) == 1


def test_a_delete_ends_the_row_of_one_agent_only(
    skill: Skill, agents: Path, database: str, history: History, tmp_path: Path
) -> None:
    for agent in ("main", "other"):
        store = StoreBuilder(agents, agent)
        store.add("cron:1", 90, session_id="abc123")
        store.write()
    with running(**service_for(database, agents, tmp_path / "log")) as service:
        service.client.post("/api/sessions/sync")
        document = skill(
            "delete_session", {"session_id": "abc123", "agent": "other"}, ARIA_API_URL=service.api
        ).document
        assert document["message"] == (
            "Session abc123 removed from aria-api (1 keys, transcript=archived), PG marked ended"
        )
        assert (document["pg_status_updated"], document["removed_keys"]) == (True, ["agent:other:cron:1"])
        assert history.statuses() == {("main", "abc123"): "active", ("other", "abc123"): "ended"}
        both = skill("delete_session", {"session_id": "abc123"}, ARIA_API_URL=service.api).document
        assert both["pg_status_updated"] is True
        assert set(history.statuses().values()) == {"ended"}
        again = skill("delete_session", {"session_id": "abc123"}, ARIA_API_URL=service.api)
        assert (again.exit_code, again.document["already_deleted"]) == (0, True)
        unknown = skill("delete_session", {"session_id": "never-was"}, ARIA_API_URL=service.api)
        assert (unknown.exit_code, unknown.document["code"]) == (5, "session_not_found")


def test_a_session_that_only_history_knows_is_ended(
    skill: Skill, agents: Path, database: str, history: History, tmp_path: Path
) -> None:
    StoreBuilder(agents).write()
    with running(**service_for(database, agents, tmp_path / "log")) as service:
        body = {"agent_id": "main", "metadata": {"aria_session_id": "long-gone"}}
        assert service.client.post("/api/sessions", json=body).status_code == 201
        answer = skill("delete_session", {"session_id": "long-gone"}, ARIA_API_URL=service.api)
        assert (answer.exit_code, answer.document["removed_keys"]) == (0, []), answer.document
        assert history.status("main", "long-gone") == "ended"
        again = skill("delete_session", {"session_id": "long-gone"}, ARIA_API_URL=service.api)
        assert (again.exit_code, again.document["already_deleted"]) == (0, True)


def test_a_token_opens_the_service_and_without_it_the_marks_wait(
    skill: Skill, agents: Path, database: str, history: History, tmp_path: Path
) -> None:
    store = StoreBuilder(agents)
    store.add("cron:1", 90, session_id="one")
    store.add("cron:2", 90, session_id="two")
    store.write()
    token = "the-operator-s-token"
    with running(**service_for(database, agents, tmp_path / "log"), ARIA_API_TOKEN=token) as service:
        service.client.post("/api/sessions/sync")
        refused = skill("delete_session", {"session_id": "one"}, ARIA_API_URL=service.api)
        assert (refused.exit_code, refused.document["pg_pending"]) == (0, True)
        assert "ARIA_API_TOKEN" in refused.document["pg_error"]
        assert history.status("main", "one") == "active"
        done = skill("delete_session", {"session_id": "two"}, ARIA_API_URL=service.api, ARIA_API_TOKEN=token)
        assert done.document["pg_status_updated"] is True
        assert history.statuses() == {("main", "one"): "ended", ("main", "two"): "ended"}
        assert token not in service.log


def test_a_mark_that_comes_before_its_row_waits_for_it(
    skill: Skill, agents: Path, database: str, history: History, tmp_path: Path
) -> None:
    store = StoreBuilder(agents)
    sid = store.add("cron:1", 90)
    store.write()
    with running(**service_for(database, agents, tmp_path / "log")) as service:
        document = skill("delete_session", {"session_id": sid}, ARIA_API_URL=service.api).document
        assert (document["pg_status_updated"], document["pg_pending"]) == (False, True)
        late = {"agent_id": "main", "metadata": {"aria_session_id": sid}}
        assert service.client.post("/api/sessions", json=late).status_code == 201
        assert skill("deliver_history", ARIA_API_URL=service.api).document["delivered"] == 1
        assert history.status("main", sid) == "ended"


def test_real_stores_through_both_layers(
    skill: Skill, agents: Path, database: str, history: History, tmp_path: Path
) -> None:
    shutil.rmtree(agents)
    revive("sixteen", agents)
    with running(**service_for(database, agents, tmp_path / "log")) as service:
        assert service.client.post("/api/sessions/sync").json()["created"] == 16
        listed = skill("list_sessions", ARIA_API_URL=service.api).document["sessions"]
        assert set(history.statuses()) == {(row["agentId"], row["id"]) for row in listed}
        pruned = skill("prune_sessions", {"max_age_minutes": 60}, ARIA_API_URL=service.api).document
        ended = {sid for (_, sid), status in history.statuses().items() if status == "ended"}
        assert ended == set(pruned["deleted_ids"])
        assert len(ended) == 14
        assert pruned["pg_status_updated"] is True


def test_the_mark_of_a_session_that_came_back_to_life_is_dropped(
    skill: Skill, agents: Path, database: str, history: History, tmp_path: Path
) -> None:
    store = StoreBuilder(agents)
    back = store.add("cron:1", 90)
    gone = store.add("cron:2", 90)
    store.write()
    with running(**service_for(database, agents, tmp_path / "log")) as service:
        service.client.post("/api/sessions/sync")
        assert skill("prune_sessions", {}).document["pg_pending"] == 2
        store.entries.clear()
        store.add("cron:1", -0.1, session_id=back)
        store.write()
        service.client.post("/api/sessions/sync")
        document = skill("deliver_history", ARIA_API_URL=service.api).document
        assert (document["delivered"], document["pending"]) == (1, 0)
        assert history.statuses() == {("main", back): "active", ("main", gone): "ended"}


@pytest.mark.parametrize(
    ("call", "arguments", "code"),
    [
        ("delete_session", {"session_id": "nobody-knows"}, "session_not_found"),
        ("delete_session", {"session_id": "the-main"}, "session_protected"),
        ("prune_sessions", {"agent": "broken"}, "index_damaged"),
    ],
)
def test_a_call_that_fails_delivers_what_earlier_ones_owe(
    call: str, arguments: dict[str, str], code: str, skill: Skill, agents: Path, aria: SmallAria
) -> None:
    store, broken = StoreBuilder(agents), StoreBuilder(agents, "broken")
    sid = store.add("cron:1", 90)
    store.add("main", 5, session_id="the-main")
    store.write()
    broken.index.write_bytes(b"")
    aria.add(sid)
    assert skill("delete_session", {"session_id": sid}).document["pg_pending"] is True
    assert skill(call, arguments, ARIA_API_URL=aria.url).document["code"] == code
    assert skill("get_session_stats", {"agent": "main"}).document["pending_history_marks"] == 0
