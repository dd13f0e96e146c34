"""A transcript that cannot be archived: its session stays whole, and is said; the others go."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scene import OF_LIVING, marks
from support import Skill, StoreBuilder, ledger_sql, now_ms
from test_faults import Call, build, in_process, ours

from session_manager.archives import archive
from session_manager.archives.second_names import FOLDER
from session_manager.stores.openclaw_files import unmovable

DELETE = ("delete_session", {"session_id": "a"})
PRUNE = ("prune_sessions", {})
FILES = {"a.jsonl", "a-topic-1.jsonl"}


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has renames fail whose source is one of some names."""

    def arrange(*names: str, number: int = errno.EIO) -> None:
        def rename(source: str, target: str, folder: int | None = None) -> None:
            if source in names:
                raise OSError(number, os.strerror(number), source, None, target)
            real(source, target, folder)

        monkeypatch.setattr(archive, "rename_new", rename)

    real = archive.rename_new
    return arrange


def assert_whole(agents: Path, store: StoreBuilder, index: bytes) -> None:
    """Session a is wholly live: keys at their places, files under their names only, nothing owed, nothing open."""
    left, before = store.read(), json.loads(index)
    kept = {k: e for k, e in before.items() if k in left}
    assert store.index.read_text() == json.dumps(kept, indent=2)
    assert {k for k, e in kept.items() if e["sessionId"] == "a"} == {"agent:main:cron:a", "agent:main:cron:a:run:a"}
    assert store.names() >= FILES
    assert not [n for n in store.names() if n.startswith("a") and ".deleted." in n]
    assert not list((agents / ".session_manager" / FOLDER).rglob("a*.jsonl*"))
    assert marks(agents).get(("main", "a")) in OF_LIVING
    assert ledger_sql(agents, "SELECT * FROM attempts WHERE state = 'intent'") == []
    assert ours(agents) == []
    assert in_process(agents, "verify_ledger", {}).document["whole"] is True


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize(
    ("number", "code"), [(errno.EIO, "io_error"), (errno.EPERM, "not_writable"), (errno.ENAMETOOLONG, "name_too_long")]
)
def test_the_session_stays_whole_and_the_others_go(
    agents: Path, refuse: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str, number: int, code: str
) -> None:
    store = build(agents)
    index = store.index.read_bytes()
    refuse(name, number=number)
    for expected in (["b"], []):
        answer = in_process(agents, *PRUNE)
        assert (answer.exit_code, answer.document["code"]) == (3, "partial")
        assert [(e["agentId"], e["id"], e["code"]) for e in answer.document["errors"]] == [("main", "a", code)]
        assert "was not changed" in answer.document["errors"][0]["error"]
        assert name in answer.document["errors"][0]["error"]
        assert (answer.document["deleted_ids"], answer.document["kept"]) == (expected, [])
        assert answer.document["pruned_count"] + answer.document["kept_count"] == answer.document["total_sessions"]
        assert_whole(agents, store, index)
    monkeypatch.undo()
    assert in_process(agents, *PRUNE).document["deleted_ids"] == ["a"]
    assert in_process(agents, "restore_session", {"session_id": "a"}).exit_code == 0
    assert_whole(agents, store, index)


@pytest.mark.parametrize("function", ["delete_session", "cleanup_after_delegation", "erase_session"])
def test_the_only_session_asked_for(agents: Path, refuse: Callable[..., None], function: str) -> None:
    store = build(agents)
    index = store.index.read_bytes()
    refuse("a.jsonl", number=errno.EPERM)
    arguments = {"session_id": "a"} | ({"confirm": "a"} if function == "erase_session" else {})
    answer = called(agents, function, arguments)
    assert (answer.exit_code, answer.document["code"]) == (4, "not_writable")
    assert_whole(agents, store, index)
    assert store.index.read_bytes() == index


def called(agents: Path, function: str, arguments: dict[str, Any]) -> Call:
    """As ``in_process``, for a function that a variable must allow."""
    from session_manager.faces import runner

    real = runner.main
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "main", lambda argv, environ: real(argv, {**environ, "ARIA_ALLOW_ERASE": "1"}))
        return in_process(agents, function, arguments)


