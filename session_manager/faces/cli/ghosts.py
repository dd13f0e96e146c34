"""ghosts: chat sessions that have no message, straight from the database."""

from __future__ import annotations

import json
from datetime import UTC
from typing import Annotated

import typer

from session_manager.faces.cli.database import database
from session_manager.faces.cli.environment import ENVIRONMENT
from session_manager.faces.cli.options import AsJson


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog=ENVIRONMENT)(ghosts)


def ghosts(
    older_than_minutes: Annotated[
        int, typer.Option(min=1, max=5_256_000, help="Their age, whatever their time to live.")
    ] = 15,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them. Without it nothing is changed.")] = False,
    as_json: AsJson = False,
) -> None:
    """List chat sessions that have no message, with owner and creation time; --delete deletes them."""
    from session_manager.service.db import chat_cleanup
    from session_manager.service.db.migrate import on_engine

    which = chat_cleanup.ghosts(older_than_minutes, whatever_ttl=True)
    work = chat_cleanup.purge_and_list if delete else chat_cleanup.listed
    with database() as url:
        found = on_engine(url, lambda engine: work(engine, which))
    if as_json:
        document = {"dry_run": not delete, "older_than_minutes": older_than_minutes, "ghost_count": len(found)}
        typer.echo(json.dumps({**document, "deleted": len(found) if delete else 0, "ghosts": found}, default=str))
        return
    for ghost in found:
        owners = [f"{kind} {ghost[name]}" for kind, name in (("user", "user_id"), ("org", "org_id")) if ghost[name]]
        made = f"{ghost['created_at'].astimezone(UTC):%Y-%m-%d %H:%M}"
        typer.echo("  ".join((str(ghost["id"]), made, ghost["agent_id"], *(owners or ["nobody's"]))))
    if not found:
        typer.echo(f"no chat session older than {older_than_minutes} minutes is without a message", err=True)
        return
    done = "deleted" if delete else "to delete with --delete"
    typer.echo(f"{len(found)} chat session{'s' * (len(found) > 1)} without a message, {done}", err=True)
