"""The runner as a subprocess: one JSON document on every path, exit codes, sloppy arguments, where the agents are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import RUNNER, Answer, Skill, StoreBuilder, now_ms, picture

FUNCTIONS = [
    "list_sessions",
    "show_session",
    "get_session_stats",
    "prune_sessions",
    "delete_session",
    "delete_sessions",
    "cleanup_after_delegation",
    "deliver_history",
    "cleanup_orphans",
    "readopt_orphans",
    "purge_archives",
    "erase_session",
    "cleanup_ghosts",
    "list_deleted",
    "restore_session",
    "restore_run",
    "pin_session",
    "unpin_session",
    "verify_ledger",
    "doctor",
    "check_policy",
]


def run(
    *argv: str, stdin: bytes = b"", python: tuple[str, ...] = (), cwd: Path | None = None, **env: str | None
) -> Answer:
    """Calls the runner with exactly these arguments; ``env`` adds to (or, with None, removes from) the environment."""
    merged = {k: v for k, v in {**os.environ, **env}.items() if v is not None}
    command = [sys.executable, *python, str(RUNNER), *argv]
    return Answer(
        subprocess.run(command, input=stdin, capture_output=True, env=merged, cwd=cwd, timeout=60, check=False)
    )


def strictly(stdout: bytes) -> Any:
    """Parses as the strictest reader does: no NaN, no lone surrogate, one line."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    found = json.loads(stdout.decode("utf-8"), parse_constant=refuse)
    json.dumps(found, ensure_ascii=False).encode("utf-8")
    return found


@pytest.fixture
def skill(agents: Path) -> Skill:
    return Skill(agents, new_interpreter=True)


@pytest.fixture
def store(agents: Path) -> StoreBuilder:
    """An agent with its main session and two old cron sessions."""
    builder = StoreBuilder(agents)
    builder.add("main", 1, "the-main")
    builder.add("cron:a", 120, "old-a")
    builder.add("cron:b", 240, "old-b")
    return builder.write()


# Names and usage.


@pytest.mark.parametrize("name", ["session_manager", "session-manager", "aria-sessionmanager", "aria-session-manager"])
def test_every_name_of_the_skill(store: StoreBuilder, agents: Path, name: str) -> None:
    answer = run(name, "list_sessions", ARIA_AGENTS_DIR=str(agents))
    assert (answer.exit_code, answer.document["session_count"]) == (0, 3)


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        ([], "usage", "session_manager"),
        (["session_manager"], "unknown_function", "list_sessions"),
        (["sessionmanager", "list_sessions"], "unknown_skill", "session_manager"),
        (["", "list_sessions"], "unknown_skill", "session_manager"),
        (["session_manager", "list_session"], "unknown_function", "'list_sessions'"),
        (["session_manager", "prune"], "unknown_function", "'prune_sessions'"),
        (["session_manager", "cleanup_after_delegations"], "unknown_function", "'cleanup_after_delegation'"),
        (["session_manager", "frobnicate"], "unknown_function", "get_session_stats"),
        (["session_manager", ""], "unknown_function", "list_sessions"),
        (["session_manager", "__init__"], "unknown_function", "list_sessions"),
        (["session_manager", "list_sessions", "{}", "{}"], "usage", "one JSON object"),
        (["session_manager", "delete_session", "--session_id", "x"], "usage", "one JSON object"),
    ],
)
def test_what_cannot_be_called_is_a_usage_error(agents: Path, argv: list[str], code: str, told: str) -> None:
    answer = run(*argv, ARIA_AGENTS_DIR=str(agents))
    assert (answer.exit_code, answer.document["code"]) == (2, code)
    assert told in answer.document["error"]
    assert answer.stderr == ""


