"""Builds the skill as a separate folder in the Agent Skills format: only the files that an agent's machine needs.

``<place>/aria-sessionmanager/`` holds ``SKILL.md``, ``run_skill.py``, the package without its service and without the
faces for people, and ``references/``. With msgspec, filelock, httpx and pyjson5 it runs wherever it is copied to. A
vendored folder has them in ``vendor/``, for one kind of Python (``vendor/built-for``).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import msgspec

from session_manager import __version__
from session_manager.core.errors import Failed, Refused
from session_manager.faces.runner import catalogue_entry
from session_manager.files.atomic import clear_errors
from session_manager.functions import NAMES, load

NAME = "aria-sessionmanager"
_PACKAGE = Path(__file__).resolve().parents[1]
_FACES = ("__init__.py", "runner.py")
_LEFT_OUT = ("service", "__pycache__")
_ARGUMENTS = "arguments.md"


def build(place: str, *, vendor: bool = False) -> list[str]:
    """Writes the folder into ``place``, creating it if necessary, and returns the paths of its files within it.

    ``vendor`` adds the base packages, as they are installed here. A folder of an earlier build is replaced as a whole.
    Raises Refused (``folder_in_use`` when something else has its name, ``not_writable``, ``disk_full``) or Failed, and
    then changes nothing.
    """
    target = Path(place, NAME)
    skill, runner, references = _sources()
    packages = list(_vendored()) if vendor else []
    with clear_errors("write the skill to", str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_free(target)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{NAME}.") as scratch:
            made = Path(scratch, NAME)
            _write(made, skill, runner, references)
            if packages:
                _vendor(made, packages)
            if target.exists():
                target.rename(Path(scratch, "before"))
            made.rename(target)
    return sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file())


def _check_free(target: Path) -> None:
    if not os.path.lexists(target):
        return
    page = target / "SKILL.md"
    if target.is_symlink() or not page.is_file() or f"name: {NAME}\n" not in page.read_text(errors="replace"):
        raise Refused(
            f"{target} exists and was not written by this command; move it away, or give another folder with --to",
            code="folder_in_use",
        )


def _sources() -> tuple[Path, Path, list[Path]]:
    """Finds the skill's page, its runner and its references: beside the package, or where pip installed them."""
    root = _PACKAGE.parent
    if not (root / "skill.md").is_file():
        root = _installed()
    return root / "skill.md", root / "run_skill.py", sorted((root / "references").glob("*.md"))


def _installed() -> Path:
    try:
        files = metadata.files(NAME) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "skill.md" and (page := Path(str(file.locate())).resolve()).is_file():
            return page.parent
    raise Failed(
        f"skill.md and run_skill.py of {NAME} were not found: install the wheel, or run this in a checkout",
        code="sources_missing",
    )


def _write(made: Path, skill: Path, runner: Path, references: Iterable[Path]) -> None:
    for source in _package_files():
        _copy(source, made / "session_manager" / source.relative_to(_PACKAGE))
    _copy(runner, made / "run_skill.py")
    for source in references:
        _copy(source, made / "references" / source.name)
    (made / "references").mkdir(exist_ok=True)
    (made / "references" / _ARGUMENTS).write_text(_arguments_page(), encoding="utf-8")
    # The page ends with its references; this file is generated.
    text = skill.read_text(encoding="utf-8").rstrip("\n")
    link = f"- [The arguments of all functions as JSON Schema](references/{_ARGUMENTS})"
    (made / "SKILL.md").write_text(f"{text}\n{link}\n", encoding="utf-8")
    # mkdtemp's folder is private to its owner; the agent's user must be able to read this one.
    made.chmod(0o755)


def _vendored() -> Iterable[tuple[Path, str]]:
    """Yields the files of the base packages and their dependencies: the path of each, and its path below ``vendor``."""
    try:
        from packaging.requirements import Requirement
    except ImportError as error:
        raise Failed(
            "the Python package 'packaging' is missing: pip install 'aria-sessionmanager[cli]'", code="missing_package"
        ) from error
    waiting, seen = [NAME], {NAME}
    while waiting:
        name = waiting.pop()
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError as error:
            raise Failed(
                f"the package {name} is not installed here: python3 -m pip install {name}", code="missing_package"
            ) from error
        for requirement in map(Requirement, found.requires or ()):
            if requirement.name not in seen and (
                requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            ):
                seen.add(requirement.name)
                waiting.append(requirement.name)
        for file in found.files or () if name != NAME else ():
            if file.parts[0] != ".." and "__pycache__" not in file.parts:
                yield Path(str(file.locate())), str(file)


def _vendor(made: Path, packages: Iterable[tuple[Path, str]]) -> None:
    for source, path in packages:
        _copy(source, made / "vendor" / path)
    (made / "vendor" / "built-for").write_text(EXTENSION_SUFFIXES[0] + "\n", encoding="utf-8")
    page = made / "SKILL.md"
    has = f"compatibility: Pythons of the kind {EXTENSION_SUFFIXES[0]}, with no package (they are in vendor/);"
    page.write_text(re.sub(r"(?m)^compatibility: [^;\n]*;", has, page.read_text(encoding="utf-8")), encoding="utf-8")


def _package_files() -> Iterable[Path]:
    for path in sorted(_PACKAGE.rglob("*.py")):
        room, *inside = path.relative_to(_PACKAGE).parts
        if room not in _LEFT_OUT and (room != "faces" or inside in [[name] for name in _FACES]):
            yield path


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _arguments_page() -> str:
    """Writes the page that holds every function's arguments as JSON Schema."""
    parts = [f"# Arguments of all functions, as JSON Schema (version {__version__})\n"]
    for name in NAMES:
        entry = catalogue_entry(load(name))
        schema = msgspec.json.format(msgspec.json.encode(entry["arguments"]), indent=2).decode()
        parts.append(f"\n## {name}\n\n{entry['description']}\n\n```json\n{schema}\n```\n")
    return "".join(parts)
