"""session-manager doctor: one page with all problems and how to fix them."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer

from session_manager.core.errors import PARTIAL_EXIT_CODE, SessionManagerError
from session_manager.faces.cli import options
from session_manager.faces.cli.calling import end_failed
from session_manager.faces.cli.screen import put, talk
from session_manager.faces.runner import call, encode
from session_manager.functions import load

_MARKS = {True: ("ok", "green"), False: ("!!", "bold red")}


def add_to(app: typer.Typer) -> None:
    """Adds the command ``doctor``."""
    app.command(rich_help_panel=options.LOOKING)(doctor)


def doctor(as_json: options.AsJson = False) -> None:
    """Find problems and show how to fix them: stores, locks, ledger, unfinished runs, history. Changes nothing."""
    try:
        document, exit_code = _asked()
    except SessionManagerError as error:
        end_failed(error, as_json=as_json)
    if as_json:
        put(encode(document) + b"\n")
    else:
        _show(document["checks"])
    raise typer.Exit(exit_code)


def _asked() -> tuple[dict[str, Any], int]:
    """Returns the page and the exit code. Raises the failure of a call that produced no page."""
    try:
        document = call(load("doctor"), {}, os.environ)
    except SessionManagerError as error:
        if "checks" not in error.details:
            raise
        return error.document(), error.exit_code
    return document, PARTIAL_EXIT_CODE if document.get("code") == "partial" else 0


def _show(checks: list[dict[str, Any]]) -> None:
    text = _on_screen(checks) if sys.stdout.isatty() else "".join(map(_line, checks))
    put(text.encode(sys.stdout.encoding or "utf-8", "backslashreplace"))
    bad = sum(not check["ok"] for check in checks)
    said = f"{bad} of {len(checks)} checks found a problem" if bad else f"all {len(checks)} checks passed"
    talk(said)


def _line(check: dict[str, Any]) -> str:
    advice = [f"-> {check['advice']}"] if check["advice"] else []
    return "  ".join(map(_plain, (_MARKS[check["ok"]][0], check["name"], check["what"], *advice))) + "\n"


def _on_screen(checks: list[dict[str, Any]]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    page = Table.grid(padding=(0, 2, 0, 0))
    page.add_column()
    page.add_column(overflow="fold", max_width=24)
    page.add_column(overflow="fold")
    for check in checks:
        mark, style = _MARKS[check["ok"]]
        page.add_row(Text(mark, style), Text(_plain(check["name"])), Text(_plain(check["what"])))
        if check["advice"]:
            page.add_row("", "", Text(f"-> {_plain(check['advice'])}", "" if check["ok"] else "bold"))
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(page)
    return captured.get()


def _plain(text: str) -> str:
    """Replaces terminal control characters by question marks: file names and responses are untrusted."""
    return "".join(character if character.isprintable() else "?" for character in text)
