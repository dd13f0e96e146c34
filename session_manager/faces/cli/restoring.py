"""deleted, restore and undo: lists removals and undoes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from session_manager.faces.cli import options, words
from session_manager.faces.cli.calling import Document, answer, counted, say_history
from session_manager.faces.cli.screen import Column, Screen

_COLUMNS = (
    Column("ID"),
    Column("REMOVED"),
    Column("STATE", None, 1),
    Column("RUN", None, 2),
    Column("TYPE", None, 5),
    Column("AGENT", 6, 3),
    Column("LABEL", 8, 4),
    Column("WHY", 10, 6),
)

Pin = Annotated[bool, typer.Option("--pin", help="Also pin what is restored.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run id, as `deleted` or the removal itself shows it.")]


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel=options.TAKING_BACK)(deleted)
    app.command(rich_help_panel=options.TAKING_BACK)(restore)
    app.command(rich_help_panel=options.TAKING_BACK)(undo)
    app.command(rich_help_panel=options.TAKING_BACK)(pin)
    app.command(rich_help_panel=options.TAKING_BACK)(unpin)


def removal_table(screen: Screen, removals: Sequence[Document]) -> None:
    """Adds a table of rows of list_deleted."""
    rows = [
        (
            row["id"],
            words.age(row["deleted_at"]),
            row["state"] if row["restorable"] or row["state"] != "removed" else "not restorable",
            row["run_id"],
            row["session_type"],
            row["agentId"],
            row["label"],
            row["reason"],
        )
        for row in removals
    ]
    screen.table(_COLUMNS, rows, ["" if row["restorable"] else "dim" for row in removals])


def deleted(
    agent: options.Agents = None,
    since: Annotated[
        str | None, typer.Option(help="Only what was removed in the last: 90m, 12h, 7d, 2w.", metavar="AGE")
    ] = None,
    run: Annotated[str | None, typer.Option(help="Only what this run removed.", metavar="RUN")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many.", metavar="N")] = 100,
    as_json: options.AsJson = False,
) -> None:
    """List removed sessions, newest first, and whether they can be restored."""
    minutes = words.minutes(since, "--since")
    answer("list_deleted", _show_deleted, as_json=as_json, agent=agent, since_minutes=minutes, run_id=run, limit=limit)


def _show_deleted(screen: Screen, document: Document) -> None:
    rows = document["deleted"]
    if rows:
        removal_table(screen, rows)
    total = document["deleted_count"]
    shown = f" ({len(rows):,} shown, more with --limit)" if len(rows) < total else ""
    screen.note(f"{counted(total, 'removed session')}{shown}")


def restore(
    session_id: options.SessionId,
    agent: options.Agent = None,
    pin: Pin = False,
    force: options.Unguarded = False,
    as_json: options.AsJson = False,
) -> None:
    """Restore one removed session; a prune skips it for ARIA_KEEP_DAYS (7)."""
    answer(
        "restore_session",
        _say_message,
        as_json=as_json,
        session_id=session_id,
        agent=agent,
        pin=pin or None,
        force=force or None,
    )


def undo(
    run_id: RunId,
    agent: options.Agent = None,
    skip_conflicts: Annotated[
        bool, typer.Option("--skip-conflicts", help="Restore the others if some cannot be restored.")
    ] = False,
    pin: Pin = False,
    force: options.Unguarded = False,
    as_json: options.AsJson = False,
) -> None:
    """Restore everything that one run removed; a prune skips it for ARIA_KEEP_DAYS (7)."""
    answer(
        "restore_run",
        _show_undo,
        as_json=as_json,
        run_id=run_id,
        agent=agent,
        skip_conflicts=skip_conflicts or None,
        pin=pin or None,
        force=force or None,
    )


def pin(session_id: options.SessionId, agent: options.Agent = None, as_json: options.AsJson = False) -> None:
    """Pin one session: only --force removes it, and its archives are not purged. `policy check` lists pins."""
    answer("pin_session", _say_message, as_json=as_json, session_id=session_id, agent=agent)


def unpin(session_id: options.SessionId, agent: options.Agent = None, as_json: options.AsJson = False) -> None:
    """Undo `pin` or --pin."""
    answer("unpin_session", _say_message, as_json=as_json, session_id=session_id, agent=agent)


def _show_undo(screen: Screen, document: Document) -> None:
    for skipped in document["skipped"]:
        screen.note(f"not restored: {skipped['agentId']} {skipped['id']}: {skipped['reason']}")
    if document["already_restored"]:
        screen.note(f"{counted(document['already_restored'], 'session')} had already been restored")
    _say_message(screen, document)


def _say_message(screen: Screen, document: Document) -> None:
    screen.line(document["message"])
    say_history(screen, document)
