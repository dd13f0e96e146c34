"""All commands, as one Typer application."""

from __future__ import annotations

from typing import Annotated

import typer

from session_manager.faces.cli import (
    archives,
    doctor,
    ghosts,
    mcp,
    policy,
    removals,
    restoring,
    service,
    sessions,
    skill,
    tokens,
)
from session_manager.faces.cli.options import Command

EXIT_CODES = (
    "Exit codes: 0 ok, 2 usage, 3 done in part, 4 refused, 5 not found, 6 locked, 7 damaged, 70 internal error, "
    "130 interrupted."
)

app = typer.Typer(
    help=f"Keeps an AI agent's sessions clean, and loses nothing.\n\n{EXIT_CODES}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (sessions, policy, doctor, removals, restoring, archives, ghosts, service, tokens, mcp, skill):
    module.add_to(app)
for part in (app, *(group.typer_instance for group in app.registered_groups)):
    for command in part.registered_commands if part is not None else ():
        command.cls = Command


def _say_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("aria-sessionmanager"))
        raise typer.Exit


@app.callback()
def _begin(
    _: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass
