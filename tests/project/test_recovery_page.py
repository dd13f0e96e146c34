"""recovery.md: each situation is made, the page's own commands are run, and what they promise is looked at."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from consoles import API, Console, blocks, sections
from forks import Forks
from service import Databases, Service, running
from support import CLOSED_API, Skill, StoreBuilder, ledger_sql, now_ms, picture, small_file_system

from session_manager.files.liveness import iso_ms

SECTIONS = sections("recovery.md")
CRON = ("report", "digest", "backup")
LABELS = {"report": "Report", "digest": "Digest", "backup": "Nightly copy"}
Scene = Callable[..., tuple[Console, StoreBuilder]]


def fill(agents: Path) -> StoreBuilder:
    """The page's store: three old cron sessions, and three that stay."""
    agents.mkdir(parents=True)
    store = StoreBuilder(agents)
    for number, job in enumerate(CRON):
        store.add(f"cron:{job}", 185 + 60 * number, f"{job}-0215", label=LABELS[job])
    store.add("direct:ann", 200, "talk-with-ann", label="Ann")
    store.add("main", 545, "the-main")
    store.add("cron:watch", 5.5, "watch-0215")
    return store.write()


@pytest.fixture
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """Makes a section's store in a home of its own, and a console; every block of the section must be played."""
    made: list[Console] = []

    def make(section: str, home: Path = tmp_path / "home", **env: str) -> tuple[Console, StoreBuilder]:
        home.mkdir(exist_ok=True)
        console = Console(home, SECTIONS[section], **{"ARIA_API_URL": "", **env})
        made.append(console)
        return console, fill(console.agents)

    yield make
    for console in made:
        console.assert_all_played()


def call(console: Console, function: str, **arguments: object) -> dict[str, object]:
    answer = Skill(console.agents, **console.env)(function, arguments)
    assert answer.exit_code == 0, answer.document
    return answer.document


def test_every_situation_is_made_here() -> None:
    source = Path(__file__).read_text()
    assert len(SECTIONS) > 10
    for title, section in SECTIONS.items():
        assert blocks(section), title
        assert f'scene("{title}"' in source, title


def test_a_run_is_undone(scene: Scene) -> None:
    console, store = scene("A run was a mistake")
    before = picture(console.agents)
    console.play()
    assert picture(console.agents) == before
    assert store.read() == store.entries


def test_one_session_comes_back_when_its_key_is_free(scene: Scene) -> None:
    console, store = scene("One session is wanted back")
    transcripts = {p.name: p.read_bytes() for p in store.dir.glob("*.jsonl")}
    call(console, "prune_sessions", max_age_minutes=60)
    console.play()
    assert "agent:main:cron:report" in store.read()
    later = StoreBuilder(console.agents)
    later.entries = store.read()
    later.add("cron:digest", 1, "digest-0216")
    later.write()
    console.play()
    console.play()
    assert store.read()["agent:main:cron:digest"]["sessionId"] == "digest-0215"
    assert (store.dir / "digest-0215.jsonl").read_bytes() == transcripts["digest-0215.jsonl"]


def test_the_next_call_ends_what_was_killed(scene: Scene, one_parent: Forks) -> None:
    console, store = scene("A process was killed")
    one_parent.environ = {**console.env, "ARIA_AGENTS_DIR": str(console.agents)}
    killed = one_parent("prune_sessions", {"max_age_minutes": 60}, kill_at=4)
    assert killed.killed
    assert "index swapped" in killed.steps
    console.play()
    assert {e["sessionId"] for e in store.read().values()} == {"talk-with-ann", "the-main", "watch-0215"}
    assert len(list(store.dir.glob("*.deleted.*"))) == 3


