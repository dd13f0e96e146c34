"""The ready-made examples work: hooks, a timer, a cron line, a compose file."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from service import running
from support import ROOT, RUNNER, Skill, StoreBuilder, picture

from session_manager.faces.runner import USAGE

EXAMPLES = ROOT / "examples"
TIMER = EXAMPLES / "systemd" / "session-manager-prune.timer"
UNIT = TIMER.with_suffix(".service")
COMPOSE = yaml.safe_load((EXAMPLES / "compose.yaml").read_text())
INSTALLED = "/opt/aria-sessionmanager/run_skill.py"


@pytest.fixture
def environ(agents: Path) -> dict[str, str]:
    """The environment of a hook, in which python3 is the interpreter of the tests."""
    store = StoreBuilder(agents)
    store.add("cron:old", 120, "old")
    store.add("subagent:done", 1, "done")
    store.write()
    bin_ = agents.parent / "bin"
    bin_.mkdir()
    (bin_ / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (bin_ / "python3").chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
        "ARIA_AGENTS_DIR": str(agents),
        "ARIA_API_URL": "",
        "SKILL_RUNNER": str(RUNNER),
    }


def sh(environ: Mapping[str, str], *command: str | Path) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(["sh", *command], env=environ, capture_output=True, timeout=120, check=False)
    return done.returncode, json.loads(done.stdout or "{}")


def test_the_work_cycle_hook_prunes(environ: dict[str, str]) -> None:
    code, document = sh(environ, EXAMPLES / "work_cycle_hook.sh")
    assert (code, document["deleted_ids"]) == (0, ["old"])


def test_the_post_delegation_hook_cleans_up_once_and_again(environ: dict[str, str]) -> None:
    hook = EXAMPLES / "post_delegation_hook.sh"
    assert sh(environ, hook, "done")[1]["deleted"] == "done"
    code, document = sh(environ, hook, "done")
    assert (code, document["already_deleted"]) == (0, True)
    code, document = sh(environ, hook, "nobody")
    assert (code, document["code"]) == (5, "session_not_found")


def test_an_id_brings_no_arguments_of_its_own(environ: dict[str, str], agents: Path) -> None:
    before = picture(agents)
    hook = EXAMPLES / "post_delegation_hook.sh"
    for given, why in (
        ('done", "force": true, "agent": "main', (5, "session_not_found")),
        ('done", "force', (5, "session_not_found")),
        ("../done", (2, "bad_argument")),
        ("-", (2, "bad_argument")),
        ("--help", (2, "bad_argument")),
    ):
        code, document = sh(environ, hook, given)
        assert (code, document["code"]) == why, given
    assert sh(environ, hook)[0] == 2
    assert picture(agents) == before


def test_hooks_can_be_executed() -> None:
    hooks = list(EXAMPLES.glob("*.sh"))
    assert len(hooks) == 2
    assert all(os.access(hook, os.X_OK) for hook in hooks)


def settings(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def test_the_timers_service_prunes(environ: dict[str, str]) -> None:
    unit = settings(UNIT)
    for pair in unit["Environment"]:
        assert f"  {pair.partition('=')[0]} " in USAGE
    assert UNIT.stem == TIMER.stem
    (command,) = unit["ExecStart"]
    program, runner, *arguments = shlex.split(command)
    assert (program, runner) == ("/usr/bin/python3", INSTALLED)
    done = subprocess.run([sys.executable, RUNNER, *arguments], env=environ, capture_output=True, check=True)
    assert json.loads(done.stdout)["deleted_ids"] == ["old"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd on this machine")
def test_systemd_takes_the_timer(tmp_path: Path) -> None:
    command = ["systemd-analyze", "verify", "--man=no"]
    done = subprocess.run([*command, UNIT, TIMER], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    broken = tmp_path / TIMER.name
    broken.write_text(TIMER.read_text().replace("*:0/15", "sometimes"))
    shutil.copy(UNIT, tmp_path)
    done = subprocess.run([*command, broken], capture_output=True, text=True, timeout=60, check=False)
    assert "sometimes" in done.stderr


def test_the_cron_line_prunes_into_a_log_and_prints_what_failed(environ: dict[str, str], tmp_path: Path) -> None:
    lines = [line for line in (EXAMPLES / "crontab").read_text().splitlines() if not line.startswith("#")]
    *variables, line = lines
    for variable in variables:
        assert f"  {variable.partition('=')[0]} " in USAGE
    *when, command = line.split(maxsplit=5)
    assert when == ["*/15", "*", "*", "*", "*"]
    # Cron makes a new line of it.
    assert "%" not in command
    assert command.count(INSTALLED) == 1
    command = command.replace(INSTALLED, shlex.quote(str(RUNNER)))
    environ["HOME"] = str(tmp_path)
    done = subprocess.run(["sh", "-c", command], env=environ, capture_output=True, check=True)
    assert done.stdout == b""
    log = tmp_path / "session-manager.log"
    assert json.loads(log.read_text())["deleted_ids"] == ["old"]
    Path(environ["ARIA_AGENTS_DIR"], "main", "sessions", "sessions.json").write_text("{")
    mailed = subprocess.run(["sh", "-c", command], env=environ, capture_output=True, check=True).stdout
    assert json.loads(mailed)["code"] == "index_damaged"
    assert len(log.read_text().splitlines()) == 2


def filled(environment: Mapping[str, str], **values: str) -> dict[str, str]:
    """A service's environment with compose's variables put in."""
    return {
        name: re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: values[found[1]], text) for name, text in environment.items()
    }


def test_the_compose_files_service_serves_its_gateway(agents: Path, database: str, tmp_path: Path) -> None:
    services = COMPOSE["services"]
    values = {"ARIA_API_TOKEN": "a-token-of-the-tests", "POSTGRES_PASSWORD": "secret"}
    api = filled(services["aria-api"]["environment"], **values)
    gateway = filled(services["gateway"]["environment"], **values)
    assert api["ARIA_AGENTS_DIR"] == gateway["ARIA_AGENTS_DIR"]
    assert gateway["ARIA_AGENTS_DIR"] == f"{gateway['OPENCLAW_STATE_DIR']}/agents"
    assert api["DATABASE_URL"] == "postgresql://aria:secret@postgres/aria"
    program, serve, *arguments = services["aria-api"]["command"]
    assert (program, serve) == ("session-manager", "serve")
    where = arguments.index("--port")
    assert arguments[where : where + 2] == ["--port", "8000"]
    del arguments[where : where + 2]
    store = StoreBuilder(agents)
    store.add("cron:old", 120, "old")
    store.write()
    here = {**api, "DATABASE_URL": database, "ARIA_AGENTS_DIR": str(agents), "HOME": str(tmp_path)}
    with running(tmp_path / "log", *arguments, **here) as service:
        url = service.url.replace("0.0.0.0", "127.0.0.1")
        headers = {"Host": "aria-api:8000", "Authorization": f"Bearer {gateway['ARIA_API_TOKEN']}"}
        assert httpx.get(f"{url}/api/sessions", headers=headers, trust_env=False).status_code == 200
        *_, check = services["aria-api"]["healthcheck"]["test"]
        healthy = check.replace("http://127.0.0.1:8000", url)
        assert healthy != check
        subprocess.run([sys.executable, "-c", healthy], check=True, timeout=60)
        skill = Skill(agents, ARIA_API_URL=f"{url}/api", ARIA_API_TOKEN=gateway["ARIA_API_TOKEN"])
        told = skill("doctor")
        assert told.exit_code == 0, told.document
        httpx.post(f"{url}/api/sessions/sync", headers=headers, trust_env=False, timeout=60).raise_for_status()
        assert skill("delete_session", {"session_id": "old"}).document["pg_status_updated"] is True
    assert gateway["ARIA_API_URL"] == f"http://aria-api:{services['aria-api']['ports'][0].rpartition(':')[2]}/api"


def test_the_compose_file_names_what_is_there() -> None:
    services, volumes = COMPOSE["services"], COMPOSE["volumes"]
    for service in services.values():
        assert all(volume.partition(":")[0] in volumes for volume in service["volumes"])
        assert set(service.get("depends_on", ())) <= set(services)
    build = services["aria-api"]["build"]
    context = (EXAMPLES / build["context"]).resolve()
    copied = [
        name
        for line in re.findall(r"^COPY (.*)$", build["dockerfile_inline"], re.MULTILINE)
        for name in line.split()[:-1]
    ]
    assert "session_manager" in copied
    assert all((context / name).exists() for name in copied)
