"""purge_archives: old archives go for good, as a whole, and what it says came free has come free."""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from scene import second_names
from support import Skill, StoreBuilder, ledger_sql, now_ms, picture
from test_faults import Fault, in_process
from test_kill import run_until

from session_manager.archives.names import archive_time, archive_timestamp
from session_manager.ledger import Facts, Ledger, Removal, attempts, start_run
from session_manager.settings import read_settings

DAY_MS = 86_400_000
REAL = {"dry_run": False}


def stamp(days: float) -> str:
    return archive_timestamp(now_ms() - int(days * DAY_MS))


def archives(store: StoreBuilder) -> set[str]:
    return {n for n in store.names() if ".jsonl." in n}


def foreign(store: StoreBuilder, name: str, text: bytes = b"{}\n") -> Path:
    """An archive that the gateway made."""
    path = store.dir / name
    path.write_bytes(text)
    return path


def removed(agents: Path, *ages: float, agent: str = "main") -> StoreBuilder:
    """A store from which sessions ``s0``, ``s1`` … were pruned so many days ago, each by a run of its own."""
    store = StoreBuilder(agents, agent)
    for number in range(len(ages)):
        store.add(f"cron:job-{number}", 200, f"s{number}", label=f"label-{number}")
        store.transcript(f"s{number}-topic-7.jsonl", f"s{number}", 1_700_000_000_000)
    store.add("cron:young", 1, f"young-{agent}")
    store.write()
    for number, days in enumerate(ages):
        with pytest.MonkeyPatch.context() as patch:
            then = now_ms() - int(days * DAY_MS)
            patch.setattr(attempts, "now_ms", lambda then=then: then)
            answer = in_process(agents, "delete_session", {"session_id": f"s{number}", "agent": agent})
        assert answer.exit_code == 0
    return store


def states(skill: Skill) -> dict[str, str]:
    return {r["id"]: r["state"] for r in skill("list_deleted").document["deleted"]}


# --- what goes ------------------------------------------------------------------------------------------------------


def test_without_an_order_nothing_goes(agents: Path, skill: Skill) -> None:
    removed(agents, 40, 5)
    before = picture(agents, without_state=False)
    document = skill("purge_archives").document
    assert picture(agents, without_state=False) == before
    assert (document["dry_run"], document["older_than_days"]) == (True, 30)
    assert (document["purged_count"], document["removals"]) == (2, 1)
    assert {f["file"].split(".deleted.")[0] for f in document["files"]} == {"s0.jsonl", "s0-topic-7.jsonl"}


def test_an_old_removal_goes_as_a_whole_and_a_young_one_stays(agents: Path, skill: Skill) -> None:
    store = removed(agents, 40, 5)
    sizes = {n: (store.dir / n).stat().st_size for n in archives(store)}
    planned = skill("purge_archives").document
    document = skill("purge_archives", REAL).document
    assert {n.split(".")[0] for n in archives(store)} == {"s1", "s1-topic-7"}
    assert second_names(agents).keys() == archives(store)
    assert document["bytes_freed"] == sum(size for n, size in sizes.items() if n.startswith("s0")) > 0
    assert document["by_agent"] == {"main": {"purged_count": 2, "bytes_freed": document["bytes_freed"], "removals": 1}}
    assert {k: v for k, v in document.items() if k not in ("run_id", "dry_run")} == {
        k: v for k, v in planned.items() if k != "dry_run"
    }, "the preview is what happens"
    assert states(skill) == {"s0": "purged", "s1": "removed"}
    listed = {r["id"]: r for r in skill("list_deleted").document["deleted"]}
    assert (listed["s0"]["restorable"], listed["s0"]["why_not"]) == (False, "its archives were purged")
    assert ledger_sql(agents, "SELECT count(*) FROM chunks") == [(1,)]
    assert skill("verify_ledger").document["broken"] is None
    again = skill("purge_archives", REAL).document
    assert (again["purged_count"], again["removals"], again["run_id"]) == (0, 0, None)


