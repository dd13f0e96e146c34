"""Addresses of this service's own pages."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode


def local(path: str, otherwise: str = "/sessions") -> str:
    """Returns a path of this service, or ``otherwise`` for an address elsewhere."""
    plain = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if plain else otherwise


def address(path: str, chosen: Mapping[str, object], **more: object) -> str:
    """Returns a path with a query of the chosen values; skips empty ones and None."""
    query = {name: value for name, value in {**chosen, **more}.items() if value not in (None, "")}
    return f"{path}?{urlencode(query)}" if query else path
