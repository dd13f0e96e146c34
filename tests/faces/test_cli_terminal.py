"""session-manager in a real pseudo-terminal: tables, questions, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

import pexpect
import pytest
from rich.cells import cell_len
from scene import Scene
from support import ROOT, Skill, StoreBuilder, ledger_sql, now_ms, picture

# Waits, at a named step, for the Ctrl-C that the test types.
WAIT_AT = """\
import sys, time
from session_manager.files import steps
wanted = sys.argv.pop(1)
def watch(name):
    if name == wanted:
        steps.watcher = None
        print("AT", name, file=sys.stderr, flush=True)
        time.sleep(60)
steps.watcher = watch
from session_manager.faces.cli import main
main()
"""
# Has a signal come between Python's last look for one and the system call that reads: no bytecode is run in between.
SIGNAL_BEFORE_READING = """\
import builtins, ctypes, functools, operator, os, sys, threading
send = functools.partial(ctypes.CDLL(None)["raise"], int(sys.argv.pop(1)))
def right_after_a_signal(reads):
    def read(*arguments):
        if threading.current_thread() is not threading.main_thread():
            return reads(*arguments)
        return list(map(operator.call, (send, functools.partial(reads, *arguments))))[1]
    return read
from session_manager.faces.cli import main, prompt
builtins.input = right_after_a_signal(input)
prompt.os = type("", (), {**vars(os), "read": right_after_a_signal(os.read)})
main()
"""
# What is forked becomes another program at once.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def terminal(
    agents: Path, *arguments: str, at: str = "", program: str = WAIT_AT, width: int = 100, **env: str
) -> pexpect.spawn[str]:
    """Starts a command in a terminal of its own; with ``at`` it waits when that step has been completed."""
    started = ["-c", program, at] if at else ["-m", "session_manager.faces.cli"]
    # pytest's own terminal is another one.
    ours = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    variables = {"ARIA_AGENTS_DIR": str(agents), "TERM": "xterm-256color", "PYTHONPATH": str(ROOT), **env}
    return pexpect.spawn(
        sys.executable,
        [*started, *arguments],
        env={**ours, **variables},
        dimensions=(30, width),
        encoding="utf-8",
        timeout=120,
        # Whoever runs the tests may have it ignored, and children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def ended(child: pexpect.spawn[str]) -> tuple[int | None, str]:
    """Waits for its end; returns the exit code and what it printed since it was last waited for."""
    child.expect(pexpect.EOF)
    said = str(child.before).replace("\r\n", "\n")
    child.close()
    return child.exitstatus, said


def lines(said: str) -> list[str]:
    """What is seen: lines without escape sequences, and without those that were shown meanwhile."""
    seen = [line.rpartition("\r")[2] for line in ESCAPE.sub("", said).split("\n")]
    return [line for line in seen if line and not re.fullmatch(r"[-\\|/] .* (…|of [\d,]+)", line)]


@pytest.fixture
def store(agents: Path) -> StoreBuilder:
    store = StoreBuilder(agents)
    store.add("cron:a", 180, "daily", label="Daily report", model="gpt-4o")
    store.add("direct:ann", 200, "talk", label="Ann")
    store.add("cron:b", 5, "young")
    store.add("main", 500, "the-main")
    return store.write()


def test_a_prune_shows_its_plan_asks_and_does_it(store: StoreBuilder, agents: Path) -> None:
    child = terminal(agents, "prune", "--older-than", "1h")
    child.expect(r"Remove 1 session\? \[y/N\]")
    plan = "\n".join(lines(str(child.before).replace("\r\n", "\n")))
    assert re.search(r"daily +remove +older than 60 min +\d+ bytes +3 hours", plan)
    assert re.search(r"talk +keep +durable", plan)
    assert "1 session to remove" in plan
    assert "daily" in {e["sessionId"] for e in store.read().values()}
    child.sendline("y")
    code, said = ended(child)
    assert code == 0
    assert "1 session removed, 3 kept" in said
    assert "daily" not in {e["sessionId"] for e in store.read().values()}
    run_id = re.search(r"session-manager undo (\S+)", said)
    assert run_id is not None
    code, said = ended(terminal(agents, "undo", run_id[1]))
    assert code == 0
    assert "daily" in {e["sessionId"] for e in store.read().values()}


@pytest.mark.parametrize("typed", ["n", ""])
def test_no_is_the_default_and_changes_nothing(store: StoreBuilder, agents: Path, typed: str) -> None:
    before = picture(agents, without_state=False)
    for command in (("prune", "--older-than", "1h"), ("delete", "--type", "cron")):
        child = terminal(agents, *command)
        child.expect(r"\[y/N\]")
        child.sendline(typed)
        code, said = ended(child)
        assert (code, "Nothing was changed." in said) == (0, True)
    assert picture(agents, without_state=False) == before


def test_ctrl_c_at_the_question_changes_nothing(store: StoreBuilder, agents: Path) -> None:
    before = picture(agents, without_state=False)
    child = terminal(agents, "prune", "--older-than", "1h")
    child.expect(r"\[y/N\]")
    child.sendintr()
    code, said = ended(child)
    assert (code, "Nothing was changed." in said) == (130, True)
    assert picture(agents, without_state=False) == before


def test_only_so_many_go_as_somebody_said_yes_to(store: StoreBuilder, agents: Path) -> None:
    for command in (("prune", "--older-than", "1h"), ("delete", "--type", "cron", "--older-than", "1h")):
        store.write()
        child = terminal(agents, *command)
        child.expect(r"Remove 1 session\? \[y/N\]")
        entries = {**store.entries, "agent:main:cron:c": {"sessionId": "late", "updatedAt": now_ms() - 7_200_000}}
        store.replace(entries)
        child.sendline("y")
        code, said = ended(child)
        assert (code, "1 session removed" in said) == (0, True)
        assert {e["sessionId"] for e in store.read().values()} == {"late", "talk", "young", "the-main"}
        undone = re.search(r"session-manager undo (\S+)", said)
        assert undone is not None
        assert ended(terminal(agents, "undo", undone[1]))[0] == 0


@pytest.mark.parametrize("command", [("prune", "--older-than", "1h"), ("delete", "-t", "cron", "--older-than", "1h")])
def test_only_what_was_seen_goes(store: StoreBuilder, agents: Path, command: tuple[str, ...]) -> None:
    other = StoreBuilder(agents, "other")
    other.add("cron:a", 5, "daily")
    other.write()
    child = terminal(agents, *command)
    child.expect(r"Remove 1 session\? \[y/N\]")
    # One has woken up meanwhile; another one, and a namesake in another agent, have become old.
    entries = {key: dict(entry) for key, entry in store.entries.items()}
    entries["agent:main:cron:a"]["updatedAt"] = now_ms()
    entries["agent:main:cron:b"]["updatedAt"] = now_ms() - 7_200_000
    store.replace(entries)
    other.replace({"agent:other:cron:a": {"sessionId": "daily", "updatedAt": now_ms() - 7_200_000}})
    child.sendline("y")
    code, said = ended(child)
    assert (code, "0 sessions removed" in said) == (0, True)
    assert (store.read().keys(), len(other.read())) == (entries.keys(), 1)


def test_only_archives_that_were_seen_are_purged(store: StoreBuilder, agents: Path, skill: Skill) -> None:
    skill("delete_session", {"session_id": "daily"})
    ledger_sql(agents, "UPDATE attempts SET created_at = ?", now_ms() - 40 * 86_400_000)
    child = terminal(agents, "purge", "--older-than", "30d")
    child.expect(r"Permanently delete 1 file, .*\? \[y/N\]")
    (store.dir / "late.jsonl.deleted.2025-01-02T03-04-05.678Z").write_text("{}\n")
    skill("delete_session", {"session_id": "talk"})
    ledger_sql(agents, "UPDATE attempts SET created_at = ?", now_ms() - 40 * 86_400_000)
    child.sendline("y")
    code, said = ended(child)
    assert (code, "1 file removed" in said) == (0, True)
    assert {name.partition(".")[0] for name in store.names() if ".deleted." in name} == {"late", "talk"}
    states = {row["id"]: row["state"] for row in skill("list_deleted").document["deleted"]}
    assert states == {"daily": "purged", "talk": "removed"}


def test_only_orphans_that_were_seen_are_archived(store: StoreBuilder, agents: Path) -> None:
    old = now_ms() - 3 * 86_400_000
    store.transcript("lost.jsonl", "lost", old)
    child = terminal(agents, "orphans", "--delete", "--older-than", "1d")
    child.expect(r"Archive 1 orphan\? \[y/N\]")
    store.transcript("late.jsonl", "late", old)
    child.sendline("y")
    code, said = ended(child)
    assert (code, "1 orphan archived" in said) == (0, True)
    assert "late.jsonl" in store.names()
    assert "lost.jsonl" not in store.names()


@pytest.mark.parametrize("at", ["intent written", "index swapped", "file archived", "folder synced", "end noted"])
def test_ctrl_c_in_mid_prune_leaves_a_whole_state_and_says_what_was_done(agents: Path, skill: Skill, at: str) -> None:
    scene = Scene(agents, 3)
    child = terminal(agents, "prune", "--older-than", "1h", "--yes", at=at)
    child.expect(f"AT {at}")
    child.sendintr()
    code, said = ended(child)
    assert code == 130
    assert "interrupted" in said
    assert "Traceback" not in said
    told = re.search(r"(\d+) sessions? had been removed; undo this with: session-manager undo (\S+)", said)
    told_of = set(scene.ids) if told is not None else set()
    assert told_of == set(scene.ids) - {e["sessionId"] for e in scene.store.read().values()}
    assert (told is None) == (at == "intent written")
    states = {r["state"] for r in skill("list_deleted").document["deleted"]}
    assert states == {"removed" if told_of else "unfinished"}
    skill("prune_sessions", {"max_age_minutes": 100_000})
    assert scene.assert_whole() == told_of
    if told is not None:
        assert int(told[1]) == 3
        assert skill("restore_run", {"run_id": told[2]}).document["restored_count"] == 3
        assert scene.store.read() == scene.entries


def test_what_is_being_done_is_shown_while_it_is_done(agents: Path) -> None:
    Scene(agents, 3)
    child = terminal(agents, "prune", "--older-than", "1h", "--yes", at="file archived", width=70)
    child.expect("AT file archived")
    child.expect("archiving transcripts.*0 of 4")
    child.sendintr()
    code, said = ended(child)
    assert code == 130
    assert "archiving" not in "\n".join(lines(said))
    run_id = re.search(r"session-manager undo (\S+)", said)
    assert run_id is not None
    quiet = terminal(agents, "undo", run_id[1], at="files back", TERM="dumb")
    quiet.expect("AT files back")
    assert not str(quiet.before)
    quiet.sendintr()
    assert ended(quiet)[0] == 130


@pytest.mark.parametrize(("at", "back"), [("files back", 0), ("restored index in place", 3)])
def test_ctrl_c_in_mid_undo_says_how_many_are_back(agents: Path, skill: Skill, at: str, back: int) -> None:
    scene = Scene(agents, 3)
    run_id = skill("prune_sessions", {"max_age_minutes": 60}).document["run_id"]
    child = terminal(agents, "undo", run_id, at=at)
    child.expect(f"AT {at}")
    child.sendintr()
    code, said = ended(child)
    assert (code, "Traceback" in said) == (130, False)
    assert f"{back} sessions had been restored" in said
    alive = {entry["sessionId"] for entry in scene.store.read().values()}
    assert len(alive.intersection(scene.ids)) == back
    assert ended(terminal(agents, "undo", run_id))[0] == 0
    assert scene.store.read() == scene.entries


def test_ctrl_c_in_mid_purge_says_how_many_are_gone(store: StoreBuilder, agents: Path, skill: Skill) -> None:
    archives = [store.dir / f"gone{i}.jsonl.deleted.2025-01-02T03-04-05.678Z" for i in range(3)]
    for archive in archives:
        archive.write_text("{}\n")
    child = terminal(agents, "purge", "--older-than", "30d", "--yes", at="archive removed")
    child.expect("AT archive removed")
    child.sendintr()
    code, said = ended(child)
    assert (code, [archive.exists() for archive in archives]) == (130, [False, True, True])
    assert "archive" in said
    assert ended(terminal(agents, "purge", "--older-than", "30d", "--yes"))[0] == 0
    assert not any(archive.exists() for archive in archives)


def test_ctrl_c_between_agents_reports_the_agent_that_is_done(agents: Path, skill: Skill) -> None:
    for agent in ("a", "b"):
        store = StoreBuilder(agents, agent)
        store.add("cron:x", 300, f"old-{agent}")
        store.write()
    child = terminal(agents, "prune", "--older-than", "1h", "--yes", at="end noted")
    child.expect("AT end noted")
    child.sendintr()
    code, said = ended(child)
    assert code == 130
    assert "1 session had been removed" in said
    assert {s["id"] for s in skill("list_sessions").document["sessions"]} == {"old-b"}


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal(store: StoreBuilder, agents: Path, width: int) -> None:
    store.add("subagent:" + "x" * 200, 300, str(uuid.uuid4()), label="漢字" * 40, model="m" * 90)
    store.add("group:" + "y" * 20, 300, str(uuid.uuid4()), label="ordinary")
    store.write()
    prune = ["prune", "--older-than", "1h", "--dry-run"]
    for command in (["list"], prune, ["stats"], ["show", "daily"], ["orphans"]):
        code, said = ended(terminal(agents, *command, width=width))
        assert code == 0
        shown = lines(said)
        # The talk is sentences, which the terminal breaks by itself.
        tables = [line for line in shown if " to remove " not in line and " to archive " not in line]
        assert [line for line in tables if cell_len(line) > width] == []
    listed = "\n".join(lines(ended(terminal(agents, "list", width=width))[1]))
    for entry in store.entries.values():
        assert entry["sessionId"] in listed


def test_colour_is_for_terminals_that_want_it(store: StoreBuilder, agents: Path) -> None:
    assert COLOUR.search(ended(terminal(agents, "list"))[1])
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        code, said = ended(terminal(agents, "list", **env))
        assert code == 0
        assert "\x1b" not in said


def test_what_a_label_holds_cannot_steer_the_terminal(store: StoreBuilder, agents: Path) -> None:
    store.add("cron:evil", 300, "evil", label="\x1b]0;gotcha\x07\x1b[2J\nzzz")
    store.write()
    for command in (["list"], ["show", "evil"], ["prune", "--older-than", "1h", "--dry-run"]):
        code, said = ended(terminal(agents, *command, width=160, NO_COLOR="1"))
        assert code == 0
        assert "\x1b" not in said
        assert "\x07" not in said
        assert "\\x1b]0;gotcha\\x07" in said


def test_labels_in_any_script_are_shown_as_they_are(store: StoreBuilder, agents: Path) -> None:
    labels = ["👩\u200d👩\u200d👧 ❤\ufe0f", "می\u200cخواهم", "שלום עולם", "naïve café"]
    for i, label in enumerate([*labels, "日本\u3000語\xa0x", "\u202eevil"]):
        store.add(f"cron:{i}", 300, f"l{i}", label=label)
    store.write()
    said = ended(terminal(agents, "list", width=200, NO_COLOR="1"))[1]
    assert all(label in said for label in [*labels, "日本 語 x", "\\u202eevil"])


def test_a_purge_says_that_it_is_for_good(store: StoreBuilder, agents: Path) -> None:
    archive = store.dir / "gone.jsonl.deleted.2025-01-02T03-04-05.678Z"
    archive.write_text("{}\n")
    child = terminal(agents, "purge", "--older-than", "30d")
    child.expect(r"Permanently delete .*\? \[y/N\]")
    assert archive.exists()
    child.sendline("y")
    assert ended(child)[0] == 0
    assert not archive.exists()


def test_an_erasure_asks_for_the_id_once_more(store: StoreBuilder, agents: Path) -> None:
    for typed, code in (("dally", 2), ("daily", 0)):
        child = terminal(agents, "erase", "daily", ARIA_ALLOW_ERASE="1")
        child.expect("id again")
        child.sendline(typed)
        assert ended(child)[0] == code
        assert (store.dir / "daily.jsonl").exists() == bool(code)


def test_ctrl_c_at_the_id_erases_nothing(store: StoreBuilder, agents: Path) -> None:
    before = picture(agents, without_state=False)
    child = terminal(agents, "erase", "daily", ARIA_ALLOW_ERASE="1")
    child.expect("id again")
    child.sendintr()
    code, said = ended(child)
    assert (code, "Nothing was changed." in lines(said)) == (130, True)
    assert picture(agents, without_state=False) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", [("erase", "daily"), ("prune", "--older-than", "1h")])
def test_a_signal_right_before_the_answer_is_read_is_not_lost(
    store: StoreBuilder, agents: Path, command: tuple[str, ...], number: signal.Signals
) -> None:
    before = picture(agents, without_state=False)
    child = terminal(agents, *command, program=SIGNAL_BEFORE_READING, at=str(int(number)), ARIA_ALLOW_ERASE="1")
    code, said = ended(child)
    assert (code, "Nothing was changed." in lines(said)) == (130, True)
    assert picture(agents, without_state=False) == before


def test_a_question_is_asked_until_it_is_answered(store: StoreBuilder, agents: Path) -> None:
    child = terminal(agents, "prune", "--older-than", "1h")
    for typed in ("perhaps", "YES"):
        child.expect(r"\[y/N\]")
        child.sendline(typed)
    assert ended(child)[0] == 0
    assert "daily" not in {e["sessionId"] for e in store.read().values()}


def test_an_end_instead_of_an_answer_changes_nothing(store: StoreBuilder, agents: Path) -> None:
    before = picture(agents, without_state=False)
    child = terminal(agents, "prune", "--older-than", "1h")
    child.expect(r"\[y/N\]")
    child.sendeof()
    code, said = ended(child)
    assert (code, "Nothing was changed." in lines(said)) == (130, True)
    assert picture(agents, without_state=False) == before


@pytest.mark.parametrize("wide", [100, 40])
def test_many_thousand_sessions_are_listed(agents: Path, wide: int) -> None:
    store = StoreBuilder(agents)
    at = now_ms() - 86_400_000
    entries: dict[str, Any] = {
        f"agent:main:cron:{i}": {"sessionId": f"{i:08d}-0000-4000-8000-000000000000", "updatedAt": at + i, "label": "x"}
        for i in range(20_000)
    }
    store.index.write_text(json.dumps(entries))
    child = terminal(agents, "list", width=wide)
    code, said = ended(child)
    assert code == 0
    assert len(set(re.findall(r"\d{8}-0000-4000-8000-000000000000", said))) == 20_000
    assert "20,000 sessions" in said