@pytest.mark.parametrize(
    "text",
    [
        "[]", '["session_id"]', "1", "-1.5", "null", "true", '"old-a"', "", " ", "{", "{}x", "{} {}", "NaN",
        "{'agent':'main'}", "agent=main", '{"max_age_minutes":NaN}', '{"max_age_minutes":Infinity}',
        '{"max_age_minutes":1e400}', '{"max_age_minutes":' + "9" * 5000 + "}", '{"agent":"\\ud83d"}',
        '{"agent":"\udcff"}', "\ufeff{}", "[" * 60_000, '{"a":' * 20_000 + "1" + "}" * 20_000,
    ],
)  # fmt: skip
def test_arguments_that_are_no_json_object_are_a_usage_error(store: StoreBuilder, skill: Skill, text: str) -> None:
    before = picture(store.dir)
    for answer in (
        skill("prune_sessions", text),
        skill("prune_sessions", "-", stdin=text.encode("utf-8", "surrogateescape")),
    ):
        assert (answer.exit_code, answer.document["code"]) == (2, "bad_json")
        strictly(answer.stdout)
        assert answer.stderr == ""
    assert picture(store.dir) == before


@pytest.mark.parametrize(
    ("function", "arguments", "named", "nearest"),
    [
        ("prune_sessions", {"max_age_minuets": 60}, "'max_age_minuets'", "'max_age_minutes'"),
        ("prune_sessions", {"max_age_minutes": 60, "dryrun": True}, "'dryrun'", "'dry_run'"),
        ("prune_sessions", {"dryRun": True}, "'dryRun'", "'dry_run'"),
        ("delete_session", {"sessionId": "x"}, "'sessionId'", "'session_id'"),
        ("delete_session", {"session_id": "x", "wait_seconds": 1}, "'wait_seconds'", "force"),
        ("list_sessions", {"agents": "main"}, "'agents'", "'agent'"),
        ("list_sessions", {"zzz": 1}, "'zzz'", "session_type"),
        ("list_sessions", {"": 1}, "''", "session_type"),
        ("get_session_stats", {"stale_minute": 5}, "'stale_minute'", "'stale_minutes'"),
    ],
)
def test_an_unknown_argument_is_named_with_the_nearest(
    store: StoreBuilder, skill: Skill, function: str, arguments: dict[str, Any], named: str, nearest: str
) -> None:
    answer = skill(function, arguments)
    assert (answer.exit_code, answer.document["code"]) == (2, "unknown_argument")
    assert named in answer.document["error"]
    assert nearest in answer.document["error"]
    assert len(store.read()) == 3


@pytest.mark.parametrize(
    ("arguments", "pruned"),
    [
        ({"max_age_minutes": "60"}, ["old-a", "old-b"]),
        ({"max_age_minutes": 60.0}, ["old-a", "old-b"]),
        ({"max_age_minutes": "180", "dry_run": "false"}, ["old-b"]),
        ({"limit": "1", "agent": None, "session_type": None}, ["old-b"]),
        ({"include_durable": "true", "max_age_minutes": "500"}, []),
    ],
)
def test_sloppy_arguments_are_understood(
    store: StoreBuilder, skill: Skill, arguments: dict[str, Any], pruned: list[str]
) -> None:
    for dry_run in ("true", True, "1"):
        answer = skill("prune_sessions", {**arguments, "dry_run": dry_run})
        assert (answer.exit_code, answer.document["dry_run"]) == (0, True)
        assert sorted(answer.document["deleted_ids"]) == pruned
    assert len(store.read()) == 3
    assert sorted(skill("prune_sessions", arguments).document["deleted_ids"]) == pruned


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("prune_sessions", {"max_age_minutes": 0}),
        ("prune_sessions", {"max_age_minutes": "0"}),
        ("prune_sessions", {"max_age_minutes": -1}),
        ("prune_sessions", {"max_age_minutes": 0.5}),
        ("prune_sessions", {"max_age_minutes": ""}),
        ("prune_sessions", {"max_age_minutes": "soon"}),
        ("prune_sessions", {"max_age_minutes": None}),
        ("prune_sessions", {"max_age_minutes": True}),
        ("prune_sessions", {"max_age_minutes": [60]}),
        ("prune_sessions", {"max_age_minutes": "9" * 5000}),
        ("prune_sessions", {"dry_run": "maybe"}),
        ("prune_sessions", {"dry_run": None}),
        ("prune_sessions", {"limit": 0}),
        ("prune_sessions", {"session_type": "crom"}),
        ("prune_sessions", {"session_type": ""}),
        ("prune_sessions", {"agent": ""}),
        ("prune_sessions", {"agent": "./main"}),
        ("prune_sessions", {"agent": "../agents/main"}),
        ("list_sessions", {"limit": -1}),
        ("list_sessions", {"agent": 5}),
        ("get_session_stats", {"stale_minutes": 0}),
        ("delete_session", {}),
        ("delete_session", {"session_id": None}),
        ("delete_session", {"session_id": ""}),
        ("delete_session", {"session_id": "../old-a"}),
        ("delete_session", {"session_id": "a\0b"}),
        ("delete_session", {"session_id": "-rf"}),
        ("delete_session", {"session_id": "old-a", "force": "maybe"}),
        ("cleanup_after_delegation", {"session_id": "old-a", "wait_seconds": -1}),
        ("cleanup_after_delegation", {"session_id": "old-a", "wait_seconds": "later"}),
    ],
)
def test_a_bad_argument_changes_nothing(
    store: StoreBuilder, skill: Skill, agents: Path, function: str, arguments: dict[str, Any]
) -> None:
    before = picture(agents, without_state=False)
    answer = skill(function, arguments)
    assert (answer.exit_code, answer.document["code"]) == (2, "bad_argument")
    assert picture(agents, without_state=False) == before


