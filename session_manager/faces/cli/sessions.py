"""list, show and stats: commands that change nothing."""

from __future__ import annotations

from typing import Any

import typer

from session_manager.faces.cli import options, words
from session_manager.faces.cli.calling import Document, answer, counted
from session_manager.faces.cli.restoring import removal_table
from session_manager.faces.cli.screen import Column, Screen

_COLUMNS = (
    Column("ID"),
    Column("AGE"),
    Column("TYPE"),
    Column("AGENT", 6, 1),
    Column("LABEL", 8, 2),
    Column("SIZE", None, 3, right=True),
    Column("MODEL", 8, 5),
    Column("KEPT", None, 4),
)


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("list", rich_help_panel=options.LOOKING)(list_sessions)
    app.command(rich_help_panel=options.LOOKING)(show)
    app.command(rich_help_panel=options.LOOKING)(stats)


def list_sessions(
    agent: options.Agents = None,
    session_type: options.Type = None,
    older_than: options.OlderThan = None,
    label: options.Label = None,
    model: options.Model = None,
    larger_than: options.LargerThan = None,
    empty: options.Empty = False,
    limit: options.Limit = None,
    as_json: options.AsJson = False,
) -> None:
    """List the live sessions, newest first."""
    answer(
        "list_sessions",
        _show_list,
        as_json=as_json,
        agent=agent,
        older_than_minutes=words.minutes(older_than),
        **options.filters(session_type, label, model, larger_than, empty),
        limit=limit,
        sizes=True,
    )


def _show_list(screen: Screen, document: Document) -> None:
    rows = document["sessions"]
    if rows:
        marked = ["dim" if row["protected"] else "" for row in rows]
        screen.table(_COLUMNS, [_cells(row) for row in rows], marked)
    total = document["session_count"]
    shown = f" ({len(rows):,} shown)" if len(rows) < total else ""
    screen.note(f"{counted(total, 'session')}{shown}")
    _say_policy(screen, document)


def _say_policy(screen: Screen, document: Document) -> None:
    if "policy_error" in document:
        screen.note(f"pins are not shown: {document['policy_error']}")


def _cells(row: Document) -> tuple[Any, ...]:
    return (
        row["id"],
        words.age(row["updatedAt"]),
        row["session_type"],
        row["agentId"],
        row["label"],
        words.size(row["bytes"]),
        row["model"],
        row["protected"],
    )


def show(session_id: options.SessionId, agent: options.Agent = None, as_json: options.AsJson = False) -> None:
    """Show everything about one session, live or removed."""
    answer("show_session", _show_one, as_json=as_json, session_id=session_id, agent=agent)


def _show_one(screen: Screen, document: Document) -> None:
    for session in document["live"]:
        facts = {
            "id": session["id"],
            "agent": session["agentId"],
            "type": session["session_type"],
            "label": session["label"],
            "model": session["model"],
            "last activity": _moment(session["last_activity"]),
            "started": _moment(session["started_at"]),
            "tokens": session["tokens"],
            "cost": None if session["cost_usd"] is None else f"{session['cost_usd']} USD",
            "protected": session["protected"],
            "size": words.size(session["bytes"]),
        }
        listed = [("key", key) for key in session["keys"]] + [("spawned by", key) for key in session["spawned_by"]]
        files = [("file", f"{name} ({words.size(size)})") for name, size in session["files"].items()]
        screen.facts([*facts.items(), *listed, *files])
    if document["removed"]:
        if document["live"]:
            screen.line()
        removal_table(screen, document["removed"])
    _say_policy(screen, document)


def _moment(moment: str | None) -> str | None:
    return None if moment is None else f"{moment} ({words.age(moment)})"


def stats(agent: options.Agents = None, older_than: options.OlderThan = None, as_json: options.AsJson = False) -> None:
    """Count sessions and bytes by age, agent and type, and what a prune would remove (older than 60m)."""
    age = words.minutes(older_than)
    answer("get_session_stats", _show_stats, as_json=as_json, agent=agent, stale_minutes=age)


def _show_stats(screen: Screen, document: Document) -> None:
    span = words.span(document["stale_threshold_minutes"])
    pending = document["pending_history_marks"]
    screen.facts(
        (
            ("sessions", f"{document['total_sessions']:,}"),
            ("stale", f"{document['stale_sessions']:,} (without activity for {span})"),
            ("active", f"{document['active_sessions']:,}"),
            ("prunable", f"{document['prunable_sessions']:,} (a prune with that age would remove them now)"),
            ("transcripts", words.size(document["transcript_bytes"])),
            ("archives", words.size(document["archived_bytes"])),
            ("pending updates", "unknown" if pending is None else f"{pending:,}"),
        )
    )
    for kind in ("agent", "type"):
        counts, sizes = document[f"by_{kind}"], document[f"bytes_by_{kind}"]
        if counts:
            screen.line()
            columns = (Column(kind.upper(), 8), Column("SESSIONS", right=True), Column("SIZE", right=True))
            screen.table(columns, [(name, f"{n:,}", words.size(sizes.get(name, 0))) for name, n in counts.items()])
    _say_policy(screen, document)
