"""File systems without a swap of two files, hard links, flock, fsync or modes: done weaker and said, or refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lacking import ALL, EXCHANGE, EXCLUSIVELY, FLOCK, FSYNC, LINKS, MODES, lacking
from scene import Scene
from support import Skill, StoreBuilder, contend, dead_pid, now_ms, picture
from test_faults import Fault as OneFault
from test_faults import build, failing_sql, in_process, ours, sql_error
from test_kill import CALLS, STEPS, run_until

from session_manager.core.errors import Locked
from session_manager.files import lock_file, own_lock, trial
from session_manager.files.liveness import Payload, iso_ms
from session_manager.stores.openclaw_files import gateways, unguarded
from session_manager.stores.openclaw_files.gateway_lock import LockLost, StoreLock
from session_manager.stores.openclaw_files.store import Store
from session_manager.stores.openclaw_files.volume import Volume

EVERYTHING = (*ALL, EXCLUSIVELY)


def told(document: dict[str, Any]) -> set[str]:
    """What a result says that the file system cannot do."""
    found = document.get("weaker", [])
    assert all(each["note"] for each in found)
    return {each["lacks"] for each in found}


def second_names(agents: Path) -> dict[str, Path]:
    return {p.name: p for p in (agents / ".session_manager" / "archives").rglob("*") if p.is_file()}


# --- done, and said -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", [(), *([each] for each in ALL), (LINKS, EXCLUSIVELY), EVERYTHING], ids=str)
def test_what_is_removed_comes_back_and_the_result_says_what_is_weaker(agents: Path, without: list[str]) -> None:
    store = build(agents)
    before, mode = picture(agents), store.index.stat().st_mode
    with lacking(without):
        done = in_process(agents, "prune_sessions", {})
        assert (done.exit_code, done.document["deleted_ids"]) == (0, ["a", "b"])
        assert told(done.document) == set(without) & set(ALL)
        archives = {p.name: p.read_bytes() for p in store.dir.glob("*.deleted.*")}
        assert len(archives) == 3
        assert {n: p.read_bytes() for n, p in second_names(agents).items()} == archives
        assert ours(agents) == []
        for path in store.dir.glob("*.deleted.*"):
            path.unlink()
        back = in_process(agents, "restore_run", {"run_id": done.document["run_id"]})
        assert (back.exit_code, back.document.get("restored_count")) == (0, 2), back.document
        assert in_process(agents, "verify_ledger", {}).document["whole"] is True
    assert store.index.stat().st_mode == mode
    # A copy is for its owner alone.
    assert {n: c for n, (_, c) in picture(agents).items()} == {n: c for n, (_, c) in before.items()}
    assert ours(agents) == []
    assert second_names(agents) == {}


@pytest.mark.parametrize(
    "number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL], ids=errno.errorcode.get
)
def test_every_way_in_which_there_is_no_flock(agents: Path, number: int) -> None:
    build(agents)
    with lacking([FLOCK], flock=number):
        done = in_process(agents, "prune_sessions", {})
    assert (done.exit_code, told(done.document)) == (0, {FLOCK})
    assert not list(agents.rglob(".session_manager.lock"))


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK], ids=errno.errorcode.get)
def test_every_way_in_which_there_are_no_links(agents: Path, number: int) -> None:
    store = build(agents)
    with lacking([LINKS], links=number):
        done = in_process(agents, "prune_sessions", {})
    assert (done.exit_code, told(done.document)) == (0, {LINKS})
    assert second_names(agents).keys() == {p.name for p in store.dir.glob("*.deleted.*")}


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def test_every_way_in_which_there_is_no_fsync(agents: Path, number: int) -> None:
    build(agents)
    with lacking([FSYNC], fsync=number):
        done = in_process(agents, "prune_sessions", {})
    assert (done.exit_code, told(done.document)) == (0, {FSYNC})


def test_a_disk_that_fails_is_no_file_system_without_fsync(agents: Path) -> None:
    build(agents)
    before = picture(agents)
    with lacking([FSYNC], fsync=errno.EIO):
        done = in_process(agents, "prune_sessions", {})
    assert (done.exit_code, done.document["code"]) == (70, "io_error")
    assert picture(agents) == before


def test_an_index_that_its_owner_could_not_read_any_more_is_not_written(agents: Path) -> None:
    """Without modes the new index has what the mount gives it, and that must do for its owner."""
    store = build(agents)
    store.index.chmod(0o700)
    before = picture(agents)
    with lacking([MODES]):
        done = in_process(agents, "prune_sessions", {})
    assert (done.exit_code, done.document["code"]) == (4, "not_writable")
    assert picture(agents) == before


def test_orphans_pins_and_the_end_for_good(agents: Path) -> None:
    store = build(agents)
    store.transcript("lost.jsonl", "lost", 1_700_000_000_000)
    with lacking(EVERYTHING):
        assert in_process(agents, "pin_session", {"session_id": "b"}).exit_code == 0
        orphans = in_process(agents, "cleanup_orphans", {"dry_run": False})
        assert (orphans.exit_code, orphans.document["archived_count"]) == (0, 1)
        assert {LINKS, FLOCK, FSYNC} <= told(orphans.document)
        assert in_process(agents, "prune_sessions", {}).document["deleted_ids"] == ["a"]
        assert in_process(agents, "deliver_history", {}).exit_code == 0
    assert not list(agents.rglob("*.held"))


def test_the_next_call_where_all_is_well_says_nothing(agents: Path) -> None:
    build(agents)
    with lacking(EVERYTHING):
        assert in_process(agents, "delete_session", {"session_id": "a"}).exit_code == 0
    assert told(in_process(agents, "prune_sessions", {}).document) == set()


# --- killed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", range(1, len(STEPS) + 1))
def test_killed_at_a_step(limit: int, agents: Path, skill: Skill, tmp_path: Path) -> None:
    """The next call, on the same file system, finishes or undoes it; a copy of what lives again goes."""
    scene = Scene(agents, 2)
    scene.has_links = False
    skill.env["SM_TEST_LACKS"] = ",".join(EVERYTHING)
    code, steps = run_until(skill, limit, tmp_path / "steps", "prune_sessions", CALLS["prune_sessions"])
    assert code == -signal.SIGKILL
    code, _ = run_until(skill, 0, tmp_path / "steps", "prune_sessions", {"max_age_minutes": 1_000_000})
    assert code == 0
    assert scene.assert_whole() == ({"old-0", "old-1"} if "index swapped" in steps else set())


@pytest.mark.parametrize("limit", range(4, 14))
def test_what_a_killed_call_archived_comes_back(limit: int, agents: Path, skill: Skill, tmp_path: Path) -> None:
    store = StoreBuilder(agents)
    transcripts = [store.dir / f"{store.add(f'cron:{number}', 600, f's{number}')}.jsonl" for number in range(2)]
    store.write()
    before = {path: path.read_bytes() for path in transcripts}
    skill.env["SM_TEST_LACKS"] = ",".join(EVERYTHING)
    run_until(skill, limit, tmp_path / "steps", "prune_sessions", CALLS["prune_sessions"])
    run_until(skill, 0, tmp_path / "steps", "prune_sessions", CALLS["prune_sessions"])
    for path in transcripts:
        assert skill("restore_session", {"session_id": path.stem}).exit_code == 0
    assert {path: path.read_bytes() for path in transcripts} == before


def test_killed_with_a_copy_of_what_then_grows(agents: Path, skill: Skill, tmp_path: Path) -> None:
    """The gateway puts the entry back, and goes on in the file: the copy of its beginning is of no use to anybody."""
    scene = Scene(agents, 2)
    scene.has_links = False
    skill.env["SM_TEST_LACKS"] = LINKS
    limit = STEPS.index("second names kept") + 1
    run_until(skill, limit, tmp_path / "steps", "prune_sessions", CALLS["prune_sessions"])
    key = "agent:main:cron:job-1"
    scene.store.replace({**scene.store.read(), key: {**scene.entries[key], "updatedAt": now_ms()}})
    with open(scene.store.dir / "old-1.jsonl", "ab") as file:
        file.write(b'{"type":"message"}\n')
    run_until(skill, 0, tmp_path / "steps", "prune_sessions", {"max_age_minutes": 1_000_000})
    assert key in scene.store.read()
    assert (scene.store.dir / "old-1.jsonl").read_bytes() == scene.files["old-1.jsonl"] + b'{"type":"message"}\n'
    assert not [n for n in second_names(agents) if n.startswith("old-1")]
    assert [n for n in second_names(agents) if n.startswith("old-0.")]


# --- the lock -------------------------------------------------------------------------------------------------------

CONTENDER = """\
import os, sys, time
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from lacking import EVERYTHING, lacking
from session_manager.stores.openclaw_files.gateway_lock import StoreLock
from session_manager.stores.openclaw_files.volume import Volume
store, log = Volume(sys.argv[2]).store("main"), sys.argv[3]
while not os.path.exists(log + ".go"):
    time.sleep(0.001)
