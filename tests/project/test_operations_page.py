"""operations.md is true: metrics and alerts, roles, tokens, proxies, backups and what comes of restoring them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy
import yaml
from consoles import Console, sections
from debian import postgresql_15
from postgres import reachable_folder
from prometheus_client.parser import text_string_to_metric_families
from service import Databases, cli, running
from sqlalchemy.engine import make_url
from support import ROOT, Skill
from test_recovery_page import fill, statuses
from test_references import names, table

from benchmarks import sizes, stores
from session_manager.service.db.engine import make_engine
from session_manager.service.db.migrate import VERSION_TABLE, head
from session_manager.service.db.tables import metadata
from session_manager.service.embedded.programs import shipped
from session_manager.service.jobs.loop import AT_ONCE

SECTIONS = sections("operations.md")
TOKEN = "a-token-of-the-tests"
Person = Callable[..., Console]


def fenced(section: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL)


def plain(url: str) -> str:
    """An SQLAlchemy URL as PostgreSQL's programs take it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def test_every_metric_is_there_and_every_alert_asks_for_one(database: str, agents: Path, tmp_path: Path) -> None:
    env = {"DATABASE_URL": database, "ARIA_AGENTS_DIR": str(agents), "HOME": str(tmp_path), "ARIA_SYNC_SECONDS": "0"}
    with running(tmp_path / "log", **env) as service:
        for job in ("volume_sync", "closing"):
            service.client.post(f"/api/jobs/{job}/run").raise_for_status()
        families = list(text_string_to_metric_families(service.client.get("/metrics").text))
    ours = {family.name for family in families if family.name.startswith("aria_")}
    # When a counter began to count has a name of its own.
    ours -= {f"{name}_created" for name in ours}
    assert {names(row[0])[0] for row in table(SECTIONS["Metrics"], "metric")} == ours
    samples = {sample.name for family in families for sample in family.samples}
    (rules,) = fenced("Metrics", "yaml")
    alerts = [rule for group in yaml.safe_load(rules)["groups"] for rule in group["rules"]]
    assert len(alerts) > 3
    for alert in alerts:
        asked = set(re.findall(r"\baria_\w+", alert["expr"]))
        assert asked
        assert asked <= samples


def test_the_tables_are_named() -> None:
    section = SECTIONS["PostgreSQL"]
    assert all(f"`{name}`" in section for name in (*metadata.tables, VERSION_TABLE))


def test_connections_of_a_replica_and_of_its_jobs() -> None:
    pool = make_engine("postgresql+psycopg://nobody@/nothing").sync_engine.pool
    assert isinstance(pool, sqlalchemy.QueuePool)
    most = pool.size() + pool._max_overflow
    assert f"at most {most} connections" in SECTIONS["Several replicas"]
    assert f"at least {2 * AT_ONCE}" in " ".join(SECTIONS["PgBouncer"].split())


@pytest.mark.system
def test_the_roles_are_enough(tmp_path: Path) -> None:
    owner, service_role = fenced("PostgreSQL", "sql")
    with postgresql_15() as url:
        server = make_url(url).set(username="postgres", database="postgres")
        with psycopg.connect(plain(server.render_as_string(False)), autocommit=True) as connection:
            for statement in owner.split(";"):
                connection.execute(statement)
        aria = server.set(username="aria", database="aria")
        done = cli("migrate", DATABASE_URL=aria.render_as_string(False))
        assert (done.returncode, done.stdout) == (0, f"the schema is at revision {head()}\n")
        with psycopg.connect(plain(server.set(database="aria").render_as_string(False)), autocommit=True) as connection:
            for statement in service_role.split(";"):
                connection.execute(statement)
        serving = aria.set(username="aria_service").render_as_string(False)
        with running(tmp_path / "log", DATABASE_URL=serving, HOME=str(tmp_path)) as service:
            row = service.client.post("/api/sessions", json={"agent_id": "main"}).json()["id"]
            assert service.client.patch(f"/api/sessions/{row}", json={"status": "ended"}).json() == {"updated": True}
            assert "event: done" in service.client.post("/api/engine/chat/stream", json={"message": "Hello"}).text
            for job in ("closing", "ghost_purge", "expiry", "idle_archive"):
                service.client.post(f"/api/jobs/{job}/run").raise_for_status()
            assert service.client.get("/readyz").status_code == 200


