"""Options that several commands share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from session_manager.core.errors import SessionManagerError, UsageError
from session_manager.core.keys import KINDS
from session_manager.faces.cli import words


def _types(incomplete: str) -> Iterable[str]:
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def _agents(incomplete: str) -> Iterable[str]:
    from session_manager.settings import read_settings
    from session_manager.stores.registry import open_volume

    with contextlib.suppress(SessionManagerError):
        agents = open_volume(read_settings(os.environ)).agent_ids()
        return [name for name in agents if name.startswith(incomplete)]
    return []


# Headings of the list of commands.
LOOKING, REMOVING, TAKING_BACK, SERVING = "Look", "Remove", "Undo and keep", "Service and setup"

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Agent = Annotated[
    str | None, typer.Option("--agent", "-a", help="Only this agent.", autocompletion=_agents, metavar="NAME")
]
Agents = Annotated[
    list[str] | None,
    typer.Option("--agent", "-a", help="Only this agent; repeat for more.", autocompletion=_agents, metavar="NAME"),
]
Type = Annotated[
    list[str] | None,
    typer.Option(
        "--type", "-t", help="Only this session type; repeat for more.", autocompletion=_types, metavar="TYPE"
    ),
]
OlderThan = Annotated[
    str | None, typer.Option(help="Only without activity for this long: 90m, 12h, 7d, 2w.", metavar="AGE")
]
Label = Annotated[str | None, typer.Option(help="Only with this label; * and ? are wildcards.", metavar="LABEL")]
Model = Annotated[str | None, typer.Option(help="Only with this model; * and ? are wildcards.", metavar="MODEL")]
LargerThan = Annotated[
    str | None, typer.Option(help="Only with files of at least this size: 500k, 1.5M.", metavar="SIZE")
]
Empty = Annotated[bool, typer.Option("--empty", help="Only with a transcript without messages.")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most this many.", metavar="N")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Show what would happen; change nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Include main sessions, pinned ones and those in use.")]
Unguarded = Annotated[
    bool, typer.Option("--force", help="Proceed where files cannot be swapped atomically; stop the gateway first.")
]
SessionId = Annotated[str, typer.Argument(metavar="ID", help="The full session id, or one of its keys.")]


class Command(TyperCommand):
    """A command that refuses a repeated single-value option: Click would silently use the last."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the words after the command. Raises UsageError."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        for option in given:
            takes_one = isinstance(option, TyperOption) and not (option.multiple or option.is_flag)
            if takes_one and given.count(option) > 1:
                raise UsageError(f"{option.opts[0]} was given twice but takes one value; nothing was changed")
        return super().parse_args(ctx, args)


def filters(
    session_type: list[str] | None, label: str | None, model: str | None, larger_than: str | None, empty: bool
) -> dict[str, Any]:
    """Returns shared filters as functions take them, None for options not given. Raises UsageError."""
    return {
        "session_type": session_type,
        "label": label,
        "model": model,
        "min_bytes": words.amount(larger_than),
        "empty": empty or None,
    }
