"""Transcripts that several sessions have: references count in restore and erase as they do in delete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from forks import Forks
from support import Skill, StoreBuilder

DAYS = 1440
ERASE = {"ARIA_ALLOW_ERASE": "1"}
# The files of a session `a` that a session `b` has, too: by name, and by what gateways call the folder.
NAMES = ["a.jsonl", "shared.jsonl"]


def archives(store: StoreBuilder) -> list[str]:
    return sorted(name.split(".deleted.")[0] for name in store.names() if ".deleted." in name)


def live(store: StoreBuilder) -> list[str]:
    return sorted(name for name in store.names() if name.endswith(".jsonl"))


def delete(skill: Skill, session_id: str, **arguments: Any) -> dict[str, Any]:
    answer = skill("delete_session", {"session_id": session_id, **arguments})
    assert answer.exit_code == 0, answer.document
    return answer.document


def restore(skill: Skill, session_id: str) -> dict[str, Any]:
    answer = skill("restore_session", {"session_id": session_id})
    assert answer.exit_code == 0, answer.document
    return answer.document


def erase(skill: Skill, session_id: str) -> dict[str, Any]:
    answer = skill("erase_session", {"session_id": session_id, "confirm": session_id}, **ERASE)
    assert answer.exit_code == 0, answer.document
    return answer.document


def is_sound(skill: Skill) -> bool:
    return skill("verify_ledger").document["whole"] is True


@pytest.fixture(params=NAMES)
def shared(request: pytest.FixtureRequest, agents: Path) -> tuple[StoreBuilder, str]:
    """Two sessions of one agent that have one file."""
    store, name = StoreBuilder(agents), str(request.param)
    store.add("main", 1, "the-main")
    store.add("cron:a", 2 * DAYS, "a", transcript=False, sessionFile=name)
    store.add("cron:b", 2 * DAYS, "b", transcript=False, sessionFile=str(store.dir / name))
    store.write()
    store.transcript(name, "a", 1_700_000_000_000)
    return store, name


@pytest.fixture
def abroad(agents: Path) -> tuple[StoreBuilder, StoreBuilder]:
    """A session `a` of one agent, and a session `b` of another that has its file, too."""
    store, other = StoreBuilder(agents), StoreBuilder(agents, "other")
    store.add("main", 1, "the-main")
    store.add("cron:a", 2 * DAYS, "a")
    store.write()
    other.add("cron:b", 2 * DAYS, "b", transcript=False, sessionFile="../../main/sessions/a.jsonl")
    other.write()
    return store, other


@pytest.mark.parametrize("order", ["ab", "ba", "run"])
@pytest.mark.parametrize("first", ["a", "b"])
def test_whoever_comes_back_has_the_file_and_the_other_can_follow(
    shared: tuple[StoreBuilder, str], skill: Skill, order: str, first: str
) -> None:
    store, name = shared
    entries, content = store.read(), (store.dir / name).read_bytes()
    second = "b" if first == "a" else "a"
    if order == "run":
        assert sorted(skill("prune_sessions").document["deleted_ids"]) == ["a", "b"]
    else:
        assert delete(skill, order[0])["transcript_archived"] is False
        assert delete(skill, order[1])["transcript_archived"] is True
    assert archives(store) == [name]
    assert restore(skill, first)["restored_files"] == [name]
    assert (store.dir / name).read_bytes() == content
    assert all(row["restorable"] for row in skill("list_deleted").document["deleted"] if row["state"] == "removed")
    assert restore(skill, second)["restored_files"] == []
    assert (store.read(), live(store), archives(store)) == (entries, sorted([name, "the-main.jsonl"]), [])
    assert is_sound(skill)


def test_it_goes_and_comes_as_often_as_one_likes(shared: tuple[StoreBuilder, str], skill: Skill) -> None:
    store, name = shared
    content = (store.dir / name).read_bytes()
    delete(skill, "a")
    delete(skill, "b")
    for session_id in ("a", "b", "a", "b"):
        assert restore(skill, session_id)["restored_files"] == [name]
        assert (store.dir / name).read_bytes() == content
        assert delete(skill, session_id)["transcript_archived"] is True
    second = [p for p in (store.dir.parents[1] / ".session_manager" / "archives").rglob("*") if p.is_file()]
    assert [p.name.split(".deleted.")[0] for p in second] == [name]
    assert is_sound(skill)


@pytest.mark.parametrize("holder", ["a", "b"])
def test_a_whole_run_comes_back_though_another_holds_the_file(
    shared: tuple[StoreBuilder, str], skill: Skill, holder: str
) -> None:
    store, name = shared
    runs = {i: delete(skill, i)["run_id"] for i in ("ab" if holder == "b" else "ba")}
    for session_id in "ab" if holder == "b" else "ba":
        assert skill("restore_run", {"run_id": runs[session_id]}).exit_code == 0
        assert name in store.names()
    assert len(store.read()) == 3


@pytest.mark.parametrize("reaped", [False, True])
def test_the_file_comes_back_by_its_second_name(shared: tuple[StoreBuilder, str], skill: Skill, reaped: bool) -> None:
    """A gateway deletes archives in the sessions folder after a day."""
    store, name = shared
    content = (store.dir / name).read_bytes()
    delete(skill, "a")
    delete(skill, "b")
    for path in store.dir.glob("*.deleted.*"):
        path.unlink()
    assert restore(skill, "a")["restored_files"] == [name]
    if reaped:
        delete(skill, "a")
        for path in store.dir.glob("*.deleted.*"):
            path.unlink()
    assert restore(skill, "b")["restored_files"] == ([name] if reaped else [])
    assert (store.dir / name).read_bytes() == content


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize("erased", ["a", "b"])
def test_an_erasure_spares_what_can_still_be_taken_back(
    shared: tuple[StoreBuilder, str], skill: Skill, order: str, erased: str
) -> None:
    store, name = shared
    content = (store.dir / name).read_bytes()
    for session_id in order:
        delete(skill, session_id)
    document = erase(skill, erased)
    other = "b" if erased == "a" else "a"
    spared = [row["place"] for row in document["not_reached"] if "belongs to a session" in row["reason"]]
    assert [place.split(".deleted.")[0] for place in spared] == [f"main/sessions/{name}"]
    assert archives(store) == [name]
    assert restore(skill, other)["restored_files"] == [name]
    assert (store.dir / name).read_bytes() == content
    # Now it is only the other's: whoever goes last takes it along.
    erase(skill, other)
    assert (live(store), archives(store)) == (["the-main.jsonl"], [])
    assert is_sound(skill)


@pytest.mark.parametrize("erased", ["a", "b"])
def test_an_erasure_spares_what_a_living_entry_names(
    shared: tuple[StoreBuilder, str], skill: Skill, erased: str
) -> None:
    store, name = shared
    other = "b" if erased == "a" else "a"
    delete(skill, other)
    delete(skill, erased)
    restore(skill, other)
    erase(skill, erased)
    assert name in store.names()
    assert [entry["sessionId"] for entry in store.read().values()] == ["the-main", other]


def test_an_erasure_spares_what_an_older_removal_took_from_a_living_entry(
    shared: tuple[StoreBuilder, str], skill: Skill
) -> None:
    store, name = shared
    delete(skill, "a")
    entries = store.entries
    delete(skill, "b")
    # A version before this one brought the entry back, and not the file.
    store.replace({key: entry for key, entry in entries.items() if entry["sessionId"] != "b"})
    document = erase(skill, "b")
    assert archives(store) == [name]
    assert any(row["place"].startswith(f"main/sessions/{name}") for row in document["not_reached"])


# In another agent's folder.


@pytest.mark.parametrize("order", ["ab", "ba", "run"])
@pytest.mark.parametrize("first", ["a", "b"])
def test_a_file_of_another_agent_goes_with_the_last_and_comes_with_the_first(
    abroad: tuple[StoreBuilder, StoreBuilder], skill: Skill, order: str, first: str
) -> None:
    store, other = abroad
    texts, content = (store.index.read_bytes(), other.index.read_bytes()), (store.dir / "a.jsonl").read_bytes()
    if order == "run":
        document = skill("prune_sessions").document
        assert sorted(document["deleted_ids"]) == ["a", "b"]
        assert "left_alone" not in document
    else:
        gone = delete(skill, order[0])
        assert gone["transcript_archived"] is False
        assert ("left_alone" in gone) == (order == "ba")
        gone = delete(skill, order[1])
        assert gone["transcript_archived"] is True
        assert [name.split(".deleted.")[0] for name in gone["archived_files"]] == ["a.jsonl"]
        assert "left_alone" not in gone
    assert archives(store) == ["a.jsonl"]
    assert skill("cleanup_orphans").document["classes"]["true_orphan"]["count"] == 0
    restore(skill, first)
    assert (store.dir / "a.jsonl").read_bytes() == content
    restore(skill, "b" if first == "a" else "a")
    assert (store.index.read_bytes(), other.index.read_bytes()) == texts
    assert (live(store), archives(store)) == (["a.jsonl", "the-main.jsonl"], [])
    assert is_sound(skill)


def test_what_was_never_the_other_agents_is_left_alone(abroad: tuple[StoreBuilder, StoreBuilder], skill: Skill) -> None:
    store, _ = abroad
    del store.entries["agent:main:cron:a"]
    store.write()
    document = delete(skill, "b")
    assert (document["transcript_archived"], document["left_alone"]) == (False, ["../../main/sessions/a.jsonl"])
    assert "a.jsonl" in store.names()


def test_what_a_third_agent_names_stays(abroad: tuple[StoreBuilder, StoreBuilder], agents: Path, skill: Skill) -> None:
    store, _ = abroad
    third = StoreBuilder(agents, "third")
    third.add("cron:c", 2 * DAYS, "c", transcript=False, sessionFile=str(store.dir / "a.jsonl"))
    third.write()
    delete(skill, "a")
    assert delete(skill, "b")["transcript_archived"] is False
    assert "a.jsonl" in store.names()
    # Nobody knows what an index that cannot be read names.
    third.index.write_text("{")
    other = StoreBuilder(agents, "fourth")
    other.add("cron:d", 2 * DAYS, "d", transcript=False, sessionFile=str(store.dir / "a.jsonl"))
    other.write()
    answer = skill("delete_session", {"session_id": "d"})
    assert (answer.exit_code, "a.jsonl" in store.names()) == (3, True)
    third.write()
    assert delete(skill, "c")["transcript_archived"] is True
    for session_id in "bca":
        restore(skill, session_id)
        assert live(store) == ["a.jsonl", "the-main.jsonl"]


@pytest.mark.parametrize("order", ["ab", "ba"])
@pytest.mark.parametrize("erased", ["a", "b"])
def test_an_erasure_spares_what_another_agents_session_can_come_back_to(
    abroad: tuple[StoreBuilder, StoreBuilder], skill: Skill, order: str, erased: str
) -> None:
    store, _ = abroad
    for session_id in order:
        delete(skill, session_id)
    spared = [row["place"] for row in erase(skill, erased)["not_reached"] if "belongs to a session" in row["reason"]]
    assert [place.split(".deleted.")[0] for place in spared] == ["main/sessions/a.jsonl"]
    assert archives(store) == ["a.jsonl"]
    other = "b" if erased == "a" else "a"
    restore(skill, other)
    assert live(store) == ["a.jsonl", "the-main.jsonl"]
    erase(skill, other)
    assert (live(store), archives(store)) == (["the-main.jsonl"], [])
    assert is_sound(skill)


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_what_the_last_session_to_be_erased_has_abroad_is_erased(
    abroad: tuple[StoreBuilder, StoreBuilder], skill: Skill, order: str
) -> None:
    store, other = abroad
    erase(skill, order[0])
    assert live(store) == ["a.jsonl", "the-main.jsonl"]
    document = erase(skill, order[1])
    assert (live(store), archives(store)) == (["the-main.jsonl"], [])
    assert "main" in document["receipt"]["agents"]
    assert other.read() == {}


@pytest.mark.parametrize(
    ("function", "session_id", "gone"), [("delete_session", "b", "a"), ("restore_session", "b", "ab"),
                                         ("restore_session", "a", "ab"), ("erase_session", "a", "ab")]
)  # fmt: skip
def test_a_call_that_is_killed_anywhere_leaves_the_file_with_somebody(
    fork: Forks,
    abroad: tuple[StoreBuilder, StoreBuilder],
    skill: Skill,
    function: str,
    session_id: str,
    gone: str,
) -> None:
    """Killed after each step of the ways there and back, the conversation comes back to whoever is restored."""
    store, other = abroad
    content, number = (store.dir / "a.jsonl").read_bytes(), 0
    arguments = {"session_id": session_id} | ({"confirm": session_id} if function == "erase_session" else {})
    while True:
        number += 1
        for name in gone:
            delete(skill, name)
        call = fork(function, arguments, kill_at=number, **ERASE)
        if not call.killed:
            break
        skill("prune_sessions", {"max_age_minutes": 9 * DAYS})
        for name in "b" if function == "erase_session" else "ba":
            restore(skill, name)
            assert (store.dir / "a.jsonl").read_bytes() == content, call.steps
        if function == "erase_session":
            store.write()
        assert (archives(store), len(other.read())) == ([], 1), call.steps
        assert is_sound(skill)
    assert number > 5