with lacking(EVERYTHING), StoreLock(store, 60):
    for word in ("in", "out"):
        with open(log, "a") as file:
            file.write(word + "\\n")
        time.sleep(0.05)
""".replace("EVERYTHING, lacking", "ALL, EXCLUSIVELY, lacking").replace("EVERYTHING", "(*ALL, EXCLUSIVELY)")


@pytest.fixture
def store(agents: Path) -> Store:
    StoreBuilder(agents).write()
    found = Volume(str(agents)).store("main")
    assert isinstance(found, Store)
    return found


@pytest.fixture
def marker(store: Store) -> Path:
    return Path(store.sessions_dir) / "sessions.json.lock"


def put(path: Path, pid: int, *, age_s: float = 0, **fields: Any) -> bytes:
    payload = {"pid": pid, "createdAt": iso_ms(now_ms() - int(age_s * 1000)), **fields}
    path.write_text(json.dumps(payload))
    return path.read_bytes()


def test_without_flock_our_own_processes_are_in_one_at_a_time(
    store: Store, marker: Path, agents: Path, tmp_path: Path
) -> None:
    assert contend(CONTENDER, agents, tmp_path / "log") == ["in", "out"] * 4
    assert not marker.exists()


def test_without_flock_what_a_killed_call_left_here_is_free_at_once(store: Store, marker: Path) -> None:
    put(marker, dead_pid(), owner="session_manager", token="other", space=lock_file._space())
    with lacking([FLOCK]), StoreLock(store, 0) as lock:
        lock.check()


@pytest.mark.parametrize("fields", [{}, {"space": "another machine"}])
def test_without_flock_one_of_ours_that_may_live_elsewhere_is_respected_for_its_time(
    store: Store, marker: Path, fields: dict[str, str]
) -> None:
    content = put(marker, dead_pid(), owner="session_manager", token="other", **fields)
    with lacking([FLOCK]), pytest.raises(Locked), StoreLock(store, 0.1):
        pass
    assert marker.read_bytes() == content
    put(marker, dead_pid(), age_s=31, owner="session_manager", token="other", **fields)
    with lacking([FLOCK]), StoreLock(store, 1) as lock:
        lock.check()


def test_with_flock_it_is_nobodys_since_nobody_holds_that(store: Store, marker: Path) -> None:
    put(marker, dead_pid(), owner="session_manager", token="other", space="another machine")
    with StoreLock(store, 0):
        pass


def test_without_flock_a_young_unfinished_marker_is_left_to_whoever_writes_it(store: Store) -> None:
    young, old = (Path(store.sessions_dir) / f".session_manager.1.{name}.marker" for name in ("young", "old"))
    for path in (young, old):
        path.touch()
    os.utime(old, (time.time() - 60,) * 2)
    with lacking([FLOCK]), StoreLock(store, 1):
        assert (young.exists(), old.exists()) == (True, False)


def test_a_volume_that_has_lost_its_flock_since(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the kernel's lock is there from better days, and nobody can have it."""
    with StoreLock(store, 1):
        pass

    def acquire(*args: Any, **keywords: Any) -> None:
        raise own_lock.Timeout(store.sessions_dir)

    monkeypatch.setattr(own_lock.FileLock, "acquire", acquire)
    with lacking([FLOCK]), StoreLock(store, 0) as lock:
        lock.check()
    with pytest.raises(Locked), StoreLock(store, 0):
        pass


