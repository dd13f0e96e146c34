"""Prunes, deletes and restores of ours beside a gateway that keeps writing: not one update of either side is lost."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, Skill, StoreBuilder

SOAK = 25 if os.environ.get("SOAK") else 1
WRITES = 800 * SOAK
PRUNES = 20 * SOAK
EACH = 2
DELETES = PRUNES // 5
RESTORES = 5 * SOAK
NODE = shutil.which("node")


def start_writer(language: str, mode: str, store: StoreBuilder, log: Path) -> subprocess.Popen[bytes]:
    program = [sys.executable, str(ROOT / "tests/gateway_writer.py")]
    if language == "node":
        assert NODE is not None, "make test-system installs Node.js"
        program = [NODE, str(ROOT / "tests/gateway_writer.mjs")]
    return subprocess.Popen([*program, mode, str(store.dir), "0", str(WRITES), str(log)])


@contextlib.contextmanager
def writing_gateway(language: str, mode: str, store: StoreBuilder, log: Path) -> Iterator[None]:
    """A gateway that writes beside every call of ours while this lasts, and then to the end of its writes."""
    writer = start_writer(language, mode, store, log)
    try:
        yield
        assert writer.poll() is None, "the gateway wrote beside every one of our calls"
        Path(f"{log}.stop").touch()
        assert writer.wait(timeout=600) == 0
    finally:
        writer.kill()
        writer.wait()


def committed_in(log: Path) -> dict[str, list[int]]:
    """What the gateway has written: values by key."""
    committed: dict[str, list[int]] = {}
    for key, value in (line.split() for line in log.read_text().splitlines()):
        committed.setdefault(key, []).append(int(value))
    return committed


class Watcher(threading.Thread):
    """Reads the index all the time, as any reader may: it must be valid whenever it is there."""

    def __init__(self, index: Path) -> None:
        super().__init__(daemon=True)
        self.index, self.stopped, self.bad, self.reads = index, threading.Event(), [], 0  # type: ignore[var-annotated]

    def run(self) -> None:
        while not self.stopped.wait(0.02):
            text = self.index.read_bytes()
            self.reads += 1
            try:
                assert isinstance(json.loads(text), dict)
            except (ValueError, AssertionError):
                self.bad.append(text)


def gave_up(document: dict[str, Any]) -> bool:
    """Says whether a call stopped because a gateway without a lock never paused; what it says it did is done."""
    errors = document.get("errors") or [document]
    return {e["code"] for e in errors} <= {"store_locked", "session_busy"}


def prune_in_waves(skill: Skill, mode: str, victims: list[str]) -> list[dict[str, Any]]:
    """PRUNES prunes, five at a time, each of EACH sessions, and beside each five the delete of one victim."""
    documents = []
    for victim in victims:
        calls = [skill.start("prune_sessions", {"limit": EACH}, ARIA_LOCK_TIMEOUT="60") for _ in range(5)]
        calls.append(skill.start("delete_session", {"session_id": victim}, ARIA_LOCK_TIMEOUT="60"))
        for call in calls:
            out, err = call.communicate(timeout=300)
            document = json.loads(out)
            done = call.returncode == 0 or (mode == "lockless" and gave_up(document))
            assert done, (document.get("errors"), document, err)
            documents.append(document)
    return documents


CASES = [
    pytest.param("python", "locking", id="python-locking"),
    pytest.param("python", "lockless", id="python-lockless"),
    pytest.param("node", "locking", id="node-locking", marks=pytest.mark.system),
    pytest.param("node", "lockless", id="node-lockless", marks=pytest.mark.system),
]


@pytest.mark.parametrize(("language", "mode"), CASES)
def test_nothing_is_lost_beside_a_writing_gateway(
    language: str, mode: str, agents: Path, skill: Skill, tmp_path: Path
) -> None:
    store = StoreBuilder(agents)
    # Prunes take the oldest first, so the deletes have the youngest of the old ones for themselves.
    ours = [store.add(f"cron:job-{i}", 300 + i, session_id=f"old-{i}") for i in range(PRUNES * EACH + DELETES)]
    contents = {i: (store.dir / f"{i}.jsonl").read_bytes() for i in ours}
    store.write()
    log = tmp_path / "log"
    log.touch()
    watcher = Watcher(store.index)
    watcher.start()
    try:
        with writing_gateway(language, mode, store, log):
            documents = prune_in_waves(skill, mode, ours[:DELETES])
    finally:
        watcher.stopped.set()
        watcher.join()
    assert watcher.reads > 50
    assert watcher.bad == []

    left = store.read()
    committed = committed_in(log)
    assert sum(map(len, committed.values())) >= WRITES
    kept = {key: entry["values"] for key, entry in left.items() if "values" in entry}
    assert kept == committed, "an update of the gateway's is lost"

    deleted = Counter(i for d in documents for i in d.get("deleted_ids", []))
    deleted.update(d["deleted"] for d in documents if d.get("removed_keys"))
    # A gateway without a lock that writes all the time may keep or bring back much, but not everything.
    assert len(deleted) >= PRUNES // 5
    back = {entry["sessionId"] for entry in left.values()} & set(deleted)
    if mode == "locking":
        assert back == set(), "a removal of ours is lost"
        assert [d["pruned_count"] for d in documents if "pruned_count" in d] == [EACH] * PRUNES
        assert set(deleted) == set(ours)
        assert set(deleted.values()) == {1}, "each session is deleted by exactly one"
    for session_id in set(deleted) - back:
        archives = list(store.dir.glob(f"{session_id}.jsonl*"))
        assert len(archives) == 1
        assert ".deleted." in archives[0].name
        assert archives[0].read_bytes() == contents[session_id]
    assert [n for n in store.names() if n.startswith(".session_manager") or n.endswith((".tmp", ".json.lock"))] == []


@pytest.mark.parametrize(("language", "mode"), CASES)
def test_what_is_restored_beside_a_writing_gateway_is_whole(
    language: str, mode: str, agents: Path, skill: Skill, tmp_path: Path
) -> None:
    store = StoreBuilder(agents)
    ours = [store.add(f"cron:job-{i}", 300 + i, session_id=f"old-{i}") for i in range(2 * RESTORES)]
    contents = {f"{i}.jsonl": (store.dir / f"{i}.jsonl").read_bytes() for i in ours}
    store.write()
    log = tmp_path / "log"
    log.touch()
    restored = 0
    with writing_gateway(language, mode, store, log):
        for _ in range(RESTORES):
            pruned = skill("prune_sessions", {"limit": EACH}, ARIA_LOCK_TIMEOUT="60").document
            if not pruned.get("pruned_count"):
                assert mode == "lockless"
                continue
            answer = skill("restore_run", {"run_id": pruned["run_id"]}, ARIA_LOCK_TIMEOUT="60")
            assert answer.exit_code == 0 or (mode == "lockless" and gave_up(answer.document)), answer.document
            restored += answer.document.get("restored_count", 0)
    assert restored >= RESTORES // 5
    # Such a gateway may write a key away again that it had not read: asking once more puts it back.
    for run_id in {r["run_id"] for r in skill("list_deleted").document["deleted"]}:
        answer = skill("restore_run", {"run_id": run_id})
        assert answer.exit_code == 0, answer.document
        assert mode == "lockless" or answer.document["restored_count"] == 0
    left = store.read()
    assert {key: entry for key, entry in left.items() if key in store.entries} == store.entries
    assert {key: entry["values"] for key, entry in left.items() if "values" in entry} == committed_in(log)
    assert {p.name: p.read_bytes() for p in store.dir.glob("*.jsonl*")} == contents
    assert [n for n in store.names() if n.startswith(".session_manager") or n.endswith((".tmp", ".json.lock"))] == []
    assert skill("verify_ledger").document["whole"] is True


def test_four_prunes_at_once_share_the_work(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    ours = {store.add(f"cron:job-{i}", 300) for i in range(200)}
    keep = store.add("cron:young", 1)
    store.write()
    calls = [skill.start("prune_sessions", {"limit": 120 if i % 2 else 60}, ARIA_LOCK_TIMEOUT="60") for i in range(4)]
    documents = []
    for call in calls:
        out, err = call.communicate(timeout=120)
        assert call.returncode == 0, (out, err)
        documents.append(json.loads(out))
    deleted = Counter(i for d in documents for i in d["deleted_ids"])
    assert set(deleted) == ours
    assert set(deleted.values()) == {1}
    assert [e["sessionId"] for e in store.read().values()] == [keep]
    assert len([n for n in store.names() if ".deleted." in n]) == 200
