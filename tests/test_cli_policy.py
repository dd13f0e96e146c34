"""session-manager policy check: prints what check_policy returns, and ends with its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from support import StoreBuilder
from typer.testing import CliRunner, Result

from session_manager.faces.cli_policy import add_to


def call(agents: Path, *arguments: str) -> Result:
    app = typer.Typer()
    add_to(app)
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["policy", "check", *arguments], env={"ARIA_AGENTS_DIR": str(agents)})


@pytest.fixture
def policy(agents: Path) -> Path:
    store = StoreBuilder(agents)
    store.add("cron:a", 300, "old")
    store.add("cron:b\u001b[31m", 200, "pin\u001b[31m", transcript=False, pinnedAt=1)
    store.add("cron:c", 5, "young")
    store.write()
    path = agents / ".session_manager" / "session-manager.toml"
    path.parent.mkdir()
    path.write_text('[types.cron]\nmax_age = "2h"\nbudget = "1 B"\n[pins]\nids = ["young", "nowhere"]')
    return path


def test_it_says_what_goes_and_why(agents: Path, policy: Path) -> None:
    done = call(agents)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == f"policy: {policy}"
    assert "remove        1  older than 120 min" in lines
    assert "main  old  cron  older than 120 min" in lines
    assert any(line.startswith("agent 'main': its cron transcripts stay over budget by ") for line in lines)
    assert "unused pin: no session has nowhere among its ids" in lines
    assert "1 of 3 sessions would go" in done.stderr
    assert "\u001b" not in done.output


def test_json_is_the_functions_own_document(agents: Path, policy: Path) -> None:
    document = json.loads(call(agents, "--json", "--agent", "main").stdout)
    assert (document["policy"], document["would_prune"]) == (str(policy), 1)


def test_without_a_policy_it_says_so(agents: Path, policy: Path) -> None:
    policy.unlink()
    assert call(agents).stdout.splitlines()[0] == "no policy: what is older than 60 minutes goes"


def test_a_bad_policy_ends_it_with_2(agents: Path, policy: Path) -> None:
    policy.write_text("types.cron.max_age = 0")
    done = call(agents)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "types.cron.max_age is 0" in done.stderr
    assert json.loads(call(agents, "--json").stdout)["code"] == "bad_policy"


def test_what_could_not_be_read_is_named(agents: Path, policy: Path) -> None:
    StoreBuilder(agents, "broken").index.write_text("{")
    done = call(agents)
    assert done.exit_code == 3
    assert "error: broken: " in done.stderr
