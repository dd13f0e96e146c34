"""doctor: says what is wrong and what to do, and changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from forks import Forks
from revive import revive
from service import Databases, Service, cli, running
from small_aria import SmallAria
from support import ROOT, Answer, Skill, StoreBuilder, dead_pid, ledger_sql, now_ms, small_file_system

DAY_MS = 86_400_000
HOLD = """\
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def checks(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {check["name"]: check for check in document["checks"]}
    assert all(check["advice"] for check in document["checks"] if not check["ok"])
    assert document["ok"] == all(check["ok"] for check in document["checks"])
    return found


def bad(answer: Answer) -> dict[str, dict[str, Any]]:
    """The checks that are not well."""
    return {name: check for name, check in checks(answer.document).items() if not check["ok"]}


def photograph(root: Path) -> dict[str, tuple[int, ...]]:
    """Every path with what any change would change: mode, inode, size, times of content and of status."""
    found = {}
    for path in [root, *sorted(root.rglob("*"))]:
        s = path.lstat()
        found[str(path)] = (s.st_mode, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_nlink, s.st_uid)
    return found


def marker(path: Path, pid: int, age_s: float = 0, **fields: Any) -> None:
    created = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(time.time() - age_s))
    path.write_text(json.dumps({"pid": pid, "createdAt": created, **fields}))


@pytest.fixture
def whole(agents: Path, skill: Skill) -> StoreBuilder:
    """A store without history, in which all is well."""
    skill.env["ARIA_API_URL"] = ""
    store = StoreBuilder(agents)
    store.add("cron:old", 120, "old")
    store.add("cron:older", 180, "older")
    store.write()
    return store


def test_all_is_well_on_both_layers(sixteen: Path, shared_service: Service) -> None:
    answer = Skill(sixteen, ARIA_API_URL=shared_service.api)("doctor")
    assert (answer.exit_code, bad(answer)) == (0, {})
    found = checks(answer.document)
    assert "(ARIA_AGENTS_DIR): 4 agents" in found["agents_dir"]["what"]
    assert "10 sessions" in found["store main"]["what"]
    assert "10 transcripts" in found["store main"]["what"]
    assert "version 0.1.0" in found["aria_api"]["what"]
    assert "can change history" in found["aria_api_token"]["what"]
    assert "ready" in found["database"]["what"]


@pytest.mark.parametrize(
    ("env", "named_by"),
    [
        ({"ARIA_AGENTS_DIR": None, "OPENCLAW_STATE_DIR": "."}, "OPENCLAW_STATE_DIR"),
        ({"ARIA_AGENTS_DIR": None, "HOME": "."}, "a default place"),
    ],
)
def test_the_rule_that_found_the_agents_directory_is_named(
    agents: Path, skill: Skill, env: dict[str, str | None], named_by: str
) -> None:
    place = agents.parent / ".openclaw" / "agents" if "HOME" in env else agents
    (place / "main" / "sessions").mkdir(parents=True)
    answer = skill("doctor", None, **{k: v and str(agents.parent) for k, v in env.items()}, ARIA_API_URL="")
    assert answer.exit_code == 0
    assert checks(answer.document)["agents_dir"]["what"] == f"{place} ({named_by}): 1 agent"


def test_what_is_wrong_in_one_store_keeps_none_of_the_others_from_being_looked_at(
    whole: StoreBuilder, agents: Path, skill: Skill, tmp_path: Path
) -> None:
    broken = StoreBuilder(agents, "broken")
    broken.index.write_text('{"agent:broken:cron:a": {')
    shutil.copytree(revive("moved-to-sqlite", tmp_path / "other") / "main", agents / "moved")
    answer = skill("doctor")
    assert (answer.exit_code, answer.document["code"]) == (7, "index_damaged")
    found = bad(answer)
    assert set(found) == {"store broken", "store moved"}
    assert "readopt_orphans" in found["store broken"]["advice"]
    assert "openclaw sessions" in found["store moved"]["advice"]
    shutil.rmtree(agents / "broken")
    assert (skill("doctor").exit_code, skill("doctor").document["code"]) == (4, "store_unsupported")


