"""Turns a template into an answer."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from jinja2 import Environment, FileSystemLoader
from starlette.responses import HTMLResponse, Response

FOLDER = os.path.dirname(__file__)
HTMX = "htmx-2.0.11.min.js"
_CSP = (
    "default-src 'none'; style-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_OWN_SCRIPTS = "; script-src 'self'; connect-src 'self'"
_templates = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)


def number(n: float) -> str:
    """Writes a number for people."""
    return f"{n:,}"


def moment(at: datetime | float | None) -> datetime | None:
    """Returns a time, or epoch milliseconds, as a time in UTC."""
    return datetime.fromtimestamp(at / 1000, UTC) if isinstance(at, int | float) else at and at.astimezone(UTC)


_templates.filters |= {"number": number, "moment": moment}
_templates.globals["htmx"] = HTMX


def render(template: str, status: int = 200, *, scripts: bool = False, **values: Any) -> HTMLResponse:
    """Returns a page that loads nothing from elsewhere and is kept by nobody; it runs no script, or only our own."""
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


def script_file(name: str, cache: str) -> Response:
    """Returns a script of this folder; ``cache`` says how long it may be kept."""
    with open(os.path.join(FOLDER, name), encoding="utf-8") as file:
        headers = {"Cache-Control": cache, "X-Content-Type-Options": "nosniff"}
        return Response(file.read(), media_type="text/javascript", headers=headers)
