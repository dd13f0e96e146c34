"""session-manager mcp: the functions as tools, for agents that speak the Model Context Protocol."""

from __future__ import annotations

import os
import sys

import typer

from session_manager.core.errors import Failed, UsageError
from session_manager.faces.cli import options


def add_to(app: typer.Typer) -> None:
    """Adds the command ``mcp``."""
    app.command(rich_help_panel=options.SERVING)(mcp)


def mcp() -> None:
    """Serve the functions as MCP tools over standard input and output, for a client that starts this command."""
    try:
        from session_manager.faces.mcp_server import serve
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        raise Failed(
            f"the Python package {name!r} is missing: pip install 'aria-sessionmanager[mcp]'", code="missing_package"
        ) from error
    if sys.stdin is None:
        raise UsageError("standard input is closed; this command is started by an MCP client, which talks to it there")
    if sys.stdin.isatty():
        typer.echo("session-manager mcp waits for an MCP client on standard input; Ctrl-C ends it", err=True)
    serve(os.environ)