@pytest.fixture
def person(tmp_path: Path) -> Iterator[Person]:
    """Somebody who works through a section; every block of it must be played."""
    found: list[Console] = []

    def begins(section: str, **env: str) -> Console:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        found.append(Console(home, SECTIONS[section], **{"ARIA_API_URL": "", **env}))
        return found[-1]

    yield begins
    for console in found:
        console.assert_all_played()


def test_migrating_by_hand(person: Person, database: str) -> None:
    assert person("PostgreSQL", DATABASE_URL=plain(database)).play() == [f"the schema is at revision {head()}\n"]


def test_a_token_for_prometheus(person: Person, database: str, tmp_path: Path) -> None:
    token, listed = person("Tokens", DATABASE_URL=database).play()
    token_id = listed.split()[0]
    with running(tmp_path / "log", DATABASE_URL=database, HOME=str(tmp_path)) as service:
        headers = {"Authorization": f"Bearer {token.strip()}"}
        assert service.client.get("/metrics", headers=headers).status_code == 200
        assert service.client.post("/api/sessions", json={"agent_id": "a"}, headers=headers).status_code == 403
        assert cli("token", "revoke", token_id, DATABASE_URL=database).returncode == 0
        assert service.client.get("/metrics", headers=headers).status_code == 401


@pytest.mark.parametrize(("believed", "secure"), [("127.0.0.1", True), ("10.0.0.1", False)])
def test_what_a_proxy_says_is_believed_from_its_address_only(
    database: str, tmp_path: Path, believed: str, secure: bool
) -> None:
    env = {"ARIA_ALLOWED_HOSTS": "aria.example", "ARIA_API_TOKEN": TOKEN, "FORWARDED_ALLOW_IPS": believed}
    sent = {"Host": "aria.example", "X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.7"}
    with running(tmp_path / "log", DATABASE_URL=database, HOME=str(tmp_path), **env) as service:
        answer = service.client.post("/login", data={"token": TOKEN}, headers=sent)
        assert answer.status_code == 303
        assert ("Secure" in answer.headers["set-cookie"]) == secure
        assert service.client.get("/api/sessions", headers={**sent, "Host": "other.example"}).status_code == 403
    assert "FORWARDED_ALLOW_IPS" in SECTIONS["Behind a proxy, with TLS"]


@pytest.mark.skipif("SM_TEST_DATABASE_URL" in os.environ, reason="pg_dump is of the embedded server's version")
def test_backups_and_what_comes_of_restoring_them(person: Person, server: Databases, tmp_path: Path) -> None:
    first, empty = server.create(), server.create(migrated=False)
    console = person("Backups", DATABASE_URL=plain(first), EMPTY_DATABASE_URL=plain(empty))
    store, files = fill(console.agents), tmp_path / "files"
    programs = console.home / "bin"
    programs.mkdir()
    for name in ("pg_dump", "pg_restore"):
        (programs / name).symlink_to(Path(shipped().path("postgres")).with_name(name))
    env = {"ARIA_AGENTS_DIR": str(console.agents), "HOME": str(tmp_path), "ARIA_SYNC_SECONDS": "0"}
    skill = Skill(console.agents)
    skill("delete_session", {"session_id": "backup-0215"}, ARIA_API_URL="")
    console.play()
    assert_whole_ledger(console.home / "ledger.backup")
    with running(tmp_path / "log", DATABASE_URL=first, **env) as service:
        service.client.post("/api/sessions/sync").raise_for_status()
        console.play()
        shutil.copytree(console.agents, files)
        for _ in ("before the files were put back", "after that"):
            pruned = skill("prune_sessions", ARIA_API_URL=service.api).document
            assert set(pruned["deleted_ids"]) == {"report-0215", "digest-0215"}
            assert statuses(service)["report-0215"] == "ended"
            # The files are older than the database.
            shutil.rmtree(console.agents)
            shutil.copytree(files, console.agents)
            service.client.post("/api/sessions/sync").raise_for_status()
            assert "agent:main:cron:report" in store.read()
            assert statuses(service)["report-0215"] == "ended"
        skill("prune_sessions", ARIA_API_URL=service.api)
    console.play()
    with running(tmp_path / "log", DATABASE_URL=empty, **env) as service:
        console.env["ARIA_API_URL"] = service.api
        console.play()
        # The database is older than the files.
        assert statuses(service)["report-0215"] == "active"
        service.client.post("/api/sessions/sync").raise_for_status()
        found = statuses(service)
        assert (found["report-0215"], found["digest-0215"], found["talk-with-ann"]) == ("ended", "ended", "active")
    for url in (first, empty):
        server.drop(url)