@pytest.mark.parametrize("pin", ['ids = ["s0"]', 'keys = ["agent:main:CRON:job-0"]', 'labels = ["label-0"]'])
def test_what_is_pinned_is_not_purged(agents: Path, skill: Skill, pin: str) -> None:
    store = removed(agents, 40, 40)
    theirs = foreign(store, f"s0.jsonl.reset.{stamp(50)}")
    (agents / ".session_manager" / "session-manager.toml").write_text(f"[pins]\n{pin}")
    by_id = pin.startswith("ids")
    planned = skill("purge_archives").document
    document = skill("purge_archives", REAL).document
    assert planned["pinned_count"] == document["pinned_count"] == 2 + by_id
    assert states(skill) == {"s0": "removed", "s1": "purged"}
    assert {n.split(".")[0] for n in archives(store)} == {"s0", "s0-topic-7"}
    assert theirs.exists() == by_id
    assert skill("restore_session", {"session_id": "s0"}).exit_code == 0


def test_an_archive_of_a_removal_follows_the_removals_age_and_no_name(agents: Path, skill: Skill) -> None:
    """A name of last year in a removal of today, and one of today in a removal of last year."""
    settings = read_settings({"ARIA_AGENTS_DIR": str(agents)})
    store = StoreBuilder(agents).write()
    old_name, new_name = f"a.jsonl.deleted.{stamp(400)}", f"b.jsonl.deleted.{stamp(0)}"
    for name in (old_name, new_name):
        foreign(store, name)
    store_id = f"main:{store.dir.stat().st_ino}"
    for session_id, name in (("a", old_name), ("b", new_name)):
        with Ledger.open(settings) as ledger:
            removal = Removal(session_id, "why", ["k"], [(b'"k"', b"{}")], [(f"{session_id}.jsonl", name)])
            attempt = ledger.intend(start_run("prune_sessions", settings), store_id, "main", [], [], [removal])
            ledger.finish(attempt, set())
    ledger_sql(agents, "UPDATE attempts SET created_at = 1 WHERE attempt_id = 2")
    assert skill("purge_archives", REAL).exit_code == 0
    assert archives(store) == {old_name}
    assert states(skill) == {"a": "removed", "b": "purged"}


