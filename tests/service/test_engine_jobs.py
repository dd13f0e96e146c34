"""The jobs over conversations, as the running service does them, and what is counted of conversations."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
from chats import BASE, Chats, create, say
from service import Databases, Service, running, wait_until
from test_service_metrics import one, read

DAY = 24 * 60


def run(client: httpx.Client, job: str) -> Any:
    """Runs a job now and returns what it says that it did."""
    answer = client.post(f"/api/jobs/{job}/run")
    assert answer.status_code == 200, answer.text
    assert (answer.json()["outcome"], answer.json()["failures"]) == ("ok", 0)
    return answer.json()["result"]


def listed(client: httpx.Client) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in client.get("/api/jobs").json()["items"]}


def test_no_ghost_older_than_a_quarter_of_an_hour_survives_the_job(shared_service: Service, chats: Chats) -> None:
    client = shared_service.client
    chats.empty(4, minutes=15.1)
    young = chats.empty(2, minutes=14.9)
    waiting, used = create(client, ttl_minutes=120)["id"], create(client)["id"]
    say(client, used)
    for session_id in (waiting, used):
        chats.age(session_id, 60)
    assert run(client, "ghost_purge") == {"deleted": 4}
    assert chats.ids() == {*young, waiting, used}
    assert run(client, "ghost_purge") == {"deleted": 0}


def test_the_expiry_takes_what_waited_too_long_and_what_is_gone_is_no_error(
    shared_service: Service, chats: Chats
) -> None:
    client = shared_service.client
    late, gone, early, used = (create(client, ttl_minutes=30)["id"] for _ in range(4))
    say(client, used)
    (plain,) = chats.empty()
    for session_id in (late, gone, used):
        chats.age(session_id, 31)
    assert client.delete(f"{BASE}/{gone}").status_code == 200
    assert run(client, "expiry") == {"deleted": 1}
    assert chats.ids() == {early, used, plain}
    chats.age(used, 365 * DAY)
    assert run(client, "expiry") == {"deleted": 0}
    assert used in chats.ids()


def test_idle_conversations_are_archived_by_the_job_and_empty_sessions_are_not(
    shared_service: Service, chats: Chats
) -> None:
    client = shared_service.client
    idle, lively = create(client)["id"], create(client)["id"]
    for session_id in (idle, idle, lively):
        say(client, session_id)
    chats.age(idle, 30 * DAY + 1)
    chats.age(lively, 30 * DAY - 1)
    (empty,) = chats.empty(minutes=60 * DAY)
    assert run(client, "idle_archive") == {"archived": 1, "messages": 2}
    assert (chats.ids(), chats.ids("chat_sessions_archive")) == ({lively, empty}, {idle})


def test_five_cleanups_at_once_do_the_work_once(shared_service: Service, chats: Chats) -> None:
    """The job runs once at a time, and a purge by hand may run beside it."""
    chats.empty(3000)
    kept = set(chats.empty(5, minutes=1))
    before = one(read(shared_service), "aria_ghosts_purged_total")
    statuses: list[int] = []

    def ask(method: str, path: str) -> None:
        with httpx.Client(base_url=shared_service.url, trust_env=False, timeout=60) as own:
            statuses.append(own.request(method, path).status_code)

    work = [("POST", "/api/jobs/ghost_purge/run")] * 3 + [("DELETE", f"{BASE}/ghosts")] * 2
    threads = [threading.Thread(target=ask, args=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) <= {200, 409}
    assert statuses.count(200) >= 3, "those by hand, and one of the job's"
    assert chats.ids() == kept
    assert one(read(shared_service), "aria_ghosts_purged_total") - before == 3000


def test_by_itself_the_service_cleans_up_what_an_earlier_one_left(
    server: Databases, database: str, tmp_path: Path
) -> None:
    chats = Chats(server, database)
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        late, early, idle = (create(service.client)["id"] for _ in range(3))
        say(service.client, idle)
        service.kill()
    chats.age(late, 31)
    chats.age(idle, 31 * DAY)
    chats.empty(2)
    env = dict.fromkeys(("ARIA_GHOST_PURGE_SECONDS", "ARIA_EXPIRY_SECONDS", "ARIA_IDLE_ARCHIVE_SECONDS"), None)
    with running(tmp_path / "log", DATABASE_URL=database, **env) as service:
        names = {"ghost_purge": 600, "expiry": 60, "idle_archive": 21_600}
        wait_until(lambda: all(listed(service.client)[name]["outcome"] for name in names))
        jobs = listed(service.client)
        assert {name: jobs[name]["interval_seconds"] for name in names} == names
        assert [jobs[name]["result"] for name in names] == [
            {"deleted": 2},
            {"deleted": 1},
            {"archived": 1, "messages": 1},
        ]
        assert chats.ids() == {early}


def test_switched_off_by_its_setting_the_expiry_keeps_them_and_the_purge_keeps_them_too(
    server: Databases, database: str, tmp_path: Path
) -> None:
    chats = Chats(server, database)
    env = {"SESSION_CLEANUP_ENABLED": "false", "ARIA_EXPIRY_SECONDS": "1", "ARIA_GHOST_PURGE_SECONDS": "1"}
    with running(tmp_path / "log", DATABASE_URL=database, **env) as service:
        made = create(service.client)["id"]
        chats.age(made, DAY)
        (plain,) = chats.empty()
        wait_until(lambda: plain not in chats.ids())
        answer = service.client.post("/api/jobs/expiry/run")
        assert (answer.status_code, answer.json()["code"]) == (409, "job_not_possible")
        jobs = listed(service.client)
        assert (jobs["expiry"]["enabled"], jobs["expiry"]["outcome"]) == (False, None)
        assert jobs["ghost_purge"]["enabled"]
        assert chats.ids() == {made}


# What is counted.


def counted(service: Service) -> list[float]:
    """Sessions made, sessions used, first messages timed, the sum of their seconds, ghosts purged."""
    samples = read(service)
    names = ("chat_sessions_created_total", "chat_sessions_used_total", "chat_first_message_seconds_count")
    more = ("chat_first_message_seconds_sum", "ghosts_purged_total")
    return [one(samples, f"aria_{name}") for name in names + more]


def test_sessions_made_and_used_first_messages_and_purged_ghosts_are_counted(
    server: Databases, database: str, tmp_path: Path
) -> None:
    chats = Chats(server, database)
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        client = service.client
        assert counted(service) == [0, 0, 0, 0, 0]
        used, expiring, left = (create(client)["id"] for _ in range(3))
        assert client.post(BASE, json={"ttl_minutes": 0}).status_code == 422
        assert counted(service)[:2] == [3, 0]
        chats.age(used, 2)
        for key in ("a", "b"):
            say(client, used, idempotency_key=key)
        retried = client.post(f"{BASE}/{used}/messages", json={"content": "hello", "idempotency_key": "a"})
        assert retried.status_code == 200
        created, first_used, timed, seconds, purged = counted(service)
        assert (created, first_used, timed, purged) == (3, 1, 1, 0)
        assert 120 <= seconds < 180
        chats.age(expiring, 31)
        chats.empty(2)
        assert run(client, "expiry") == {"deleted": 1}
        assert run(client, "ghost_purge") == {"deleted": 2}
        assert client.delete(f"{BASE}/ghosts", params={"older_than_minutes": 0}).json()["deleted"] == 1
        assert counted(service)[4] == 4
        assert left not in chats.ids()


def test_what_is_not_committed_is_not_counted(server: Databases, database: str, tmp_path: Path) -> None:
    """A constraint that is checked at the commit lets it fail when the route has done its part."""
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        made = create(service.client)["id"]
        with server.connect(database) as connection:
            connection.execute(
                "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; END $$"
            )
            connection.execute(
                "CREATE CONSTRAINT TRIGGER no AFTER INSERT OR UPDATE ON chat_sessions"
                " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION no()"
            )
        assert service.client.post(BASE, json={}).status_code == 500
        assert service.client.post(f"{BASE}/{made}/messages", json={"content": "x"}).status_code == 500
        assert counted(service)[:3] == [1, 0, 0]