def test_what_cannot_be_rolled_back_now_is_by_the_next_call(
    agents: Path, refuse: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fails for good in the middle; the call after it is repaired in part puts the session back."""
    from session_manager.stores.openclaw_files import recovery

    store = build(agents)
    index = store.index.read_bytes()
    refuse("a.jsonl")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(recovery, "put_back", fail)
        answer = in_process(agents, *DELETE)
    assert answer.exit_code in (3, 70)
    assert "agent:main:cron:a" not in store.read()
    assert store.names() >= {"a.jsonl"}
    later = in_process(agents, "prune_sessions", {"max_age_minutes": 1_000_000})
    assert later.exit_code == 3
    assert [(e["id"], e["code"]) for e in later.document["errors"]] == [("a", "io_error")]
    assert [r["undone"] for r in later.document["recovered"]] == [["a"]]
    assert_whole(agents, store, index)
    assert store.index.read_bytes() == index


def test_a_session_whose_key_was_given_away_meanwhile_is_said_until_it_can_go(
    agents: Path, refuse: Callable[..., None], monkeypatch: pytest.MonkeyPatch, at: Callable[[str, Any], None]
) -> None:
    store = build(agents)
    refuse("b.jsonl")
    theirs = {"sessionId": "new", "updatedAt": now_ms()}
    at("index verified", lambda: store.replace({**store.read(), "agent:main:cron:b": theirs}))
    answer = in_process(agents, "delete_session", {"session_id": "b"})
    assert answer.exit_code == 3
    assert "b is only partly removed" in answer.document["errors"][0]["error"]
    assert store.read()["agent:main:cron:b"] == theirs
    assert "b.jsonl" in store.names()
    assert in_process(agents, "prune_sessions", {"max_age_minutes": 1_000_000}).exit_code == 3
    monkeypatch.undo()
    later = in_process(agents, "prune_sessions", {"max_age_minutes": 1_000_000})
    assert (later.exit_code, [r["finished"] for r in later.document["recovered"]]) == (0, [["b"]])
    assert "b.jsonl" not in store.names()
    assert store.read()["agent:main:cron:b"] == theirs


def test_a_kill_before_the_rename_that_then_fails(
    agents: Path, refuse: Callable[..., None], skill: Skill, tmp_path: Path
) -> None:
    from test_kill import run_until

    store = build(agents)
    index = store.index.read_bytes()
    _, steps = run_until(skill, 100, tmp_path / "steps", *DELETE)
    assert in_process(agents, "restore_session", {"session_id": "a"}).exit_code == 0
    run_until(skill, steps.index("second names kept") + 1, tmp_path / "steps", *DELETE)
    assert "agent:main:cron:a" not in store.read()
    refuse("a-topic-1.jsonl")
    later = in_process(agents, "prune_sessions", {"max_age_minutes": 1_000_000})
    assert [(e["id"], e["code"]) for e in later.document["errors"]] == [("a", "io_error")]
    assert_whole(agents, store, index)
    assert store.index.read_bytes() == index


def long_name(store: StoreBuilder) -> str:
    """A topic file of session a whose name has room for nothing more."""
    name = f"a-topic-{'t' * 230}.jsonl"
    store.transcript(name, "a", 1_700_000_000_000)
    return name


def test_a_name_without_room_is_told_before_anything_is_touched(agents: Path, skill: Skill) -> None:
    store = build(agents)
    name = long_name(store)
    index = store.index.read_bytes()
    answer = skill("prune_sessions")
    assert (answer.exit_code, answer.document["deleted_ids"]) == (3, ["b"])
    assert [(e["id"], e["code"]) for e in answer.document["errors"]] == [("a", "name_too_long")]
    assert "222" in answer.document["errors"][0]["error"]
    assert_whole(agents, store, index)
    assert name in store.names()
    answer = skill(*DELETE)
    assert (answer.exit_code, answer.document["code"]) == (4, "name_too_long")
    assert ledger_sql(agents, "SELECT session_id FROM removals") == [("b",)]


def test_a_long_name_is_its_sessions_transcript(agents: Path, skill: Skill) -> None:
    """It is no orphan, and no sign of an empty session."""
    store = StoreBuilder(agents)
    store.add("cron:a", 5000, "a", transcript=False)
    store.write()
    name = long_name(store)
    orphans = skill("cleanup_orphans", {"dry_run": False}).document
    assert (orphans["archived_count"], orphans["classes"]["live"]["count"]) == (0, 1)
    assert skill("cleanup_ghosts", {"dry_run": False}).document["live_ghosts"] == 0
    assert store.names() == {"sessions.json", name}
    assert list(store.read()) == ["agent:main:cron:a"]


def test_an_orphan_with_a_long_name_stays_and_is_said(agents: Path, skill: Skill) -> None:
    store = build(agents)
    name = f"{'o' * 120}-topic-{'t' * 110}.jsonl"
    store.transcript(name, "o" * 120, 1_700_000_000_000)
    store.transcript("lost.jsonl", "lost", 1_700_000_000_000)
    document = skill("cleanup_orphans", {"dry_run": False}).document
    assert [a["id"] for a in document["archived"]] == ["lost"]
    assert name in store.names()
    assert ledger_sql(agents, "SELECT * FROM attempts WHERE state = 'intent'") == []


@pytest.mark.parametrize("spellings", [("é", unicodedata.normalize("NFD", "é")), ("abc", "ABC")])
def test_two_sessions_of_which_the_file_system_makes_one(
    agents: Path, monkeypatch: pytest.MonkeyPatch, spellings: tuple[str, str]
) -> None:
    """The folder lists one file, and gives it for both names: whose it is cannot be told."""
    listed, hidden = spellings
    store = StoreBuilder(agents)
    store.add("cron:one", 90, listed)
    store.add("cron:two", 90, hidden, transcript=False)
    store.add("cron:other", 90, "other")
    store.write()
    real = os.lstat

    def lstat(path: Any, **rest: Any) -> os.stat_result:
        return real(os.fspath(path).replace(f"/{hidden}.jsonl", f"/{listed}.jsonl"), **rest)

    before = store.read()
    with monkeypatch.context() as patch:
        patch.setattr(unmovable.os, "lstat", lstat)
        answer = in_process(agents, *PRUNE)
    assert (answer.exit_code, answer.document["deleted_ids"]) == (3, ["other"])
    assert {(e["id"], e["code"]) for e in answer.document["errors"]} == {(i, "name_ambiguous") for i in spellings}
    del before["agent:main:cron:other"]
    assert store.read() == before
    assert f"{listed}.jsonl" in store.names()
    # Where they are two names they are two sessions, with and without a transcript.
    assert sorted(in_process(agents, *PRUNE).document["deleted_ids"]) == sorted(spellings)


@pytest.fixture
def immutable(agents: Path) -> Iterator[Callable[[Path], None]]:
    """Makes files immutable, as root may on most file systems of Linux."""
    made: list[Path] = []

    def change(path: Path) -> None:
        subprocess.run(["chattr", "+i", str(path)], check=True)
        made.append(path)

    if os.geteuid() != 0:
        pytest.skip("chattr +i needs root")
    yield change
    for path in made:
        subprocess.run(["chattr", "-i", str(path)], check=True)


@pytest.mark.system
def test_an_immutable_transcript(agents: Path, skill: Skill, immutable: Callable[[Path], None]) -> None:
    store = build(agents)
    index = store.index.read_bytes()
    immutable(store.dir / "a-topic-1.jsonl")
    answer = skill("prune_sessions")
    assert (answer.exit_code, answer.document["deleted_ids"]) == (3, ["b"])
    assert [(e["id"], e["code"]) for e in answer.document["errors"]] == [("a", "not_writable")]
    assert_whole(agents, store, index)
