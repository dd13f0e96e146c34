"""A session that is named not quite as it is: by the end of its key, in another case, in quotes."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import Skill, StoreBuilder, picture

from session_manager.functions.naming import alike, hint, meant

CHILD = "1b2c3d4e-0000-4000-8000-00000000000a"
KEY = f"agent:main:subagent:{CHILD}"
CLEANUP = "cleanup_after_delegation"
SPELLINGS = [KEY.upper(), f"  {KEY} ", f'"{KEY}"', f"`{KEY}`", f"\u201c{KEY}\u201d", f" '{KEY.title()}' "]


@pytest.fixture
def store(agents: Path) -> StoreBuilder:
    store = StoreBuilder(agents)
    store.add("main", 1, "the-main")
    store.add(f"subagent:{CHILD}", 120, "child")
    store.add("cron:daily", 120, "report")
    return store.write()


@pytest.mark.parametrize("named", SPELLINGS)
def test_a_key_is_understood_in_any_case_and_in_quotes(store: StoreBuilder, skill: Skill, named: str) -> None:
    given = {"session_id": named}
    before = store.read()
    assert [live["id"] for live in skill("show_session", given).document["live"]] == ["child"]
    assert skill("restore_session", given).document["already_live"] is True
    for function in ("delete_session", CLEANUP):
        gone = skill(function, given).document
        assert (gone["deleted"], gone["removed_keys"]) == ("child", [KEY])
        again = skill(function, given)
        assert (again.exit_code, again.document["deleted"], again.document["already_deleted"]) == (0, "child", True)
        assert [row["id"] for row in skill("show_session", given).document["removed"]][:1] == ["child"]
        assert skill("restore_session", given).document["restored"] == "child"
        assert store.read() == before


@pytest.mark.parametrize("named", [CHILD, CHILD.upper(), f"subagent:{CHILD}", f'"{CHILD}"'])
def test_a_delegation_may_be_named_by_the_end_of_its_key(store: StoreBuilder, skill: Skill, named: str) -> None:
    first = skill(CLEANUP, {"session_id": named})
    assert (first.exit_code, first.document["deleted"]) == (0, "child")
    assert first.document["removed_keys"] == [KEY]
    second = skill(CLEANUP, {"session_id": named})
    assert (second.exit_code, second.document["deleted"], second.document["already_deleted"]) == (0, "child", True)


@pytest.mark.parametrize("function", ["delete_session", "show_session"])
def test_elsewhere_the_one_key_that_ends_so_is_named(store: StoreBuilder, skill: Skill, function: str) -> None:
    before = picture(store.dir)
    answer = skill(function, {"session_id": CHILD})
    assert (answer.exit_code, answer.document["code"]) == (5, "session_not_found")
    assert KEY in answer.document["error"]
    assert picture(store.dir) == before
    skill("delete_session", {"session_id": KEY})
    for name in (function, "restore_session"):
        assert KEY in skill(name, {"session_id": CHILD}).document["error"]


@pytest.mark.parametrize("named", ["daily", "main", "cron:daily", "main:main"])
def test_the_end_of_any_other_key_is_only_named(store: StoreBuilder, skill: Skill, named: str) -> None:
    before = picture(store.dir)
    answer = skill(CLEANUP, {"session_id": named, "force": True})
    assert (answer.exit_code, answer.document["code"]) == (5, "session_not_found")
    assert f":{named}'" in answer.document["error"]
    assert picture(store.dir) == before


def test_of_two_that_end_so_none_goes(agents: Path, store: StoreBuilder, skill: Skill) -> None:
    other = StoreBuilder(agents, "other")
    other.add(f"subagent:{CHILD}", 120, "another")
    other.write()
    answer = skill(CLEANUP, {"session_id": CHILD})
    assert answer.document["code"] == "session_not_found"
    assert KEY in answer.document["error"]
    assert f"agent:other:subagent:{CHILD}" in answer.document["error"]
    assert skill(CLEANUP, {"session_id": CHILD, "agent": "other"}).document["deleted"] == "another"


def test_a_key_as_it_is_wins_over_one_in_another_case(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    for name in ("Ann", "ann"):
        store.add(f"direct:{name}", 120, f"talk-{name}")
    store.write()
    unclear = skill("delete_session", {"session_id": "agent:main:direct:ANN"})
    assert unclear.document["code"] == "session_not_found"
    assert "direct:Ann" in unclear.document["error"]
    assert "direct:ann" in unclear.document["error"]
    assert skill("delete_session", {"session_id": "agent:main:direct:ann"}).document["deleted"] == "talk-ann"


def test_the_caller_is_protected_by_whatever_name(store: StoreBuilder, skill: Skill) -> None:
    for named in (CHILD, KEY.upper(), "' child '"):
        answer = skill(CLEANUP, {"session_id": named, "force": True}, ARIA_SESSION_ID="child")
        assert (answer.exit_code, answer.document["reason"]) == (4, "current")


def test_what_is_meant_and_what_is_named() -> None:
    keys = ["agent:a:cron:x", "agent:a:x", f"agent:a:subagent:{CHILD}"]
    assert alike("X", keys) == ["agent:a:cron:x", "agent:a:x"]
    assert meant("x", keys, by_end=True) == "x"
    assert meant("subagent:x", [*keys, "agent:a:subagent:x"], by_end=True) == "subagent:x"
    assert meant(CHILD, keys) == CHILD
    assert meant(CHILD, keys, by_end=True) == keys[2]
    assert meant(CHILD, ["cron:" + CHILD], by_end=True) == CHILD
    assert hint("y", keys) == ""
    assert hint("z", [f"{n}:z" for n in "abcde"]) == "; keys that end so: 'a:z', 'b:z', 'c:z' and 2 more"