def test_archives_that_nobody_knows_go_by_the_time_in_their_name(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:young", 1, "young")
    store.write()
    old, generation = stamp(31), "0123456789abcdef" * 2
    gone = {
        f"x.jsonl.deleted.{old}",
        f"x.jsonl.reset.{old}",
        f"young.jsonl.bak.{old}",
        f"x.jsonl.deleted.{old[:-5]}Z",
        f"x.jsonl.deleted.{old}.{generation}.zst",
        f"x-topic-7.jsonl.deleted.{old}",
    }
    stays = {
        f"y.jsonl.deleted.{stamp(29)}",
        f"y.jsonl.deleted.{stamp(-400)}",
        "y.jsonl.deleted.2020-13-45T99-99-99.999Z",
        "y.jsonl.deleted.2020-01-01",
        "y.jsonl.old.2020-01-01T00-00-00.000Z",
        f"sessions.json.bak.{now_ms() - 400 * DAY_MS}",
        "young.jsonl",
    }
    for name in gone | stays:
        foreign(store, name, b"x" * 10)
    (store.dir / f"folder.jsonl.deleted.{old}").mkdir()
    document = skill("purge_archives", REAL).document
    assert (document["purged_count"], document["bytes_freed"], document["removals"]) == (6, 60, 0)
    assert document["run_id"]
    assert store.names() == stays | {"sessions.json", f"folder.jsonl.deleted.{old}"}
    assert skill("verify_ledger").document["broken"] is None


def test_second_names_without_a_first_go_too(agents: Path, skill: Skill) -> None:
    """The gateway reaped the archive of one removal; the ledger that knew of another was lost."""
    store = removed(agents, 40)
    for path in store.dir.glob("*.deleted.*"):
        path.unlink()
    size = sum(p.stat().st_size for p in second_names(agents).values())
    lost = agents / ".session_manager" / "archives" / "0123456789ab-0123456789" / "main"
    lost.mkdir(parents=True)
    (lost / f"z.jsonl.deleted.{stamp(50)}").write_bytes(b"12345")
    (lost / f"z.jsonl.deleted.{stamp(5)}").write_bytes(b"12345")
    document = skill("purge_archives", REAL, ARIA_KEEP_DAYS="36500").document
    assert (document["purged_count"], document["bytes_freed"], document["removals"]) == (3, size + 5, 1)
    assert [p.parent for p in second_names(agents).values()] == [lost]
    assert not [p for p in (agents / ".session_manager" / "archives").iterdir() if p.name != lost.parent.name]


def test_bytes_come_free_with_the_last_name_only(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents).write()
    one = foreign(store, f"a.jsonl.deleted.{stamp(50)}", b"a" * 100)
    os.link(one, agents / "elsewhere")
    os.link(one, store.dir / f"b.jsonl.reset.{stamp(50)}")
    two = foreign(store, f"c.jsonl.deleted.{stamp(50)}", b"c" * 7)
    os.link(two, store.dir / f"d.jsonl.deleted.{stamp(50)}")
    (store.dir / f"e.jsonl.deleted.{stamp(50)}").symlink_to(agents / "elsewhere")
    for arguments in ({}, REAL):
        document = skill("purge_archives", arguments).document
        assert (document["purged_count"], document["bytes_freed"]) == (5, 7)
    assert (agents / "elsewhere").read_bytes() == b"a" * 100


def test_one_agent_only_and_the_list_is_short(agents: Path, skill: Skill) -> None:
    main, other = StoreBuilder(agents).write(), StoreBuilder(agents, "other").write()
    for number in range(120):
        foreign(main, f"m{number}.jsonl.deleted.{stamp(50)}")
    foreign(other, f"o.jsonl.deleted.{stamp(50)}")
    document = skill("purge_archives", {**REAL, "agent": "main"}).document
    assert (document["purged_count"], len(document["files"]), list(document["by_agent"])) == (120, 100, ["main"])
    assert len(archives(other)) == 1


def test_a_restored_session_loses_nothing(agents: Path, skill: Skill) -> None:
    store = removed(agents, 40)
    assert skill("restore_session", {"session_id": "s0"}).exit_code == 0
    assert skill("purge_archives", REAL).document["removals"] == 0
    assert {"s0.jsonl", "s0-topic-7.jsonl"} <= store.names()
    assert states(skill) == {"s0": "restored"}


def test_a_store_that_was_copied_elsewhere_is_purged_as_a_whole(agents: Path, skill: Skill) -> None:
    store = removed(agents, 40)
    moved = agents / "main" / "moved"
    store.dir.rename(moved)
    store.dir.mkdir()
    for path in moved.iterdir():
        path.rename(store.dir / path.name)
    moved.rmdir()
    document = skill("purge_archives", REAL).document
    assert (document["purged_count"], document["removals"], states(skill)) == (2, 1, {"s0": "purged"})


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [{"older_than_days": 0}, {"older_than_days": -3}, {"older_than_days": "x"}, {"days": 3}, {"agent": "../main"}],
)
def test_bad_arguments_change_nothing(agents: Path, skill: Skill, arguments: dict[str, Any]) -> None:
    removed(agents, 40)
    before = picture(agents, without_state=False)
    assert skill("purge_archives", {**REAL, **arguments}).exit_code == 2
    assert picture(agents, without_state=False) == before


