"""The lock that both sides honour: its marker, who is excluded, reclaiming, loss and renewal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support import ROOT, Skill, StoreBuilder, contend, dead_pid, now_ms, picture

from benchmarks.measure import call
from session_manager.core.errors import Locked
from session_manager.files import lock_file
from session_manager.files.liveness import iso_ms, process_stat
from session_manager.stores.openclaw_files import orphan_removal, removal
from session_manager.stores.openclaw_files.gateway_lock import LockLost, StoreLock
from session_manager.stores.openclaw_files.store import Store
from session_manager.stores.openclaw_files.volume import Volume


@pytest.fixture
def builder(agents: Path) -> StoreBuilder:
    builder = StoreBuilder(agents)
    builder.add("cron:old", 300, session_id="old")
    return builder.write()


@pytest.fixture
def store(builder: StoreBuilder, agents: Path) -> Store:
    found = Volume(str(agents)).store("main")
    assert found is not None
    return found


@pytest.fixture
def marker(builder: StoreBuilder) -> Path:
    return builder.dir / "sessions.json.lock"


def put(marker: Path, pid: int, age_s: float = 0, **extra: object) -> bytes:
    text = json.dumps({"pid": pid, "createdAt": iso_ms(now_ms() - int(age_s * 1000)), **extra}, indent=2).encode()
    marker.write_bytes(text)
    return text


def test_the_marker_follows_the_gateways_rules(store: Store, marker: Path) -> None:
    with StoreLock(store, 1) as lock:
        text = marker.read_text()
        payload = json.loads(text)
        assert text == json.dumps(payload, indent=2), "two spaces, no final newline"
        assert payload["pid"] == os.getpid()
        stat = process_stat(os.getpid())
        assert stat is not None
        assert payload["starttime"] == stat[1]
        assert payload["createdAt"].endswith("Z")
        assert len(payload["createdAt"]) == 24
        age = now_ms() - datetime.fromisoformat(payload["createdAt"]).timestamp() * 1000
        assert 0 <= age < 30_000
        assert len(payload["token"]) == 32
        assert lock.is_ours()
    assert not marker.exists()


def test_the_marker_is_never_visible_half_written(store: Store, marker: Path) -> None:
    seen: list[bytes] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                seen.append(marker.read_bytes())
            except FileNotFoundError:
                continue

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(40):
            with StoreLock(store, 5):
                time.sleep(0.002)
    finally:
        stop.set()
        reader.join()
    assert seen
    assert all(json.loads(text)["pid"] == os.getpid() for text in seen)


def test_a_living_holder_is_named_and_left_alone(
    builder: StoreBuilder, marker: Path, agents: Path, skill: Skill
) -> None:
    text = put(marker, os.getpid(), age_s=3600)
    before = picture(agents)
    answer = skill("delete_session", {"session_id": "old"}, ARIA_LOCK_TIMEOUT="0.3")
    assert answer.exit_code == 6
    assert answer.document["code"] == "store_locked"
    assert answer.document["holder"]["pid"] == os.getpid()
    assert str(os.getpid()) in answer.document["error"]
    assert marker.read_bytes() == text
    assert picture(agents) == before


def test_the_holder_is_waited_for(builder: StoreBuilder, marker: Path, skill: Skill) -> None:
    put(marker, os.getpid())
    call = skill.start("delete_session", {"session_id": "old"}, ARIA_LOCK_TIMEOUT="60")
    with pytest.raises(subprocess.TimeoutExpired):
        call.wait(1)
    assert builder.read()
    marker.unlink()
    out, _ = call.communicate(timeout=60)
    assert json.loads(out)["deleted"] == "old"


def test_a_dead_marker_of_our_own_is_reclaimed(store: Store, marker: Path) -> None:
    put(marker, dead_pid(), owner="session_manager", token="other")
    with StoreLock(store, 0) as lock:
        assert lock.is_ours()
    assert not marker.exists()


def test_a_dead_gateways_marker_is_reclaimed_when_stale(store: Store, marker: Path) -> None:
    put(marker, dead_pid(), age_s=31)
    with StoreLock(store, 0) as lock:
        assert lock.is_ours()


CONTENDER = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from session_manager.stores.openclaw_files import orphan_removal, removal
from session_manager.stores.openclaw_files.gateway_lock import StoreLock
from session_manager.stores.openclaw_files.volume import Volume
store = Volume(sys.argv[2]).store("main")
while not os.path.exists(sys.argv[3] + ".go"):
    time.sleep(0.0005)
with StoreLock(store, 60):
    fd = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"in\\n")
    time.sleep(0.05)
    os.write(fd, b"out\\n")
"""


def test_of_several_reclaimers_one_wins_at_a_time(store: Store, marker: Path, agents: Path, tmp_path: Path) -> None:
    put(marker, dead_pid(), owner="session_manager", token="other")
    assert contend(CONTENDER, agents, tmp_path / "log") == ["in", "out"] * 4


