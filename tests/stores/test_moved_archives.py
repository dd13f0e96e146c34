"""An agent that has moved to SQLite: what was archived from its files before is listed, restored, purged and erased."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forks import Call, Forks
from scene import second_names
from support import StoreBuilder, ledger_sql, now_ms, picture
from test_faults import in_process

from session_manager.core.errors import Refused
from session_manager.core.session import DAY_MS
from session_manager.ledger import attempts, new_run_id
from session_manager.stores.openclaw_files.database import read_database
from session_manager.stores.openclaw_files.volume import Volume

IMPORT = "openclaw doctor --session-sqlite import --session-sqlite-agent main"
GONE = ["old-0", "old-1"]


class Gateway:
    """The database of a gateway that keeps the sessions of ``main`` in SQLite, and its import, as 2026.9.6 does it."""

    def __init__(self, agents: Path) -> None:
        self.sessions = agents / "main" / "sessions"
        self.path = agents / "main" / "agent" / "openclaw-agent.sqlite"
        self.path.parent.mkdir(parents=True)
        self.write(
            "CREATE TABLE session_nodes (session_key TEXT PRIMARY KEY, current_session_id TEXT, entry_valid INT,"
            " archived_at INT)",
            "CREATE TABLE session_windows (session_id TEXT PRIMARY KEY, session_key TEXT)",
            "PRAGMA user_version = 23",
        )

    def write(self, *statements: str) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    def add(self, key: str, session_id: str, *, valid: int = 1, archived: str = "NULL") -> None:
        self.write(
            f"INSERT OR REPLACE INTO session_nodes VALUES ('{key}', '{session_id}', {valid}, {archived})",
            f"INSERT OR IGNORE INTO session_windows VALUES ('{session_id}', '{key}')",
        )

    def imports(self) -> None:
        """Takes the index in, and moves it and its transcripts away."""
        index = self.sessions / "sessions.json"
        aside = self.sessions.parent / "session-sqlite-import-archive"
        aside.mkdir(exist_ok=True)
        for key, entry in json.loads(index.read_bytes()).items():
            self.add(key, entry["sessionId"])
            for transcript in self.sessions.glob(f"{entry['sessionId']}*.jsonl"):
                assert transcript.stat().st_nlink == 1, "the import refuses files with several links"
                transcript.rename(aside / f"{key.replace(':', '_')}.{transcript.name}.imported-1")
        index.rename(aside / f"sessions.json.{new_run_id()}")

    def refuses_to_start(self) -> bool:
        return (self.sessions / "sessions.json").exists()


class Scene:
    """Two sessions, one with a topic and two keys, that were removed from files; then the agent moved to SQLite."""

    def __init__(self, agents: Path, fork: Forks, *, move: bool = True, days: int = 0) -> None:
        self.agents, self.fork = agents, fork
        self.store = StoreBuilder(agents)
        for number, session_id in enumerate(GONE):
            self.store.add(f"cron:job-{number}", 300, session_id, label=f"label {number}")
        self.store.add("cron:job-0:run:old-0", 300, "old-0", note="ä 😀")
        self.store.transcript("old-0-topic-7.jsonl", "old-0", 1_700_000_000_000)
        self.store.add("main", 1, "the-main")
        self.store.write()
        self.entries = dict(self.store.entries)
        self.files = {p.name: p.read_bytes() for p in self.store.dir.glob("old-*.jsonl")}
        with pytest.MonkeyPatch.context() as patch:
            then = now_ms() - days * DAY_MS
            patch.setattr(attempts, "now_ms", lambda: then)
            done = in_process(agents, "prune_sessions", {})
        assert set(done.document["deleted_ids"]) == set(GONE)
        self.run_id = done.document["run_id"]
        if move:
            self.move()

    def move(self) -> None:
        self.gateway = Gateway(self.agents)
        self.gateway.imports()

    @property
    def waiting(self) -> Path:
        return self.store.dir / "sessions.json.restored"

    def archives(self) -> set[str]:
        return {p.name for p in self.store.dir.glob("*.deleted.*")}

    def live_names(self) -> set[str]:
        return {p.name for p in self.store.dir.glob("*.jsonl")}

    def rows(self) -> dict[str, dict[str, Any]]:
        """The newest removal of each session."""
        return {row["id"]: row for row in reversed(self.fork("list_deleted").document["deleted"])}

    def waiting_ids(self) -> set[str]:
        entries = json.loads(self.waiting.read_bytes()) if self.waiting.exists() else {}
        return {entry["sessionId"] for entry in entries.values()}

    def assert_settled(self) -> None:
        assert ledger_sql(self.agents, "SELECT * FROM attempts WHERE state = 'intent'") == []
        assert self.fork("verify_ledger").document["whole"] is True
        left = [n for n in self.store.names() if n.startswith(".session_manager.") or n.endswith(".lock")]
        assert left == []
        assert not self.gateway.refuses_to_start()

    def assert_back(self, *ids: str) -> None:
        """Sessions are back as files that the gateway imports, and all others archived under two names."""
        back = {n: text for n, text in self.files.items() if n.startswith(tuple(ids))} if ids else {}
        for name, text in back.items():
            path = self.store.dir / name
            assert (path.read_bytes(), path.stat().st_nlink) == (text, 1)
        assert self.live_names() == set(back)
        kept = {name.partition(".deleted.")[0] for name in self.archives()}
        assert kept == {name.partition(".deleted.")[0] for name in second_names(self.agents)}
        assert kept == set(self.files) - set(back)
        entries = {k: e for k, e in self.entries.items() if e["sessionId"] in ids}
        assert (json.loads(self.waiting.read_bytes()) if self.waiting.exists() else {}) == entries
        self.assert_settled()


@pytest.fixture
def scene(agents: Path, fork: Forks) -> Scene:
    return Scene(agents, fork)


@pytest.fixture
def old(agents: Path, fork: Forks) -> Scene:
    """One whose sessions were removed 40 days ago."""
    return Scene(agents, fork, days=40)


@pytest.fixture
def fresh(agents: Path, fork: Forks) -> Callable[..., Scene]:
    """A scene of its own for each call."""

    def build(**rest: Any) -> Scene:
        folder = agents / new_run_id()
        folder.mkdir()
        fork.environ["ARIA_AGENTS_DIR"] = str(folder)
        return Scene(folder, fork, **rest)

    return build


def erase(scene: Scene, session_id: str = "old-0", **rest: Any) -> Call:
    return scene.fork("erase_session", {"session_id": session_id, "confirm": session_id}, ARIA_ALLOW_ERASE="1", **rest)


# --- the list and the way back ----------------------------------------------------------------------------------------


def test_the_list_shows_them_and_writes_nothing(scene: Scene) -> None:
    before = picture(scene.agents, without_state=False)
    rows = scene.rows()
    assert {i: (row["restorable"], row["why_not"]) for i, row in rows.items()} == dict.fromkeys(GONE, (True, None))
    assert picture(scene.agents, without_state=False) == before


def test_one_session_comes_back_as_files(scene: Scene) -> None:
    before = {p.name: p.read_bytes() for p in scene.gateway.path.parent.iterdir()}
    done = scene.fork("restore_session", {"session_id": "old-0"})
    assert done.exit_code == 0
    assert done.document["transcript_restored"] is True
    assert IMPORT in done.document["message"]
    (told,) = done.document["to_import"]
    assert (told["agentId"], told["index"]) == ("main", str(scene.waiting))
    assert all(part in told["how"] for part in ("stop the gateway", str(scene.waiting), IMPORT))
    scene.assert_back("old-0")
    assert scene.waiting.stat().st_mode & 0o777 == 0o600
    assert {p.name: p.read_bytes() for p in scene.gateway.path.parent.iterdir()} == before
    assert scene.rows()["old-0"]["state"] == "restored"


def test_entries_keep_their_bytes(agents: Path, fork: Forks) -> None:
    scene = Scene(agents, fork)
    text = json.dumps(scene.entries["agent:main:cron:job-0:run:old-0"], indent=2, ensure_ascii=False)
    fork("restore_session", {"session_id": "old-0"})
    assert text.replace("\n", "\n  ") in scene.waiting.read_text()


def test_a_run_comes_back_and_is_imported(scene: Scene) -> None:
    assert scene.fork("restore_session", {"session_id": "old-1"}).exit_code == 0
    done = scene.fork("restore_run", {"run_id": scene.run_id})
    assert (done.exit_code, set(done.document["restored_ids"])) == (0, set(GONE))
    assert IMPORT in done.document["message"]
    scene.assert_back(*GONE)
    scene.waiting.rename(scene.store.index)
    scene.gateway.imports()
    again = scene.fork("restore_session", {"session_id": "old-0"})
    assert (again.exit_code, again.document["already_live"]) == (0, True)
    assert "to_import" not in again.document
    assert scene.live_names() == set()


def test_called_again_it_says_again_how(scene: Scene) -> None:
    scene.fork("restore_session", {"session_id": "old-0"})
    again = scene.fork("restore_session", {"session_id": "old-0"})
    assert again.exit_code == 0
    assert IMPORT in again.document["message"]
    scene.assert_back("old-0")


def test_what_was_imported_and_deleted_since_is_said(scene: Scene) -> None:
    scene.fork("restore_session", {"session_id": "old-0"})
    scene.waiting.rename(scene.store.index)
    scene.gateway.imports()
    scene.gateway.write("DELETE FROM session_nodes WHERE current_session_id = 'old-0'")
    again = scene.fork("restore_session", {"session_id": "old-0"})
    assert (again.exit_code, again.document["code"]) == (4, "not_restorable")


def test_an_archive_that_the_gateway_reaped_comes_back_by_its_second_name(scene: Scene) -> None:
    for path in scene.store.dir.glob("*.deleted.*"):
        path.unlink()
    assert scene.fork("restore_run", {"run_id": scene.run_id}).exit_code == 0
    scene.assert_back(*GONE)


def test_a_file_with_a_foreign_link_is_copied(scene: Scene) -> None:
    for path in scene.store.dir.glob("*.deleted.*"):
        os.link(path, scene.agents / f"backup-of-{path.name}")
    assert scene.fork("restore_session", {"session_id": "old-0"}).exit_code == 0
    scene.assert_back("old-0")


@pytest.mark.parametrize("archived", ["NULL", "1795219500062"])
def test_a_key_that_another_session_has_is_not_taken(scene: Scene, archived: str) -> None:
    scene.gateway.add("agent:main:cron:job-0", "theirs", archived=archived)
    before = picture(scene.agents)
    done = scene.fork("restore_session", {"session_id": "old-0"})
    assert (done.exit_code, done.document["code"]) == (4, "key_taken")
    assert picture(scene.agents) == before
    assert scene.rows()["old-0"]["restorable"] is False
    some = scene.fork("restore_run", {"run_id": scene.run_id, "skip_conflicts": True})
    assert (some.document["restored_ids"], [s["id"] for s in some.document["skipped"]]) == (["old-1"], ["old-0"])
    scene.assert_back("old-1")


def test_a_key_that_waits_to_be_imported_is_taken(scene: Scene) -> None:
    scene.waiting.write_text('{"agent:main:cron:job-0": {"sessionId": "theirs"}}')
    done = scene.fork("restore_session", {"session_id": "old-0"})
    assert (done.exit_code, done.document["code"]) == (4, "key_taken")
    assert scene.fork("restore_session", {"session_id": "old-1"}).exit_code == 0
    assert list(json.loads(scene.waiting.read_bytes())) == ["agent:main:cron:job-0", "agent:main:cron:job-1"]


def test_a_tombstone_holds_no_key(scene: Scene) -> None:
    scene.gateway.add("agent:main:cron:job-0", "old-0", valid=-1)
    assert scene.fork("restore_session", {"session_id": "old-0"}).exit_code == 0
    scene.assert_back("old-0")


def test_waiting_entries_that_cannot_be_read_are_left_alone(scene: Scene) -> None:
    scene.waiting.write_text('{"cut off')
    before = picture(scene.agents)
    done = scene.fork("restore_session", {"session_id": "old-0"})
    assert (done.exit_code, done.document["code"]) == (4, "not_restorable")
    assert str(scene.waiting) in done.document["error"]
    assert picture(scene.agents) == before


def test_another_file_under_the_live_name_stays(scene: Scene) -> None:
    (scene.store.dir / "old-0.jsonl").write_text("another\n")
    before = picture(scene.agents)
    done = scene.fork("restore_session", {"session_id": "old-0"})
    assert (done.exit_code, done.document["code"]) == (4, "file_exists")
    assert picture(scene.agents) == before


@pytest.mark.parametrize(
    "where",
    ["session_manager.stores.openclaw_files.waiting.write_new", "session_manager.stores.openclaw_files.moved.alone"],
)
def test_a_full_disk_changes_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        done = in_process(scene.agents, "restore_session", {"session_id": "old-0"})
    if where.endswith("write_new"):
        assert (done.exit_code, done.document["code"]) == (4, "disk_full")
        scene.assert_back()
    else:
        # What is back is said, and the next call goes on.
        assert (done.exit_code, [e["code"] for e in done.document["errors"]]) == (3, ["disk_full"] * 2)
    assert scene.fork("restore_session", {"session_id": "old-0"}).exit_code == 0
    scene.assert_back("old-0")


# --- what lives in the database -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["live", "archived", "left behind by its key"])
def test_no_archive_of_what_the_database_has_is_purged_or_dropped(old: Scene, how: str) -> None:
    archived = "1795219500062" if how == "archived" else "NULL"
    old.gateway.add("agent:main:cron:job-0", "old-0", archived=archived)
    if how == "left behind by its key":
        old.gateway.write("UPDATE session_nodes SET current_session_id = 'new' WHERE current_session_id = 'old-0'")
    done = old.fork("purge_archives", {"dry_run": False})
    assert (done.exit_code, done.document["removals"], done.document["live_count"]) == (0, 1, 2)
    assert {n.partition(".deleted.")[0] for n in old.archives()} == {"old-0.jsonl", "old-0-topic-7.jsonl"}
    assert {n.partition(".deleted.")[0] for n in second_names(old.agents)} == {"old-0.jsonl", "old-0-topic-7.jsonl"}
    row = old.rows()["old-0"]
    assert row["restorable"] is False
    assert "database" in row["why_not"]
    refused = old.fork("restore_session", {"session_id": "old-0"})
    assert (refused.exit_code, refused.document["code"]) == (4, "not_restorable")
    old.assert_settled()


@pytest.mark.parametrize("known", [True, False])
def test_old_second_names_go_where_the_sessions_can_be_told(old: Scene, known: bool) -> None:
    old.gateway.add("agent:main:cron:job-0", "old-0")
    if not known:
        old.gateway.write("PRAGMA user_version = 99")
    long_ago = f"{0:012x}-{old.run_id.partition('-')[2]}"
    archives = old.agents / ".session_manager" / "archives"
    (archives / old.run_id).rename(archives / long_ago)
    StoreBuilder(old.agents, "other").write()
    assert old.fork("purge_archives", {"agent": "other", "dry_run": False}).exit_code == 0
    left = {n.partition(".deleted.")[0] for n in second_names(old.agents)}
    assert left == {"old-0.jsonl", "old-0-topic-7.jsonl"} | (set() if known else {"old-1.jsonl"})


# --- purge and erase ------------------------------------------------------------------------------------------------


def test_a_purge_takes_what_was_archived_before_and_nothing_of_the_gateway(old: Scene) -> None:
    published = old.store.dir / f"x.jsonl.deleted.2026-01-01T00-00-00.000Z.{'0f' * 16}.zst"
    published.write_bytes(b"theirs")
    before = picture(old.agents, without_state=False)
    preview = old.fork("purge_archives", {}).document
    assert (preview["purged_count"], preview["removals"]) == (3, 2)
    assert picture(old.agents, without_state=False) == before
    done = old.fork("purge_archives", {"dry_run": False, "agent": "main"}).document
    assert (done["purged_count"], done["removals"], done["bytes_freed"]) == (3, 2, sum(map(len, old.files.values())))
    assert old.archives() == {published.name}
    assert second_names(old.agents) == {}
    assert {row["state"] for row in old.rows().values()} == {"purged"}
    again = old.fork("restore_session", {"session_id": "old-0"})
    assert (again.exit_code, again.document["code"], again.document["state"]) == (4, "not_restorable", "purged")
    old.assert_settled()


@pytest.mark.parametrize(
    "fault",
    ["PRAGMA user_version = 24", "PRAGMA user_version = 18", "ALTER TABLE session_nodes RENAME entry_valid TO x"],
)
def test_where_the_living_cannot_be_told_nothing_goes(old: Scene, fault: str) -> None:
    old.gateway.write(fault)
    before = picture(old.agents)
    for call in (
        old.fork("purge_archives", {"dry_run": False}),
        erase(old),
        old.fork("restore_session", {"session_id": "old-0"}),
        old.fork("restore_run", {"run_id": old.run_id}),
    ):
        assert (call.exit_code, call.document["code"]) == (4, "store_unsupported"), call
        assert "its database cannot be read" in call.document["error"]
    assert old.rows()["old-0"]["restorable"] is False
    assert picture(old.agents) == before


@pytest.mark.parametrize("back", [False, True])
def test_a_session_is_erased(scene: Scene, back: bool) -> None:
    if back:
        assert scene.fork("restore_run", {"run_id": scene.run_id}).exit_code == 0
    done = erase(scene)
    assert (done.exit_code, done.document["receipt"]["agents"], done.document["receipt"]["files"]) == (0, ["main"], 2)
    places = {found["place"] for found in done.document["not_reached"]}
    assert "main/agent/openclaw-agent.sqlite" in places
    assert "main/sessions/sessions.json.restored" not in places
    names = {p.name for p in scene.agents.rglob("*")}
    assert not [name for name in names if name.startswith("old-0")]
    assert [name for name in names if name.startswith("old-1")]
    if back:
        assert list(json.loads(scene.waiting.read_bytes())) == ["agent:main:cron:job-1"]
    assert scene.rows()["old-0"]["state"] == "erased"
    assert erase(scene).document["already_erased"] is True
    assert erase(scene, "old-1").exit_code == 0
    assert not scene.waiting.exists()
    scene.assert_settled()


def test_an_erasure_names_what_an_import_put_aside(scene: Scene) -> None:
    scene.fork("restore_session", {"session_id": "old-1"})
    scene.waiting.rename(scene.store.index)
    scene.gateway.imports()
    scene.gateway.write("DELETE FROM session_nodes WHERE current_session_id = 'old-1'")
    done = erase(scene, "old-1")
    assert done.exit_code == 0
    places = {found["place"] for found in done.document["not_reached"]}
    assert "main/session-sqlite-import-archive/agent_main_cron_job-1.old-1.jsonl.imported-1" in places


def test_what_the_database_has_is_for_the_gateway_to_delete_first(scene: Scene) -> None:
    scene.gateway.add("agent:main:cron:job-0", "old-0")
    before = picture(scene.agents)
    for session_id in ("old-0", "the-main"):
        done = erase(scene, session_id)
        assert (done.exit_code, done.document["code"]) == (4, "store_unsupported")
        assert "delete it there" in done.document["error"]
    assert erase(scene, "nobody").exit_code == 5
    assert picture(scene.agents) == before


# --- killed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("follow_up", ["restore_run", "restore_session", "purge_archives"])
def test_a_restore_that_is_killed_goes_on(fresh: Callable[..., Scene], follow_up: str) -> None:
    calls: dict[str, dict[str, Any]] = {
        "restore_session": {"session_id": "old-0"},
        "purge_archives": {"dry_run": False},
    }
    for limit in range(1, 40):
        scene = fresh()
        whole = {"run_id": scene.run_id}
        first = scene.fork("restore_run", whole, kill_at=limit)
        done = scene.fork(follow_up, calls.get(follow_up, whole))
        assert done.exit_code == 0, (first.steps, done)
        scene.assert_back(*GONE)
        if not first.killed:
            assert {"restore intended", "entries written", "second names dropped", "end noted"} <= set(first.steps)
            return
    pytest.fail("it never ends")


def test_killed_again_while_it_goes_on(fresh: Callable[..., Scene]) -> None:
    for first in range(1, 12, 2):
        for second in range(1 + first % 3, 40, 3):
            scene = fresh()
            whole = {"run_id": scene.run_id}
            if not scene.fork("restore_run", whole, kill_at=first).killed:
                return
            going_on = scene.fork("purge_archives", {"dry_run": False}, kill_at=second)
            assert scene.fork("restore_run", whole).exit_code == 0
            scene.assert_back(*GONE)
            if not going_on.killed:
                break


def test_a_purge_that_is_killed_goes_on(fresh: Callable[..., Scene]) -> None:
    for limit in range(1, 40):
        scene = fresh(days=40)
        first = scene.fork("purge_archives", {"dry_run": False}, kill_at=limit)
        assert scene.fork("purge_archives", {"dry_run": False}).exit_code == 0
        assert (scene.archives(), second_names(scene.agents)) == (set(), {})
        assert {row["state"] for row in scene.rows().values()} == {"purged"}
        scene.assert_settled()
        if not first.killed:
            return
    pytest.fail("it never ends")


def test_an_erasure_that_is_killed_goes_on(fresh: Callable[..., Scene]) -> None:
    for limit in range(1, 40):
        scene = fresh()
        assert scene.fork("restore_run", {"run_id": scene.run_id}).exit_code == 0
        first = erase(scene, kill_at=limit)
        assert erase(scene).exit_code == 0
        assert not [p.name for p in scene.agents.rglob("*") if p.name.startswith("old-0")]
        assert list(json.loads(scene.waiting.read_bytes())) == ["agent:main:cron:job-1"]
        assert scene.rows()["old-0"]["state"] == "erased"
        scene.assert_settled()
        if not first.killed:
            return
    pytest.fail("it never ends")


@pytest.mark.parametrize("function", ["delete_session", "restore_run"])
def test_what_was_killed_before_the_move_is_ended_after_it(agents: Path, fork: Forks, function: str) -> None:
    for limit in range(1, 40):
        folder = agents / new_run_id()
        folder.mkdir()
        fork.environ["ARIA_AGENTS_DIR"] = str(folder)
        scene = Scene(folder, fork, move=False)
        arguments: dict[str, Any] = {"run_id": scene.run_id}
        if function == "delete_session":
            assert fork("restore_run", arguments).exit_code == 0
            arguments = {"session_id": "old-0", "force": True}
        first = fork(function, arguments, kill_at=limit)
        for path in scene.store.dir.glob("*.jsonl"):
            if path.stat().st_nlink > 1:
                # The gateway would refuse it: a person has to take a copy.
                shutil.copyfile(path, folder / "copy")
                (folder / "copy").replace(path)
        scene.move()
        assert fork("purge_archives", {"dry_run": False}).exit_code == 0
        scene.assert_settled()
        rows, taken = scene.rows(), _nodes(scene)
        for session_id in GONE:
            archived = any(name.startswith(session_id) for name in scene.archives())
            waits = (scene.store.dir / f"{session_id}.jsonl").exists()
            # In the database it may be without all of its files, which then stay archived.
            assert [session_id in taken or archived, waits].count(True) == 1, (first.steps, session_id)
            assert waits == (session_id in scene.waiting_ids()), first.steps
            state = rows[session_id]["state"]
            assert state == ("restored" if waits or session_id in taken else "removed"), first.steps
        if not first.killed:
            return
    pytest.fail("it never ends")


def _nodes(scene: Scene) -> set[str]:
    with contextlib.closing(sqlite3.connect(scene.gateway.path)) as connection:
        return {i for (i,) in connection.execute("SELECT current_session_id FROM session_nodes")}


# --- how the database is read ---------------------------------------------------------------------------------------


def ids(scene: Scene) -> set[str]:
    store = Volume(str(scene.agents)).archive_store("main")
    assert store is not None
    return {session.id for session in read_database(store, 0).sessions}


def folder_of(scene: Scene) -> set[str]:
    return {p.name for p in scene.gateway.path.parent.iterdir()}


def test_a_store_at_rest_is_read_without_a_trace(scene: Scene) -> None:
    scene.gateway.write("PRAGMA journal_mode = wal")
    before = folder_of(scene)
    assert ids(scene) == {"the-main"}
    assert folder_of(scene) == before == {"openclaw-agent.sqlite"}


def test_a_store_at_work_is_read_with_its_log(scene: Scene) -> None:
    scene.gateway.write("PRAGMA journal_mode = wal")
    with contextlib.closing(sqlite3.connect(scene.gateway.path)) as gateway:
        gateway.execute("INSERT INTO session_nodes VALUES ('agent:main:x', 'young', 1, NULL)")
        gateway.commit()
        assert ids(scene) == {"the-main", "young"}


def test_a_log_that_a_kill_left_is_read_in_a_copy(scene: Scene) -> None:
    scene.gateway.write("PRAGMA journal_mode = wal")
    aside = scene.agents / "image"
    aside.mkdir()
    with contextlib.closing(sqlite3.connect(scene.gateway.path)) as gateway:
        gateway.execute("INSERT INTO session_nodes VALUES ('agent:main:x', 'young', 1, NULL)")
        gateway.commit()
        for end in ("", "-wal"):
            shutil.copyfile(f"{scene.gateway.path}{end}", aside / f"openclaw-agent.sqlite{end}")
    for path in aside.iterdir():
        shutil.copyfile(path, scene.gateway.path.parent / path.name)
    before = picture(scene.gateway.path.parent)
    assert ids(scene) == {"the-main", "young"}
    assert picture(scene.gateway.path.parent) == before


def test_a_write_in_between_is_not_missed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from session_manager.stores.openclaw_files import database

    ask, written = database._ask, []

    def late(path: str, how: str) -> Any:
        found = ask(path, how)
        if not written:
            written.append(True)
            scene.gateway.add("agent:main:x", "young")
        return found

    monkeypatch.setattr(database, "_ask", late)
    assert ids(scene) == {"the-main", "young"}


def test_one_that_never_rests_is_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from session_manager.stores.openclaw_files import database

    ask = database._ask

    def late(path: str, how: str) -> Any:
        found = ask(path, how)
        scene.gateway.add("agent:main:x", new_run_id())
        return found

    monkeypatch.setattr(database, "_ask", late)
    with pytest.raises(Refused, match="changes all the time"):
        ids(scene)