@pytest.mark.parametrize("dry_run", [True, False])
def test_damaged_and_sqlite_stores_are_refused_and_the_others_done(agents: Path, skill: Skill, dry_run: bool) -> None:
    fine = removed(agents, 40, agent="fine")
    damaged, sqlite = StoreBuilder(agents, "damaged"), StoreBuilder(agents, "sqlite").write()
    damaged.index.write_bytes(b'{"agent:damaged:cron:a": {"sess')
    for store in (damaged, sqlite):
        foreign(store, f"x.jsonl.deleted.{stamp(90)}")
    database = agents / "sqlite" / "agent" / "openclaw-agent.sqlite"
    database.parent.mkdir()
    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE session_nodes (a)")
    connection.commit()
    connection.close()
    answer = skill("purge_archives", {"dry_run": dry_run})
    assert (answer.exit_code, answer.document["code"]) == (3, "partial")
    assert {e["agentId"]: e["code"] for e in answer.document["errors"]} == {
        "damaged": "index_damaged",
        "sqlite": "store_unsupported",
    }
    assert answer.document["removals"] == 1
    assert len(archives(damaged)) == len(archives(sqlite)) == 1
    assert len(archives(fine)) == (2 if dry_run else 0)
    named = skill("purge_archives", {"dry_run": dry_run, "agent": "damaged"})
    assert (named.exit_code, named.document["code"]) == (7, "index_damaged")
    assert skill("purge_archives", {"dry_run": dry_run, "agent": "sqlite"}).exit_code == 4


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EACCES, "not_writable"), (errno.EIO, "io_error")]
)
def test_what_cannot_be_removed_is_said_and_all_else_is_done(
    agents: Path, skill: Skill, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    store = removed(agents, 40, 40)
    foreign(store, f"x.jsonl.deleted.{stamp(90)}")
    error = OSError(number, os.strerror(number))
    fault = Fault(1, True, error)
    with monkeypatch.context() as patch:
        concerns = lambda path, **_: ".deleted." in str(path) and os.path.basename(path).startswith("s0")  # noqa: E731
        patch.setattr(os, "unlink", fault.wrap(os.unlink, concerns))
        answer = in_process(agents, "purge_archives", REAL)
    assert answer.exit_code == 3
    assert [(e["agentId"], e["code"]) for e in answer.document["errors"]] == [("main", code)]
    assert (answer.document["purged_count"], answer.document["removals"]) == (3, 1)
    assert {n.split(".")[0] for n in archives(store)} == {"s0", "s0-topic-7"}, "nothing goes by half"
    assert second_names(agents).keys() == archives(store)
    assert states(skill) == {"s0": "removed", "s1": "purged"}
    assert skill("prune_sessions", {"max_age_minutes": 10**7}).exit_code == 0
    later = skill("purge_archives", REAL)
    assert (later.exit_code, later.document["purged_count"], later.document["removals"]) == (0, 2, 1)
    assert skill("verify_ledger").document["broken"] is None


STEPS = [
    "purge intent written",
    *["archive removed"] * 5,
    "purged folder synced",
    "purge noted",
]


def test_the_named_steps_are_those_that_occur(agents: Path, skill: Skill, tmp_path: Path) -> None:
    store = removed(agents, 40, 40, 5)
    foreign(store, f"x.jsonl.deleted.{stamp(90)}")
    code, steps = run_until(skill, 0, tmp_path / "steps", "purge_archives", REAL)
    assert (code, steps) == (0, STEPS)


@pytest.mark.parametrize("limit", range(1, len(STEPS) + 1))
def test_killed_at_a_step(limit: int, agents: Path, skill: Skill, tmp_path: Path) -> None:
    store = removed(agents, 40, 40, 5)
    foreign(store, f"x.jsonl.deleted.{stamp(90)}")
    index = store.index.read_bytes()
    assert run_until(skill, limit, tmp_path / "steps", "purge_archives", REAL)[0] == -signal.SIGKILL
    document = skill("prune_sessions", {"max_age_minutes": 10**7}).document
    killed = ledger_sql(agents, "SELECT run_id FROM runs WHERE function = 'purge_archives'")[0][0]
    recovered = {"run_id": killed, "agentId": "main", "what": "purge", "finished": ["s0", "s1"], "undone": []}
    assert document.get("recovered", [recovered]) == [recovered]
    assert ("recovered" in document) == (limit < len(STEPS))
    assert states(skill) == {"s0": "purged", "s1": "purged", "s2": "removed"}
    left = {n.split(".")[0] for n in archives(store)}
    assert left - {"x"} == {"s2", "s2-topic-7"}
    assert {n.split(".")[0] for n in second_names(agents)} == {"s2", "s2-topic-7"}
    assert store.index.read_bytes() == index
    assert ledger_sql(agents, "SELECT count(*) FROM chunks") == [(1,)]
    assert skill("verify_ledger").document["broken"] is None
    assert skill("purge_archives", REAL).exit_code == 0
    assert "x" not in {n.split(".")[0] for n in archives(store)}
    assert {n.split(".")[0] for n in archives(store)} == {"s2", "s2-topic-7"}


def test_a_killed_purge_waits_while_the_index_is_damaged(agents: Path, skill: Skill, tmp_path: Path) -> None:
    store = removed(agents, 40)
    run_until(skill, 1, tmp_path / "steps", "purge_archives", REAL)
    index = store.index.read_bytes()
    store.index.write_bytes(index[:20])
    before = archives(store)
    assert skill("purge_archives", REAL).exit_code == 7
    assert archives(store) == before
    store.index.write_bytes(index)
    assert skill("prune_sessions", {"max_age_minutes": 10**7}).document["recovered"][0]["finished"] == ["s0"]
    assert archives(store) == set()


# --- the ledger -----------------------------------------------------------------------------------------------------


def test_entries_of_others_in_the_same_chunk_stay(agents: Path) -> None:
    settings = read_settings({"ARIA_AGENTS_DIR": str(agents)})
    removals = [
        Removal(f"s{i}", "why", [f"k{i}"], [(b'"k%d"' % i, json.dumps({"n": os.urandom(1500).hex()}).encode())], [])
        for i in range(400)
    ]
    with Ledger.open(settings) as ledger:
        attempt = ledger.intend(start_run("prune_sessions", settings), "main:1", "main", [], [], removals)
        ledger.finish(attempt, set())
        rows = sorted(ledger.removals(), key=lambda r: r.removal_id)
        chunks = int(ledger.sql.execute("SELECT count(*) FROM chunks").fetchone()[0])
        assert chunks > 3
        going = [r.removal_id for r in rows if r.removal_id % 2 or r.removal_id < 200]
        run = start_run("purge_archives", settings)
        ledger.finish_purge(ledger.intend_purge(run, "main:1", "main", going), going, {})
        left = ledger.members(rows)
        assert left == {r.removal_id: r.members for r in removals if r.removal_id not in going}
        assert int(ledger.sql.execute("SELECT count(*) FROM chunks").fetchone()[0]) < chunks
        assert {r.state for r in ledger.removals() if r.removal_id in going} == {"purged"}
        assert ledger.verify().broken is None


def test_a_purge_of_many_is_two_transactions(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": ""})
    store = StoreBuilder(agents).write()
    names = [f"s{i}.jsonl.deleted.{stamp(50)}" for i in range(500)]
    removals = [
        Removal(f"s{i}", "why", [f"k{i}"], [(b'"k%d"' % i, b"{}")], [(f"s{i}.jsonl", name)], facts=Facts(label="x"))
        for i, name in enumerate(names)
    ]
    for name in names:
        foreign(store, name)
    with Ledger.open(settings) as ledger:
        store_id = f"main:{store.dir.stat().st_ino}"
        attempt = ledger.intend(start_run("prune_sessions", settings), store_id, "main", [], [], removals)
        ledger.finish(attempt, set())
    ledger_sql(agents, "UPDATE attempts SET created_at = 1")
    commits = []

    class Counting(sqlite3.Connection):
        def execute(self, text: str, *rest: Any) -> sqlite3.Cursor:
            if text == "COMMIT":
                commits.append(text)
            return super().execute(text, *rest)

    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "factory": Counting}))
    answer = in_process(agents, "purge_archives", REAL)
    assert (answer.exit_code, answer.document["removals"], answer.document["purged_count"]) == (0, 500, 500)
    assert len(commits) == 2


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("2026-02-15T18-00-00.123Z", 1_771_178_400_123),
        ("2026-02-15T18-00-00Z", 1_771_178_400_000),
        ("2026-13-15T18-00-00Z", None),
        ("2026-02-30T00-00-00.000Z", None),
        ("0001-01-01T00-00-00.000Z", None),
        ("1999-12-31T23-59-59.000Z", None),
        ("2014-12-31T23-59-59.999Z", None),
        ("2015-01-01T00-00-00.000Z", 1_420_070_400_000),
        ("", None),
    ],
)
def test_the_time_in_an_archives_name(text: str, at: int | None) -> None:
    assert archive_time(text) == at
    assert at is None or archive_time(archive_timestamp(at)) == at
