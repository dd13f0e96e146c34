"""Second names: archives outlive a gateway that deletes them after a day, on whatever file system."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import CLOSED_API, Skill, StoreBuilder, ledger_sql, small_file_system

from session_manager.archives import copying, second_names
from session_manager.files.liveness import now_ms
from session_manager.functions import load
from session_manager.functions.context import Context
from session_manager.settings import read_settings
from session_manager.stores.openclaw_files.volume import Volume

DAY_MS = 86_400_000


def build(agents: Path, count: int = 2) -> StoreBuilder:
    store = StoreBuilder(agents)
    for number in range(count):
        store.add(f"cron:job-{number}", 100 + number, f"s{number}")
    store.transcript("s0-topic-7.jsonl", "s0", 1_700_000_000_000)
    store.add("cron:young", 1, "young")
    return store.write()


def call(agents: Path, function: str, arguments: dict[str, Any], **environment: str) -> dict[str, Any]:
    settings = read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": CLOSED_API, **environment})
    loaded = load(function)
    return loaded.run(Context(settings, Volume(str(agents)), now_ms), loaded.arguments(**arguments))


def kept(state: Path) -> dict[str, Path]:
    """Second names by base name."""
    return {p.name: p for p in (state / "archives").rglob("*") if not p.is_dir()}


def archives(store: StoreBuilder) -> dict[str, Path]:
    return {p.name: p for p in store.dir.glob("*.deleted.*")}


def no_links(monkeypatch: pytest.MonkeyPatch, number: int = errno.EXDEV) -> None:
    """As if the state directory lay on another file system, or on one without links."""

    def link(source: str, target: str, **rest: Any) -> None:
        if "deleted" in os.fspath(target) or "deleted" in os.fspath(source):
            raise OSError(number, os.strerror(number), source, None, target)
        real(source, target, **rest)

    real = os.link
    monkeypatch.setattr(second_names.os, "link", link)


def test_each_archive_has_a_second_name_that_takes_no_room(agents: Path, skill: Skill) -> None:
    store = build(agents)
    document = skill("prune_sessions").document
    state = agents / ".session_manager"
    assert kept(state).keys() == archives(store).keys()
    assert len(archives(store)) == 3
    for name, path in kept(state).items():
        assert path.samefile(archives(store)[name])
        assert path.relative_to(state).parts[:3] == ("archives", document["run_id"], "main")
    folders = [state, *(p for p in state.rglob("*") if p.is_dir())]
    assert {p.stat().st_mode & 0o777 for p in folders} == {0o700}
    assert "at_risk" not in document


def test_the_gateways_reaper_leaves_the_second_names(agents: Path, skill: Skill) -> None:
    store = build(agents)
    before = {n: (store.dir / n).read_bytes() for n in ("s0.jsonl", "s1.jsonl", "s0-topic-7.jsonl")}
    skill("prune_sessions")
    for path in archives(store).values():
        path.unlink()
    found = {n.split(".deleted.")[0]: p.read_bytes() for n, p in kept(agents / ".session_manager").items()}
    assert found == before
    assert {r["restorable"] for r in skill("list_deleted").document["deleted"]} == {True}


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_no_link_can_be_it_is_a_copy(agents: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    store = build(agents)
    no_links(monkeypatch, number)
    assert "at_risk" not in call(agents, "prune_sessions", {})
    found = kept(agents / ".session_manager")
    assert found.keys() == archives(store).keys()
    for name, path in found.items():
        archive = archives(store)[name]
        assert not path.samefile(archive)
        assert path.read_bytes() == archive.read_bytes()
        assert path.stat().st_mtime_ns == archive.stat().st_mtime_ns
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_copy_is_made_again_of_what_has_grown_since(
    agents: Path, monkeypatch: pytest.MonkeyPatch, at: Callable[[str, Callable[[], object]], None]
) -> None:
    """It is made of the live file, before that is archived; a gateway may be writing the last line."""
    store = build(agents)
    no_links(monkeypatch)

    def grow() -> None:
        with open(store.dir / "s0.jsonl", "a") as file:
            file.write('{"type": "message"}\n')

    at("second names kept", grow)
    assert "at_risk" not in call(agents, "prune_sessions", {})
    found = kept(agents / ".session_manager")
    assert found.keys() == archives(store).keys()
    assert {n: p.read_bytes() for n, p in found.items()} == {n: p.read_bytes() for n, p in archives(store).items()}
    assert any(p.read_text().endswith('{"type": "message"}\n') for p in found.values())


@pytest.mark.parametrize("links", [True, False])
def test_what_has_the_second_name_of_another_file_stays(
    agents: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: Callable[[str, Callable[[], object]], None],
    links: bool,
) -> None:
    """As on a file system that takes two spellings for one name: the second session's does not displace the first's."""
    store = build(agents)
    if not links:
        no_links(monkeypatch)
    made: list[Path] = []

    def take() -> None:
        ((run_id, details),) = ledger_sql(
            agents, "SELECT run_id, details FROM removals JOIN attempts USING (attempt_id) WHERE session_id = 's1'"
        )
        ((_, target),) = json.loads(details)["files"]
        folder = agents / ".session_manager" / "archives" / run_id / "main"
        folder.mkdir(parents=True)
        made.append(folder / target)
        made[0].write_text("another conversation\n")

    at("intent written", take)
    document = call(agents, "prune_sessions", {})
    assert (document["pruned_count"], document["at_risk"]["files"]) == (2, 1)
    assert "another file" in document["at_risk"]["error"]
    assert made[0].read_text() == "another conversation\n"
    assert len(archives(store)) == 3


def test_copies_are_bounded_and_what_has_none_is_said(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(agents, 3)
    (store.dir / "s1.jsonl").write_bytes(b"x" * 5000)
    os.utime(store.dir / "s1.jsonl", (1, 1))
    no_links(monkeypatch)
    monkeypatch.setattr(copying, "_COPY_BYTES", 4000)
    document = call(agents, "prune_sessions", {})
    assert document["pruned_count"] == 3
    assert document["at_risk"]["files"] == 1
    assert "too long" in document["at_risk"]["error"]
    assert {n.split(".")[0] for n in kept(agents / ".session_manager")} == {"s0", "s0-topic-7", "s2"}
    assert archives(store).keys() - kept(agents / ".session_manager").keys()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("function", ["prune_sessions", "delete_session"])
def test_a_second_name_that_cannot_be_fails_nothing(
    agents: Path, monkeypatch: pytest.MonkeyPatch, number: int, function: str
) -> None:
    store = build(agents)
    no_links(monkeypatch, number)
    document = call(agents, function, {"session_id": "s0"} if function == "delete_session" else {})
    assert "code" not in document
    assert document["at_risk"]["files"] == (2 if function == "delete_session" else 3)
    assert os.strerror(number) in document["at_risk"]["error"]
    assert len(archives(store)) == document["at_risk"]["files"]
    assert kept(agents / ".session_manager") == {}


def test_an_orphan_without_a_second_name_is_said(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(agents)
    store.transcript("lost.jsonl", "lost", 1_700_000_000_000)
    no_links(monkeypatch, errno.ENOSPC)
    document = call(agents, "cleanup_orphans", {"dry_run": False})
    assert (document["archived_count"], document["at_risk"]["files"]) == (1, 1)


def test_a_folder_that_cannot_be_made_fails_nothing(agents: Path, skill: Skill) -> None:
    build(agents)
    (agents / ".session_manager").mkdir(mode=0o700)
    (agents / ".session_manager" / "archives").write_bytes(b"in the way")
    document = skill("prune_sessions").document
    assert (document["pruned_count"], document["at_risk"]["files"]) == (2, 3)
    assert skill("list_deleted").document["deleted"][0]["restorable"] is True


def age(agents: Path, days: int) -> None:
    """Makes all second names that many days older: a run's age is in its name."""
    root = agents / ".session_manager" / "archives"
    for folder in list(root.iterdir()):
        time, _, rest = folder.name.partition("-")
        folder.rename(root / f"{int(time, 16) - days * DAY_MS:012x}-{rest}")


