"""All commands, as one Typer application."""

from __future__ import annotations

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

EXIT_CODES = """\
Exit codes: 0 ok, 2 usage, 3 done in part, 4 refused, 5 not found, 6 locked, 7 damaged, 70 internal error,
130 interrupted.
"""

app = typer.Typer(
    help=f"Keeps an AI agent's sessions clean, and loses nothing.\n\n{EXIT_CODES}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (sessions, removals, restoring, archives, ghosts, policy, doctor, service, tokens, mcp, skill):
    module.add_to(app)
