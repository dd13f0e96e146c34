"""File names that are no UTF-8, in every folder: no call fails of them, nothing in them is lost, the others go on."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from service import Databases, cli, running
from support import CLOSED_API, Skill, StoreBuilder, now_ms

from session_manager.faces import runner

STAMP = "2026-01-20T23-29-08.931Z"
UUID = "6513270e-0b3c-4b8e-9a55-0123456789ab"
# Whatever a name may hold between the parts that mean something.
ODD = st.binary(min_size=1, max_size=6).map(lambda b: b.replace(b"/", b"\xff").replace(b"\0", b"\xfe")).filter(
    lambda b: b not in (b".", b"..")
) | st.sampled_from([b"\xff", b"\xed\xa0\x80", b"caf\xe9", b"7 (Kopie \xfc)", b"\xe4\xbd", b"\n\x1b[31m"])  # fmt: skip
BEFORE = st.sampled_from(
    [b"", b"old-topic-", b"young-topic-", b"lost-topic-", b"old", b"lost", b"gone.jsonl.", b"-", b"."]
)
AFTER = st.sampled_from(
    [b"", b".jsonl", b".jsonl.lock", b".trajectory.jsonl", b".trajectory-path.json", b".jsonl.codex-app-server.json",
     b".jsonl.bak-1-1771180200000", b".jsonl.truncate-tmp", f".checkpoint.{UUID}.jsonl".encode(), b".tmp",
     f".jsonl.deleted.{STAMP}".encode(), f".jsonl.reset.{STAMP}".encode(),
     f".jsonl.deleted.{STAMP}.deleted.{STAMP}".encode()]
)  # fmt: skip
NAMES = st.builds(lambda *parts: b"".join(parts), BEFORE, ODD, AFTER)
PLACES = ("main/sessions", "main", "", ".session_manager", ".session_manager/archives", "main/agent", "second name")
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("list_sessions", {"sizes": True}),
    ("show_session", {"session_id": "old"}),
    ("get_session_stats", {}),
    ("check_policy", {}),
    ("doctor", {}),
    ("cleanup_orphans", {}),
    ("readopt_orphans", {}),
    ("purge_archives", {"older_than_days": 1}),
    ("prune_sessions", {"dry_run": True, "details": True}),
    ("cleanup_ghosts", {"dry_run": False}),
    ("prune_sessions", {}),
    ("list_deleted", {}),
    ("restore_session", {"session_id": "old"}),
    ("delete_session", {"session_id": "old"}),
    ("restore_session", {"session_id": "old"}),
    ("cleanup_after_delegation", {"session_id": "old", "wait_seconds": 0}),
    ("cleanup_orphans", {"dry_run": False, "force": True}),
    ("readopt_orphans", {"dry_run": False}),
    ("deliver_history", {}),
    ("verify_ledger", {}),
]


def called(agents: Path, function: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The runner in this process: a new one for each of many calls would take long."""
    output, stdout = io.TextIOWrapper(io.BytesIO()), sys.stdout
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    sys.stdout = output
    try:
        code = runner.main(
            ["session_manager", function, json.dumps(arguments)],
            {"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": "", "ARIA_ALLOW_ERASE": "1", "HOME": str(agents)},
        )
    finally:
        sys.stdout = stdout
        for number, handler in handlers.items():
            signal.signal(number, handler)
    output.flush()
    return json.loads(output.buffer.getvalue()), code  # type: ignore[attr-defined]


def fill(agents: Path) -> StoreBuilder:
    store = StoreBuilder(agents)
    store.add("cron:old", 300, "old")
    store.add("cron:young", 1, "young")
    store.add("main", 300, "m")
    store.transcript("lost.jsonl", "lost", now_ms() - 3 * 86_400_000)
    (store.dir / f"gone.jsonl.deleted.{STAMP}").write_bytes(b"gone")
    other = StoreBuilder(agents, "other")
    other.add("cron:b", 300, "b")
    other.add("cron:c", 300, "c")
    other.write()
    return store.write()


def put(agents: Path, place: str, name: bytes, content: bytes) -> None:
    if place == "second name":
        (folder,) = (agents / ".session_manager" / "archives").glob("*/other")
    else:
        folder = agents / place
    folder.mkdir(exist_ok=True)
    path = os.path.join(os.fsencode(folder), name)
    if os.path.lexists(path):
        return
    with open(path, "wb") as file:
        file.write(content)
    os.utime(path, (1_600_000_000, 1_600_000_000))


