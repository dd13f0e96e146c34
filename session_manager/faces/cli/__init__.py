"""session-manager, the command line for people: data on standard output, talk on standard error."""

from __future__ import annotations

import os
import signal
import traceback
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from session_manager.core.errors import Failed, Interrupted, SessionManagerError
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


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("aria-sessionmanager"))
        raise typer.Exit


@app.callback()
def _begin(
    _: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Runs the command line and exits with the mission's codes."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup means it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        app()
    except SessionManagerError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(Interrupted.exit_code) from None
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        typer.echo(
            f"error: the Python package {name!r} is missing: pip install 'aria-sessionmanager[service]'", err=True
        )
        raise SystemExit(Failed.exit_code) from None
    except OSError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(Failed.exit_code) from None
    except Exception as error:
        if os.environ.get("ARIA_TRACEBACK"):
            traceback.print_exc()
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        typer.echo(f"error: internal error ({said}); ARIA_TRACEBACK=1 shows where", err=True)
        raise SystemExit(Failed.exit_code) from None
    raise SystemExit(0)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