def test_a_huge_age_prunes_nothing(store: StoreBuilder, skill: Skill) -> None:
    for age in (10**18, 10**30, str(10**30)):
        answer = skill("prune_sessions", {"max_age_minutes": age})
        assert (answer.exit_code, answer.document["pruned_count"]) == (0, 0)


def test_arguments_come_from_standard_input(store: StoreBuilder, skill: Skill) -> None:
    answer = skill("prune_sessions", "-", stdin=b'\n {"max_age_minutes": 180, "dry_run": true}\n')
    assert answer.document["deleted_ids"] == ["old-b"]
    assert skill("list_sessions", "-", stdin=b"").document["code"] == "bad_json"


def test_closed_standard_input_is_a_usage_error(store: StoreBuilder, skill: Skill) -> None:
    command = ["sh", "-c", 'exec "$@" <&-', "sh", *skill.command("list_sessions", "-")]
    answer = Answer(subprocess.run(command, capture_output=True, env=skill.environment(), timeout=60, check=False))
    assert (answer.exit_code, answer.document["code"]) == (2, "usage")


# Exit codes.


def test_exit_codes(store: StoreBuilder, skill: Skill, agents: Path) -> None:
    damaged = StoreBuilder(agents, "damaged")
    damaged.index.write_text("{")
    store.add("cron:busy", 120, "busy")
    lock = {"pid": os.getpid(), "createdAt": "2026-02-15T18:00:00.000Z"}
    (store.dir / "busy.jsonl.lock").write_text(json.dumps(lock))
    store.write()
    for function, arguments, exit_code, code in [
        ("list_sessions", {"agent": "main"}, 0, None),
        ("list_sessions", {}, 3, "partial"),
        ("get_session_stats", {}, 3, "partial"),
        ("prune_sessions", {"dry_run": True}, 3, "partial"),
        ("list_sessions", {"agent": "damaged"}, 7, "index_damaged"),
        ("list_sessions", {"agent": "man"}, 5, "agent_not_found"),
        ("delete_session", {"session_id": "nobody", "agent": "main"}, 5, "session_not_found"),
        ("delete_session", {"session_id": "the-main"}, 4, "session_protected"),
        ("delete_session", {"session_id": "busy"}, 4, "session_busy"),
        ("cleanup_after_delegation", {"session_id": "busy", "wait_seconds": 0}, 4, "session_busy"),
    ]:
        answer = skill(function, arguments)
        assert (answer.exit_code, answer.document.get("code")) == (exit_code, code), (function, arguments)
        assert ("error" in answer.document) is (exit_code != 0)
    partial = skill("list_sessions").document
    assert partial["session_count"] == 4
    assert [(e["agentId"], e["id"], e["code"]) for e in partial["errors"]] == [("damaged", None, "index_damaged")]


