"""ghosts: chat sessions without a message, read directly from the database."""

from __future__ import annotations

import json
from datetime import UTC
from typing import Annotated

import typer

from session_manager.faces.cli import options
from session_manager.faces.cli.database import database
from session_manager.faces.cli.environment import ENVIRONMENT
from session_manager.faces.cli.screen import Screen, put, talk


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog=ENVIRONMENT, rich_help_panel=options.REMOVING)(ghosts)


def ghosts(
    older_than_minutes: Annotated[
        int, typer.Option(min=1, max=5_256_000, help="Minimum age in minutes; ignores their time to live.")
    ] = 15,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; without --delete nothing is changed.")] = False,
    as_json: options.AsJson = False,
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
        whole = {**document, "deleted": len(found) if delete else 0, "ghosts": found}
        put(json.dumps(whole, default=str).encode() + b"\n")
        return
    screen = Screen()
    for ghost in found:
        owners = [f"{kind} {ghost[name]}" for kind, name in (("user", "user_id"), ("org", "org_id")) if ghost[name]]
        made = f"{ghost['created_at'].astimezone(UTC):%Y-%m-%d %H:%M}"
        screen.line("  ".join((str(ghost["id"]), made, ghost["agent_id"], *(owners or ["nobody's"]))))
    put(screen.data())
    if not found:
        talk(f"every chat session older than {older_than_minutes} minutes has a message")
        return
    done = "deleted" if delete else "to delete with --delete"
    talk(f"{len(found)} chat session{'s' * (len(found) > 1)} without a message, {done}")
