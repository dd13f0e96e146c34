"""The mission's example store through the real runner: list, stats, dry run, prune, delete agree."""

from __future__ import annotations

from pathlib import Path

from support import Skill, picture


def test_the_example_is_listed_counted_and_pruned(sixteen: Path, skill: Skill) -> None:
    listed = skill("list_sessions").document
    assert listed["session_count"] == len(listed["sessions"]) == 16
    assert listed["sessions"][0]["key"] == "agent:main:main"
    times = [s["updatedAt"] for s in listed["sessions"]]
    assert times == sorted(times, reverse=True)

    stats = skill("get_session_stats").document
    assert (stats["total_sessions"], stats["stale_sessions"], stats["active_sessions"]) == (16, 14, 2)
    assert stats["by_agent"] == {"main": 10, "analyst": 3, "aria-talk": 2, "aria-memeothy": 1}
    assert stats["prunable_sessions"] == 14

    before = picture(sixteen, without_state=False)
    preview = skill("prune_sessions", {"max_age_minutes": 60, "dry_run": True}).document
    assert picture(sixteen, without_state=False) == before
    pruned = skill("prune_sessions", {"max_age_minutes": 60}).document
    assert pruned["deleted_ids"] == preview["deleted_ids"]
    assert (pruned["total_sessions"], pruned["pruned_count"], pruned["kept_count"]) == (16, 14, 2)
    assert pruned["errors"] == []
    assert pruned["threshold_minutes"] == 60

    assert skill("list_sessions").document["session_count"] == 2
    assert skill("get_session_stats").document["pending_history_marks"] == 14
