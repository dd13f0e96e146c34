"""session-manager doctor: the function's page in words."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from support import ROOT, Skill, StoreBuilder
from typer.testing import CliRunner

from session_manager.faces.cli import doctor as cli_doctor

PROGRAM = (
    "import typer; from session_manager.faces.cli import doctor as cli_doctor; app = typer.Typer();"
    "app.callback()(lambda: None); cli_doctor.add_to(app); app()"
)


@pytest.fixture
def app() -> typer.Typer:
    found = typer.Typer()
    cli_doctor.add_to(found)
    return found


@pytest.fixture
def environ(agents: Path) -> dict[str, str]:
    store = StoreBuilder(agents)
    store.add("cron:a", 5)
    store.write()
    return {"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": ""}


def test_all_is_well(app: typer.Typer, environ: dict[str, str]) -> None:
    done = CliRunner().invoke(app, [], env=environ)
    assert done.exit_code == 0
    assert all(line.startswith("ok  ") for line in done.stdout.splitlines())
    assert "store main  sessions.json" in done.stdout
    assert done.stderr == "all 7 checks passed\n"


def test_what_is_wrong_comes_with_what_to_do_and_the_functions_exit_code(
    app: typer.Typer, environ: dict[str, str], agents: Path
) -> None:
    (agents / "main" / "sessions" / "sessions.json").write_text("{")
    done = CliRunner().invoke(app, [], env=environ)
    assert done.exit_code == 7
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("!!")]
    assert "store main" in line
    assert "-> stop the gateway, then call readopt_orphans" in line
    assert done.stderr == "1 of 7 checks found a problem\n"


def test_json_is_the_functions_own_document(app: typer.Typer, environ: dict[str, str], skill: Skill) -> None:
    done = CliRunner().invoke(app, ["--json"], env=environ)
    said, asked = json.loads(done.stdout), skill("doctor", ARIA_API_URL="").document
    for document in (said, asked):
        # How much is free changes from one call to the next.
        (disk,) = (check for check in document["checks"] if check["name"].startswith("disk "))
        assert "free" in disk.pop("what")
    assert said == asked
    unreachable = CliRunner().invoke(app, ["--json"], env={**environ, "ARIA_API_URL": "http://127.0.0.1:1/api"})
    assert (unreachable.exit_code, json.loads(unreachable.stdout)["code"]) == (70, "aria_api_unreachable")


@pytest.mark.parametrize("columns", ["40", "100"])
def test_it_fits_the_terminal(environ: dict[str, str], agents: Path, columns: str) -> None:
    (agents / "main" / "sessions" / "x\x1b[31m.jsonl.lock").write_text("{}")
    parent, child = pty.openpty()
    env = {**os.environ, **environ, "PYTHONPATH": str(ROOT), "COLUMNS": columns, "TERM": "xterm", "NO_COLOR": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "doctor"], stdout=child, stderr=subprocess.DEVNULL, env=env
    ) as p:
        os.close(child)
        text = b""
        while chunk := _read(parent):
            text += chunk
    os.close(parent)
    assert p.returncode == 0
    lines = text.decode().replace("\r", "").splitlines()
    assert max(map(len, lines)) <= int(columns)
    assert "x?[31m" in "".join(lines).replace(" ", "")
    assert "\x1b[31m" not in text.decode()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""


def test_a_wrong_setting_is_the_commands_own_failure(app: typer.Typer) -> None:
    done = CliRunner().invoke(app, [], env={"ARIA_AGENTS_DIR": "/nowhere"})
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the agents directory '/nowhere' does not exist")
    as_json = CliRunner().invoke(app, ["--json"], env={"ARIA_AGENTS_DIR": "/nowhere"})
    assert (as_json.exit_code, json.loads(as_json.stdout)["code"], as_json.stderr) == (2, "agents_dir_missing", "")
