"""orphans, purge, erase and deliver: commands for files and updates beside the live sessions."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from session_manager.core.errors import UsageError
from session_manager.core.selection import full_name
from session_manager.faces.cli import options, words
from session_manager.faces.cli.calling import (
    Document,
    answer,
    asked,
    confirmed,
    counted,
    needs_somebody,
    say_history,
    say_run,
    typed,
)
from session_manager.faces.cli.screen import Column, Screen

_SHOWN = 100
_CLASSES = (Column("KIND", 8), Column("FILES", right=True), Column("SIZE", right=True))
_ORPHANS = (Column("ID"), Column("PLAN"), Column("WHY", 10), Column("AGENT", 6, 1), Column("SIZE", None, 2, right=True))
_PURGED = (Column("FILE", 20), Column("FREED", right=True), Column("AGENT", 6, 1))


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel=options.REMOVING)(orphans)
    app.command(rich_help_panel=options.REMOVING)(purge)
    app.command(rich_help_panel=options.REMOVING)(erase)
    app.command(rich_help_panel=options.SERVING)(deliver)


def orphans(
    older_than: options.OlderThan = None,
    agent: options.Agents = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Archive them; without --delete nothing is changed.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Archive them even if they are most of an agent's transcripts.")
    ] = False,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """List transcripts without an index entry, and entries without a transcript (older than 1d); --delete archives."""
    age = words.minutes(older_than)
    if not delete:
        answer("cleanup_orphans", _show_orphans, as_json=as_json, agent=agent, older_than_minutes=age)
        return
    if age is None and agent is None:
        raise UsageError("select the orphans: give --older-than or --agent; nothing was changed", code="no_filter")
    scope: dict[str, Any] = {"agent": agent, "older_than_minutes": age, "force": force or None}
    if not yes:
        needs_somebody("--yes", as_json=as_json)
        plan = asked("cleanup_orphans", _show_orphans, **scope, details=True)
        found = [full_name(o["agentId"], o["id"]) for o in (*plan["archived"], *plan["removed_entries"])]
        if not found or not confirmed(f"Archive {counted(len(found), 'orphan')}?"):
            return
        scope["session_ids"] = found
    answer(
        "cleanup_orphans",
        _show_orphans,
        as_json=as_json,
        **scope,
        dry_run=False,
    )


def _show_orphans(screen: Screen, document: Document) -> None:
    dry_run = document["dry_run"]
    classes = [(name, c["count"], c["bytes"]) for name, c in document["classes"].items() if c["count"]]
    if dry_run:
        screen.table(_CLASSES, [(name.replace("_", " "), f"{n:,}", words.size(size)) for name, n, size in classes])
    plan = "archive" if dry_run else "archived"
    rows = [(o["id"], plan, "no entry", o["agentId"], words.size(o["bytes"])) for o in document["archived"][:_SHOWN]]
    rows += [(e["id"], plan, "no transcript", e["agentId"], "") for e in document["removed_entries"][:_SHOWN]]
    rows += [(k["id"], "keep", k["reason"], k["agentId"], "") for k in document["kept"][:_SHOWN]]
    if rows:
        screen.line()
        screen.table(_ORPHANS, rows)
    count = document["archived_count"] + document["removed_entries_count"]
    done = "to archive with --delete" if dry_run else "archived"
    screen.note(
        f"{counted(count, 'orphan')} {done} ({words.size(document['archived_bytes'])}), {document['kept_count']:,} kept"
    )
    say_history(screen, document)
    say_run(screen, document)


def purge(
    older_than: options.OlderThan = None,
    agent: options.Agents = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    force: Annotated[bool, typer.Option("--force", help="Purge even if the clock has jumped ahead.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Permanently delete old archives. This cannot be undone."""
    age = words.days(older_than)
    if age is None:
        raise UsageError("give an age: --older-than, such as 30d; nothing was changed", code="no_filter")
    scope: dict[str, Any] = {"agent": agent, "older_than_days": age, "force": force or None}
    if dry_run:
        answer("purge_archives", _show_purge, as_json=as_json, **scope)
        return
    if not yes:
        needs_somebody("--yes or --dry-run", as_json=as_json)
        plan = asked("purge_archives", _show_purge, **scope, details=True)
        what = f"{counted(plan['purged_count'], 'file')}, {words.size(plan['bytes_freed'])}"
        nothing = not plan["purged_count"] and not plan["removals"]
        if nothing or not confirmed(f"Permanently delete {what}?"):
            return
        scope["plan"] = plan["plan"]
    answer("purge_archives", _show_purge, as_json=as_json, **scope, dry_run=False)


def _show_purge(screen: Screen, document: Document) -> None:
    rows = [(file["file"], words.size(file["bytes_freed"]), file["agentId"]) for file in document["files"][:_SHOWN]]
    if rows:
        screen.table(_PURGED, rows)
    count = document["purged_count"]
    shown = f" ({len(rows)} shown)" if len(rows) < count else ""
    done = "to remove" if document["dry_run"] else "removed"
    screen.note(
        f"{counted(count, 'file')}{shown} {done}, {words.size(document['bytes_freed'])}; "
        f"{counted(document['removals'], 'session')} can no longer be restored"
    )
    if document["live_count"]:
        screen.note(f"{counted(document['live_count'], 'file')} kept, of live sessions")
    if document["pinned_count"]:
        screen.note(f"{counted(document['pinned_count'], 'file')} kept, of pinned sessions")


def erase(
    session_id: Annotated[str, typer.Argument(metavar="ID", help="The full session id.")],
    confirm: Annotated[
        str | None, typer.Option(help="The same id again, where nobody can be asked.", metavar="ID")
    ] = None,
    agent: options.Agent = None,
    force: options.Force = False,
    as_json: options.AsJson = False,
) -> None:
    """Erase one session for privacy, archives and history included (needs ARIA_ALLOW_ERASE=1). It cannot be undone."""
    if confirm is None:
        needs_somebody("--confirm with the same id", as_json=as_json)
        confirm = typed("Type the id again to erase the session permanently: ")
    answer(
        "erase_session",
        _show_erased,
        as_json=as_json,
        session_id=session_id,
        confirm=confirm,
        agent=agent,
        force=force or None,
    )


def _show_erased(screen: Screen, document: Document) -> None:
    screen.line(document["message"])
    receipt = document["receipt"]
    screen.facts(
        (
            ("erased at", receipt["erased_at"]),
            ("agents", ", ".join(receipt["agents"])),
            ("size", words.size(receipt["bytes"])),
        )
    )
    screen.line("Not erased, or not known to be:")
    for place in document["not_reached"]:
        screen.item(f"{place['place']}: {place['reason']}")
    say_history(screen, document)


def deliver(as_json: options.AsJson = False) -> None:
    """Deliver pending status updates to the history service."""
    answer("deliver_history", _show_delivered, as_json=as_json)


def _show_delivered(screen: Screen, document: Document) -> None:
    names = ("delivered", "pending", "missing", "given_up")
    screen.facts((name.replace("_", " "), f"{document[name]:,}") for name in names)
    for mark in document["waiting"]:
        screen.item(f"{mark['agentId']} {mark['id']}: {mark['reason']}")
    if "pg_error" in document:
        screen.note(document["pg_error"])
