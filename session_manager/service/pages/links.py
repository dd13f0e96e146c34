"""Addresses of this service's own pages."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode


def local(path: str, otherwise: str = "/sessions") -> str:
    """Returns a path of this service; anything that leads elsewhere becomes the other one."""
    plain = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if plain else otherwise


def address(path: str, chosen: Mapping[str, object], **more: object) -> str:
    """Returns a path with a query of what was chosen; what is empty or None is left out."""
    query = {name: value for name, value in {**chosen, **more}.items() if value not in (None, "")}
    return f"{path}?{urlencode(query)}" if query else path
