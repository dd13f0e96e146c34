"""session-manager where nobody watches: documents, exit codes, refusals. Its terminal: test_cli_terminal.py."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from service import cli
from support import ROOT, Skill, StoreBuilder, picture

from session_manager.faces.cli import words

COMMANDS = (
    "list", "show", "stats", "prune", "delete", "deleted", "restore", "undo", "orphans", "purge", "erase", "deliver",
    "ghosts", "policy", "pin", "unpin", "doctor", "serve", "migrate", "token", "mcp", "skill",
)  # fmt: skip


@pytest.fixture
def store(agents: Path, monkeypatch: pytest.MonkeyPatch) -> StoreBuilder:
    monkeypatch.setenv("ARIA_AGENTS_DIR", str(agents))
    store = StoreBuilder(agents)
    store.add("cron:a", 180, "daily", label="Daily report", model="gpt-4o")
    store.add("direct:ann", 200, "talk", label="Ann")
    store.add("cron:b", 5, "young")
    store.add("main", 500, "the-main")
    return store.write()


def test_it_says_which_version_it_is() -> None:
    done = cli("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, version("aria-sessionmanager") + "\n", "")


READS: list[tuple[list[str], str, dict[str, Any]]] = [
    (["list"], "list_sessions", {"sizes": True}),
    (
        ["list", "-a", "main", "-t", "cron", "--older-than", "1h", "--label", "d*", "--limit", "1"],
        "list_sessions",
        {
            "sizes": True,
            "agent": "main",
            "session_type": "cron",
            "older_than_minutes": 60,
            "label": "d*",
            "limit": 1,
        },
    ),
    (["list", "--larger-than", "0.2k", "--empty"], "list_sessions", {"sizes": True, "min_bytes": 200, "empty": True}),
    (["show", "daily"], "show_session", {"session_id": "daily"}),
    (["stats", "--older-than", "2h"], "get_session_stats", {"stale_minutes": 120}),
    (["prune", "-n", "--older-than", "1h"], "prune_sessions", {"dry_run": True, "details": True}),
    (
        ["delete", "-n", "--model", "gpt*", "--force"],
        "delete_sessions",
        {"model": "gpt*", "force": True, "details": True},
    ),
    (["deleted", "--since", "1d"], "list_deleted", {"since_minutes": 1440}),
    (["orphans", "--older-than", "1w"], "cleanup_orphans", {"older_than_minutes": 10080}),
    (["purge", "--older-than", "2w", "--dry-run"], "purge_archives", {"older_than_days": 14}),
]


@pytest.mark.parametrize(("command", "function", "arguments"), READS)
def test_json_is_the_functions_own_document_byte_for_byte(
    store: StoreBuilder, skill: Skill, command: list[str], function: str, arguments: dict[str, Any]
) -> None:
    before = picture(store.dir.parents[1], without_state=False)
    done = cli(*command, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.encode() == skill(function, arguments).stdout
    assert picture(store.dir.parents[1], without_state=False) == before


@pytest.mark.parametrize("command", [command for command, _, _ in READS])
def test_data_is_on_standard_output_and_nothing_is_cut_in_a_pipe(store: StoreBuilder, command: list[str]) -> None:
    store.add("cron:long", 300, "long", label="x" * 300)
    store.write()
    done = cli(*command)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    if command == ["list"]:
        assert "x" * 300 in done.stdout
        assert done.stderr == "5 sessions\n"


def test_without_a_terminal_nothing_goes_unless_it_is_said(store: StoreBuilder) -> None:
    before = picture(store.dir.parents[1], without_state=False)
    for command, flag in (
        (["prune", "--older-than", "1h"], "--yes or --dry-run"),
        (["delete", "--label", "*"], "--yes or --dry-run"),
        (["delete", "--label", "*", "--json"], "--yes or --dry-run"),
        (["purge", "--older-than", "1d"], "--yes or --dry-run"),
        (["orphans", "--delete", "--older-than", "1h"], "--yes"),
        (["erase", "daily"], "--confirm"),
    ):
        done = cli(*command, ARIA_ALLOW_ERASE="1")
        assert (done.returncode, done.stdout) == (2, "")
        assert flag in done.stderr
    assert picture(store.dir.parents[1], without_state=False) == before


@pytest.mark.parametrize(
    "command", [["prune"], ["prune", "--durable", "--limit", "3"], ["delete"], ["delete", "--force"], ["purge"]]
)
def test_a_bulk_command_without_age_or_filter_is_refused(store: StoreBuilder, command: list[str]) -> None:
    before = picture(store.dir.parents[1], without_state=False)
    for flags in ([], ["--yes"]):
        done = cli(*command, *flags)
        assert done.returncode == 2
        assert "nothing was changed" in done.stderr
        assert "--older-than" in done.stderr
    assert picture(store.dir.parents[1], without_state=False) == before


def test_what_goes_can_be_undone_and_is_listed(store: StoreBuilder, skill: Skill) -> None:
    entries = store.read()
    done = cli("prune", "--type", "cron", "--yes", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["deleted_ids"]) == (0, ["daily"])
    listed = cli("deleted", "--run", document["run_id"])
    assert "daily" in listed.stdout
    assert "older than 60 min" in listed.stdout
    assert cli("undo", document["run_id"]).returncode == 0
    assert store.read() == entries
    deleted = cli("delete", "daily", "talk")
    assert deleted.returncode == 0
    assert "undo" in deleted.stderr
    assert cli("restore", "daily").returncode == cli("restore", "talk").returncode == 0
    assert store.read() == entries


def test_of_several_the_others_are_deleted(store: StoreBuilder) -> None:
    done = cli("delete", "nobody", "daily", "the-main")
    assert done.returncode == 3
    assert "nobody" in done.stderr
    assert "the-main" in done.stderr
    assert {e["sessionId"] for e in store.read().values()} == {"talk", "young", "the-main"}
    assert cli("delete", "nobody", "the-main").returncode == 4
    assert cli("delete", "nobody", "noone").returncode == 5
    again = cli("delete", "daily", "young")
    assert (again.returncode, "daily had already been removed" in again.stdout) == (0, True)


def test_an_option_may_be_given_again_or_is_refused(store: StoreBuilder, agents: Path) -> None:
    other = StoreBuilder(agents, "other")
    other.add("hook:x", 300, "hooked")
    other.write()
    both = json.loads(cli("list", "-t", "cron", "--type", "hook", "--json").stdout)
    assert {s["id"] for s in both["sessions"]} == {"daily", "young", "hooked"}
    for command in ("list", "stats", "policy check", "deleted", "orphans", "prune -n", "purge --older-than 1d -n"):
        assert cli(*command.split(), "-a", "other", "--agent", "main").returncode == 0, command
    agents_of = json.loads(cli("list", "-a", "other", "-a", "main", "-t", "hook", "--json").stdout)
    assert [s["id"] for s in agents_of["sessions"]] == ["hooked"]
    assert cli("list", "-a", "other", "-a", "othre").returncode == 5
    before = picture(agents, without_state=False)
    for command in (
        "list --label a --label b", "prune --older-than 1h --older-than 2h --yes", "show daily -a main -a other",
        "delete --limit 1 --limit 2 --type cron --yes", "token create --name a --name b",
    ):  # fmt: skip
        refused = cli(*command.split())
        assert (refused.returncode, "was given twice" in refused.stderr) == (2, True), command
    assert picture(agents, without_state=False) == before
    pruned = json.loads(cli("prune", "-t", "cron", "-t", "hook", "--yes", "--json").stdout)
    assert set(pruned["deleted_ids"]) == {"daily", "hooked"}


def test_exit_codes_are_those_of_the_runner(store: StoreBuilder, agents: Path) -> None:
    assert cli("show", "nobody").returncode == 5
    assert cli("delete", "the-main").returncode == 4
    assert cli("list", "--type", "corn").returncode == 2
    assert cli("list", "--older-than", "0m").returncode == 2
    assert cli("list", "--nonsense").returncode == 2
    assert cli("list", ARIA_AGENTS_DIR="/no/such/folder").returncode == 2
    damaged = StoreBuilder(agents, "other")
    damaged.index.write_text("{")
    part = cli("list")
    assert (part.returncode, "daily" in part.stdout, "other" in part.stderr) == (3, True, True)
    named = cli("list", "--agent", "other", "--json")
    assert (named.returncode, json.loads(named.stdout)["code"]) == (7, "index_damaged")


def test_a_reader_that_goes_away_is_no_failure(store: StoreBuilder) -> None:
    store.entries.update({f"agent:main:cron:{i}": {"sessionId": f"s{i}", "updatedAt": 1} for i in range(20_000)})
    store.write()
    command = f"{sys.executable} -m session_manager.faces.cli list | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[1] == "0"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("list", 0), ("show daily --json", 0), ("doctor", 0), ("doctor --json", 0), ("policy check", 0),
        ("prune --type cron --yes", 0), ("show nobody", 5), ("list --agent ..", 2),
    ],
)  # fmt: skip
def test_who_listens_does_not_change_the_exit_code(store: StoreBuilder, command: str, code: int) -> None:
    program = f"{sys.executable} -m session_manager.faces.cli {command}"
    for listening in (">&-", "2>&-", "<&-", "<&- >&- 2>&-", "2>/dev/full", "| true", "2>&1 | true"):
        script = f"{program} {listening}; exit ${{PIPESTATUS[0]}}"
        env = {**os.environ, "ARIA_API_URL": "", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), (listening, done.stderr)


@pytest.mark.parametrize(("package", "extra"), [("typer", "cli"), ("rich", "cli"), ("sqlalchemy", "service")])
def test_a_missing_package_is_named_with_the_extra_that_has_it(package: str, extra: str) -> None:
    without = f"import sys; sys.modules[{package!r}] = None; from session_manager.faces.cli import main; main()"
    command = [sys.executable, "-c", without, "migrate"]
    env = {**os.environ, "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    said = f"error: the Python package {package!r} is missing: pip install 'aria-sessionmanager[{extra}]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (70, "", said)


# Stops where the signal finds it: in the middle of an import, which Python answers by dying of the signal.
INTERRUPTED_IMPORT = """\
import builtins, os, signal, sys
module, number = sys.argv.pop(1), int(sys.argv.pop(1))
import_ = builtins.__import__
def interrupted(name, *rest):
    if name == module:
        builtins.__import__ = import_
        exec(f"import os; os.kill({os.getpid()}, {number}); [None] * 1_000_000")
    return import_(name, *rest)