def test_second_names_go_after_the_keeping_time_by_any_later_call(agents: Path, skill: Skill) -> None:
    store = build(agents, 4)
    state = agents / ".session_manager"
    skill("delete_session", {"session_id": "s0"})
    (state / "archives" / "notes").mkdir()
    notes = state / "archives" / "notes"
    notes.rename(agents / "elsewhere")
    age(agents, 3)
    (agents / "elsewhere").rename(notes)
    skill("delete_session", {"session_id": "s1"})
    assert {n.split(".")[0] for n in kept(state)} == {"s0", "s0-topic-7", "s1"}
    skill("prune_sessions", {"max_age_minutes": 1_000_000}, ARIA_KEEP_DAYS="2")
    assert {n.split(".")[0] for n in kept(state)} == {"s1"}
    assert len(list((state / "archives").iterdir())) == 2
    assert notes.exists(), "what is not ours stays"
    assert len(archives(store)) == 3, "the archive itself stays"


def test_old_entries_go_with_a_call_that_removes_nothing(agents: Path, skill: Skill) -> None:
    import sqlite3

    build(agents)
    skill("prune_sessions")
    connection = sqlite3.connect(agents / ".session_manager" / "ledger.sqlite")
    with connection:
        connection.execute("UPDATE attempts SET created_at = created_at - ?", (8 * DAY_MS,))
    assert skill("prune_sessions").document["run_id"] is None
    assert connection.execute("SELECT count(*) FROM chunks").fetchone() == (0,)
    connection.close()