def test_a_store_that_stays_locked_is_exit_6(store: StoreBuilder, skill: Skill) -> None:
    marker = store.dir / "sessions.json.lock"
    created = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(now_ms() // 1000))
    marker.write_text(json.dumps({"pid": os.getpid(), "createdAt": created}))
    answer = skill("delete_session", {"session_id": "old-a"}, ARIA_LOCK_TIMEOUT="0")
    assert (answer.exit_code, answer.document["code"]) == (6, "store_locked")
    assert answer.document["holder"]["pid"] == os.getpid()
    assert len(store.read()) == 3


# --list and --help.


def test_the_catalogue_describes_every_function() -> None:
    answer = run("--list", ARIA_AGENTS_DIR="/nowhere")
    assert answer.exit_code == 0
    assert list(answer.document) == ["functions"]
    functions = {f["name"]: f for f in answer.document["functions"]}
    assert list(functions) == FUNCTIONS
    for function in functions.values():
        assert set(function) == {"name", "description", "arguments"}
        assert function["description"]
        schema = function["arguments"]
        assert schema["type"] == "object"
        assert schema["additionalProperties"] is False
        assert set(schema["required"]) <= set(schema["properties"])
        for name, argument in schema["properties"].items():
            # What is decided elsewhere when it is left out has no default, and says so.
            elsewhere = "left out: " in argument.get("description", "")
            assert ("default" in argument or elsewhere) is (name not in schema["required"])
            assert "type" in argument or all("type" in choice for choice in argument["anyOf"])
    assert functions["delete_session"]["arguments"]["required"] == ["session_id"]
    assert functions["prune_sessions"]["arguments"]["properties"]["max_age_minutes"]["minimum"] == 1
    assert functions["prune_sessions"]["arguments"]["properties"]["dry_run"] == {"type": "boolean", "default": False}


def test_the_catalogues_defaults_are_accepted(store: StoreBuilder, skill: Skill) -> None:
    for function in run("--list").document["functions"]:
        arguments = {n: a["default"] for n, a in function["arguments"]["properties"].items() if "default" in a}
        required = dict.fromkeys(function["arguments"]["required"], "nobody")
        # No aria-api answers here, which the doctor would say.
        env = {"ARIA_ALLOW_ERASE": "1", "ARIA_API_URL": ""}
        answer = skill(function["name"], {**arguments, **required}, **env)
        # A bulk delete asks to be told which sessions.
        expected = 2 if function["name"] == "delete_sessions" else 5 if required else 0
        assert answer.exit_code == expected, answer.document


@pytest.mark.parametrize(
    "argv", [["--help"], ["-h"], ["session_manager", "--help"], ["session_manager", "prune_sessions", "-h"]]
)
def test_help_is_text(argv: list[str]) -> None:
    answer = run(*argv, ARIA_AGENTS_DIR="/nowhere")
    assert answer.exit_code == 0
    text = answer.stdout.decode()
    assert text.startswith("usage: run_skill.py")
    assert all(name in text for name in [*FUNCTIONS, "ARIA_AGENTS_DIR", "130"])


# Where it runs and where the agents are.


def test_it_runs_from_anywhere(store: StoreBuilder, agents: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.py"
    link.symlink_to(RUNNER)
    for folder in (Path("/"), tmp_path, agents):
        assert run("session_manager", "list_sessions", cwd=folder, ARIA_AGENTS_DIR=str(agents)).exit_code == 0
    done = subprocess.run(
        # Isolated: neither the current folder nor PYTHONPATH helps to find the package.
        [sys.executable, "-P", str(link), "session_manager", "list_sessions"],
        capture_output=True, cwd="/", env={**os.environ, "ARIA_AGENTS_DIR": str(agents)}, timeout=60, check=False,
    )  # fmt: skip
    assert Answer(done).document["session_count"] == 3


def test_the_agents_directory_may_be_relative_or_in_the_home(store: StoreBuilder, agents: Path, tmp_path: Path) -> None:
    home = Path(os.environ["HOME"])
    for variables, cwd in (
        ({"ARIA_AGENTS_DIR": "agents"}, tmp_path),
        ({"ARIA_AGENTS_DIR": "~/agents", "HOME": str(tmp_path)}, home),
        ({"OPENCLAW_STATE_DIR": str(tmp_path)}, home),
        ({"OPENCLAW_STATE_DIR": "~", "HOME": str(tmp_path)}, home),
        ({"ARIA_AGENTS_DIR": str(agents), "OPENCLAW_STATE_DIR": "/nowhere"}, home),
    ):
        answer = run("session_manager", "list_sessions", cwd=cwd, **variables)
        assert (answer.exit_code, answer.document.get("session_count")) == (0, 3), variables


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"ARIA_AGENTS_DIR": ""}, "ARIA_AGENTS_DIR"),
        ({"ARIA_AGENTS_DIR": "/nowhere/agents"}, "ARIA_AGENTS_DIR"),
        ({"ARIA_AGENTS_DIR": "{file}"}, "ARIA_AGENTS_DIR"),
        ({"OPENCLAW_STATE_DIR": "/nowhere"}, "OPENCLAW_STATE_DIR"),
        ({"OPENCLAW_STATE_DIR": "{home}"}, "OPENCLAW_STATE_DIR"),
    ],
)
def test_a_place_that_is_set_but_wrong_is_never_passed_over(
    tmp_path: Path, variables: dict[str, str], named: str
) -> None:
    home = Path(os.environ["HOME"])
    StoreBuilder(home / ".openclaw" / "agents").write()
    (tmp_path / "file").touch()
    given = {k: v.format(file=tmp_path / "file", home=home) for k, v in variables.items()}
    for function in ("list_sessions", "prune_sessions"):
        answer = run("session_manager", function, **given)
        assert (answer.exit_code, answer.document["code"]) == (2, "agents_dir_missing")
        assert named in answer.document["error"]


