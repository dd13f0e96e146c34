"""Renders a template of ``pages`` to an answer, and writes the addresses in it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup, escape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

_FOLDER = os.path.join(os.path.dirname(__file__), "pages")
HTMX = "htmx-2.0.11.min.js"
# Characters of a label, an id or a title.
LONGEST = 300
_CSP = (
    "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_OWN_SCRIPTS = "; script-src 'self'; connect-src 'self'"
_templates = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def number(n: float) -> str:
    """Writes a number for people."""
    return f"{n:,}"


def moment(at: datetime | float | None) -> datetime | None:
    """Returns a time, or epoch milliseconds, as a time in UTC; None for an impossible time."""
    try:
        return datetime.fromtimestamp(at / 1000, UTC) if isinstance(at, int | float) else at and at.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        return None


def short(value: object) -> str:
    """Writes an untrusted text, cut to fit a table."""
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def prose(text: str) -> Markup:
    """Writes a text of ours that has code between backticks."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


_templates.filters |= {"number": number, "moment": moment, "short": short, "prose": prose}
_templates.globals["htmx"] = HTMX


def render(template: str, status: int = 200, *, scripts: bool = False, **values: Any) -> HTMLResponse:
    """Returns a page that loads nothing from elsewhere and is never cached; it runs no script, or only our own."""
    return HTMLResponse(
        _templates.get_template(template).render(**values),
        status,
        {
            "Content-Security-Policy": _CSP + _OWN_SCRIPTS if scripts else _CSP,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",
            "Cache-Control": "no-store",
        },
    )


def is_part(request: Request) -> bool:
    """Returns whether a script requests only the rows, to replace those on its page."""
    return request.headers.get("hx-target") == "history"


def part(template: str, *, here: str, **values: Any) -> HTMLResponse:
    """Returns part of a page; ``here`` is the address of the resulting page."""
    answer = render(template, scripts=True, here=here, **values)
    answer.headers["HX-Push-Url"] = here
    return answer


def own_file(name: str, cache: str) -> Response:
    """Returns a script or a style sheet of ``pages``; ``cache`` is how long clients may cache it."""
    kind = "text/javascript" if name.endswith(".js") else "text/css"
    with open(os.path.join(_FOLDER, name), encoding="utf-8") as file:
        headers = {"Cache-Control": cache, "X-Content-Type-Options": "nosniff"}
        return Response(file.read(), media_type=kind, headers=headers)


def local(path: str, otherwise: str = "/sessions") -> str:
    """Returns a path of this service, or ``otherwise`` for an address elsewhere."""
    plain = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable() and "\\" not in path
    return path if plain else otherwise


def address(path: str, chosen: Mapping[str, object], **more: object) -> str:
    """Returns a path with a query of the chosen values; skips empty ones and None."""
    query = {name: value for name, value in {**chosen, **more}.items() if value not in (None, "")}
    return f"{path}?{urlencode(query)}" if query else path
