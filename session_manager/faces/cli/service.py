"""serve and migrate: aria-api, the history service, and its database's schema."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from session_manager.faces.cli import options
from session_manager.faces.cli.environment import ENVIRONMENT


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(epilog=ENVIRONMENT, rich_help_panel=options.SERVING)(serve)
    app.command(epilog=ENVIRONMENT, rich_help_panel=options.SERVING)(migrate)


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one and prints it.")] = 8000,
) -> None:
    """Run aria-api, the history service; dashboard at /sessions, API documentation at /docs."""
    from session_manager.service.server import serve as run

    run(os.environ, host, port, _announce)


def _announce(address: str) -> None:
    typer.echo(f"aria-api listens on {address}")
    sys.stdout.flush()


def migrate() -> None:
    """Upgrade the database schema; `serve` does this at its start, too."""
    from session_manager.service.db.migrate import migrate as run
    from session_manager.service.server import reachable_database

    with reachable_database(os.environ) as url:
        typer.echo(f"the schema is at revision {run(url)}")
