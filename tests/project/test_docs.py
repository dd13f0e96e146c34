"""skill.md, README.md and references/ are true: every function is described, every example runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from service import cli
from support import ROOT, Skill, StoreBuilder

from session_manager.faces.cli.environment import ENVIRONMENT
from session_manager.faces.runner import USAGE
from session_manager.functions import NAMES, load
from session_manager.service.config import INTERVALS

SKILL = (ROOT / "skill.md").read_text()
README = (ROOT / "README.md").read_text()
ARIA_API = (ROOT / "references" / "aria-api.md").read_text()
REFERENCES = "".join(page.read_text() for page in sorted((ROOT / "references").glob("*.md")))
POLICY = (ROOT / "references" / "policy.md").read_text()
FINISHED = "0f7c4c1e-3a54-4a8e-9b55-5b6a3c1d2e3f"
TOML = re.findall(r"^```toml\n(.*?)^```", SKILL + README + REFERENCES, re.MULTILINE | re.DOTALL)
EXAMPLES = re.findall(
    r"^python3 (?:/app/skills/)?run_skill\.py (session_manager [a-z].*)$", SKILL + README + POLICY, re.MULTILINE
)


def frontmatter() -> dict[str, str]:
    block = SKILL.split("---\n")[1]
    return dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(" "))


def test_the_frontmatter_follows_the_agent_skills_rules() -> None:
    fields = frontmatter()
    assert fields["name"] == "aria-sessionmanager"
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", fields["name"])
    assert 0 < len(fields["description"]) <= 1024
    known = {"name", "description", "license", "compatibility", "metadata", "allowed-tools"}
    keys = re.findall(r"^([a-z-]+):", SKILL.split("---\n")[1], re.MULTILINE)
    assert set(keys) <= known
    assert "{" not in SKILL.split("---\n")[1]
    assert len(SKILL.split("---\n", 2)[2].splitlines()) < 500
    assert len(SKILL.encode()) <= 12_500, "an agent pays for each word"


@pytest.mark.parametrize("name", NAMES)
def test_every_function_is_described_with_an_example_and_all_its_arguments(name: str) -> None:
    section = SKILL.split(f"### {name}\n")[1].split("\n### ")[0].split("\n## ")[0]
    assert f"session_manager {name} '" in section
    for argument in load(name).arguments.__struct_fields__:
        assert f"`{argument}`" in section or f'"{argument}"' in section, argument


def test_the_rules_for_agents_are_there() -> None:
    assert "After every sub-agent delegation" in SKILL
    assert "`prune_sessions` with `max_age_minutes: 60`" in SKILL
    assert "Before a session review" in SKILL


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= len(NAMES)
    assert TOML


@pytest.mark.parametrize("line", EXAMPLES)
def test_examples_run(line: str, agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("subagent:finished", 120, session_id=FINISHED)
    store.add("cron:daily", 5)
    store.write()
    _, function, *arguments = shlex.split(line.replace("<id>", FINISHED))
    if function.startswith("restore_"):
        run_id = skill("delete_session", {"session_id": FINISHED}).document["run_id"]
        arguments = [re.sub(r'"run_id": "[^"]+"', f'"run_id": "{run_id}"', argument) for argument in arguments]
    # No aria-api answers here, which the doctor would say.
    without_history = {"ARIA_API_URL": ""} if function == "doctor" else {}
    answer = skill(function, *arguments, ARIA_ALLOW_ERASE="1", **without_history)
    assert answer.exit_code == 0, answer.document
    section = SKILL.split(f"### {function}\n")[1].split("\n### ")[0]
    returned = re.findall(r"`([a-z_]+)`", section.split("Returns")[1].split("\n\n")[0].split("```")[0])
    assert set(returned) & set(answer.document), "the example shows none of the fields that the page promises"


@pytest.mark.parametrize("text", TOML)
def test_policies_in_the_pages_are_accepted(text: str, agents: Path, skill: Skill, tmp_path: Path) -> None:
    StoreBuilder(agents).write()
    path = tmp_path / "policy.toml"
    path.write_text(text)
    answer = skill("check_policy", ARIA_POLICY=str(path))
    assert (answer.exit_code, answer.document["policy"]) == (0, str(path))


@pytest.mark.parametrize(
    "line", re.findall(r"^session-manager (?!serve)([^#\n]*)", README + ARIA_API + POLICY, re.MULTILINE)
)
def test_commands_of_the_pages_run(line: str, database: str, agents: Path) -> None:
    store = StoreBuilder(agents)
    store.add("cron:daily", 120)
    store.write()
    # It says what goes where a command does not.
    (policy,) = re.findall(r"^```toml\n(.*?)^```", POLICY, re.MULTILINE | re.DOTALL)
    state = agents / ".session_manager"
    state.mkdir()
    (state / "session-manager.toml").write_text(policy)
    done = cli(*shlex.split(line), DATABASE_URL=database, ARIA_AGENTS_DIR=str(agents))
    assert done.returncode == 0, done.stderr


def test_the_tour_of_make_run() -> None:
    done = subprocess.run(
        [sys.executable, "examples/tour.py"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = dict(re.findall(r"^(\w+), in history.*\n((?: .*\n)*)", done.stdout, re.MULTILINE))
    assert "ended" not in rows["Before"]
    assert re.findall(r"main +active +1 rows: 1 main", rows["After"])
    assert rows["After"].count("ended") == 4
    assert re.findall(r"conversations: (\d), without a message: (\d)", done.stdout) == [
        ("0", "0"),
        ("1", "1"),
        ("2", "1"),
        ("1", "0"),
    ]


def test_every_job_is_documented() -> None:
    for name in INTERVALS:
        assert f"| `{name}` |" in ARIA_API, name


def test_environment_and_codes_are_documented() -> None:
    package = ROOT / "session_manager"
    service = "".join(p.read_text() for p in [*package.glob("service/**/*.py"), *package.glob("faces/cli/*.py")])
    skill = "".join(
        p.read_text()
        for p in package.rglob("*.py")
        # What gateways.py reads is the environment of gateways.
        if not {"service", "cli", "gateways.py"}.intersection(p.relative_to(package).parts)
    )
    for sources, pages in ((skill, (USAGE,)), (service, (ENVIRONMENT, ARIA_API))):
        for variable in set(re.findall(r'"((?:ARIA|OPENCLAW|SESSION_CLEANUP)_[A-Z_]+|DATABASE_URL)"', sources)):
            assert all(variable in page for page in pages), variable
    sources = skill
    for cell in re.findall(r"^\| (`[^|]+`) \|", SKILL, re.MULTILINE):
        for code in re.findall(r"`([a-z_]+)`", cell):
            assert f'"{code}"' in sources, code


def test_the_pictures_are_there_and_small() -> None:
    shown = re.findall(r"^!\[[^]]{20,}\]\((docs/pictures/[a-z-]+\.png)\)$", README, re.MULTILINE)
    assert sorted(shown) == sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "pictures").iterdir())
    assert all((ROOT / path).stat().st_size < 150_000 for path in shown)


@pytest.mark.system
def test_the_pictures_can_be_made_anew(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "docs/pictures.py", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.glob("*.png")} == {
        path.name for path in (ROOT / "docs" / "pictures").iterdir()
    }


def test_every_page_is_named_where_one_reads_on() -> None:
    for page in (ROOT / "references").iterdir():
        assert f"](references/{page.name})" in README.split("## Where to read on")[1], page.name


def test_the_targets_that_are_named_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE))
    assert {"run", "test", "pictures"} <= named <= targets
