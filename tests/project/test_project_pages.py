"""What the pages for those who join say is there: files, tests, dependencies, one version."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from support import ROOT

import session_manager

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(re.findall(r"[`(]((?:[\w.]+/)*[\w.]+(?:\.py|\.md|/))[`)]", text))
    assert named
    places = (ROOT, ROOT / "session_manager", ROOT / "tests")
    assert not [name for name in named if not any((place / name).exists() for place in places)]


def test_each_dependency_has_its_line() -> None:
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *(text for extra in ("cli", "mcp", "service") for text in extras[extra])]
    names = {Requirement(text).name for text in asked} - {"aria-sessionmanager"}
    table = (ROOT / "ARCHITECTURE.md").read_text().partition("## What each dependency is for")[2]
    listed = {name for row in table.splitlines() if row.startswith("|") for name in row.split("|")[1].split(",")}
    assert names == {name.strip() for name in listed} - {"package", "---"}


def test_there_is_one_version() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert f'version: "{session_manager.__version__}"' in (ROOT / "skill.md").read_text()
    assert f"\n## {session_manager.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
