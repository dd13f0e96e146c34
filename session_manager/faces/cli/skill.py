"""session-manager skill: the skill as a folder that can be copied to an agent's machine."""

from __future__ import annotations

import json
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Annotated

import typer

from session_manager.faces.cli import options


def add_to(app: typer.Typer) -> None:
    """Adds the group ``skill``."""
    skill_app = typer.Typer(help="The skill for an agent's machine.", no_args_is_help=True)
    # With a single command Typer would drop the group's name.
    skill_app.callback()(_skill)
    skill_app.command()(build)
    app.add_typer(skill_app, name="skill", rich_help_panel=options.SERVING)


def _skill() -> None:
    """The skill for an agent's machine."""


def build(
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="The folder to write the skill's folder into.")] = Path(
        "dist"
    ),
    vendor: Annotated[
        bool, typer.Option("--vendor", help="Include the base packages, for this kind of Python and machine.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Write the skill as a folder in the Agent Skills format, to copy: SKILL.md, run_skill.py, the package."""
    from session_manager.faces.skill_folder import NAME
    from session_manager.faces.skill_folder import build as write

    files = write(str(to), vendor=vendor)
    folder = to / NAME
    if as_json:
        document = {"folder": str(folder), "files": files}
        typer.echo(json.dumps(document | ({"built_for": EXTENSION_SUFFIXES[0]} if vendor else {})))
        return
    typer.echo(str(folder))
    needs = "Python 3.11 or newer with msgspec, filelock, httpx and pyjson5"
    if vendor:
        needs = f"a Python of this kind and no packages: {EXTENSION_SUFFIXES[0]}"
    typer.echo(f"{len(files)} files; the machine you copy it to needs {needs}", err=True)
