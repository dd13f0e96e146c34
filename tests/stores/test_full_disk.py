"""A file system that is really full: nothing is lost, and after space is freed the next call works."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Skill, StoreBuilder, now_ms, picture, small_file_system

pytestmark = pytest.mark.system


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """An agents directory on a file system of 2 MiB of its own."""
    with small_file_system(tmp_path / "small", "2m") as place:
        agents = place / "agents"
        agents.mkdir()
        yield agents


def build(agents: Path) -> StoreBuilder:
    store = StoreBuilder(agents)
    for number in range(20):
        store.add(f"cron:job{number}", 90 + number, f"s{number:02d}", label="x" * 200)
    store.add("cron:young", 1, "young")
    return store.write()


def fill(agents: Path, leave: int) -> Path:
    """Takes all space of the file system except ``leave`` bytes (rounded down to pages)."""
    ballast = agents.parent / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 4096)
        file.truncate(file.tell() // 4096 * 4096 - leave)
    return ballast


def check_full(skill: Skill, call: tuple[str, dict[str, Any]], agents: Path, before: Any) -> None:
    answer = skill(*call)
    assert (answer.exit_code, answer.document["code"]) == (4, "disk_full")
    assert "space" in answer.document["error"]
    assert picture(agents) == before


CALLS = [("prune_sessions", {}), ("delete_session", {"session_id": "s03"})]


@pytest.mark.parametrize("call", CALLS, ids=[c[0] for c in CALLS])
@pytest.mark.parametrize("known", [False, True], ids=["first call", "ledger exists"])
def test_a_full_file_system(small: Path, call: tuple[str, dict[str, Any]], known: bool) -> None:
    store, skill = build(small), Skill(small)
    if known:
        assert skill("delete_session", {"session_id": "s19"}).exit_code == 0
    before = picture(small)
    ballast = fill(small, leave=0)
    check_full(skill, call, small, before)
    assert skill("list_sessions").document["session_count"] == 21 - known
    assert skill("prune_sessions", {"dry_run": True}).document["pruned_count"] == 20 - known
    ballast.unlink()
    answer = skill(*call)
    assert answer.exit_code == 0
    assert len(store.read()) == (1 if call[0] == "prune_sessions" else 20 - known)
    expected = 20 if call[0] == "prune_sessions" else 1 + known
    assert skill("get_session_stats").document["pending_history_marks"] == expected


@pytest.mark.parametrize("pages", range(1, 30, 2))
def test_a_file_system_that_becomes_full_on_the_way(small: Path, pages: int) -> None:
    """Whatever room is left: each session is wholly there or wholly gone, and what is said is true."""
    store, skill = build(small), Skill(small)
    before = picture(small)
    ballast = fill(small, leave=pages * 4096)
    answer = skill("prune_sessions")
    live = {e["sessionId"] for e in store.read().values()}
    if answer.exit_code == 4:
        assert answer.document["code"] == "disk_full"
        assert picture(small) == before
    else:
        assert answer.exit_code in (0, 3)
        assert set(answer.document["deleted_ids"]) == {f"s{n:02d}" for n in range(20)}
        assert live == {"young"}
    assert not list(small.glob("main/sessions/.session_manager.*.*"))
    assert not (store.dir / "sessions.json.lock").exists()
    ballast.unlink()
    assert skill("prune_sessions").exit_code == 0
    assert set(store.read()) == {"agent:main:cron:young"}
    assert len(list(store.dir.glob("*.jsonl.deleted.*"))) == 20
    assert skill("get_session_stats").document["pending_history_marks"] == 20


def lose(store: StoreBuilder) -> None:
    """Three old orphans."""
    for number in range(3):
        store.transcript(f"lost-{number}.jsonl", f"lost-{number}", now_ms() - 9 * 86_400_000)


def transcripts(agents: Path) -> set[tuple[str, bytes]]:
    """Every transcript in the folder, under its first name."""
    found = [(p.name.partition(".deleted.")[0], p.read_bytes()) for p in agents.glob("main/sessions/*.jsonl*")]
    assert len(found) == len(set(found))
    return set(found)


@pytest.mark.parametrize("reaped", [False, True], ids=["", "reaped"])
@pytest.mark.parametrize("pages", range(16))
@pytest.mark.parametrize("function", ["restore_run", "cleanup_orphans"])
def test_a_file_system_that_becomes_full_while_restoring_or_cleaning_up(
    small: Path, function: str, pages: int, reaped: bool
) -> None:
    """Nothing is changed, or all is done; with space it goes on."""
    store, skill = build(small), Skill(small)
    lose(store)
    before = picture(small)
    run_id = skill("prune_sessions").document["run_id"]
    if function == "cleanup_orphans":
        assert skill("restore_run", {"run_id": run_id}).exit_code == 0
        assert picture(small) == before
    elif reaped:
        for path in store.dir.glob("*.deleted.*"):
            path.unlink()
    after, held = picture(small), transcripts(small)
    arguments = {"run_id": run_id} if function == "restore_run" else {"dry_run": False}
    ballast = fill(small, leave=pages * 4096)
    answer = skill(function, arguments)
    if answer.exit_code == 4:
        assert answer.document["code"] == "disk_full"
        assert "space" in answer.document["error"]
        assert picture(small).keys() >= after.keys()
        assert store.index.read_bytes() == after["main/sessions/sessions.json"][1]
        assert {p.name for p in store.dir.glob("*.jsonl")} == {
            n.rpartition("/")[2] for n in after if n.endswith(".jsonl")
        }
    else:
        assert answer.exit_code in (0, 3), answer.document
        if function == "restore_run":
            assert picture(small) == before
        else:
            assert answer.document["archived_count"] == 3
    assert not list(small.glob("main/sessions/.session_manager.*.*"))
    assert not (store.dir / "sessions.json.lock").exists()
    ballast.unlink()
    assert skill(function, arguments).exit_code == 0
    if function == "restore_run":
        assert picture(small) == before
    else:
        assert not list(store.dir.glob("lost-*.jsonl"))
    assert transcripts(small) >= held
