"""session-manager policy check: prints what check_policy returns, and ends with its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from service import cli
from support import StoreBuilder


@pytest.fixture
def policy(agents: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARIA_AGENTS_DIR", str(agents))
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
    done = cli("policy", "check")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"policy  {policy}"
    assert ["remove", "older", "than", "120", "min", "1"] in [line.split() for line in lines]
    assert any(line.startswith("old  older than 120 min ") for line in lines)
    notes = done.stderr.splitlines()
    assert any(note.startswith("agent 'main': its cron transcripts stay over budget by ") for note in notes)
    assert "unused pin: no session has nowhere among its ids" in notes
    assert notes[-1].startswith("1 session of 3 would be removed (")
    assert "\u001b" not in done.stdout + done.stderr


def test_json_is_the_functions_own_document(agents: Path, policy: Path) -> None:
    document = json.loads(cli("policy", "check", "--json", "--agent", "main").stdout)
    assert (document["policy"], document["would_prune"]) == (str(policy), 1)


def test_without_a_policy_it_says_so(agents: Path, policy: Path) -> None:
    policy.unlink()
    assert cli("policy", "check").stdout.splitlines()[0] == "policy  none; sessions older than 60 minutes are removed"


def test_a_bad_policy_ends_it_with_2(agents: Path, policy: Path) -> None:
    policy.write_text("types.cron.max_age = 0")
    done = cli("policy", "check")
    assert (done.returncode, done.stdout) == (2, "")
    assert "types.cron.max_age is 0" in done.stderr
    assert json.loads(cli("policy", "check", "--json").stdout)["code"] == "bad_policy"


def test_what_could_not_be_read_is_named(agents: Path, policy: Path) -> None:
    StoreBuilder(agents, "broken").index.write_text("{")
    done = cli("policy", "check")
    assert done.returncode == 3
    assert "error: broken: " in done.stderr


def test_a_prune_needs_no_filter_where_a_policy_says_what_goes(agents: Path, policy: Path) -> None:
    planned = cli("prune", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "older than 120 min" in planned.stdout
    done = cli("prune", "--yes")
    assert done.stdout == "1 session removed, 2 kept\n"
    policy.write_text('pins.ids = ["young"]')
    refused = cli("prune", "--yes")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "select the sessions" in refused.stderr


@pytest.mark.parametrize("command", [["list"], ["stats"], ["show", "old"]])
def test_who_only_looks_is_told_that_no_pin_holds(policy: Path, command: list[str]) -> None:
    assert "without pins" not in cli(*command).stderr
    policy.write_text("nonsense")
    done = cli(*command)
    assert (done.returncode, done.stderr.count("pins are not shown: the retention policy ")) == (0, 1)
    assert str(policy) in done.stderr


def test_a_bad_policy_ends_a_prune_with_a_document_where_one_was_asked_for(policy: Path) -> None:
    policy.write_text("nonsense")
    done = cli("prune", "--yes", "--json")
    assert (done.returncode, json.loads(done.stdout)["code"], done.stderr) == (2, "bad_policy", "")
    done = cli("prune", "--yes")
    assert (done.returncode, done.stdout) == (2, "")
    assert str(policy) in done.stderr