def test_a_damaged_index_is_rebuilt(scene: Scene) -> None:
    console, store = scene("An index is damaged")
    transcripts = {p.name: p.read_bytes() for p in store.dir.glob("*.jsonl")}
    call(console, "delete_session", session_id="report-0215")
    entries, damaged = store.read(), store.index.read_bytes()[:400]
    store.index.write_bytes(damaged)
    console.play()
    assert store.index.read_bytes() == damaged
    console.play()
    after = store.read()
    kept = ("agent:main:cron:digest", "agent:main:cron:backup", "agent:main:direct:ann")
    assert {key: after[key] for key in kept} == {key: entries[key] for key in kept}
    assert [p.read_bytes() for p in store.dir.glob("sessions.json.damaged.*")] == [damaged]
    console.play()
    assert {p.name: p.read_bytes() for p in store.dir.glob("*.jsonl")} == transcripts


@pytest.mark.parametrize("missing", [True, False])
def test_a_lost_index_is_made_anew(scene: Scene, missing: bool) -> None:
    console, store = scene("An index is missing or was emptied")
    if missing:
        store.index.unlink()
        made = call(console, "readopt_orphans", agent="main", rebuild=True, dry_run=False)
        assert made["adopted_count"] == 6
    store.index.write_text("{}")
    console.play()
    assert len(store.read()) == 6


def test_a_backup_of_the_index_is_followed_by_a_prune(scene: Scene) -> None:
    console, store = scene("A backup of the index was put back")
    backup = console.home / "sessions.json.backup"
    backup.write_bytes(store.index.read_bytes())
    backup.chmod(0o600)
    call(console, "prune_sessions", max_age_minutes=60)
    console.play()
    assert {e["sessionId"] for e in store.read().values()} == {
        "talk-with-ann",
        "the-main",
        "watch-0215",
        "report-0215",
    }
    assert len(list(store.dir.glob("*.jsonl.deleted.*"))) == 2


def ledger(console: Console) -> Path:
    return console.agents / ".session_manager" / "ledger.sqlite"


def test_a_damaged_ledger_stops_changes_until_it_is_moved_away(scene: Scene) -> None:
    console, store = scene("The ledger is damaged")
    call(console, "delete_session", session_id="report-0215")
    good = ledger(console).read_bytes()
    ledger(console).write_bytes(b"garbage" * 1000)
    before = picture(console.agents)
    console.play()
    assert picture(console.agents) == before
    console.play()
    assert "agent:main:cron:backup" not in store.read()
    ledger(console).write_bytes(good)
    with sqlite3.connect(ledger(console)) as sql:
        sql.execute("UPDATE removals SET reason = 'another'")
    sql.close()
    console.play()
    call(console, "delete_session", session_id="digest-0215")


def test_an_archive_becomes_a_session_again_without_a_ledger(scene: Scene) -> None:
    console, store = scene("The ledger is lost")
    transcript = (store.dir / "report-0215.jsonl").read_bytes()
    call(console, "delete_session", session_id="report-0215")
    ledger(console).unlink()
    console.play()
    assert (store.dir / "report-0215.jsonl").read_bytes() == transcript


