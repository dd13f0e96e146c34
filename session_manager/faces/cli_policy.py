"""policy check: what the retention policy would do today, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from session_manager.core.errors import PARTIAL_EXIT_CODE, SessionManagerError
from session_manager.faces.runner import encode
from session_manager.functions import load
from session_manager.functions.context import Context
from session_manager.live.liveness import now_ms
from session_manager.live.volume import Volume
from session_manager.settings import read_settings


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    policy = typer.Typer(help="The retention policy, session-manager.toml.", no_args_is_help=True)
    policy.callback()(_group)
    policy.command()(check)
    app.add_typer(policy, name="policy")


def _group() -> None:
    pass


def check(
    agent: Annotated[str | None, typer.Option(help="Only this agent.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what the retention policy would remove today and why, and change nothing."""
    try:
        document = _ask(agent)
    except SessionManagerError as error:
        typer.echo(encode(error.document()) if as_json else f"error: {error.message}", err=not as_json)
        raise typer.Exit(error.exit_code) from None
    if as_json:
        typer.echo(encode(document))
    else:
        for line in _lines(document):
            typer.echo(line)
        typer.echo(_summary(document), err=True)
    for failure in document.get("errors", ()):
        typer.echo(f"error: {failure['agentId']}: {failure['error']}", err=True)
    if document.get("code") == "partial":
        raise typer.Exit(PARTIAL_EXIT_CODE)


def _ask(agent: str | None) -> dict[str, Any]:
    function = load("check_policy")
    settings = read_settings(os.environ)
    context = Context(settings, Volume(settings.agents_dir), now_ms)
    return function.run(context, function.arguments(**({} if agent is None else {"agent": agent})))


def _lines(document: dict[str, Any]) -> Iterator[str]:
    default = f"no policy: what is older than {document['threshold_minutes']} minutes goes"
    yield f"policy: {document['policy']}" if document["policy"] else default
    for verb, name in (("remove", "prune"), ("keep", "keep")):
        for reason, count in document[f"{name}_reasons"].items():
            yield f"{verb:6}  {count:>7,}  {reason}"
    for row in document["prune"]:
        yield "  ".join(_clean(row[name]) for name in ("agentId", "id", "session_type", "reason"))
    if document["would_prune"] > len(document["prune"]):
        yield f"… and {document['would_prune'] - len(document['prune']):,} more to remove"
    for overrun in document["over_budget"]:
        yield overrun["message"]
    for kind, pins in (document["unused_pins"] or {}).items():
        for pin in pins:
            yield f"unused pin: no session has {_clean(pin)} among its {kind}"


def _summary(document: dict[str, Any]) -> str:
    going, total, size = (document[name] for name in ("would_prune", "total_sessions", "bytes_to_archive"))
    return f"{going:,} of {total:,} sessions would go, with transcripts of {size:,} bytes; nothing was changed"


def _clean(text: str) -> str:
    # Labels and ids are anybody's, escape sequences included.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
