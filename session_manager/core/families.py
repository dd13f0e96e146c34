"""Families: a sub-agent and its descendants, which live and age together."""

from __future__ import annotations

from collections.abc import Sequence

from session_manager.core.session import Session


def families(sessions: Sequence[Session]) -> list[list[int]]:
    """Groups sub-agents with their descendants: lists of two or more indexes into ``sessions``.

    The session that spawned the first sub-agent of a family is no member, unless it is one itself.
    Cycles in the data do no harm.
    """
    if not any("subagent" in s.kinds for s in sessions):
        return []
    by_key = {key: i for i, s in enumerate(sessions) for key in s.keys}
    parents = [[by_key[p] for p in s.parents if p in by_key and by_key[p] != i] for i, s in enumerate(sessions)]
    members = _members(sessions, parents)
    leader = list(range(len(sessions)))

    def find(i: int) -> int:
        while leader[i] != i:
            leader[i] = leader[leader[i]]
            i = leader[i]
        return i

    for child, above in enumerate(parents):
        for parent in above:
            if parent in members:
                leader[find(child)] = find(parent)
    groups: dict[int, list[int]] = {}
    for i in members:
        groups.setdefault(find(i), []).append(i)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def _members(sessions: Sequence[Session], parents: Sequence[Sequence[int]]) -> set[int]:
    children: dict[int, list[int]] = {}
    for child, above in enumerate(parents):
        for parent in above:
            children.setdefault(parent, []).append(child)
    members = {i for i, s in enumerate(sessions) if "subagent" in s.kinds}
    waiting = list(members)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in members:
                members.add(child)
                waiting.append(child)
    return members