@pytest.mark.system
def test_a_full_disk_is_freed(scene: Scene, tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", "1m") as home:
        console, store = scene("The disk is full", home)
        archive = store.dir / "old.jsonl.deleted.2026-01-05T10-00-00.000Z"
        archive.write_bytes(b"x" * 60_000)
        before = picture(console.agents)
        ballast = home / "ballast"
        with open(ballast, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
            except OSError:
                pass
        console.play()
        assert picture(console.agents) == before
        os.truncate(ballast, ballast.stat().st_size - 200_000)
        console.play()
        assert not archive.exists()
        assert len(list(store.dir.glob("*.deleted.*"))) == 3


def test_a_living_process_keeps_its_lock_until_it_ends(scene: Scene) -> None:
    console, store = scene("A store stays locked")
    marker = store.dir / "sessions.json.lock"
    holder = subprocess.Popen(["openclaw-gateway", "600"], executable="/bin/sleep")
    try:
        marker.write_text(json.dumps({"pid": holder.pid, "createdAt": iso_ms(now_ms() - 40_000)}))
        console.play()
        assert holder.wait(timeout=60) == -signal.SIGTERM
    finally:
        holder.kill()
        holder.wait()
    console.play()
    assert not marker.exists()


def test_marks_are_delivered_when_the_service_is_back(scene: Scene, database: str, tmp_path: Path) -> None:
    console, _ = scene("History is behind", ARIA_API_URL=CLOSED_API)
    env = {"DATABASE_URL": database, "ARIA_AGENTS_DIR": str(console.agents), "HOME": str(tmp_path)}
    with running(tmp_path / "log", ARIA_SYNC_SECONDS="0", **env) as service:
        service.client.post("/api/sessions/sync").raise_for_status()
    console.known[API] = CLOSED_API.removesuffix("/api")
    console.play()
    with running(tmp_path / "log", ARIA_SYNC_SECONDS="0", **env) as service:
        console.env["ARIA_API_URL"] = service.api
        console.play()
        assert statuses(service)["report-0215"] == "ended"


def statuses(service: Service) -> dict[str, str]:
    items = service.client.get("/api/sessions").json()["items"]
    return {item["metadata"]["aria_session_id"]: item["status"] for item in items}


def test_a_restore_takes_the_second_name(scene: Scene) -> None:
    console, store = scene("The gateway removed archives")
    transcript = (store.dir / "report-0215.jsonl").read_bytes()
    call(console, "delete_session", session_id="report-0215")
    console.play()
    assert (store.dir / "report-0215.jsonl").read_bytes() == transcript


def test_a_clock_far_ahead_takes_nothing_for_good(scene: Scene) -> None:
    console, store = scene("The clock was wrong")
    before = picture(console.agents)
    run_id = call(console, "prune_sessions", max_age_minutes=60)["run_id"]
    console.known["01a1ffe95b76-b76de606e9"] = str(run_id)
    ledger_sql(console.agents, "UPDATE events SET at = at - 400 * 86400000")
    console.play()
    assert picture(console.agents) == before
    assert store.read() == store.entries


def test_a_shorter_name_lets_a_session_go(scene: Scene) -> None:
    _, store = made = scene("A transcript cannot be archived")
    store.transcript(f"report-0215-topic-{'7' * 220}.jsonl", "report-0215", 1_700_000_000_000)
    made[0].play()
    assert "agent:main:cron:report" not in store.read()
    assert len(list(store.dir.glob("report-0215*.jsonl.deleted.*"))) == 2


def test_a_copy_on_another_machine_can_restore(scene: Scene) -> None:
    console, store = scene("Moving to another machine")
    transcript = (store.dir / "report-0215.jsonl").read_bytes()
    call(console, "prune_sessions", max_age_minutes=60)
    before = store.dir.stat().st_ino
    console.play()
    assert (store.dir / "report-0215.jsonl").read_bytes() == transcript
    assert store.dir.stat().st_ino != before
    assert all(p.stat().st_nlink == 2 for p in store.dir.glob("*.deleted.*"))


def test_a_new_database_fills_itself(scene: Scene, server: Databases, tmp_path: Path) -> None:
    console, _ = scene("The embedded database is lost")
    env = {"ARIA_AGENTS_DIR": str(console.agents), "HOME": str(tmp_path), "ARIA_SYNC_SECONDS": "0"}
    first, second = server.create(), server.create(migrated=False)
    with running(tmp_path / "log", DATABASE_URL=first, **env) as service:
        service.client.post("/api/sessions/sync").raise_for_status()
        console.env["ARIA_API_URL"] = service.api
        assert call(console, "prune_sessions", max_age_minutes=60)["pg_updated"] == 3
    with running(tmp_path / "log", DATABASE_URL=second, **env) as service:
        service.client.post("/api/sessions/sync").raise_for_status()
        assert statuses(service) == dict.fromkeys(("talk-with-ann", "the-main", "watch-0215"), "active")
        console.env |= {"ARIA_API_URL": service.api, "DATABASE_URL": second}
        token = console.play()[0].strip()
        assert service.client.get("/api/sessions").status_code == 401
        service.client.headers["Authorization"] = f"Bearer {token}"
        console.env["ARIA_API_TOKEN"] = token
        call(console, "restore_session", session_id="report-0215")
        service.client.post("/api/sessions/sync").raise_for_status()
        assert statuses(service)["report-0215"] == "active"
    for url in (first, second):
        server.drop(url)