@pytest.mark.skipif(Path("/app/agents").exists(), reason="this machine has the default place")
def test_without_a_setting_the_home_is_looked_at() -> None:
    missing = run("session_manager", "list_sessions")
    assert (missing.exit_code, missing.document["code"]) == (2, "agents_dir_missing")
    assert "ARIA_AGENTS_DIR" in missing.document["error"]
    StoreBuilder(Path(os.environ["HOME"]) / ".openclaw" / "agents").write()
    for state in (None, ""):
        assert run("session_manager", "list_sessions", OPENCLAW_STATE_DIR=state).document["session_count"] == 0


@pytest.mark.parametrize(
    ("name", "value"), [("ARIA_LOCK_TIMEOUT", "soon"), ("ARIA_LOCK_TIMEOUT", "-1"), ("ARIA_KEEP_DAYS", "0")]
)
def test_a_bad_setting_is_a_usage_error(store: StoreBuilder, skill: Skill, name: str, value: str) -> None:
    answer = skill("list_sessions", **{name: value})
    assert (answer.exit_code, answer.document["code"]) == (2, "bad_setting")
    assert name in answer.document["error"]


# When something is wrong with the machine.


def stubs(tmp_path: Path, **modules: str) -> str:
    """A folder for PYTHONPATH with these modules in it."""
    folder = tmp_path / "stubs"
    folder.mkdir(exist_ok=True)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    return str(folder)


def test_without_site_packages_the_missing_package_is_named(agents: Path) -> None:
    answer = run("session_manager", "list_sessions", python=("-S",), ARIA_AGENTS_DIR=str(agents), PYTHONPATH=None)
    assert (answer.exit_code, answer.document["code"]) == (70, "missing_package")
    assert "pip install msgspec" in answer.document["error"]


