"""Families: a sub-agent and its descendants live and age together; whoever spawned the first is no member."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from session_manager.core.families import families
from session_manager.core.retention import Policy, decide
from session_manager.core.session import Entry, Session, build_sessions

NOW = 1_771_180_200_000
OLD = NOW - 7_200_000
YOUNG = NOW - 60_000


def sessions(entries: dict[str, Any], agent: str = "main") -> list[Session]:
    """Builds one session for each ``rest of key -> fields``; its id is the rest, its parent key ``by``."""
    rows = []
    for rest, fields in entries.items():
        given = {"sessionId": rest.replace(":", "-"), "updatedAt": OLD, **fields}
        rows.append((f"agent:{agent}:{rest}", msgspec.convert({**given, "spawnedBy": given.pop("by", None)}, Entry)))
    return build_sessions(agent, rows, NOW)


def groups(found: list[Session]) -> list[set[str]]:
    return [{found[i].id for i in group} for group in families(found)]


def outcome(found: list[Session], current: set[str] | None = None, kin: list[Session] | None = None) -> dict[str, str]:
    """Session id -> "gone", the reason to keep it, or "young"."""
    decided = decide(found, Policy(60), NOW, current or set(), kin or [])
    return {d.session.id: "gone" if d.prune else d.reason or "young" for d in decided}


CHAIN = {
    "main": {},
    "subagent:a": {"by": "agent:main:main"},
    "subagent:b": {"by": "agent:main:subagent:a"},
    "hook:c": {"by": "agent:main:subagent:b"},
}


def test_a_family_is_a_sub_agent_with_its_descendants() -> None:
    assert groups(sessions(CHAIN)) == [{"subagent-a", "subagent-b", "hook-c"}]


def test_the_spawner_is_never_a_member() -> None:
    for spawner in ("main", "cron:job", "direct:alice", "home"):
        found = sessions({spawner: {}, "subagent:a": {"by": f"agent:main:{spawner}"}})
        assert groups(found) == []
    two = sessions(
        {"cron:job": {}, "subagent:a": {"by": "agent:main:cron:job"}, "subagent:b": {"by": "agent:main:cron:job"}}
    )
    assert groups(two) == []


def test_a_young_spawner_does_not_keep_its_sub_agents() -> None:
    found = sessions({"cron:job": {"updatedAt": YOUNG}, "subagent:a": {"by": "agent:main:cron:job"}})
    assert outcome(found) == {"cron-job": "young", "subagent-a": "gone"}


def test_a_family_ages_by_its_youngest_member() -> None:
    for youngest in ("subagent:a", "subagent:b", "hook:c"):
        found = sessions({**CHAIN, youngest: {**CHAIN[youngest], "updatedAt": YOUNG}})
        expected = {"main": "main", "subagent-a": "family", "subagent-b": "family", "hook-c": "family"}
        assert outcome(found) == {**expected, youngest.replace(":", "-"): "young"}
    assert outcome(sessions(CHAIN)) == {"main": "main", "subagent-a": "gone", "subagent-b": "gone", "hook-c": "gone"}


def test_the_transcript_keeps_the_family_too() -> None:
    found = sessions(CHAIN)
    found[3].transcript_activity = YOUNG
    assert outcome(found)["subagent-a"] == "family"


def test_a_busy_or_calling_member_keeps_the_whole_family() -> None:
    for i, name in ((1, "subagent-a"), (3, "hook-c")):
        others = {"subagent-a", "subagent-b", "hook-c"} - {name}
        busy = sessions(CHAIN)
        busy[i].busy = True
        assert outcome(busy) == {"main": "main", name: "busy", **dict.fromkeys(others, "family")}
        calling = outcome(sessions(CHAIN), {name})
        assert calling == {"main": "main", name: "current", **dict.fromkeys(others, "family")}


def test_a_member_of_unknown_age_keeps_its_family() -> None:
    found = sessions({**CHAIN, "subagent:b": {"by": "agent:main:subagent:a", "updatedAt": None}})
    assert outcome(found) == {"main": "main", "subagent-a": "family", "subagent-b": "unknown age", "hook-c": "family"}


def test_strangers_are_not_kept_by_a_family() -> None:
    found = sessions({**CHAIN, "subagent:b": {"by": "agent:main:subagent:a", "updatedAt": YOUNG}, "subagent:z": {}})
    assert outcome(found)["subagent-z"] == "gone"


def test_a_nested_key_is_a_parent_without_being_said() -> None:
    found = sessions({"subagent:a": {}, "subagent:a:subagent:b": {"updatedAt": YOUNG}, "subagent:ab": {}})
    assert outcome(found) == {"subagent-a": "family", "subagent-a-subagent-b": "young", "subagent-ab": "gone"}


def test_the_parent_may_be_named_in_either_field() -> None:
    found = sessions({"subagent:a": {}, "acp:b": {"parentSessionKey": "agent:main:subagent:a", "updatedAt": YOUNG}})
    assert outcome(found) == {"subagent-a": "family", "acp-b": "young"}


def test_two_parents_join_their_families() -> None:
    both = {"by": "agent:main:subagent:a", "parentSessionKey": "agent:main:subagent:b"}
    assert groups(sessions({"subagent:a": {}, "subagent:b": {}, "acp:c": both})) == [
        {"subagent-a", "subagent-b", "acp-c"}
    ]


def test_relatives_of_other_agents_count_and_are_not_decided() -> None:
    mine = sessions({"subagent:a": {}})
    child = sessions({"subagent:b": {"by": "agent:main:subagent:a", "updatedAt": YOUNG}}, "other")
    assert outcome(mine) == {"subagent-a": "gone"}
    assert outcome(mine, kin=child) == {"subagent-a": "family"}
    assert outcome(child, kin=mine) == {"subagent-b": "young"}


def test_cycles_do_no_harm() -> None:
    ring = {
        "subagent:a": {"by": "agent:main:subagent:c"},
        "subagent:b": {"by": "agent:main:subagent:a"},
        "subagent:c": {"by": "agent:main:subagent:b"},
    }
    assert groups(sessions(ring)) == [{"subagent-a", "subagent-b", "subagent-c"}]
    assert set(outcome(sessions(ring)).values()) == {"gone"}
    ring["subagent:b"]["updatedAt"] = YOUNG  # type: ignore[assignment]
    assert outcome(sessions(ring)) == {"subagent-a": "family", "subagent-b": "young", "subagent-c": "family"}
    selfish = sessions({"subagent:a": {"by": "agent:main:subagent:a"}})
    assert groups(selfish) == []


@given(
    st.lists(
        st.tuples(st.sampled_from(["subagent", "cron", "acp"]), st.integers(0, 7), st.booleans()),
        min_size=1,
        max_size=8,
    )
)
def test_any_graph_ends_in_disjoint_groups_around_sub_agents(nodes: list[tuple[str, int, bool]]) -> None:
    names = [f"{kind}:{i}" for i, (kind, _, _) in enumerate(nodes)]
    entries = {
        name: {"by": f"agent:main:{names[parent % len(names)]}"} if has_parent else {}
        for name, (_, parent, has_parent) in zip(names, nodes, strict=True)
    }
    found = sessions(entries)
    grouped = families(found)
    flat = [i for group in grouped for i in group]
    assert len(flat) == len(set(flat))
    for group in grouped:
        assert len(group) > 1
        assert any("subagent" in found[i].kinds for i in group)
    # Parent and child are together exactly when the parent is a sub-agent or somebody's descendant.
    for i, session in enumerate(found):
        for j, other in enumerate(found):
            if i != j and "subagent" in session.kinds and session.key in other.parents:
                assert any(i in group and j in group for group in grouped)