def contents(agents: Path) -> set[bytes]:
    return {path.read_bytes() for path in agents.rglob("*") if path.is_file() and not path.is_symlink()}


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(PLACES), NAMES), min_size=1, max_size=6))
def test_no_call_fails_of_a_name_and_nothing_is_lost(odd: list[tuple[str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as base:
        agents = Path(base, "agents")
        agents.mkdir()
        fill(agents)
        # There is a ledger, and an archive with a second name.
        assert called(agents, "delete_session", {"session_id": "c"})[1] == 0
        for number, (place, name) in enumerate(odd):
            put(agents, place, name, b'{"type":"message","message":{"role":"user"}}\n%d' % number)
        before = contents(agents)
        for function, arguments in CALLS:
            document, code = called(agents, function, arguments)
            # 3: the doctor has a stale lock to tell of.
            assert code == 0 or (function, code) == ("doctor", 3), (function, document)
            if function == "prune_sessions" and not arguments:
                assert set(document["deleted_ids"]) == {"old", "b"}
        transcripts = {c for c in before if c.startswith(b'{"type":')}
        assert transcripts <= contents(agents)
        for function, arguments in (
            ("erase_session", {"session_id": "old", "confirm": "old", "force": True}),
            ("erase_session", {"session_id": "lost", "confirm": "lost", "force": True}),
            ("purge_archives", {"older_than_days": 1, "dry_run": False}),
            ("list_sessions", {}),
        ):
            document, code = called(agents, function, arguments)
            assert code == 0, (function, document)


def odd_file(folder: Path, name: bytes, content: bytes = b"odd\n") -> Path:
    path = Path(os.fsdecode(os.path.join(os.fsencode(folder), name)))
    path.write_bytes(content)
    os.utime(path, (1, 1))
    return path


@pytest.fixture
def store(agents: Path) -> StoreBuilder:
    return fill(agents)


def test_a_prune_leaves_such_a_topic_alone_and_says_so(store: StoreBuilder, skill: Skill) -> None:
    odd = odd_file(store.dir, b"old-topic-\xff.jsonl")
    answer = skill("prune_sessions")
    assert (answer.exit_code, set(answer.document["deleted_ids"])) == (0, {"old", "b", "c"})
    assert answer.document["left_alone"] == ["old-topic-\ufffd.jsonl"]
    assert odd.read_bytes() == b"odd\n"
    assert "old.jsonl" not in store.names()
    restored = skill("restore_session", {"session_id": "old"})
    assert (restored.exit_code, restored.document["restored_files"]) == (0, ["old.jsonl"])
    deleted = skill("delete_session", {"session_id": "old"})
    assert deleted.document["left_alone"] == ["old-topic-\ufffd.jsonl"]
    assert odd.exists()


def test_what_is_said_in_such_a_topic_counts(store: StoreBuilder, skill: Skill) -> None:
    moment = now_ms() - 60_000
    odd = store.transcript(os.fsdecode(b"old-topic-\xff.jsonl"), "old", moment)
    assert skill("prune_sessions", {"agent": "main"}).document["deleted_ids"] == []
    os.utime(odd, (1, 1))
    assert skill("prune_sessions", {"agent": "main"}).document["deleted_ids"] == ["old"]


def test_an_erasure_takes_such_a_topic_too(store: StoreBuilder, skill: Skill) -> None:
    odd = odd_file(store.dir, b"old-topic-\xff.jsonl")
    archived = odd_file(store.dir, b"old-topic-\xff.jsonl.deleted." + STAMP.encode())
    answer = skill("erase_session", {"session_id": "old", "confirm": "old"}, ARIA_ALLOW_ERASE="1")
    assert answer.exit_code == 0, answer.document
    assert not odd.exists()
    assert not archived.exists()


def test_a_transcript_without_an_entry_is_skipped_by_name(store: StoreBuilder, skill: Skill) -> None:
    store.transcript(os.fsdecode(b"fresh-topic-\xff.jsonl"), "fresh", now_ms() - 3 * 86_400_000)
    document = skill("readopt_orphans", {"dry_run": False}).document
    assert {s["file"]: s["reason"] for s in document["skipped"]} == {"fresh-topic-\ufffd.jsonl": "name is not UTF-8"}
    assert [a["id"] for a in document["adopted"]] == ["lost"]


def test_people_can_read_it(store: StoreBuilder, agents: Path) -> None:
    for name in (b"old-topic-\xff.jsonl", b"x\xff.jsonl.deleted." + STAMP.encode()):
        odd_file(store.dir, name)
    env = {"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": ""}
    for command in (["list"], ["orphans"], ["purge", "--older-than", "1d", "--dry-run"], ["deleted"], ["doctor"],
                    ["prune", "--older-than", "1h", "--yes"]):  # fmt: skip
        done = cli(*command, **env)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        for stream in (done.stdout, done.stderr):
            stream.encode()


def test_the_agents_directory_itself_may_have_such_a_name(tmp_path: Path) -> None:
    agents = tmp_path / os.fsdecode(b"caf\xe9") / "agents"
    agents.mkdir(parents=True)
    fill(agents)
    skill = Skill(agents, ARIA_API_URL=CLOSED_API)
    for function, arguments in [*CALLS, ("doctor", {})]:
        answer = skill(function, arguments, ARIA_API_URL="")
        assert answer.exit_code == 0, (function, answer.document)


def test_the_service_serves_such_a_directory(server: Databases, tmp_path: Path) -> None:
    agents = tmp_path / os.fsdecode(b"caf\xe9") / "agents"
    agents.mkdir(parents=True)
    fill(agents)
    (agents / "broken").mkdir()
    (agents / "broken" / "sessions").write_bytes(b"")
    url, pages = server.create(), ("/sessions", "/api/sessions", "/api/jobs", "/readyz", "/metrics")
    env = {"DATABASE_URL": url, "ARIA_AGENTS_DIR": str(agents), "HOME": str(tmp_path), "ARIA_SYNC_SECONDS": "0"}
    with running(tmp_path / "log", **env) as service:
        synced = service.client.post("/api/sessions/sync")
        assert [(e["agentId"], e["code"]) for e in synced.json()["errors"]] == [("broken", "index_damaged")]
        assert [service.client.get(page).status_code for page in pages] == [200] * len(pages)
        agents.rename(agents.parent / "elsewhere")
        assert service.client.post("/api/sessions/sync").status_code == 503
        assert [service.client.get(page).status_code for page in pages] == [200] * len(pages)
    server.drop(url)