@pytest.mark.parametrize(
    ("package", "text", "function"),
    [
        ("msgspec", 'raise ModuleNotFoundError("No module named msgspec", name="msgspec")', "list_sessions"),
        ("msgspec", 'raise ModuleNotFoundError("wrong Python", name="msgspec._core")', "list_sessions"),
        ("msgspec", 'raise ImportError("libc too old", name="msgspec._core")', "list_sessions"),
        ("filelock", 'raise ModuleNotFoundError("No module named filelock", name="filelock")', "prune_sessions"),
        ("filelock", 'raise ImportError("broken", name="filelock._api")', "delete_session"),
    ],
)
def test_a_missing_or_broken_package_is_json(
    store: StoreBuilder, skill: Skill, tmp_path: Path, package: str, text: str, function: str
) -> None:
    before = picture(store.dir)
    arguments = {"session_id": "old-a"} if function == "delete_session" else {}
    answer = skill(function, arguments, PYTHONPATH=stubs(tmp_path, **{package: text}))
    assert (answer.exit_code, answer.document["code"]) == (70, "missing_package")
    assert answer.document["error"].endswith(f"pip install {package}")
    assert picture(store.dir) == before


def test_reading_needs_no_lock_package(store: StoreBuilder, skill: Skill, tmp_path: Path) -> None:
    missing = stubs(tmp_path, filelock='raise ModuleNotFoundError("No module named filelock", name="filelock")')
    for function in ("list_sessions", "get_session_stats"):
        assert skill(function, PYTHONPATH=missing).exit_code == 0


@pytest.mark.parametrize(
    "error", ["RuntimeError('boom')", "SystemExit(3)", "RecursionError('boom')", "MemoryError('boom')"]
)
def test_an_internal_error_is_json_and_its_traceback_goes_to_stderr(
    store: StoreBuilder, skill: Skill, tmp_path: Path, error: str
) -> None:
    # The machine's own function fails in a way that nobody expects.
    hook = f"import os\n\ndef scandir(*a):\n    print('noise')\n    raise {error}\n\nos.scandir = scandir\n"
    answer = skill("list_sessions", PYTHONPATH=stubs(tmp_path, sitecustomize=hook))
    assert (answer.exit_code, answer.document["code"]) == (70, "internal_error")
    assert error.partition("(")[0] in answer.document["error"]
    assert "Traceback" in answer.stderr
    assert "noise" in answer.stderr


def test_a_reader_that_has_gone_away_is_no_failure(store: StoreBuilder, skill: Skill) -> None:
    for i in range(800):
        store.add(f"cron:{i}", 120, f"s{i}", transcript=False, label="x" * 200)
    store.write()
    process = skill.start("list_sessions")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0
    process.stderr.close()


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_an_answer_that_cannot_be_written_is_a_failure(store: StoreBuilder, skill: Skill, redirection: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *skill.command("list_sessions")]
    done = subprocess.run(command, capture_output=True, env=skill.environment(), timeout=60, check=False)
    assert done.returncode == 70
    assert b"Traceback" not in done.stderr