@pytest.mark.parametrize("exchange_works", [True, False])
def test_a_living_marker_that_came_in_between_goes_back(
    exchange_works: bool, store: Store, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged dead, then the gateway itself reclaimed and locked: what we took over must be given back."""
    dead = dead_pid()
    put(marker, dead, owner="session_manager", token="other")
    living: list[bytes] = []
    real = lock_file.is_held

    def judge(found: lock_file.Marker, *rest: Any) -> bool:
        verdict = real(found, *rest)
        if not verdict and not living:
            marker.unlink()
            living.append(put(marker, os.getpid()))
        return verdict

    monkeypatch.setattr(lock_file, "is_held", judge)
    if not exchange_works:
        monkeypatch.setattr(lock_file, "exchange", lambda first, second: False)
    with pytest.raises(Locked) as error, StoreLock(store, 0.2):
        pass
    assert error.value.details["holder"]["pid"] == os.getpid()
    assert [marker.read_bytes()] == living


def test_only_our_own_marker_is_removed(store: Store, marker: Path) -> None:
    with StoreLock(store, 1) as lock:
        marker.unlink()
        theirs = put(marker, os.getpid())
        assert not lock.is_ours()
        with pytest.raises(LockLost):
            lock.check()
    assert marker.read_bytes() == theirs


def test_an_old_marker_is_renewed_in_place(store: Store, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StoreLock(store, 1) as lock:
        first = json.loads(marker.read_text())
        lock.check()
        assert json.loads(marker.read_text()) == first
        monkeypatch.setattr(lock_file, "RENEW_AFTER_S", -1)
        time.sleep(0.002)
        lock.check()
        second = json.loads(marker.read_text())
        assert second["createdAt"] > first["createdAt"]
        assert second["token"] == first["token"]
        assert lock.is_ours()
    assert not marker.exists()


def test_nothing_is_swapped_when_the_marker_is_lost(
    builder: StoreBuilder, marker: Path, agents: Path, tmp_path: Path, skill: Skill
) -> None:
    """Taken from us before the swap: the call starts over, and ends locked while the thief lives."""
    script = tmp_path / "thief.py"
    script.write_text(
        "import json, os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from session_manager.faces import runner\n"
        "from session_manager.files import steps\n"
        f"marker = {str(marker)!r}\n"
        "def steal(name):\n"
        "    if name == 'intent written':\n"
        f"        payload = {{'pid': {os.getpid()}, 'createdAt': '2026-01-01T00:00:00.000Z'}}\n"
        "        open(marker, 'w').write(json.dumps(payload))\n"
        "steps.watcher = steal\n"
        "sys.exit(runner.main(['session_manager', 'prune_sessions'], os.environ))\n"
    )
    before = builder.index.read_bytes()
    done = subprocess.run(
        [sys.executable, str(script)], env=skill.environment(ARIA_LOCK_TIMEOUT="0.5"), capture_output=True, check=False
    )
    assert done.returncode == 6, done.stderr
    assert json.loads(done.stdout)["code"] == "store_locked"
    assert builder.index.read_bytes() == before
    assert (builder.dir / "old.jsonl").exists()
    marker.unlink()
    answer = skill("prune_sessions")
    assert answer.document["deleted_ids"] == ["old"]
    assert builder.names() >= {"sessions.json"}
    assert [n for n in builder.names() if n.startswith(".session_manager")] == []


def loses_the_lock_once(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str) -> None:
    """Lets a step of a call meet a lock that another process has taken over, the first time."""
    real = getattr(module, name)
    lost: list[str] = []

    def step(*given: Any, **named: Any) -> Any:
        if not lost:
            lost.append(name)
            raise LockLost
        return real(*given, **named)

    monkeypatch.setattr(module, name, step)


def test_entries_removed_before_the_lock_was_lost_are_told(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StoreBuilder(agents)
    store.add("cron:dead", 3000, "dead", transcript=False)
    for number in range(6):
        store.add(f"cron:{number}", 3000, f"live-{number}")
    store.write()
    loses_the_lock_once(monkeypatch, orphan_removal, "archive_orphans")
    document = call(agents, "cleanup_orphans", dry_run=False)
    assert [entry["id"] for entry in document["removed_entries"]] == ["dead"]


def test_files_left_alone_are_told_though_the_lock_was_lost(
    agents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "agents elsewhere" / "main" / "sessions" / "gone.jsonl"
    outside.parent.mkdir(parents=True)
    outside.write_text("{}\n")
    os.utime(outside, (1_000_000_000, 1_000_000_000))
    store = StoreBuilder(agents)
    store.add("cron:gone", 3000, "gone", sessionFile=str(outside))
    store.add("cron:stays", 1, "stays")
    store.write()
    loses_the_lock_once(monkeypatch, removal, "archive_files")
    document = call(agents, "delete_sessions", session_ids=["gone"], dry_run=False, force=True)
    assert document["deleted_ids"] == ["gone"]
    assert document["left_alone"] == [str(outside)]