@pytest.mark.parametrize("without", [[LINKS], [LINKS, EXCLUSIVELY]], ids=str)
def test_without_links_the_marker_is_never_put_over_another_one(
    store: Store, marker: Path, without: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between our look and our making ours."""
    theirs: list[bytes] = []
    real = lock_file.read_marker

    def read(path: str) -> Any:
        found = real(path)
        if found is None and not theirs:
            theirs.append(put(marker, os.getpid()))
        return found

    monkeypatch.setattr(lock_file, "read_marker", read)
    with lacking(without), pytest.raises(Locked), StoreLock(store, 0):
        pass
    assert [marker.read_bytes()] == theirs


@pytest.mark.parametrize("without", [[LINKS], [LINKS, EXCLUSIVELY], [LINKS, EXCLUSIVELY, EXCHANGE]], ids=str)
def test_without_links_the_marker_is_whole_judged_and_renewed(
    store: Store, marker: Path, without: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(marker, dead_pid(), owner="session_manager", token="other")
    with lacking(without), StoreLock(store, 1) as lock:
        first = json.loads(marker.read_text())
        assert (first["pid"], first["owner"]) == (os.getpid(), "session_manager")
        monkeypatch.setattr(lock_file, "RENEW_AFTER_S", -1)
        time.sleep(0.002)
        lock.check()
        assert json.loads(marker.read_text())["createdAt"] > first["createdAt"]
        marker.unlink()
        with pytest.raises(LockLost):
            lock.check()
    assert not list(Path(store.sessions_dir).glob(".session_manager.*.*"))


def test_a_marker_that_cannot_be_written_is_gone_again(
    store: Store, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    calls: list[int] = []

    def write(fd: int, data: bytes) -> int:
        calls.append(fd)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with lacking([LINKS, EXCLUSIVELY]), pytest.raises(Exception, match="space"), StoreLock(store, 0):
        pass
    assert not marker.exists()
    assert Payload(1, space="x") != Payload(1)


def test_a_pin_waits_for_another_one_without_flock(agents: Path) -> None:
    build(agents)
    (agents / ".session_manager").mkdir()
    held = agents / ".session_manager" / "kept.json.lock.held"
    put(held, os.getpid(), owner="session_manager", token="other")
    with lacking([FLOCK]):
        busy = in_process(agents, "pin_session", {"session_id": "b"})
        assert (busy.exit_code, busy.document["code"]) == (6, "store_locked")
        held.unlink()
        assert in_process(agents, "pin_session", {"session_id": "b"}).exit_code == 0


# --- without a swap: refused, or not --------------------------------------------------------------------------------

Arrange = Callable[[pytest.MonkeyPatch, StoreBuilder], None]


def runs_here(monkeypatch: pytest.MonkeyPatch, store: StoreBuilder) -> None:
    monkeypatch.setattr(unguarded, "vouches", lambda *_: True)


def is_a_share(monkeypatch: pytest.MonkeyPatch, store: StoreBuilder) -> None:
    monkeypatch.setattr(unguarded, "kind_of", lambda _: "cifs")


def holds_a_lock_unseen(monkeypatch: pytest.MonkeyPatch, store: StoreBuilder) -> None:
    put(store.dir / "young.jsonl.lock", dead_pid())


def has_other_paths(monkeypatch: pytest.MonkeyPatch, store: StoreBuilder) -> None:
    store.replace(
        {**store.entries, "agent:main:main": {"sessionId": "m", "sessionFile": "/home/node/.openclaw/agents/x/m.jsonl"}}
    )


def has_paths_of_windows(monkeypatch: pytest.MonkeyPatch, store: StoreBuilder) -> None:
    store.replace({**store.entries, "agent:main:main": {"sessionId": "m", "sessionFile": r"C:\agents\main\m.jsonl"}})


ELSEWHERE = [runs_here, is_a_share, holds_a_lock_unseen, has_other_paths, has_paths_of_windows]


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No gateway is seen, whatever runs on this machine."""
    monkeypatch.setattr(gateways, "_pids", list)


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("arrange", ELSEWHERE)
def test_a_change_is_refused_where_a_gateway_may_be_writing(
    agents: Path, arrange: Arrange, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build(agents)
    arrange(monkeypatch, store)
    before = picture(agents)
    with lacking([EXCHANGE]):
        refused = in_process(agents, "prune_sessions", {})
        assert (refused.exit_code, refused.document["code"]) == (4, "no_exchange")
        assert "force: true" in refused.document["error"]
        assert picture(agents) == before
        assert not (agents / ".session_manager" / "ledger.sqlite").exists()
        assert in_process(agents, "prune_sessions", {"dry_run": True}).document["pruned_count"] == 2
        forced = in_process(agents, "prune_sessions", {"force": True})
    assert (forced.exit_code, forced.document["deleted_ids"], told(forced.document)) == (0, ["a", "b"], {EXCHANGE})


@pytest.mark.usefixtures("nobody")
def test_nothing_is_refused_where_no_gateway_can_be(agents: Path) -> None:
    build(agents)
    with lacking([EXCHANGE]):
        done = in_process(agents, "prune_sessions", {})
    assert (done.exit_code, told(done.document)) == (0, {EXCHANGE})


def test_a_gateway_does_not_matter_where_files_can_be_swapped(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs_here(monkeypatch, build(agents))
    assert in_process(agents, "prune_sessions", {}).exit_code == 0


def test_a_setting_allows_it_for_every_call(agents: Path, skill: Skill, monkeypatch: pytest.MonkeyPatch) -> None:
    from session_manager.faces import runner

    runs_here(monkeypatch, build(agents))
    real = runner.main
    for value, exit_code in (("0", 4), ("yes", 2), ("1", 0)):
        with monkeypatch.context() as patch, lacking([EXCHANGE]):
            variable = {"ARIA_ALLOW_NO_EXCHANGE": value}
            patch.setattr(runner, "main", lambda argv, environ, v=variable: real(argv, {**environ, **v}))
            assert in_process(agents, "prune_sessions", {}).exit_code == exit_code


CHANGES: dict[str, dict[str, Any]] = {
    "prune_sessions": {},
    "delete_session": {"session_id": "a"},
    "delete_sessions": {"session_ids": ["a"], "dry_run": False},
    "cleanup_after_delegation": {"session_id": "a"},
    "cleanup_ghosts": {"dry_run": False},
    "cleanup_orphans": {"dry_run": False},
    "readopt_orphans": {"dry_run": False},
    "restore_session": {"session_id": "c"},
    "restore_run": {},
}


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("function", CHANGES)
def test_every_change_of_an_index_is_refused_and_can_be_forced(
    agents: Path, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build(agents)
    store.add("cron:c", 90, "c")
    # A dead entry, a ghost, and an orphan with a message.
    store.add("hook:dead", 9000, "dead", transcript=False)
    store.add("hook:ghost", 9000, "ghost")
    ghost = store.dir / "ghost.jsonl"
    ghost.write_text(ghost.read_text().splitlines(keepends=True)[0])
    store.transcript("lost.jsonl", "lost", now_ms() - 9 * 86_400_000)
    store.write()
    run_id = in_process(agents, "delete_session", {"session_id": "c"}).document["run_id"]
    arguments = CHANGES[function] | ({"run_id": run_id} if function == "restore_run" else {})
    runs_here(monkeypatch, store)
    index = store.index.read_bytes()
    with lacking([EXCHANGE]):
        refused = in_process(agents, function, arguments)
        codes = {refused.document.get("code"), *(e["code"] for e in refused.document.get("errors", []))}
        assert refused.exit_code in (3, 4)
        assert "no_exchange" in codes
        assert store.index.read_bytes() == index
        forced = in_process(agents, function, {**arguments, "force": True})
    assert forced.exit_code == 0, forced.document
    assert EXCHANGE in told(forced.document)
    assert store.index.read_bytes() != index


@pytest.mark.usefixtures("nobody")
def test_what_leaves_the_index_alone_is_never_refused(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(agents)
    store.transcript("lost.jsonl", "lost", now_ms() - 9 * 86_400_000)
    runs_here(monkeypatch, store)
    with lacking([EXCHANGE]):
        orphans = in_process(agents, "cleanup_orphans", {"dry_run": False})
        assert (orphans.exit_code, orphans.document["archived_count"]) == (0, 1)
        assert in_process(agents, "purge_archives", {"dry_run": False}).exit_code == 0
        assert in_process(agents, "prune_sessions", {"max_age_minutes": 10**7}).exit_code == 0


# --- the doctor -----------------------------------------------------------------------------------------------------


def checks(agents: Path) -> dict[str, dict[str, Any]]:
    answer = in_process(agents, "doctor", {}, url="")
    return {c["name"].partition(" ")[0]: c for c in answer.document["checks"]} | {"document": answer.document}


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("without", [(), *([each] for each in ALL)], ids=str)
@pytest.mark.parametrize("known", [False, True], ids=["no state directory yet", "a state directory"])
def test_the_doctor_tries_it_out_beforehand(agents: Path, without: list[str], known: bool) -> None:
    store = build(agents)
    if known:
        in_process(agents, "delete_session", {"session_id": "a"})
    before = picture(agents, without_state=False)
    times = [p.stat().st_mtime_ns for p in sorted(store.dir.iterdir())]
    with lacking(without):
        found = checks(agents)["file_system"]
    assert picture(agents, without_state=False) == before
    assert [p.stat().st_mtime_ns for p in sorted(store.dir.iterdir())] == times
    assert found["ok"] is (EXCHANGE not in without)
    words = {EXCHANGE: "swap two files", LINKS: "hard links", FLOCK: "flock", FSYNC: "no fsync", MODES: "modes"}
    if not without:
        assert "files can be swapped atomically" in found["what"]
        assert found["advice"] is None
    for lack in without:
        assert f"the file system {'has no' if lack in (LINKS, FLOCK) else ''}".strip() in found["what"]
        assert words[lack] in found["what"]
        assert found["advice"]


@pytest.mark.usefixtures("nobody")
@pytest.mark.parametrize("arrange", ELSEWHERE)
def test_the_doctor_says_that_changes_will_be_refused(
    agents: Path, arrange: Arrange, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build(agents)
    arrange(monkeypatch, store)
    with lacking([EXCHANGE]):
        found = checks(agents)
    assert found["document"]["code"] == "no_exchange"
    assert "force: true" in found["file_system"]["advice"]


def test_the_doctor_removes_what_a_killed_one_left_long_ago(agents: Path) -> None:
    store = build(agents)
    old, young = (store.dir / f".session_manager.1.{name}.trial" for name in ("old", "young"))
    for path in (old, young):
        path.mkdir()
        (path / "one").touch()
    os.utime(old, (time.time() - 7200,) * 2)
    checks(agents)
    assert (old.exists(), young.exists()) == (False, True)


def test_a_state_directory_without_locks_is_told_beforehand(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(agents)
    in_process(agents, "delete_session", {"session_id": "a"})
    monkeypatch.setattr(trial, "has_locks", lambda _: False)
    found = checks(agents)
    assert found["document"]["code"] == "no_locks"
    assert "ARIA_STATE_DIR" in found["file_system"]["advice"]


@pytest.mark.parametrize("number", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR])
def test_a_ledger_that_cannot_be_locked_is_not_called_busy(
    agents: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    build(agents)
    before = picture(agents)
    monkeypatch.setattr(trial, "has_locks", lambda _: False)
    with failing_sql(monkeypatch, OneFault(3, True, sql_error(number))):
        answer = in_process(agents, "prune_sessions", {})
    assert (answer.exit_code, answer.document["code"]) == (4, "no_locks")
    assert "ARIA_STATE_DIR" in answer.document["error"]
    assert picture(agents) == before


def test_people_are_told(agents: Path) -> None:
    from session_manager.faces.cli.calling import _say_also
    from session_manager.faces.cli.screen import Screen

    screen = Screen()
    _say_also(screen, {"weaker": [{"lacks": LINKS, "note": "there are none"}]})
    assert screen.notes == ["there are none"]


# --- a real one -----------------------------------------------------------------------------------------------------


@pytest.fixture
def exfat(tmp_path: Path) -> Iterator[Path]:
    """An agents directory on exFAT, by FUSE: no links, no swap, no exclusive rename, no modes, times in seconds."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no FUSE on this machine")
    image, place = tmp_path / "image", tmp_path / "exfat"
    place.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 * 1024 * 1024)

    def command(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout.strip()

    path = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    os.environ |= path
    command("mkfs.exfat", str(image))
    device = command("losetup", "--find", "--show", str(image))
    try:
        command("mount.exfat-fuse", device, str(place))
        agents = place / "agents"
        agents.mkdir()
        yield agents
        command("umount", str(place))
    finally:
        command("losetup", "--detach", device)


@pytest.mark.system
def test_a_real_file_system_that_can_do_little(exfat: Path) -> None:
    store, skill = build(exfat), Skill(exfat)
    files = {p.name: p.read_bytes() for p in store.dir.iterdir()}
    found = {c["name"].partition(" ")[0]: c for c in skill("doctor", ARIA_API_URL="").document["checks"]}
    assert found["file_system"]["ok"] is False
    assert all(word in found["file_system"]["what"] for word in ("fuseblk", "swap", "hard links", "modes"))
    done = skill("prune_sessions")
    assert (done.exit_code, done.document["deleted_ids"]) == (0, ["a", "b"]), done.document
    assert {EXCHANGE, LINKS} <= told(done.document)
    for path in store.dir.glob("*.deleted.*"):
        path.unlink()
    back = skill("restore_run", {"run_id": done.document["run_id"]})
    assert (back.exit_code, back.document["restored_count"]) == (0, 2), back.document
    assert {p.name: p.read_bytes() for p in store.dir.iterdir() if not p.name.startswith(".")} == files
    assert skill("verify_ledger").document["whole"] is True


@pytest.mark.system
@pytest.mark.parametrize("limit", range(1, len(STEPS) + 1))
def test_killed_on_a_real_one(exfat: Path, limit: int, tmp_path: Path) -> None:
    scene, skill = Scene(exfat, 2), Skill(exfat)
    scene.has_links = False
    _, steps = run_until(skill, limit, tmp_path / "steps", "prune_sessions", CALLS["prune_sessions"])
    assert skill("prune_sessions", {"max_age_minutes": 1_000_000}).exit_code == 0
    assert scene.assert_whole() == ({"old-0", "old-1"} if "index swapped" in steps else set())
