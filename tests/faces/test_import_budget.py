"""The skill is a new process every time and imports are its cost: reading loads nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_aria import SmallAria
from support import ROOT, Skill, StoreBuilder

HEAVY = {
    "httpx", "filelock", "sqlite3", "_sqlite3", "pydantic", "asyncio", "fastapi", "sqlalchemy", "ssl", "socket",
    "subprocess", "multiprocessing", "session_manager.ledger", "session_manager.stores.openclaw_files.removal",
    "tomllib",
    "typer", "rich", "session_manager.faces.cli",
}  # fmt: skip
# Prints the names of all modules after the runner has done its work; what the runner prints goes elsewhere.
PROBE = """\
import json, os, sys
before = set(sys.modules)
sys.path.insert(0, sys.argv.pop(1))
from session_manager.faces.runner import main
out, sys.stdout = sys.stdout, open(os.devnull, "w")
code = main(sys.argv[1:], os.environ)
print(json.dumps([code, sorted(set(sys.modules) - before)]), file=out)
"""


def loaded(skill: Skill, function: str, arguments: str = "{}") -> set[str]:
    """Modules that one call loads, beside those that an idle interpreter has."""
    command = [sys.executable, "-c", PROBE, str(ROOT), "session_manager", function, arguments]
    done = subprocess.run(command, capture_output=True, env=skill.environment(), timeout=60, check=True)
    code, modules = json.loads(done.stdout)
    assert code == 0, done.stderr
    return set(modules)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("list_sessions", "{}"),
        ("get_session_stats", "{}"),
        ("prune_sessions", '{"dry_run": true}'),
        ("cleanup_orphans", "{}"),
        ("check_policy", "{}"),
        ("readopt_orphans", "{}"),
        ("prune_sessions", '{"dry_run": true, "agent": "main", "include_durable": true, "limit": 3}'),
        ("list_sessions", '{"label": "*", "empty": true, "min_bytes": 1, "older_than_minutes": 60, "sizes": true}'),
        ("delete_sessions", '{"label": "*", "details": true}'),
    ],
)
def test_reading_loads_nothing_heavy(mixed: Path, skill: Skill, function: str, arguments: str) -> None:
    assert loaded(skill, function, arguments) & HEAVY == set()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("list_sessions", "{}"),
        ("get_session_stats", "{}"),
        ("prune_sessions", '{"dry_run": true}'),
        ("check_policy", "{}"),
    ],
)
def test_a_policy_costs_its_parser_and_nothing_heavy(mixed: Path, skill: Skill, function: str, arguments: str) -> None:
    policy = mixed / ".session_manager" / "session-manager.toml"
    policy.parent.mkdir(exist_ok=True)
    policy.write_text('types.cron.budget = "1 MB"')
    assert loaded(skill, function, arguments) & HEAVY == {"tomllib"}


def test_only_stats_looks_into_the_ledger(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", 120, "a")
    store.write()
    assert loaded(skill, "prune_sessions") >= {"filelock", "sqlite3"}
    assert "sqlite3" in loaded(skill, "get_session_stats")
    for function, arguments in (("list_sessions", "{}"), ("prune_sessions", '{"dry_run": true}')):
        assert loaded(skill, function, arguments) & HEAVY == set()
    assert loaded(skill, "get_session_stats") & {"filelock", "httpx", "asyncio", "pydantic"} == set()


def test_http_is_loaded_only_when_history_has_something_to_hear(agents: Path, skill: Skill, aria: SmallAria) -> None:
    skill.env["ARIA_API_URL"] = aria.url
    store = StoreBuilder(agents)
    store.add("cron:a", 120, "a")
    store.add("cron:b", 30, "b")
    store.write()
    aria.add_all(["a", "b"])
    for function, arguments in (("prune_sessions", '{"max_age_minutes": 1000}'), ("deliver_history", "{}")):
        assert loaded(skill, function, arguments) & {"httpx", "ssl", "socket"} == set()
    assert "httpx" in loaded(skill, "prune_sessions")
    assert loaded(skill, "prune_sessions") & {"httpx", "ssl", "socket"} == set()
    skill.env["ARIA_API_URL"] = ""
    assert loaded(skill, "delete_session", '{"session_id": "b"}') & {"httpx", "ssl", "socket"} == set()
