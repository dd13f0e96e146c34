"""prune and delete: show the plan, ask, then show the result."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from session_manager.core.errors import SessionManagerError, UsageError
from session_manager.core.selection import full_name
from session_manager.faces.cli import options, words
from session_manager.faces.cli.calling import (
    Document,
    answer,
    asked,
    confirmed,
    counted,
    end_failed,
    needs_somebody,
    say_history,
    say_run,
)
from session_manager.faces.cli.screen import Column, Screen
from session_manager.functions.policy import policy_has_rules
from session_manager.settings import read_settings

_COLUMNS = (
    Column("ID"),
    Column("PLAN"),
    Column("WHY"),
    Column("SIZE", None, 1, right=True),
    Column("AGE", None, 2),
    Column("TYPE", None, 3),
    Column("AGENT", 6, 4),
    Column("LABEL", 8, 5),
)


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command(rich_help_panel=options.REMOVING)(prune)
    app.command(rich_help_panel=options.REMOVING)(delete)


def prune(
    older_than: options.OlderThan = None,
    agent: options.Agents = None,
    session_type: options.Type = None,
    label: options.Label = None,
    model: options.Model = None,
    larger_than: options.LargerThan = None,
    empty: options.Empty = False,
    durable: Annotated[bool, typer.Option("--durable", help="Include people's conversations.")] = False,
    limit: options.Limit = None,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    force: options.Unguarded = False,
    as_json: options.AsJson = False,
) -> None:
    """Remove inactive sessions, by the retention policy or --older-than; `undo` restores them."""
    filters: dict[str, Any] = {
        "max_age_minutes": words.minutes(older_than),
        "agent": agent,
        **options.filters(session_type, label, model, larger_than, empty),
    }
    try:
        by_policy = policy_has_rules(read_settings(os.environ))
    except SessionManagerError as error:
        end_failed(error, as_json=as_json)
    if not by_policy:
        _check_filters(filters)
    arguments = {**filters, "include_durable": durable or None, "limit": limit, "force": force or None}
    _plan_and_do("prune_sessions", "pruned_count", arguments, dry_run=dry_run, yes=yes, as_json=as_json)


def delete(
    session_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Full session ids or keys; leave them out to use filters."),
    ] = None,
    agent: options.Agents = None,
    session_type: options.Type = None,
    older_than: options.OlderThan = None,
    label: options.Label = None,
    model: options.Model = None,
    larger_than: options.LargerThan = None,
    empty: options.Empty = False,
    limit: options.Limit = None,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    yes: options.Yes = False,
    as_json: options.AsJson = False,
) -> None:
    """Remove the named sessions, or all of any type that the filters match; `undo` restores them."""
    filters: dict[str, Any] = {
        "older_than_minutes": words.minutes(older_than),
        **options.filters(session_type, label, model, larger_than, empty),
    }
    if not session_ids:
        _check_filters({**filters, "agent": agent})
        arguments = {**filters, "agent": agent, "limit": limit, "force": force or None}
        _plan_and_do("delete_sessions", "deleted_count", arguments, dry_run=dry_run, yes=yes, as_json=as_json)
    elif dry_run or limit is not None or any(value is not None for value in filters.values()):
        raise UsageError("give either session ids, or filters (and --dry-run), not both; nothing was changed")
    elif len(session_ids) == 1 and (agent is None or len(agent) == 1):
        arguments = {"session_id": session_ids[0], "agent": agent and agent[0], "force": force or None}
        answer("delete_session", _show_deleted, as_json=as_json, **arguments)
    else:
        arguments = {"session_ids": session_ids, "agent": agent, "force": force or None}
        answer("delete_sessions", _show_all_deleted, as_json=as_json, **arguments, dry_run=False)


def _check_filters(filters: Mapping[str, object]) -> None:
    """Raises UsageError when no sessions were selected: `prune` alone may be an unfinished command."""
    if all(value is None for value in filters.values()):
        raise UsageError(
            "select the sessions: give --older-than, --agent, --type, --label, --model, --larger-than or --empty; "
            "nothing was changed",
            code="no_filter",
        )


def _show_deleted(screen: Screen, document: Document) -> None:
    screen.line(document["message"])
    say_history(screen, document)
    say_run(screen, document)


def _show_all_deleted(screen: Screen, document: Document) -> None:
    _show_done(screen, document, "deleted_count")


def _plan_and_do(name: str, count: str, arguments: dict[str, Any], *, dry_run: bool, yes: bool, as_json: bool) -> None:
    def show_plan(screen: Screen, document: Document) -> None:
        _show_plan(screen, document, count)

    seen: dict[str, int] = {}

    def show_done(screen: Screen, document: Document) -> None:
        _show_done(screen, {**document, **seen}, count)

    if dry_run:
        answer(name, show_plan, as_json=as_json, **arguments, dry_run=True, details=True)
        return
    if not yes:
        needs_somebody("--yes or --dry-run", as_json=as_json)
        plan = asked(name, show_plan, **arguments, dry_run=True, details=True)
        if not plan[count] or not confirmed(f"Remove {counted(plan[count], 'session')}?"):
            return
        # Only sessions that were shown and confirmed are removed.
        shown = [full_name(row["agentId"], row["id"]) for row in plan["plan"] if row["prune"]]
        arguments = {**arguments, "session_ids": shown}
        seen["total_sessions"] = plan["total_sessions"]
    answer(name, show_done, as_json=as_json, **arguments, dry_run=False)


def _show_plan(screen: Screen, document: Document, count: str) -> None:
    # The summary stands next to the question, however long the table is.
    rows = sorted(document["plan"], key=lambda row: bool(row["prune"]))
    cells = [
        (
            row["id"],
            "remove" if row["prune"] else "keep",
            row["reason"],
            words.size(row["bytes"]),
            words.age(row["updatedAt"]),
            row["session_type"],
            row["agentId"],
            row["label"],
        )
        for row in rows
    ]
    if rows:
        screen.table(_COLUMNS, cells, ["red" if row["prune"] else "dim" for row in rows])
    going = sum(row["bytes"] for row in rows if row["prune"])
    young = document["total_sessions"] - len(rows)
    staying = counted(len(rows) - document[count], "session")
    removed = counted(document[count], "session")
    rest = "within the rules" if document.get("policy") else "not old enough"
    screen.note(f"{removed} to remove ({words.size(going)}), {staying} to keep, {young:,} {rest}")


def _show_done(screen: Screen, document: Document, count: str) -> None:
    kept_count = document["total_sessions"] - document[count]
    screen.line(f"{counted(document[count], 'session')} removed, {kept_count:,} kept")
    for session_id in document.get("already_deleted", ()):
        screen.line(f"{session_id} had already been removed")
    for session_id in document.get("only_in_history", ()):
        screen.line(f"{session_id} was only known to history, and is marked ended there")
    told = {(failure["agentId"], failure["id"]) for failure in document["errors"]}
    for kept in document["kept"]:
        if kept["reason"] == "active" and (kept["agentId"], kept["id"]) not in told:
            screen.note(f"kept: {kept['agentId']} {kept['id']} has just become active")
    say_history(screen, document)
    say_run(screen, document)