# A shell's background job is started with SIGINT ignored, one under nohup with SIGHUP.
LIKE_A_TERMINAL = (
    "import os, signal, sys\n"
    "for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP): signal.signal(n, signal.SIG_DFL)\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def wait_until_it_catches(process: subprocess.Popen[bytes], *numbers: signal.Signals) -> None:
    """Waits until a process handles all these signals: the runner does from its first moment on."""
    deadline = time.monotonic() + 60
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        mask = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:"))
        if all(mask >> (number - 1) & 1 for number in numbers):
            return
        assert time.monotonic() < deadline, "the signals are not handled"
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_exit_130_with_one_document(store: StoreBuilder, skill: Skill, number: signal.Signals) -> None:
    before = picture(store.dir)
    process = subprocess.Popen(
        [sys.executable, "-c", LIKE_A_TERMINAL, *skill.command("prune_sessions", "-")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=skill.environment(),
    )
    try:
        wait_until_it_catches(process, number, signal.SIGTERM, signal.SIGHUP)
        # It waits for its arguments, which never come.
        process.send_signal(number)
        stdout, stderr = process.stdout, process.stderr
        assert stdout is not None
        assert stderr is not None
        answer = Answer(subprocess.CompletedProcess([], process.wait(60), stdout.read(), stderr.read()))
    finally:
        process.kill()
        process.communicate()
    assert (answer.exit_code, answer.document["code"]) == (130, "interrupted")
    assert "Traceback" not in answer.stderr
    assert picture(store.dir) == before


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_under_nohup_a_hang_up_is_ignored(store: StoreBuilder, skill: Skill) -> None:
    nohup = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", nohup, *skill.command("list_sessions", "-")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=skill.environment(),
    )
    try:
        wait_until_it_catches(process, signal.SIGTERM)
        process.send_signal(signal.SIGHUP)
        stdout, _ = process.communicate(b"{}", 60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, strictly(stdout)["session_count"]) == (0, 3)


# What is printed is strict JSON.


def test_odd_values_in_the_index_are_printed_strictly(agents: Path, skill: Skill) -> None:
    builder = StoreBuilder(agents)
    entry = '{"sessionId":"%s","updatedAt":%d,"label":%s,"model":%s,"contextTokens":%s}'
    values = [
        (r'"cut \ud83d"', r'"\ude00"', "500"),
        (r'"whole \ud83d\ude00"', '"m"', "1e400"),
        (r'"\u0000\u001f"', '""', "9" * 400),
        ('"é"', "5", "-1.5"),
        ('"x"', "null", "9" * 5000),
    ]
    members = [
        f'"agent:main:cron:{i}":' + entry % (f"s{i}", now_ms() - i, label, model, tokens)
        for i, (label, model, tokens) in enumerate(values)
    ]
    members.append(r'"agent:main:cron:k\ud83d":{"sessionId":"id\ud83d","updatedAt":1}')
    builder.index.write_text("{" + ",".join(members) + "}")
    answer = skill("list_sessions")
    assert answer.exit_code == 0
    rows = strictly(answer.stdout)["sessions"]
    assert [(r["label"], r["model"], r["contextTokens"]) for r in rows] == [
        ("cut \ufffd", "\ufffd", 500),
        ("whole \U0001f600", "m", None),
        ("\x00\x1f", None, None),
        ("é", None, -1.5),
        ("x", None, None),
        (None, None, None),
    ]
    for function in ("get_session_stats", "prune_sessions"):
        assert strictly(skill(function).stdout)["total_sessions"] == 6


def test_an_argument_with_odd_bytes_is_answered_strictly(agents: Path) -> None:
    environment = {**os.environb, b"ARIA_AGENTS_DIR": os.fsencode(agents)}
    for argv in ([b"\xff"], [b"session_manager", b"\xff"], [b"session_manager", b"list_sessions", b'{"\xff":1}']):
        command = [os.fsencode(sys.executable), os.fsencode(RUNNER), *argv]
        answer = Answer(subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False))
        assert answer.exit_code == 2
        assert "error" in strictly(answer.stdout)
    environment[b"ARIA_AGENTS_DIR"] = b"/nowhere/\xff"
    command = [os.fsencode(sys.executable), os.fsencode(RUNNER), b"session_manager", b"list_sessions"]
    answer = Answer(subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False))
    assert (answer.exit_code, strictly(answer.stdout)["path"]) == (2, "/nowhere/\ufffd")


def test_the_runner_does_not_care_for_the_locale(store: StoreBuilder, skill: Skill) -> None:
    store.add("cron:é", 120, "s-é", label="é\u2028😀")
    store.write()
    answer = skill(
        "list_sessions", LC_ALL="C", LANG=None, PYTHONUTF8="0", PYTHONIOENCODING="ascii", PYTHONCOERCECLOCALE="0"
    )
    assert "é\u2028😀" in [row["label"] for row in strictly(answer.stdout)["sessions"]]
