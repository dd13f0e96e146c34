"""A wrong clock: nothing goes for good because of it, and a ledger that was only left alone goes on dropping."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_aria import SmallAria
from support import CLOSED_API, Skill, StoreBuilder, ledger_sql, now_ms, picture
from test_faults import Call, in_process

from session_manager.archives.names import archive_timestamp
from session_manager.files import liveness

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
QUIET = ("prune_sessions", {"max_age_minutes": 10**7})
PURGE = {"dry_run": False}
At = Callable[..., Call]


@pytest.fixture
def at(agents: Path, monkeypatch: pytest.MonkeyPatch) -> At:
    """Makes a call under a clock that is so many days ahead of ours."""

    def call(
        days: float, function: str = QUIET[0], arguments: dict[str, Any] | None = None, url: str = CLOSED_API
    ) -> Call:
        real = time.time_ns
        with monkeypatch.context() as patch:
            patch.setattr(liveness.time, "time_ns", lambda: real() + int(days * DAY_MS) * 1_000_000)
            return in_process(agents, function, QUIET[1] if arguments is None else arguments, url)

    return call


@pytest.fixture
def store(agents: Path) -> StoreBuilder:
    """Three old sessions; the first is removed."""
    store = StoreBuilder(agents)
    for number in range(3):
        store.add(f"cron:job-{number}", 200, f"s{number}")
    store.write()
    assert in_process(agents, "delete_session", {"session_id": "s0"}).exit_code == 0
    return store


def entries(agents: Path) -> int:
    return int(ledger_sql(agents, "SELECT count(*) FROM chunks")[0][0])


def second_names(agents: Path) -> set[str]:
    found = (p.name for p in (agents / ".session_manager" / "archives").rglob("*") if p.is_file())
    return {name.partition(".jsonl")[0] for name in found}


def assert_kept(agents: Path, *sessions: str) -> None:
    assert entries(agents) == len(sessions)
    assert second_names(agents) == set(sessions)


# --- ahead ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [2, 8, 400, 3650])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [QUIET, ("delete_session", {"session_id": "s1"}), ("restore_session", {"session_id": "s0"})],
)
def test_one_call_under_a_clock_far_ahead_drops_nothing_and_says_so(
    agents: Path, store: StoreBuilder, at: At, days: float, function: str, arguments: dict[str, Any]
) -> None:
    document = at(days, function, arguments).document
    assert document["clock_ahead"]["last_entry"] < document["clock_ahead"]["now"]
    assert f"{days} days after the ledger's last entry" in document["clock_ahead"]["note"]
    if function == "restore_session":
        return
    assert_kept(agents, *(["s0", "s1"] if function == "delete_session" else ["s0"]))
    later = at(0)
    assert "clock_ahead" not in later.document
    assert in_process(agents, "restore_session", {"session_id": "s0"}).exit_code == 0


def test_nor_do_the_calls_after_it_until_it_has_gone_on_for_a_day(agents: Path, store: StoreBuilder, at: At) -> None:
    for hours in (0, 1, 5, 9, 13, 17, 21):
        document = at(400 + hours / 24).document
        assert ("clock_ahead" in document) == (hours == 0)
        assert_kept(agents, "s0")
    # The gateway does not tell a wrong clock from a right one either.
    at(400 + 30 / 24)
    assert_kept(agents)


def test_two_jumps_are_not_believed_sooner_than_one(agents: Path, store: StoreBuilder, at: At) -> None:
    for days in (8, 400):
        at(days, "delete_session", {"session_id": "s1" if days == 8 else "s2"})
        assert_kept(agents, *(["s0", "s1"] if days == 8 else ["s0", "s1", "s2"]))


def test_two_machines_of_which_one_is_wrong(agents: Path, store: StoreBuilder, at: At) -> None:
    for number in range(40):
        at(400 if number % 2 else number / 24 / 4)
        assert_kept(agents, "s0")


def test_what_was_removed_under_a_clock_ahead_stays_as_long_as_what_came_after_it(
    agents: Path, store: StoreBuilder, at: At
) -> None:
    at(400, "delete_session", {"session_id": "s1"})
    assert_kept(agents, "s0", "s1")
    for day in range(1, 7):
        at(day)
    at(6.5, "delete_session", {"session_id": "s2"})
    assert entries(agents) == 3
    for day in range(7, 10):
        at(day + 0.1)
    assert (entries(agents), second_names(agents)) == (2, {"s1", "s2"})
    for day in range(10, 15):
        at(day + 0.1)
    assert entries(agents) == 0


def test_no_mark_is_given_up_because_of_the_clock(agents: Path, store: StoreBuilder, at: At, aria: SmallAria) -> None:
    """History has no row of the session yet: the mark is tried for some days, and those must have passed."""
    assert at(0, "deliver_history", {}, url=aria.url).document["pending"] == 1
    assert at(400, "deliver_history", {}, url=aria.url).document["pending"] == 1
    for day in range(1, 9):
        at(day)
    assert at(9, "deliver_history", {}, url=aria.url).document["pending"] == 0


# --- behind ---------------------------------------------------------------------------------------------------------


def test_a_call_under_a_clock_far_behind_makes_nothing_old(agents: Path, store: StoreBuilder, at: At) -> None:
    at(-5000, "delete_session", {"session_id": "s1"})
    for hours in (0, 1, 2):
        at(hours / 24)
        assert_kept(agents, "s0", "s1")
    for day in range(1, 6):
        at(day)
        assert_kept(agents, "s0", "s1")
    assert in_process(agents, "restore_session", {"session_id": "s1"}).exit_code == 0


# --- right ----------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_right_drops_after_the_keeping_time(agents: Path, store: StoreBuilder, at: At) -> None:
    for day in range(1, 7):
        assert "clock_ahead" not in at(day).document
        assert_kept(agents, "s0")
    at(7.01)
    assert_kept(agents)


def test_daily_calls_that_come_late_are_no_jump(agents: Path, store: StoreBuilder, at: At) -> None:
    for day in range(1, 7):
        assert "clock_ahead" not in at(day + day * 0.02).document
    at(7.14)
    assert_kept(agents)


def test_a_ledger_that_lay_unused_for_a_month_goes_on_after_a_day_of_use(
    agents: Path, store: StoreBuilder, at: At
) -> None:
    assert "30 days" in at(30).document["clock_ahead"]["note"]
    assert_kept(agents, "s0")
    for hours in (8, 16):
        at(30 + hours / 24)
        assert_kept(agents, "s0")
    at(31.01)
    assert_kept(agents)


def test_a_ledger_used_once_a_week_is_not_kept_from_dropping_for_ever(
    agents: Path, store: StoreBuilder, at: At
) -> None:
    week = 0
    while entries(agents) and week < 10:
        week += 1
        at(7 * week)
    assert (week, second_names(agents)) == (4, set())


def test_a_ledger_in_use_is_written_a_few_times_a_day_at_most(agents: Path, store: StoreBuilder, at: At) -> None:
    events = ledger_sql(agents, "SELECT count(*) FROM events")
    for minutes in range(0, 24 * 60, 30):
        at(minutes / 24 / 60)
    after = ledger_sql(agents, "SELECT count(*) FROM events")
    assert after[0][0] - events[0][0] == 2
    assert at(1, "verify_ledger", {}).document["whole"] is True


# --- purge ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_purge_under_a_clock_far_ahead_is_refused(agents: Path, store: StoreBuilder, at: At, dry_run: bool) -> None:
    before = picture(agents, without_state=False)
    answer = at(40, "purge_archives", {"dry_run": dry_run})
    assert (answer.exit_code, answer.document["code"]) == (4, "clock_ahead")
    assert "40 days after the ledger's last entry" in answer.document["error"]
    assert "force" in answer.document["error"]
    assert picture(agents, without_state=False) == before
    forced = at(40, "purge_archives", {"dry_run": dry_run, "force": True})
    assert (forced.exit_code, forced.document["removals"]) == (0, 1)


def test_a_purge_after_another_call_goes_by_the_time_before_the_jump(agents: Path, store: StoreBuilder, at: At) -> None:
    """The other call has written the ledger, and what is old by the wrong clock stays all the same."""
    old = store.dir / f"gone.jsonl.deleted.{archive_timestamp(now_ms() - 50 * DAY_MS)}"
    old.write_text("{}\n")
    at(400, "delete_session", {"session_id": "s1"})
    answer = at(400.01, "purge_archives", PURGE)
    assert answer.exit_code == 0
    assert [f["file"] for f in answer.document["files"]] == [old.name]
    assert_kept(agents, "s0", "s1")


def test_where_the_ledger_has_seen_nothing_the_files_are_what_the_clock_is_compared_with(agents: Path, at: At) -> None:
    store = StoreBuilder(agents)
    store.add("cron:young", 1, "young")
    store.write()
    theirs = store.dir / f"gone.jsonl.deleted.{archive_timestamp(now_ms() - 10 * DAY_MS)}"
    theirs.write_text("{}\n")
    answer = at(40, "purge_archives", PURGE)
    assert (answer.exit_code, answer.document["code"]) == (4, "clock_ahead")
    assert "the newest file" in answer.document["error"]
    assert theirs.exists()
    assert at(0, "purge_archives", PURGE).document["purged_count"] == 0
    assert at(0, "purge_archives", {**PURGE, "older_than_days": 5}).document["purged_count"] == 1


# --- the doctor -----------------------------------------------------------------------------------------------------


def check(call: Call) -> dict[str, Any]:
    (found,) = [c for c in call.document["checks"] if c["name"] == "clock"]
    return dict(found)


@pytest.mark.parametrize(
    ("days", "ok", "what"),
    [
        (0, True, "no jump"),
        (3, True, "3 days after the ledger's last entry"),
        (8, False, "8 days after the ledger's last entry"),
        (-3, False, "earlier than the ledger's last entry"),
    ],
)
def test_the_doctor_says_what_the_ledger_has_seen(
    agents: Path, store: StoreBuilder, at: At, days: float, ok: bool, what: str
) -> None:
    found = check(at(days, "doctor", {}))
    assert found["ok"] is ok
    assert what in found["what"]
    assert ok or "correct the clock" in found["advice"]


def test_the_doctor_says_that_ages_count_from_before_a_jump(agents: Path, store: StoreBuilder, at: At) -> None:
    at(400, "delete_session", {"session_id": "s1"})
    found = check(at(400, "doctor", {}))
    assert found["ok"] is True
    assert "jumped ahead" in found["what"]


def test_people_are_told(agents: Path, store: StoreBuilder, skill: Skill) -> None:
    from service import cli

    ledger_sql(agents, "UPDATE events SET at = at - ?", 40 * DAY_MS)
    done = cli("purge", "--older-than", "30d", "--dry-run", ARIA_AGENTS_DIR=str(agents), ARIA_API_URL="")
    assert done.returncode == 4
    assert "40 days after" in done.stderr
    done = cli("purge", "--older-than", "30d", "--dry-run", "--force", ARIA_AGENTS_DIR=str(agents), ARIA_API_URL="")
    assert done.returncode == 0
    done = cli("prune", "--older-than", "52w", "--yes", ARIA_AGENTS_DIR=str(agents), ARIA_API_URL="")
    assert "40 days after the ledger's last entry" in done.stderr