def test_a_link_that_leads_out_is_told(whole: StoreBuilder, agents: Path, skill: Skill, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (agents / "linked").mkdir()
    (agents / "linked" / "sessions").symlink_to(tmp_path / "elsewhere")
    answer = skill("doctor")
    assert (answer.exit_code, answer.document["code"]) == (4, "outside_agents_dir")
    assert "mount the folder" in bad(answer)["store linked"]["advice"]


def test_a_newer_ledger_is_told(whole: StoreBuilder, agents: Path, skill: Skill) -> None:
    skill("delete_session", {"session_id": "old"})
    ledger_sql(agents, "PRAGMA user_version = 99")
    answer = skill("doctor")
    assert (answer.exit_code, answer.document["code"]) == (4, "ledger_unsupported")
    assert "update" in bad(answer)["ledger"]["advice"]


def test_a_policy_that_stops_every_removal_is_told(whole: StoreBuilder, agents: Path, skill: Skill) -> None:
    policy = agents / ".session_manager" / "session-manager.toml"
    assert checks(skill("doctor").document)["policy"]["what"] == f"there is no policy file at {policy}"
    policy.parent.mkdir()
    policy.write_text(
        '[types.cron]\nmax_age = "1h"\n[agents]\nbudget = "1 GB"\n[pins]\nids = ["a", "b"]\nlabels = ["c"]'
    )
    assert checks(skill("doctor").document)["policy"]["what"] == f"{policy}: 2 rules, 3 pins"
    policy.write_text('[types.cron]\nmax_age = "0h"')
    answer = skill("doctor")
    assert (answer.exit_code, answer.document["code"], set(bad(answer))) == (2, "bad_policy", {"policy"})
    assert str(policy) in bad(answer)["policy"]["what"]
    assert "types.cron.max_age" in bad(answer)["policy"]["what"]
    policy.unlink()
    os.mkfifo(policy)
    assert skill("doctor").document["code"] == "bad_policy"
    assert skill("doctor", ARIA_POLICY=str(agents / "nowhere.toml")).document["code"] == "bad_policy"


def test_a_disk_that_is_nearly_full_is_told(whole: StoreBuilder, skill: Skill, tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", "2m,nr_inodes=100") as place:
        state, fill = place / "not yet" / "state", place / "fill"
        skill.env["ARIA_STATE_DIR"] = str(state)
        found = checks(skill("doctor").document)
        assert found[f"disk {state}"]["what"] == "2.1 MB of 2.1 MB free"
        assert f"disk {whole.dir.parents[1]}" in found
        fill.write_bytes(b"x" * 1_900_000)
        answer = skill("doctor")
        assert (answer.exit_code, set(bad(answer))) == (3, {f"disk {state}"})
        with pytest.raises(OSError, match="No space"):
            fill.write_bytes(b"x" * 3_000_000)
        answer = skill("doctor")
        assert (answer.exit_code, answer.document["code"], set(bad(answer))) == (4, "disk_full", {f"disk {state}"})
        fill.unlink()
        for i in range(95):
            (place / str(i)).touch()
        answer = skill("doctor")
        assert (answer.exit_code, set(bad(answer))) == (3, {f"disk {state}"})
        assert re.search(r"only \d more files? can be created", bad(answer)[f"disk {state}"]["what"])
        with contextlib.suppress(OSError):
            for i in range(95, 105):
                (place / str(i)).touch()
        assert skill("doctor").document["code"] == "disk_full"


def test_a_living_lock_is_told_with_its_holder(whole: StoreBuilder, skill: Skill) -> None:
    marker(whole.dir / "sessions.json.lock", os.getpid())
    marker(whole.dir / "old.jsonl.lock", os.getpid(), 7200)
    answer = skill("doctor")
    assert (answer.exit_code, bad(answer)) == (0, {})
    found = checks(answer.document)
    assert found["lock main/sessions.json.lock"]["what"].startswith(f"held by gateway, pid {os.getpid()}, ")
    assert f"pid {os.getpid()}, 2 h old, which is running" in found["lock main/old.jsonl.lock"]["what"]


def test_a_store_that_a_living_process_holds_for_long_is_locked(whole: StoreBuilder, skill: Skill) -> None:
    marker(whole.dir / "sessions.json.lock", os.getpid(), 90)
    answer = skill("doctor")
    assert (answer.exit_code, answer.document["code"]) == (6, "store_locked")
    assert str(os.getpid()) in bad(answer)["lock main/sessions.json.lock"]["advice"]


def test_a_stale_lock_is_told_and_stays(whole: StoreBuilder, skill: Skill) -> None:
    lock = whole.dir / "sessions.json.lock"
    marker(lock, dead_pid(), 60, owner="session_manager", token="t")
    answer = skill("doctor")
    assert (answer.exit_code, answer.document["code"]) == (3, "partial")
    assert "session_manager" in bad(answer)["lock main/sessions.json.lock"]["what"]
    assert lock.exists()
    skill("prune_sessions")
    assert skill("doctor").exit_code == 0


def test_the_lock_of_a_pid_that_is_not_seen_here_is_respected(whole: StoreBuilder, skill: Skill) -> None:
    marker(whole.dir / "old.jsonl.lock", dead_pid(), 5)
    answer = skill("doctor")
    assert answer.exit_code == 0
    assert "another container" in checks(answer.document)["lock main/old.jsonl.lock"]["what"]


@pytest.mark.parametrize(
    ("place", "name"),
    [("main/sessions", "lock main/.session_manager.lock"), (".session_manager", "lock delivery.lock")],
)
def test_our_own_kernel_locks_are_seen_without_being_taken(
    whole: StoreBuilder, agents: Path, skill: Skill, place: str, name: str
) -> None:
    lock = agents / place / name.rpartition("/")[2].removeprefix("lock ")
    lock.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        found = checks(skill("doctor").document)
        assert f"session_manager, pid {holder.pid}," in found[name]["what"]
        holder.communicate()
    assert name not in checks(skill("doctor").document)


@pytest.mark.parametrize("kill_at", range(2, 9))
def test_a_killed_run_is_told_and_left_to_the_next_call(whole: StoreBuilder, fork: Forks, kill_at: int) -> None:
    fork.environ["ARIA_API_URL"] = ""
    assert fork("prune_sessions", kill_at=kill_at).killed
    open_runs = ledger_sql(whole.dir.parents[1], "SELECT run_id FROM attempts WHERE state = 'intent'")
    before = photograph(whole.dir.parents[1])
    told = fork("doctor")
    assert photograph(whole.dir.parents[1]) == before
    unfinished = next(check for check in told.document["checks"] if check["name"] == "unfinished_runs")
    assert unfinished["ok"] == (not open_runs)
    assert all(run_id in unfinished["what"] for (run_id,) in open_runs)
    assert told.exit_code == 3
    fork("prune_sessions")
    assert fork("doctor").document["ok"]


def test_marks_that_wait_for_long_are_told(whole: StoreBuilder, agents: Path, skill: Skill, aria: SmallAria) -> None:
    skill("delete_session", {"session_id": "old"}, ARIA_API_URL="http://127.0.0.1:1/api")
    assert (
        "1 status update for history"
        in checks(skill("doctor", ARIA_API_URL=aria.url).document)["history_marks"]["what"]
    )
    assert bad(skill("doctor", ARIA_API_URL=aria.url)) == {}
    assert "ARIA_API_URL" in bad(skill("doctor"))["history_marks"]["advice"]
    ledger_sql(agents, "UPDATE marks SET changed_at = ?", now_ms() - DAY_MS)
    answer = skill("doctor", ARIA_API_URL=aria.url)
    assert (answer.exit_code, set(bad(answer))) == (3, {"history_marks"})
    assert "the oldest for 1 d" in bad(answer)["history_marks"]["what"]


def test_a_broken_chain_is_told(whole: StoreBuilder, agents: Path, skill: Skill) -> None:
    skill("delete_session", {"session_id": "old"})
    assert skill("doctor").exit_code == 0
    ledger_sql(agents, "UPDATE removals SET session_id = 'other'")
    answer = skill("doctor")
    assert (answer.exit_code, answer.document["code"]) == (7, "ledger_broken")
    assert "verify_ledger" in bad(answer)["ledger"]["advice"]


def test_a_ledger_that_is_none_is_told(whole: StoreBuilder, agents: Path, skill: Skill) -> None:
    (agents / ".session_manager").mkdir()
    (agents / ".session_manager" / "ledger.sqlite").write_text("no database at all, and longer than its header is")
    answer = skill("doctor")
    assert (answer.exit_code, answer.document["code"]) == (7, "ledger_damaged")


def test_a_ledger_that_is_gone_is_told_while_its_archives_are_there(
    whole: StoreBuilder, agents: Path, skill: Skill
) -> None:
    (removed,) = skill("prune_sessions", {"max_age_minutes": 1, "limit": 1}).document["deleted_ids"]
    (agents / ".session_manager" / "ledger.sqlite").unlink()
    answer = skill("doctor")
    assert (answer.exit_code, set(bad(answer))) == (3, {"ledger"}), removed
    assert "recovery.md" in bad(answer)["ledger"]["advice"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_stands_in_the_ledgers_place_is_told_and_waited_for_by_nobody(
    whole: StoreBuilder, agents: Path, skill: Skill, make: Any
) -> None:
    (agents / ".session_manager").mkdir()
    make(agents / ".session_manager" / "ledger.sqlite")
    before = photograph(agents)
    answer = skill("doctor")
    assert (answer.exit_code, answer.document["code"], set(bad(answer))) == (7, "ledger_damaged", {"ledger"})
    assert "not a regular file" in bad(answer)["ledger"]["what"]
    assert skill("get_session_stats").document["pending_history_marks"] is None
    assert skill("prune_sessions").document["code"] == "ledger_damaged"
    assert {**before, **photograph(agents)}.keys() - before.keys() <= {str(whole.dir / ".session_manager.lock")}


def test_a_file_system_that_counts_nothing_is_not_full(whole: StoreBuilder, skill: Skill) -> None:
    answer = skill("doctor", ARIA_STATE_DIR="/proc/self/state")
    assert "disk /proc/self/state" not in bad(answer)
    assert checks(answer.document)["disk /proc/self/state"]["what"] == "0 bytes of 0 bytes free"


def test_a_ledger_in_the_middle_of_a_change_is_told_and_left_so(
    whole: StoreBuilder, agents: Path, skill: Skill, tmp_path: Path
) -> None:
    skill("delete_session", {"session_id": "old"})
    state = agents / ".session_manager"
    connection = sqlite3.connect(state / "ledger.sqlite", isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("CREATE TABLE more (text TEXT)")
    connection.executemany("INSERT INTO more VALUES (?)", [("x" * 1000,)] * 100)
    shutil.copytree(state, tmp_path / "killed")
    connection.execute("ROLLBACK")
    connection.close()
    shutil.rmtree(state)
    (tmp_path / "killed").rename(state)
    before = photograph(agents)
    answer = skill("doctor")
    assert photograph(agents) == before
    assert (answer.exit_code, set(bad(answer))) == (3, {"ledger"})
    skill("delete_session", {"session_id": "older"})
    assert skill("doctor").exit_code == 0


def test_an_older_ledger_is_read_and_not_brought_up_to_date(whole: StoreBuilder, agents: Path, skill: Skill) -> None:
    state = agents / ".session_manager"
    state.mkdir()
    connection = sqlite3.connect(state / "ledger.sqlite")
    connection.executescript((ROOT / "fixtures" / "ledger" / "format-1.sql").read_text())
    connection.close()
    before = photograph(agents)
    answer = skill("doctor")
    assert photograph(agents) == before
    assert "run" in checks(answer.document)["ledger"]["what"]


def test_nothing_is_changed_by_looking(mixed: Path, skill: Skill) -> None:
    for state in ("no ledger", "a ledger", "a stale lock", "a damaged index"):
        if state == "a ledger":
            assert skill("prune_sessions").exit_code == 0
        if state == "a stale lock":
            marker(mixed / "main" / "sessions" / "sessions.json.lock", dead_pid(), 900)
        if state == "a damaged index":
            (mixed / "main" / "sessions" / "sessions.json").write_text("")
        before = photograph(mixed)
        assert skill("doctor").document["checks"]
        assert photograph(mixed) == before, state


@pytest.mark.skipif(os.geteuid() != 0, reason="whoever runs this may write what it made")
def test_who_may_not_write_is_told_so() -> None:
    # Not below tmp_path: nobody else may look into that.
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        store = StoreBuilder(Path(base, "agents"))
        store.add("cron:old", 120)
        store.write().index.chmod(0o644)
        answer = Skill(Path(base, "agents"), ordinary=True, ARIA_API_URL="", HOME=base)("doctor")
    assert (answer.exit_code, answer.document["code"]) == (4, "not_writable")
    assert set(bad(answer)) == {"store main", "ledger"}


@pytest.mark.skipif(os.geteuid() != 0, reason="whoever runs this may look into what it made")
def test_a_state_directory_that_nobody_may_look_into_is_told() -> None:
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        store = StoreBuilder(Path(base, "agents"))
        store.write().index.chmod(0o644)
        state = Path(base, "state")
        state.mkdir(0o700)
        env = {"ARIA_API_URL": "", "HOME": base, "ARIA_STATE_DIR": str(state)}
        answer = Skill(Path(base, "agents"), ordinary=True, **env)("doctor")
    assert (answer.exit_code, set(bad(answer))) == (4, {"store main", "policy", "ledger"})
    assert "gateway's user" in bad(answer)["policy"]["advice"]


def test_an_aria_api_that_does_not_answer_is_told(whole: StoreBuilder, skill: Skill) -> None:
    answer = skill("doctor", ARIA_API_URL="http://127.0.0.1:1/api")
    assert (answer.exit_code, answer.document["code"]) == (70, "aria_api_unreachable")
    assert set(bad(answer)) == {"aria_api"}


def test_what_is_no_aria_api_is_told(whole: StoreBuilder, skill: Skill, aria: SmallAria) -> None:
    aria.always = (200, {"Content-Type": "text/html"}, b"<p>hello</p>")
    answer = skill("doctor", ARIA_API_URL=aria.url)
    assert answer.exit_code == 70
    assert "does not answer as aria-api does" in bad(answer)["aria_api"]["what"]


def test_an_older_aria_api_says_less(whole: StoreBuilder, skill: Skill, older_aria: SmallAria) -> None:
    answer = skill("doctor", ARIA_API_URL=older_aria.url)
    assert (answer.exit_code, bad(answer)) == (0, {})
    assert "does not report" in checks(answer.document)["database"]["what"]
    assert older_aria.rows == []


def test_a_token_is_told_by_what_it_may_do(whole: StoreBuilder, agents: Path, database: str, tmp_path: Path) -> None:
    admin = "an-admin-token-of-the-tests"
    made = cli("token", "create", "--name", "reader", "--scope", "read", DATABASE_URL=database)
    reader = made.stdout.strip()
    with running(tmp_path / "log", DATABASE_URL=database, ARIA_API_TOKEN=admin) as service:
        skill = Skill(agents, ARIA_API_URL=service.api)
        for token, sentence in ((None, "refuses"), ("wrong", "refuses"), (reader, "lacks the right to change history")):
            answer = skill("doctor", ARIA_API_TOKEN=token)
            assert (answer.exit_code, answer.document["code"]) == (4, "aria_api_token"), token
            assert sentence in bad(answer)["aria_api_token"]["what"]
            assert token is None or token not in answer.stdout.decode()
        assert skill("doctor", ARIA_API_TOKEN=admin).exit_code == 0


def test_a_database_that_has_gone_is_told(whole: StoreBuilder, agents: Path, server: Databases, tmp_path: Path) -> None:
    url = server.create()
    with running(tmp_path / "log", DATABASE_URL=url) as service:
        server.drop(url)
        answer = Skill(agents, ARIA_API_URL=service.api)("doctor")
    assert (answer.exit_code, answer.document["code"]) == (70, "database_unavailable")
    assert set(bad(answer)) == {"database"}


def test_a_database_that_hangs_is_told(whole: StoreBuilder, agents: Path, server: Databases, tmp_path: Path) -> None:
    url = server.create()
    with running(tmp_path / "log", DATABASE_URL=url) as service:
        with server.connect(url) as connection, connection.transaction():
            connection.execute("LOCK TABLE session_manager_version")
            answer = Skill(agents, ARIA_API_URL=service.api)("doctor")
            assert (answer.exit_code, answer.document["code"]) == (70, "database_unavailable")
            assert set(bad(answer)) == {"database"}
            with ThreadPoolExecutor(25) as pool:
                probes = list(pool.map(lambda _: service.client.get("/readyz").status_code, range(25)))
            assert probes == [503] * 25
            # More probes than there are connections have left room for what works.
            assert service.client.get("/api/sessions").status_code == 200
        assert service.client.get("/readyz").status_code == 200


def test_files_that_every_user_can_read_are_told(agents: Path, skill: Skill) -> None:
    """Only where no folder above is closed: the tests' own is, so it is opened and closed again."""
    store = StoreBuilder(agents)
    store.add("cron:a", 1, "a")
    store.write()
    closed = [place for place in agents.parents if not place.stat().st_mode & stat.S_IXOTH]
    modes = {place: stat.S_IMODE(place.stat().st_mode) for place in closed}
    if any(place.stat().st_uid != os.geteuid() for place in closed):
        pytest.skip("a folder above is closed by another user")
    (store.dir / "a.jsonl").chmod(0o600)

    def checks() -> list[dict[str, Any]]:
        return [c for c in skill("doctor", ARIA_API_URL="").document["checks"] if c["name"] == "privacy main"]

    try:
        for place in closed:
            place.chmod(modes[place] | stat.S_IXOTH)
        assert checks() == []
        (store.dir / "a.jsonl").chmod(0o644)
        (check,) = checks()
        assert (check["ok"], "a.jsonl" in check["what"]) == (True, True)
        assert str(store.dir) in check["advice"]
        store.dir.chmod(0o700)
        assert checks() == []
    finally:
        for place in closed:
            place.chmod(modes[place])
