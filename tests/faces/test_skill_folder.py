"""session-manager skill build: a folder in the Agent Skills format that works wherever it is copied to."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import packages
import pytest
import typer
from packaging.requirements import Requirement
from support import CLOSED_API, ROOT, StoreBuilder, picture
from typer.testing import CliRunner

from session_manager.core.errors import Refused
from session_manager.faces.cli import skill as cli_skill
from session_manager.faces.skill_folder import build
from session_manager.functions import NAMES

BASE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built folder."""
    place = tmp_path_factory.mktemp("dist")
    build(str(place))
    return place / "aria-sessionmanager"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the base packages, and no others."""
    wanted = packages.closure(Requirement(text) for text in BASE)
    return packages.link(wanted, tmp_path_factory.mktemp("base") / "packages")


def call(folder: Path, base: Path, *argv: str, **env: str) -> tuple[int, dict[str, Any]]:
    """Runs the folder's runner in an interpreter that has the base packages, and no others, from elsewhere."""
    done = subprocess.run(
        [sys.executable, "-S", str(folder / "run_skill.py"), *argv],
        cwd="/",
        env={"PATH": os.defpath, "PYTHONPATH": str(base), "ARIA_API_URL": "", **env},
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def test_the_folder_is_valid(folder: Path) -> None:
    command = [sys.executable, "-m", "skills_ref.cli", "validate", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    (folder.parent / "broken").mkdir()
    (folder.parent / "broken" / "SKILL.md").write_text((folder / "SKILL.md").read_text())
    broken = subprocess.run(
        [*command[:-1], str(folder.parent / "broken")], capture_output=True, timeout=60, check=False
    )
    assert broken.returncode == 1


def test_the_folder_holds_what_an_agent_needs_and_nothing_else(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == {"SKILL.md", "run_skill.py", "session_manager", "references"}
    rooms = {p.name for p in (folder / "session_manager").iterdir()}
    assert rooms >= {"core", "stores", "ledger", "history", "functions", "faces", "settings.py"}
    assert "service" not in rooms
    assert {p.name for p in (folder / "session_manager" / "faces").iterdir()} == {"__init__.py", "runner.py"}
    assert not list(folder.rglob("__pycache__"))
    assert folder.stat().st_mode & 0o055 == 0o055


def test_the_runner_names_the_base_packages_for_uv() -> None:
    text = (ROOT / "run_skill.py").read_text()
    block = re.search(r"(?m)^# /// script\n((?:# .*\n)+)# ///$", text)
    assert block is not None
    found = tomllib.loads(re.sub(r"(?m)^# ", "", block[1]))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found == {"requires-python": project["requires-python"], "dependencies": BASE}


@pytest.fixture(scope="module")
def vendored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built folder, with the packages in it."""
    place = tmp_path_factory.mktemp("vendored")
    build(str(place), vendor=True)
    return place / "aria-sessionmanager"


def test_a_vendored_folder_needs_no_package(vendored: Path, tmp_path: Path) -> None:
    agents = tmp_path / "agents"
    store = StoreBuilder(agents)
    store.add("cron:old", 90, "old")
    store.write()
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    code, document = call(vendored, nothing, "session_manager", "prune_sessions", ARIA_AGENTS_DIR=str(agents))
    assert (code, document["deleted_ids"]) == (0, ["old"])
    # History needs the third package and what that needs.
    code, document = call(
        vendored, nothing, "session_manager", "prune_sessions", ARIA_AGENTS_DIR=str(agents), ARIA_API_URL=CLOSED_API
    )
    assert code == 0
    assert "missing" not in document.get("pg_error", "")
    assert (vendored / "vendor" / "built-for").read_text().strip() == EXTENSION_SUFFIXES[0]
    assert EXTENSION_SUFFIXES[0] in (vendored / "SKILL.md").read_text().partition("\n---\n")[0]
    assert list((vendored / "vendor").glob("msgspec-*.dist-info/licenses/*"))


def test_a_vendored_folder_on_another_python_says_what_it_is_for(vendored: Path, base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "aria-sessionmanager"
    shutil.copytree(vendored, copy)
    (copy / "vendor" / "built-for").write_text(".cpython-399-sparc.so\n")
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    code, document = call(copy, nothing, "session_manager", "list_sessions", ARIA_AGENTS_DIR=str(tmp_path))
    assert (code, document["code"]) == (70, "missing_package")
    assert ".cpython-399-sparc.so" in document["error"]
    assert "pip install" in document["error"]
    # With the packages of that Python it works all the same.
    assert call(copy, base, "session_manager", "list_sessions", ARIA_AGENTS_DIR=str(tmp_path))[0] == 0


def test_the_page_links_every_reference(folder: Path) -> None:
    text = (folder / "SKILL.md").read_text()
    links = re.findall(r"^- \[[^]]+\]\((references/[^)]+)\)$", text.split("\n## References\n")[1], re.MULTILINE)
    assert sorted(links) == sorted(str(p.relative_to(folder)) for p in (folder / "references").iterdir())
    assert {p.name for p in (ROOT / "references").iterdir()} == {Path(link).name for link in links} - {"arguments.md"}
    for page in folder.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert (page.parent / target).is_file(), (page.name, target)


def test_every_functions_arguments_are_there_as_json_schema(folder: Path) -> None:
    text = (folder / "references" / "arguments.md").read_text()
    schemas = re.findall(r"^## (\w+)\n.*?```json\n(.*?)```", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in schemas] == list(NAMES)
    assert all(json.loads(schema)["type"] == "object" for _, schema in schemas)


def test_a_copy_works_with_the_base_packages_alone(folder: Path, base: Path, agents: Path, tmp_path: Path) -> None:
    copy = tmp_path / "skills" / "aria-sessionmanager"
    shutil.copytree(folder, copy)
    store = StoreBuilder(agents)
    for name in "abc":
        store.add(f"cron:{name}", 120, name)
    store.write()
    env = {"ARIA_AGENTS_DIR": str(agents)}
    code, catalogue = call(copy, base, "--list", **env)
    assert code == 0
    assert [f["name"] for f in catalogue["functions"]] == list(NAMES)
    assert call(copy, base, "session_manager", "list_sessions", **env)[1]["session_count"] == 3
    code, deleted = call(copy, base, "session_manager", "delete_session", '{"session_id": "a"}', **env)
    assert (code, deleted["deleted"]) == (0, "a")
    assert call(copy, base, "session_manager", "restore_session", '{"session_id": "a"}', **env)[0] == 0
    # What was brought back is left alone for a while.
    assert call(copy, base, "session_manager", "prune_sessions", **env)[1]["pruned_count"] == 2
    assert call(copy, base, "session_manager", "doctor", **env)[0] == 0
    # History, too, is spoken to with these packages alone; nobody answers.
    code, document = call(copy, base, "session_manager", "doctor", **{**env, "ARIA_API_URL": "http://127.0.0.1:1/api"})
    assert (code, document["code"]) == (70, "aria_api_unreachable")


def test_the_base_packages_are_all_that_is_there(folder: Path, base: Path) -> None:
    (base / "msgspec").rename(base / "gone")
    try:
        code, document = call(folder, base, "--list")
    finally:
        (base / "gone").rename(base / "msgspec")
    assert (code, document["code"]) == (70, "missing_package")
    probe = "import importlib.util as u; print([n for n in ('typer', 'fastapi', 'pydantic') if u.find_spec(n)])"
    command = [sys.executable, "-S", "-c", probe]
    done = subprocess.run(command, env={"PYTHONPATH": str(base)}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_second_build_replaces_the_first_as_a_whole(tmp_path: Path) -> None:
    place = tmp_path / "dist"
    build(str(place))
    folder = place / "aria-sessionmanager"
    before = picture(folder)
    (folder / "session_manager" / "old.py").write_text("left from an older version")
    (folder / "SKILL.md").write_text("---\nname: aria-sessionmanager\n---\n")
    build(str(place))
    assert picture(folder) == before
    assert list(place.iterdir()) == [folder]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_somebody_else_put_there_is_left_alone(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "dist" / "aria-sessionmanager"
    target.parent.mkdir()
    other = tmp_path / "other"
    other.mkdir()
    (other / "SKILL.md").write_text("---\nname: another\n---\n")
    if kind == "file":
        target.write_text("mine")
    elif kind == "folder":
        shutil.copytree(other, target)
    else:
        target.symlink_to(other)
    before = picture(tmp_path)
    with pytest.raises(Refused) as refused:
        build(str(target.parent))
    assert refused.value.code == "folder_in_use"
    assert picture(tmp_path) == before


def test_the_command_prints_the_folder(tmp_path: Path) -> None:
    app = typer.Typer()
    cli_skill.add_to(app)
    runner = CliRunner()
    plain = runner.invoke(app, ["skill", "build", "--to", str(tmp_path)])
    assert (plain.exit_code, plain.stdout) == (0, f"{tmp_path}/aria-sessionmanager\n")
    document = json.loads(runner.invoke(app, ["skill", "build", "--to", str(tmp_path), "--json"]).stdout)
    assert document["folder"] == f"{tmp_path}/aria-sessionmanager"
    assert "SKILL.md" in document["files"]
    assert all((tmp_path / "aria-sessionmanager" / name).is_file() for name in document["files"])
