"""session-manager mcp, as a program of its own."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import typer

from session_manager.faces.cli import mcp as cli_mcp

app = typer.Typer()
app.callback()(lambda: None)
cli_mcp.add_to(app)
app()