def test_an_embedded_database_is_copied_as_a_folder(tmp_path: Path) -> None:
    with reachable_folder() as folder:
        env = {"DATABASE_URL": None, "HOME": str(tmp_path)}
        with running(tmp_path / "log", XDG_STATE_HOME=str(folder / "state"), **env) as service:
            service.client.post("/api/sessions", json={"agent_id": "copied"}).raise_for_status()
        subprocess.run(["cp", "-a", folder / "state", folder / "copy"], check=True)
        with running(tmp_path / "log", XDG_STATE_HOME=str(folder / "copy"), **env) as service:
            items = service.client.get("/api/sessions").json()["items"]
    assert [item["agent_id"] for item in items] == ["copied"]


def assert_whole_ledger(path: Path) -> None:
    """A copy of a ledger, put in the place of one, is whole and knows what was removed."""
    agents = path.with_name("elsewhere")
    (agents / ".session_manager").mkdir(parents=True)
    shutil.copy(path, agents / ".session_manager" / "ledger.sqlite")
    document = Skill(agents)("verify_ledger").document
    assert (document["whole"], document["removals"]) == (True, 1)


def test_what_a_removed_session_takes_in_the_ledger(agents: Path, skill: Skill) -> None:
    stores.build(agents, 1000, 3000)
    removed = skill("prune_sessions", ARIA_API_URL="").document["pruned_count"]
    ledger = agents / ".session_manager" / "ledger.sqlite"
    assert re.search(r"in the ledger \| 1 kB", SECTIONS["Sizing"])
    assert 700 < ledger.stat().st_size / removed < 1400


def test_what_a_row_of_history_takes(database: str) -> None:
    with psycopg.connect(plain(database), autocommit=True) as connection:
        connection.execute(
            "INSERT INTO agent_sessions (agent_id, session_type, status, started_at, last_activity_at, metadata)"
            " SELECT 'agent-' || n % 12, 'cron', 'ended', now(), now(), jsonb_build_object('aria_session_id',"
            " gen_random_uuid(), 'label', 'label ' || n, 'key', 'agent:main:cron:' || n)"
            " FROM generate_series(1, 20000) AS n"
        )
        connection.execute("VACUUM ANALYZE agent_sessions")
        size = connection.execute("SELECT pg_total_relation_size('agent_sessions')").fetchone()
    assert "with its indexes | 0.6 kB |" in SECTIONS["Sizing"]
    assert size is not None
    assert 0.4 < size[0] / 20_000 / 1000 < 0.8


def test_what_the_benchmarks_are_called() -> None:
    for line in re.findall(r"`python -m benchmarks ([0-9 ]+)`", SECTIONS["Sizing"]):
        assert set(line.split()) <= {str(size.sessions) for size in sizes.SIZES}


def test_the_examples_are_there() -> None:
    named = SECTIONS["What runs where"]
    assert (ROOT / "examples" / "compose.yaml").is_file()
    for word, pattern in (("hook", "*_hook.sh"), ("systemd timer", "systemd/*.timer"), ("cron line", "crontab")):
        assert word in named
        assert list((ROOT / "examples").glob(pattern))
