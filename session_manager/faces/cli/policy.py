"""policy check: what the retention policy would do today, and why."""

from __future__ import annotations

import typer

from session_manager.faces.cli import options, words
from session_manager.faces.cli.calling import Document, answer, counted
from session_manager.faces.cli.screen import Column, Screen

_REASONS = (Column("PLAN"), Column("WHY"), Column("SESSIONS", right=True))
_SESSIONS = (
    Column("ID"),
    Column("WHY"),
    Column("SIZE", None, 1, right=True),
    Column("AGE", None, 2),
    Column("TYPE", None, 3),
    Column("AGENT", 6, 4),
    Column("LABEL", 8, 5),
)


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    policy = typer.Typer(help="The retention policy, session-manager.toml.", no_args_is_help=True)
    policy.callback()(_group)
    policy.command()(check)
    app.add_typer(policy, name="policy", rich_help_panel=options.LOOKING)


def _group() -> None:
    pass


def check(agent: options.Agents = None, as_json: options.AsJson = False) -> None:
    """Show what the retention policy would remove today and why, and change nothing."""
    answer("check_policy", _show, as_json=as_json, agent=agent)


def _show(screen: Screen, document: Document) -> None:
    default = f"none; sessions older than {document['threshold_minutes']} minutes are removed"
    screen.facts([("policy", document["policy"] or default)])
    rows = [
        (plan, reason, f"{count:,}")
        for plan, name in (("remove", "prune"), ("keep", "keep"))
        for reason, count in document[f"{name}_reasons"].items()
    ]
    if rows:
        screen.line()
        screen.table(_REASONS, rows, ["red" if plan == "remove" else "dim" for plan, _, _ in rows])
    if document["prune"]:
        screen.line()
        screen.table(_SESSIONS, [_cells(row) for row in document["prune"]])
        more = document["would_prune"] - len(document["prune"])
        if more:
            screen.line(f"… and {more:,} more to remove")
    for pin in document["pinned"]:
        screen.line(f"pinned: {pin['id']}")
    for overrun in document["over_budget"]:
        screen.note(overrun["message"])
    for kind, pins in (document["unused_pins"] or {}).items():
        for pin in pins:
            screen.note(f"unused pin: no session has {pin} among its {kind}")
    going = counted(document["would_prune"], "session")
    size = words.size(document["bytes_to_archive"])
    screen.note(f"{going} of {document['total_sessions']:,} would be removed ({size}); nothing was changed")


def _cells(row: Document) -> tuple[object, ...]:
    return (
        row["id"],
        row["reason"],
        words.size(row["bytes"]),
        words.age(row["last_activity"]),
        row["session_type"],
        row["agentId"],
        row["label"],
    )
