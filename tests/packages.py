"""Folders of installed packages: what a machine has that pip was given some requirements on, without a network."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def requirements(project: str, *extras: str) -> list[Requirement]:
    """What a project asks for, with its extras, on this machine."""
    wanted = [Requirement(text) for text in metadata.requires(project) or ()]
    return [
        each
        for each in wanted
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *extras))
    ]


def closure(wanted: Iterable[Requirement]) -> set[str]:
    """The names of all projects that have to be there for these, theirs included."""
    found: set[str] = set()
    waiting = list(wanted)
    while waiting:
        each = waiting.pop()
        name = each.name.lower().replace("_", "-")
        key = f"{name}[{','.join(sorted(each.extras))}]"
        if key not in found:
            found.add(key)
            waiting += requirements(each.name, *each.extras)
    return {key.partition("[")[0] for key in found}


def link(projects: Iterable[str], place: Path) -> Path:
    """Makes a folder that holds these projects, by links to where they are installed."""
    place.mkdir()
    for project in projects:
        files = metadata.files(project) or []
        for top in sorted({file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}):
            if not (place / top).exists():
                os.symlink(metadata.distribution(project).locate_file(top), place / top)
    return place
