"""A wheel and an sdist are built, and install cleanly in a fresh environment, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import packages
import pytest
from mcp_wire import Wire
from packaging.requirements import Requirement
from support import ROOT

import session_manager

pytestmark = pytest.mark.system

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN = "aria-sessionmanager"
BUILD = "import setuptools.build_meta as b, sys; to = sys.argv[1]; b.build_sdist(to); b.build_wheel(to)"


def run(*command: str | Path, cwd: Path | None = None, **env: str) -> str:
    environ = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PIP_DISABLE_PIP_VERSION_CHECK": "1", **env}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel, built from what is under version control or would be."""
    base = tmp_path_factory.mktemp("source")
    source, dist = base / "source", base / "dist"
    dist.mkdir()
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and not name.startswith(("fixtures/", "tests/")) and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-W", "ignore", "-c", BUILD, dist, cwd=source)
    return dist


def machine(place: Path, extras: tuple[str, ...]) -> Path:
    """A fresh environment that has what the extras ask for, and not this project; returns its python."""
    asked = [Requirement(text) for text in PROJECT["dependencies"]]
    for extra in extras:
        asked += [Requirement(text) for text in PROJECT["optional-dependencies"][extra]]
    wanted = packages.closure(each for each in asked if each.name != OWN)
    for extra in {own for each in asked if each.name == OWN for own in each.extras}:
        wanted |= packages.closure(
            each for text in PROJECT["optional-dependencies"][extra] if (each := Requirement(text)).name != OWN
        )
    folder = packages.link(wanted, place / "packages")
    run(sys.executable, "-m", "venv", place / "venv")
    python = place / "venv" / "bin" / "python"
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(purelib, "others.pth").write_text(f"{folder}\n")
    return python


def test_the_sdist_holds_what_the_wheel_is_built_from(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {"pyproject.toml", "README.md", "skill.md", "run_skill.py", "session_manager/faces/runner.py"}
    pages = {f"references/{page.name}" for page in (ROOT / "references").iterdir()}
    assert pages
    assert names >= pages
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        inside = wheel.namelist()
    assert "session_manager/service/pages/style.css" in inside
    assert not [name for name in inside if name.startswith(("tests", "benchmarks", "fixtures", "examples"))]


@pytest.mark.parametrize(
    ("kind", "extras"),
    [("*.tar.gz", ()), ("*.whl", ()), ("*.whl", ("cli",)), ("*.whl", ("service",)), ("*.whl", ("mcp",))],
)
def test_it_installs_in_a_fresh_environment(
    built: Path, kind: str, extras: tuple[str, ...], tmp_path: Path, agents: Path
) -> None:
    python = machine(tmp_path, extras)
    what = str(next(built.glob(kind))) + (f"[{','.join(extras)}]" if extras else "")
    more: dict[str, str] = {}
    if kind == "*.tar.gz":
        # The build's own requirement, which an ordinary installation would fetch.
        more["PYTHONPATH"] = str(packages.link(["setuptools"], tmp_path / "setuptools"))
    run(python, "-m", "pip", "install", "--no-index", "--no-build-isolation", what, **more)
    run(python, "-m", "pip", "check")
    environ = {"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": ""}
    call = "from session_manager.faces.runner import main; import os, sys; sys.exit(main(sys.argv[1:], os.environ))"
    assert '"session_count":0' in run(python, "-c", call, "session_manager", "list_sessions", cwd=tmp_path, **environ)
    command = python.parent / "session-manager"
    done = subprocess.run(
        [command, "--help"], cwd=tmp_path, env={}, capture_output=True, text=True, timeout=60, check=False
    )
    if extras:
        assert (done.returncode, "Usage" in done.stdout, done.stderr) == (0, True, "")
    else:
        said = "error: the Python package 'typer' is missing: pip install 'aria-sessionmanager[cli]'\n"
        assert (done.returncode, done.stdout, done.stderr) == (70, "", said)
    if "mcp" in extras:
        with Wire(command, "mcp", env=environ) as wire:
            wire.call(2, "list_sessions")
            assert wire.answer()["result"]["structuredContent"]["session_count"] == 0
    elif extras:
        done = subprocess.run([command, "mcp"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert (done.returncode, done.stdout) == (70, "")
        assert "pip install 'aria-sessionmanager[mcp]'" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_metadata_is_what_an_index_takes(built: Path) -> None:
    said = run(sys.executable, "-W", "ignore", "-m", "twine", "check", "--strict", *built.iterdir())
    assert said.count("PASSED") == 2
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        inside = wheel.namelist()
        metadata = wheel.read(next(name for name in inside if name.endswith("/METADATA"))).decode()
    assert f"\nVersion: {session_manager.__version__}\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata
    assert "session_manager/py.typed" in inside
    assert any(name.endswith("/licenses/LICENSE") for name in inside)


def test_an_installed_package_builds_the_skill(built: Path, tmp_path: Path) -> None:
    python = machine(tmp_path, ())
    run(python, "-m", "pip", "install", "--no-index", next(built.glob("*.whl")))
    build = "from session_manager.faces.skill_folder import build; build('dist')"
    run(python, "-c", build, cwd=tmp_path)
    folder = tmp_path / "dist" / "aria-sessionmanager"
    assert "name: aria-sessionmanager\n" in (folder / "SKILL.md").read_text()
    assert (folder / "run_skill.py").read_bytes() == (ROOT / "run_skill.py").read_bytes()
    assert not (folder / "session_manager" / "service").exists()
    for page in (ROOT / "references").iterdir():
        assert (folder / "references" / page.name).read_bytes() == page.read_bytes()