builtins.__import__ = interrupted
from session_manager.faces.cli import main
main()
"""


@pytest.mark.parametrize("module", ["typer", "session_manager.functions.reading", "session_manager.ledger"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_import_is_an_interrupted_command(store: StoreBuilder, module: str, number: int) -> None:
    # Whoever runs the tests may have SIGINT ignored, and children with it.
    program = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{INTERRUPTED_IMPORT}"
    command = [sys.executable, "-c", program, module, str(int(number)), "prune", "--type", "cron", "--yes"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (130, False), done.stderr
    assert len(store.read()) == 4


def test_what_is_opened_takes_no_closed_streams_place() -> None:
    look = "from session_manager.faces import cli; import os; cli._open_what_is_closed();"
    look += "print('out'); files = [os.open('/dev/null', os.O_RDONLY) for _ in range(2)]; os._exit(min(files))"
    script = f"{sys.executable} -c {shlex.quote(look)} <&- >&- 2>&-"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, b"")


def test_help_names_every_command_and_every_exit_code() -> None:
    shown = cli("--help", COLUMNS="200").stdout
    assert all(f" {name} " in shown for name in COMMANDS)
    for code in (
        "0 ok", "2 usage", "3 done in part", "4 refused", "5 not found", "6 locked", "7 damaged", "70 internal error",
        "130 interrupted",
    ):  # fmt: skip
        assert code in shown
    for name in COMMANDS:
        assert cli(name, "--help").returncode == 0


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("session-manager list --type cr", "cron"),
        ("session-manager list --agent ma", "main"),
        ("session-manager pr", "prune"),
    ],
)
def test_the_shell_completes_commands_types_and_agents(store: StoreBuilder, typed: str, offered: str) -> None:
    asked = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    assert offered in cli(_SESSION_MANAGER_COMPLETE="complete_bash", **asked).stdout.split()


AGES = {"1m": 1, "90m": 90, "12h": 720, "7d": 10080, "2w": 20160, " 3 H ": 180, "5min": 5}
SIZES = {"1": 1, "4096": 4096, "500k": 500_000, "1.5M": 1_500_000, "2GB": 2_000_000_000, "10 kb": 10_000}


def test_ages_and_sizes_are_read() -> None:
    assert {text: words.minutes(text) for text in AGES} == AGES
    assert {text: words.amount(text) for text in SIZES} == SIZES
    assert (words.days("4w"), words.days(None), words.minutes(None), words.amount(None)) == (28, None, None, None)


@pytest.mark.parametrize("text", ["", "0m", "0", "5", "-1h", "1y", "1.5h", "h", "99999999d", "١h"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(words.UsageError, match="takes an age"):
        words.minutes(text)


@pytest.mark.parametrize("text", ["", "0", "0k", "-1", "k", "1x", "1e3", "1..5", "0.0001k"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(words.UsageError, match="takes a size"):
        words.amount(text)


@pytest.mark.parametrize(
    ("minutes", "said"),
    [(0, "now"), (-5, "now"), (1, "1 minute"), (119, "119 minutes"), (120, "2 hours"), (2880, "2 days"),
     (20_160, "2 weeks"), (86_400, "2 months"), (1_051_200, "2 years")],
)  # fmt: skip
def test_ages_are_said_in_words(minutes: int, said: str) -> None:
    assert words.span(minutes) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [(None, ""), (0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.0 kB"), (99_950, "100 kB"),
     (999_499, "999 kB"), (999_500, "1.0 MB"), (10**13, "10.0 TB"), (10**18, "1000000 TB")],
)  # fmt: skip
def test_bytes_are_said_in_words(number: int | None, said: str) -> None:
    assert words.size(number) == said


def test_what_was_found_on_the_way_is_said(store: StoreBuilder, skill: Skill, tmp_path: Path) -> None:
    agents = store.dir.parents[1]
    outside = tmp_path / "elsewhere.jsonl"
    outside.write_text("{}\n")
    store.add("cron:far", 180, "far", sessionFile=str(outside))
    store.write()
    (agents / ".session_manager").mkdir()
    (agents / ".session_manager" / "archives").write_bytes(b"in the way")
    done = cli("delete", "--label", "Daily*", "--yes")
    assert "1 archived file without a second copy" in done.stderr, done.stderr
    for archive in store.dir.glob("*.deleted.*"):
        archive.unlink()
    store.write()
    (store.dir / "daily.jsonl").unlink(missing_ok=True)
    done = cli("prune", "--label", "no such label", "--yes")
    assert "removed again: 1 session that the gateway had written back" in done.stderr, done.stderr
    done = cli("prune", "--type", "cron", "--yes")
    assert f"or its name is not UTF-8: {outside}" in done.stderr, done.stderr
