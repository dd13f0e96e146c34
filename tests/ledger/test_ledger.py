"""The ledger: taken over from an older format, whole or broken, shared by many, and asked afterwards."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from pathlib import Path

import pytest
from small_aria import SmallAria
from support import ROOT, Skill, StoreBuilder, ledger_sql, now_ms, picture

from session_manager.archives.work import Work
from session_manager.ledger import Facts, Ledger, Removal, start_run
from session_manager.ledger.entries import CHUNK_BYTES
from session_manager.settings import Settings, read_settings

FORMAT_1 = (ROOT / "fixtures/ledger/format-1.sql").read_text()
LONG = "36500"


def ledger_file(agents: Path) -> Path:
    return agents / ".session_manager" / "ledger.sqlite"


def change(agents: Path, sql: str, *values: object) -> int:
    connection = sqlite3.connect(ledger_file(agents))
    with connection:
        count = connection.execute(sql, values).rowcount
    connection.close()
    return count


def settings_of(agents: Path, **environment: str) -> Settings:
    return read_settings({"ARIA_AGENTS_DIR": str(agents), **environment})


def opened(agents: Path) -> Ledger:
    ledger = Ledger.open_existing(settings_of(agents))
    assert ledger is not None
    return ledger


def build(agents: Path, count: int = 3) -> StoreBuilder:
    store = StoreBuilder(agents)
    for number in range(count):
        store.add(f"cron:job-{number}", 100 + number, f"s{number}", label=f"job {number}", model="gpt-4o")
    store.add("cron:young", 1, "young")
    return store.write()


# --- taken over from format 1 ---------------------------------------------------------------------------------------


@pytest.fixture
def older(agents: Path) -> StoreBuilder:
    """A store whose ledger is of format 1: ``one``, ``two`` and ``three`` are gone, ``four`` was about to go."""
    store = StoreBuilder(agents)
    store.add("cron:four", 200, "four")
    store.add("cron:young", 1, "young")
    store.write()
    ledger_file(agents).parent.mkdir(mode=0o700)
    connection = sqlite3.connect(ledger_file(agents))
    connection.executescript(FORMAT_1)
    connection.execute("UPDATE attempts SET store_id = ?", (f"main:{store.dir.stat().st_ino}",))
    connection.commit()
    connection.close()
    return store


def test_a_ledger_of_format_1_is_taken_over_with_all_that_is_in_it(
    agents: Path, older: StoreBuilder, skill: Skill
) -> None:
    answer = skill("prune_sessions", {"max_age_minutes": 1_000_000}, ARIA_KEEP_DAYS=LONG)
    assert answer.exit_code == 0, answer.document
    assert [(r["finished"], r["undone"]) for r in answer.document["recovered"]] == [([], ["four"])]
    assert ledger_sql(agents, "PRAGMA user_version") == [(2,)]
    with opened(agents) as ledger:
        found = {r.session_id: r for r in ledger.removals()}
        members = ledger.members(found.values())
        pending = {(m.session_id, m.status) for m in ledger.pending()}
    assert set(found) == {"one", "two", "three"}
    assert found["one"].keys == ["agent:main:cron:one", "agent:main:cron:one:run:one"]
    assert [source for source, _ in found["one"].files] == ["one-topic-7.jsonl", "one.jsonl"]
    assert (found["one"].asked_by, found["one"].function) == ("planner", "delete_session")
    assert [token for token, _ in members[found["one"].removal_id]] == [
        b'"agent:main:cron:one"',
        b'"agent:main:cron:one:run:one"',
    ]
    entry = json.loads(bytes(members[found["one"].removal_id][0][1]))
    assert (entry["sessionId"], entry["totalTokens"]) == ("one", 5)
    assert len(json.loads(bytes(members[found["three"].removal_id][0][1]))["note"]) == 20_000
    assert found["one"].mark == ("ended", "delivered")
    assert pending == {("two", "ended"), ("three", "ended")}
    verdict = skill("verify_ledger").document
    assert (verdict["whole"], verdict["runs"], verdict["removals"]) == (True, 3, 4), verdict


def test_a_ledger_of_format_1_is_read_without_being_changed(agents: Path, older: StoreBuilder, skill: Skill) -> None:
    before = picture(agents, without_state=False)
    listed = skill("list_deleted").document
    assert {(r["id"], r["state"]) for r in listed["deleted"]} == {
        ("one", "removed"), ("two", "removed"), ("three", "removed"), ("four", "unfinished"),
    }  # fmt: skip
    assert skill("get_session_stats").document["pending_history_marks"] == 2
    assert skill("verify_ledger").document["whole"] is True
    assert picture(agents, without_state=False) == before


def test_a_migration_that_fails_changes_nothing(agents: Path, older: StoreBuilder, skill: Skill) -> None:
    change(agents, "UPDATE removals SET entries = x'00ff' WHERE session_id = 'three'")
    rows = ledger_sql(agents, "SELECT * FROM removals")
    before = picture(agents)
    answer = skill("prune_sessions")
    assert (answer.exit_code, answer.document["code"]) == (7, "ledger_damaged")
    assert ledger_sql(agents, "PRAGMA user_version") == [(1,)]
    assert ledger_sql(agents, "SELECT * FROM removals") == rows
    assert picture(agents) == before


# --- whole or broken ------------------------------------------------------------------------------------------------


def test_without_a_ledger_there_is_nothing_to_break(agents: Path, skill: Skill) -> None:
    before = picture(agents, without_state=False)
    document = skill("verify_ledger").document
    assert (document["whole"], document["runs"]) == (True, 0)
    assert skill("list_deleted").document == {"deleted_count": 0, "deleted": []}
    assert picture(agents, without_state=False) == before


def some_history(agents: Path, skill: Skill) -> None:
    """Two runs, one of two sessions; one session restored, one erased, one archive name changed on the way."""
    build(agents)
    assert skill("prune_sessions", {"limit": 2}).exit_code == 0
    assert skill("delete_session", {"session_id": "s0"}).exit_code == 0
    assert skill("restore_session", {"session_id": "s0"}, ARIA_AGENT_ID="planner").exit_code == 0
    run = start_run("erase_session", settings_of(agents, ARIA_AGENT_ID="planner"))
    with opened(agents) as ledger:
        rows = {r.session_id: r for r in ledger.removals()}
        erasing = ledger.intend_erasure(run, rows["s1"].store_id, "main", "s1", [])
        ledger.forget_session(erasing, "s1", {})
        ledger.finish_erasure(erasing)
        r = rows["s2"]
        ledger.note_files(Removal("s2", r.reason, r.keys, [], [("s2.jsonl", "elsewhere")], r.removal_id, r.facts))
    assert skill("verify_ledger").document["broken"] is None


COLUMNS = {
    "runs": ("run_id", "started_at", "function", "asked_by", "user", "host", "pid"),
    "attempts": (
        "attempt_id", "run_id", "store_id", "agent_id", "created_at", "state", "history", "temps", "expected", "kind",
        "restores",
    ),
    "removals": ("removal_id", "attempt_id", "session_id", "reason", "state", "changed_at", "details", "digest"),
    "events": ("seq", "at", "kind", "body", "hash"),
}  # fmt: skip


def test_every_column_is_sealed_or_known_not_to_be(agents: Path, skill: Skill) -> None:
    some_history(agents, skill)
    tables = {name for (name,) in ledger_sql(agents, "SELECT name FROM sqlite_master WHERE type = 'table'")}
    # Raw entries are dropped after some days, and marks are what remains to be done.
    assert tables - {"chunks", "marks"} == set(COLUMNS)
    for table, columns in COLUMNS.items():
        there = {row[1] for row in ledger_sql(agents, f"PRAGMA table_info({table})")}
        assert there - {"chunk_id", "start", "length"} == set(columns)


@pytest.mark.parametrize(("table", "column"), [(t, c) for t, columns in COLUMNS.items() for c in columns])
def test_a_changed_column_is_found(agents: Path, skill: Skill, table: str, column: str) -> None:
    some_history(agents, skill)
    whole = ledger_file(agents).read_bytes()
    values = ["'other'", "x'00'", "77", "NULL", f"{column} || 'x'"]
    rowids = [row for (row,) in ledger_sql(agents, f"SELECT rowid FROM {table}")]
    for rowid in rowids:
        for value in values:
            try:
                changed = change(
                    agents,
                    f"UPDATE {table} SET {column} = {value} WHERE rowid = {rowid} AND {column} IS NOT {value}",
                )
            except sqlite3.IntegrityError:
                continue
            if changed:
                answer = skill("verify_ledger")
                assert answer.exit_code == 0, answer.document
                assert answer.document["whole"] is False, (rowid, value)
                assert answer.document["broken"]["place"]
                assert answer.document["broken"]["reason"]
            ledger_file(agents).write_bytes(whole)
            if changed:
                break
        else:
            pytest.fail(f"nothing could be changed in {table}.{column}")


@pytest.mark.parametrize("table", COLUMNS)
def test_a_missing_row_is_found_and_blocks_nothing(agents: Path, skill: Skill, table: str) -> None:
    some_history(agents, skill)
    whole = ledger_file(agents).read_bytes()
    for (rowid,) in ledger_sql(agents, f"SELECT rowid FROM {table}"):
        change(agents, f"DELETE FROM {table} WHERE rowid = ?", rowid)
        verdict = skill("verify_ledger").document
        assert verdict["whole"] is False, rowid
        ledger_file(agents).write_bytes(whole)
    change(agents, f"DELETE FROM {table} WHERE rowid = (SELECT min(rowid) FROM {table})")
    store = StoreBuilder(agents)
    store.add("cron:later", 500, "later")
    store.write()
    answer = skill("prune_sessions")
    assert answer.exit_code == 0
    assert answer.document["deleted_ids"] == ["later"]
    assert skill("verify_ledger").document["whole"] is False


def test_the_verdict_names_the_run_and_the_first_break(agents: Path, skill: Skill) -> None:
    some_history(agents, skill)
    (run_id,) = ledger_sql(agents, "SELECT run_id FROM runs ORDER BY started_at LIMIT 1")[0]
    change(agents, "UPDATE runs SET asked_by = 'nobody' WHERE run_id = ?", run_id)
    broken = skill("verify_ledger").document["broken"]
    assert (broken["place"], broken["run_id"]) == (f"run {run_id}", run_id)
    change(agents, "UPDATE events SET at = at + 1 WHERE seq = 3")
    assert skill("verify_ledger").document["broken"]["place"] == "event 3"


def test_concurrent_runs_leave_one_unbroken_chain(agents: Path, skill: Skill) -> None:
    for agent in ("main", "other", "third"):
        store = StoreBuilder(agents, agent)
        for number in range(8):
            store.add(f"cron:j{number}", 100, f"{agent}-{number}")
        store.write()
    calls = [
        skill.start("delete_session", {"session_id": f"{agent}-{number}"}, ARIA_LOCK_TIMEOUT="60")
        for number in range(4)
        for agent in ("main", "other", "third")
    ]
    calls += [skill.start("prune_sessions", {"limit": 3}, ARIA_LOCK_TIMEOUT="60") for _ in range(3)]
    answers = [json.loads(call.communicate()[0]) for call in calls]
    assert [call.returncode for call in calls] == [0] * len(calls), answers
    verdict = skill("verify_ledger").document
    assert verdict["broken"] is None
    # A prune may have found nothing left.
    assert verdict["runs"] == len({a["run_id"] for a in answers} - {None})
    gone = {i for a in answers for i in a.get("deleted_ids", [a.get("deleted")])}
    assert len(gone) >= 12
    assert verdict["removals"] == len(gone)


# --- what it knows --------------------------------------------------------------------------------------------------


def test_a_run_that_changes_nothing_has_no_id_and_no_row(agents: Path, skill: Skill, aria: SmallAria) -> None:
    build(agents)
    document = skill("prune_sessions", {"max_age_minutes": 1_000_000}).document
    assert document["run_id"] is None
    assert not ledger_file(agents).exists()
    first = skill("delete_session", {"session_id": "s1"}).document
    assert first["run_id"]
    again = skill("delete_session", {"session_id": "s1"}).document
    assert (again["already_deleted"], again["run_id"]) == (True, None)
    assert skill("deliver_history").document["run_id"] is None
    aria.add("s1")
    delivered = skill("deliver_history", ARIA_API_URL=aria.url).document
    assert delivered["run_id"]
    assert {run_id for (run_id,) in ledger_sql(agents, "SELECT run_id FROM runs")} == {
        first["run_id"],
        delivered["run_id"],
    }
    assert "run_id" not in skill("prune_sessions", {"dry_run": True}).document


def test_what_was_removed_is_listed_with_who_when_and_why(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    begun = now_ms() - 7_200_000
    store.add("cron:daily", 120, "a", label="daily", model="gpt-4o", totalTokens=1234, estimatedCostUsd=0.5,
              sessionStartedAt=begun, contextTokens=10)  # fmt: skip
    store.add("subagent:x", 90, "b", inputTokens=3, outputTokens=4, model=["not", "text"], estimatedCostUsd="much")
    store.write()
    old = skill("delete_session", {"session_id": "a"}, ARIA_AGENT_ID="planner").document
    new = skill("prune_sessions").document
    document = skill("list_deleted").document
    assert document["deleted_count"] == 2
    assert [r["id"] for r in document["deleted"]] == ["b", "a"]
    b, a = document["deleted"]
    assert (a["run_id"], a["function"], a["reason"], a["asked_by"]) == (
        old["run_id"], "delete_session", "asked for", "planner",
    )  # fmt: skip
    assert (a["keys"], a["session_type"], a["label"], a["model"], a["tokens"], a["cost_usd"]) == (
        ["agent:main:cron:daily"], "cron", "daily", "gpt-4o", 1234, 0.5,
    )  # fmt: skip
    assert (a["restorable"], a["why_not"], a["state"], a["history"]) == (True, None, "removed", "ended: pending")
    assert a["started_at"].endswith("+00:00")
    assert a["last_activity"].endswith("+00:00")
    assert (b["reason"], b["tokens"], b["model"], b["cost_usd"], b["asked_by"]) == (
        "older than 60 min",
        7,
        None,
        None,
        None,
    )
    assert [r["id"] for r in skill("list_deleted", {"run_id": new["run_id"]}).document["deleted"]] == ["b"]
    limited = skill("list_deleted", {"limit": 1}).document
    assert (limited["deleted_count"], [r["id"] for r in limited["deleted"]]) == (2, ["b"])
    change(agents, "UPDATE attempts SET created_at = created_at - 3600000 WHERE run_id = ?", old["run_id"])
    assert [r["id"] for r in skill("list_deleted", {"since_minutes": 30}).document["deleted"]] == ["b"]
    assert skill("list_deleted", {"agent": "main"}).document["deleted_count"] == 2
    assert skill("list_deleted", {"agent": "nobody"}).exit_code == 5
    for bad in ({"agent": "../main"}, {"since_minutes": 0}, {"limit": 0}, {"run": "x"}):
        assert skill("list_deleted", bad).exit_code == 2


def test_what_cannot_be_restored_says_why(agents: Path, skill: Skill) -> None:
    store = build(agents, 6)
    assert skill("prune_sessions").exit_code == 0
    archives = {p.name.split(".")[0]: p for p in store.dir.glob("*.deleted.*")}
    archives["s0"].unlink()
    for path in (agents / ".session_manager").rglob("s1.*"):
        path.unlink()
    archives["s1"].unlink()
    (store.dir / "s2.jsonl").write_bytes(b"")
    store.entries = {"agent:main:cron:job-3": {"sessionId": "another"}}
    store.write()
    with opened(agents) as ledger:
        rows = {r.session_id: r for r in ledger.removals()}
        going = [rows["s4"].removal_id]
        run = start_run("purge_archives", settings_of(agents))
        ledger.finish_purge(ledger.intend_purge(run, rows["s4"].store_id, "main", going), going, {})
    listed = {r["id"]: r for r in skill("list_deleted").document["deleted"]}
    reasons = {i: r["why_not"] for i, r in listed.items()}
    assert reasons["s0"] is None, "the second name is still there"
    assert "archive s1.jsonl.deleted" in reasons["s1"]
    assert "s2.jsonl" in reasons["s2"]
    assert "agent:main:cron:job-3" in reasons["s3"]
    assert "another" in reasons["s3"]
    assert (listed["s4"]["state"], listed["s4"]["restorable"]) == ("purged", False)
    assert reasons["s5"] is None
    change(agents, "UPDATE attempts SET created_at = created_at - 8 * 86400000")
    store.add("cron:next", 100, "next")
    store.write()
    skill("prune_sessions")
    assert "ARIA_KEEP_DAYS" in {r["id"]: r["why_not"] for r in skill("list_deleted").document["deleted"]}["s5"]


def test_entries_come_back_byte_for_byte_from_many_chunks(agents: Path) -> None:
    settings = settings_of(agents)
    wanted = {
        f"s{i}": [
            (b'"k\\ud83d%d"' % i, b'{"sessionId":"s%d","n":"%s"}' % (i, os.urandom(i * 40 % 5000).hex().encode()))
        ]
        for i in range(200)
    }
    removals = [Removal(i, "why", [i], members, [], facts=Facts(label=i)) for i, members in wanted.items()]
    with Ledger.open(settings) as ledger:
        attempt = ledger.intend(start_run("prune_sessions", settings), "main:1", "main", [], [], removals)
        ledger.finish(attempt, {"s7"})
        rows = ledger.removals()
        found = {r.session_id: ledger.members([r])[r.removal_id] for r in rows}
        assert ledger.members(rows) == {r.removal_id: found[r.session_id] for r in rows}
        ledger.forget_session(ledger.intend_erasure(start_run("x", settings), "main:1", "main", "s9", []), "s9", {})
        left = ledger.members(rows)
    assert found == {i: m for i, m in wanted.items() if i != "s7"}
    assert left == {r.removal_id: wanted[r.session_id] for r in rows if r.session_id != "s9"}
    sizes = ledger_sql(agents, "SELECT count(*), max(start), max(length) FROM removals JOIN chunks USING (chunk_id)")
    assert ledger_sql(agents, "SELECT count(*) FROM chunks")[0][0] > 1
    assert sizes[0][1] < CHUNK_BYTES + 10_000
    connection = sqlite3.connect(ledger_file(agents))
    erased = connection.execute("SELECT details, chunk_id FROM removals WHERE session_id = 's9' AND reason = 'why'")
    assert erased.fetchall() == [(None, None)]
    connection.close()


# --- an attempt to restore that was killed --------------------------------------------------------------------------


@pytest.mark.parametrize("reaped", [False, True])
def test_a_restore_whose_keys_are_back_is_finished(agents: Path, skill: Skill, reaped: bool) -> None:
    store = build(agents)
    before = {n: (store.dir / n).read_bytes() for n in ("s0.jsonl", "s1.jsonl")}
    assert skill("prune_sessions").exit_code == 0
    if reaped:
        for path in store.dir.glob("*.deleted.*"):
            path.unlink()
    run = start_run("restore_run", settings_of(agents))
    with opened(agents) as ledger:
        rows = [r for r in ledger.removals() if f"{r.session_id}.jsonl" in before]
        ledger.intend_restore(run, rows[0].store_id, "main", [], [], rows)
    key = "agent:main:cron:job-0"
    store.entries = {**store.read(), key: store.entries[key]}
    store.write()
    document = skill("prune_sessions", {"max_age_minutes": 1_000_000}).document
    assert document["recovered"] == [
        {"run_id": run.run_id, "agentId": "main", "what": "restore", "finished": ["s0"], "undone": ["s1"]}
    ]
    assert "reappeared" not in document
    assert (store.dir / "s0.jsonl").read_bytes() == before["s0.jsonl"]
    assert "s1.jsonl" not in store.names()
    listed = {r["id"]: (r["state"], r["restorable"]) for r in skill("list_deleted").document["deleted"]}
    assert listed == {"s0": ("restored", False), "s1": ("removed", True), "s2": ("removed", True)}
    names = {p.name.split(".")[0] for p in (agents / ".session_manager/archives").rglob("*") if not p.is_dir()}
    assert names == {"s1", "s2"}
    states = dict(ledger_sql(agents, "SELECT session_id, state FROM marks"))
    assert states == {"s0": "cancelled", "s1": "pending", "s2": "pending"}
    assert skill("verify_ledger").document["broken"] is None


# --- marks are taken back -------------------------------------------------------------------------------------------


def restored(agents: Path, session_id: str) -> tuple[str, str]:
    assert Skill(agents)("restore_session", {"session_id": session_id}).exit_code == 0
    return ledger_sql(agents, f"SELECT status, state FROM marks WHERE session_id = '{session_id}'")[0]


def test_a_mark_that_nobody_heard_is_cancelled(agents: Path, skill: Skill) -> None:
    build(agents)
    skill("delete_session", {"session_id": "s0"})
    assert restored(agents, "s0") == ("ended", "cancelled")
    assert skill("get_session_stats").document["pending_history_marks"] == 0


def test_a_mark_that_was_heard_is_reversed(agents: Path, skill: Skill, aria: SmallAria) -> None:
    build(agents)
    aria.add("s0")
    skill("delete_session", {"session_id": "s0"}, ARIA_API_URL=aria.url)
    assert restored(agents, "s0") == ("active", "pending")
    skill("deliver_history", ARIA_API_URL=aria.url)
    assert aria.status("s0") == "active"


def test_a_mark_that_may_have_been_heard_is_reversed(agents: Path, skill: Skill, aria: SmallAria) -> None:
    """aria-api took it, and the process died before it could note that."""
    build(agents)
    skill("delete_session", {"session_id": "s0"})
    with opened(agents) as ledger:
        ledger.note_sent(ledger.pending())
    # Another try that does not get through takes nothing back of that.
    assert skill("deliver_history").document["pending"] == 1
    assert restored(agents, "s0") == ("active", "pending")


def test_an_end_that_was_heard_before_it_was_owed_again_is_reversed(
    agents: Path, skill: Skill, aria: SmallAria
) -> None:
    """A gateway wrote the session back, it went once more, and history could not be reached for that."""
    store = build(agents)
    aria.add("s0")
    skill("delete_session", {"session_id": "s0"}, ARIA_API_URL=aria.url)
    time.sleep(0.01)
    store.write()
    assert skill("delete_session", {"session_id": "s0"}).document["removed_keys"] == ["agent:main:cron:job-0"]
    assert skill("restore_session", {"session_id": "s0"}).document["restored_files"] == ["s0.jsonl"]
    assert skill("deliver_history", ARIA_API_URL=aria.url).document["delivered"] == 1
    assert aria.status("s0") == "active"


def test_a_restored_session_that_is_deleted_again_owes_its_end_anew(agents: Path, skill: Skill) -> None:
    build(agents)
    skill("delete_session", {"session_id": "s0"})
    restored(agents, "s0")
    assert skill("delete_session", {"session_id": "s0"}).exit_code == 0
    assert ledger_sql(agents, "SELECT status, state FROM marks") == [("ended", "pending")]
    assert [r["state"] for r in skill("list_deleted").document["deleted"]] == ["removed", "restored"]


def test_a_ledger_that_another_call_made_meanwhile_is_seen(agents: Path, skill: Skill) -> None:
    build(agents)
    settings = settings_of(agents)
    with Work(settings, start_run("delete_session", settings), lambda agent: None) as work:
        assert work.removed("s0", None) == []
        assert skill("delete_session", {"session_id": "s0"}).exit_code == 0
        assert work.removed("s0", None) == [("main", "s0")]