def test_old_names_go_a_few_at_a_time(agents: Path, skill: Skill, monkeypatch: pytest.MonkeyPatch) -> None:
    build(agents, 6)
    skill("prune_sessions")
    state = agents / ".session_manager"
    age(agents, 30)
    monkeypatch.setattr(second_names, "_LEAST_DROPPED", 3)
    for left in (4, 1, 0):
        call(agents, "prune_sessions", {})
        assert len(kept(state)) == left
    assert list((state / "archives").iterdir()) == []


def test_what_the_gateway_revived_keeps_no_second_name(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows a sign of life after its files were archived, and gets everything back."""
    from session_manager.files import steps

    store = build(agents)
    entries = dict(store.entries)

    def watch(name: str) -> None:
        if name == "second names checked":
            key = "agent:main:cron:job-0"
            left = {**store.read(), key: {**entries[key], "updatedAt": now_ms()}}
            other = store.dir / "sessions.json.1.tmp"
            other.write_text(json.dumps(left))
            other.rename(store.index)

    monkeypatch.setattr(steps, "watcher", watch)
    document = call(agents, "prune_sessions", {})
    assert document["deleted_ids"] == ["s1"]
    assert {"s0.jsonl", "s0-topic-7.jsonl"} <= store.names()
    assert {n.split(".")[0] for n in kept(agents / ".session_manager")} == {"s1"}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A state directory on a file system of its own."""
    with small_file_system(tmp_path / "elsewhere", "1m") as place:
        yield place / "state"


@pytest.mark.system
def test_another_file_system(agents: Path, skill: Skill, elsewhere: Path) -> None:
    store = build(agents)
    document = skill("prune_sessions", ARIA_STATE_DIR=str(elsewhere)).document
    assert "at_risk" not in document
    assert {n: p.read_bytes() for n, p in kept(elsewhere).items()} == {
        n: p.read_bytes() for n, p in archives(store).items()
    }


@pytest.mark.system
def test_another_file_system_that_is_too_small(agents: Path, skill: Skill, elsewhere: Path) -> None:
    store = build(agents)
    (store.dir / "s1.jsonl").write_bytes(b"x" * 2_000_000)
    os.utime(store.dir / "s1.jsonl", (1, 1))
    document = skill("prune_sessions", ARIA_STATE_DIR=str(elsewhere)).document
    assert (document["pruned_count"], document["at_risk"]["files"]) == (2, 1)
    assert "space" in document["at_risk"]["error"]
    assert not {n for n in kept(elsewhere) if n.startswith("s1.")}
    assert list(elsewhere.rglob(".part")) == []
