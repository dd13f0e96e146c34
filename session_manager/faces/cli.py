"""session-manager, the command line for people: data on standard output, talk on standard error."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC
from typing import Annotated, Any, NoReturn

import typer

from session_manager.core.errors import Failed, Interrupted, SessionManagerError, UsageError

EXIT_CODES = """\
Exit codes: 0 ok, 2 usage, 3 done in part, 4 refused, 5 not found, 6 locked, 7 damaged, 70 internal error,
130 interrupted.
"""
ENVIRONMENT = """\
Environment: DATABASE_URL (a PostgreSQL 15 or newer; unset: an embedded one, kept below XDG_STATE_HOME),
ARIA_AGENTS_DIR (the volume to sync), ARIA_API_TOKEN (an admin token), ARIA_ALLOWED_HOSTS (names that the service goes
by, with commas), ARIA_VOLUME (the volume's name in history), SESSION_CLEANUP_TTL_MINUTES (default 30: how long a chat
session may wait for its first message), SESSION_CLEANUP_ENABLED (default true; false keeps it until purged by hand),
ARIA_LLM_BASE_URL, ARIA_LLM_MODEL and ARIA_LLM_API_KEY (the model that replies in chats, at an OpenAI-compatible
endpoint; unset: an echo), ARIA_LLM_TIMEOUT (default 60: seconds that it may be silent), ARIA_TRACEBACK (set: internal
errors show their traceback), ARIA_STATE_DIR and ARIA_KEEP_DAYS (the skill's ledger, as the skill is told). How often
the jobs run, in seconds, 0: only on request: ARIA_SYNC_SECONDS (default 30), ARIA_DELIVERY_SECONDS (30),
ARIA_CLOSING_SECONDS (600), ARIA_GHOST_PURGE_SECONDS (600), ARIA_EXPIRY_SECONDS (60), ARIA_IDLE_ARCHIVE_SECONDS (21600).
"""

app = typer.Typer(
    help=f"Keeps an AI agent's sessions clean, and loses nothing.\n\n{EXIT_CODES}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
token_app = typer.Typer(help="Tokens for aria-api.", no_args_is_help=True)
app.add_typer(token_app, name="token")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def main() -> NoReturn:
    """Runs the command line and exits with the mission's codes."""
    signal.signal(signal.SIGTERM, _interrupt)
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


@app.command(epilog=ENVIRONMENT)
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on. Anything but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one and prints it.")] = 8000,
) -> None:
    """Run aria-api, the history service, with its dashboard at /sessions and its description at /docs."""
    from session_manager.service.server import serve as run

    run(os.environ, host, port, _announce)


def _announce(address: str) -> None:
    typer.echo(f"aria-api listens on {address}")
    sys.stdout.flush()


@app.command(epilog=ENVIRONMENT)
def migrate() -> None:
    """Bring the database's schema up to date. `serve` does it by itself, too."""
    from session_manager.service.db.migrate import migrate as run
    from session_manager.service.server import reachable_database

    with reachable_database(os.environ) as url:
        typer.echo(f"the schema is at revision {run(url)}")


@token_app.command("create", epilog=ENVIRONMENT)
def create_token(
    name: Annotated[
        str | None, typer.Option(help="Who will use it; shown in the log. The user's name when left out.")
    ] = None,
    user: Annotated[
        str | None, typer.Option(help="Whose chat sessions it sees and makes. Without one: those that are nobody's.")
    ] = None,
    org: Annotated[
        list[str] | None, typer.Option(help="An organisation whose chat sessions it sees, too; may be given again.")
    ] = None,
    scope: Annotated[
        str, typer.Option(help="What it may do, with commas: read, write, delete, admin (all of them).")
    ] = "read,write",
    as_json: AsJson = False,
) -> None:
    """Make a token and print it, once; only its hash is kept."""
    from session_manager.service.db import tokens

    scopes = [part.strip() for part in scope.split(",") if part.strip()]
    unknown = [part for part in scopes if part not in tokens.SCOPES]
    if unknown or not scopes:
        raise UsageError(
            f"--scope takes {', '.join(tokens.SCOPES)}, with commas; not {', '.join(unknown) or 'nothing'}"
        )
    if name is None and user is None:
        raise UsageError("give --name, who will use the token, or --user, whose chat sessions it sees")
    shown = _name("--name", name if name is not None else user)
    user_id = None if user is None else _name("--user", user)
    orgs = sorted({_name("--org", each) for each in org or ()})
    token = _in_database(lambda connection: tokens.create(connection, shown, scopes, user_id, orgs))
    made = {"token": token, "name": shown, "scopes": sorted(set(scopes)), "user_id": user_id, "orgs": orgs}
    typer.echo(json.dumps(made) if as_json else token)


def _name(option: str, value: str | None) -> str:
    name = (value or "").strip()
    if not name or len(name) > 100 or not name.isprintable():
        raise UsageError(f"{option} must be 1 to 100 printable characters")
    return name


@token_app.command("list", epilog=ENVIRONMENT)
def list_tokens(as_json: AsJson = False) -> None:
    """List tokens; the tokens themselves cannot be shown again."""
    from session_manager.service.db import tokens

    found = _in_database(tokens.listed)
    if as_json:
        typer.echo(json.dumps({"tokens": found}, default=lambda at: at.isoformat()))
        return
    if not found:
        typer.echo("There are no tokens.", err=True)
    for token in found:
        state = f"revoked {token['revoked_at']:%Y-%m-%d %H:%M}" if token["revoked_at"] else "valid"
        made, scopes = f"{token['created_at']:%Y-%m-%d %H:%M}", ",".join(token["scopes"])
        whose = [f"user {token['user_id']}"] if token["user_id"] else []
        whose += [f"org {org}" for org in token["orgs"]]
        typer.echo("  ".join((token["id"], made, scopes, state, token["name"], *whose)))


@token_app.command("revoke", epilog=ENVIRONMENT)
def revoke_token(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The id that `token list` shows.")],
) -> None:
    """Revoke a token; it is refused from the next request on."""
    from session_manager.service.db import tokens

    revoked = _in_database(lambda connection: tokens.revoke(connection, token_id))
    typer.echo(f"token {token_id} is revoked" if revoked else f"token {token_id} was revoked before")


@app.command(epilog=ENVIRONMENT)
def ghosts(
    older_than_minutes: Annotated[
        int, typer.Option(min=1, max=5_256_000, help="Their age, whatever their time to live.")
    ] = 15,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them. Without it nothing is changed.")] = False,
    as_json: AsJson = False,
) -> None:
    """List chat sessions that have no message, with owner and creation time; --delete deletes them."""
    from session_manager.service.db import chat_cleanup
    from session_manager.service.db.migrate import on_engine

    which = chat_cleanup.ghosts(older_than_minutes, whatever_ttl=True)
    work = chat_cleanup.purge_and_list if delete else chat_cleanup.listed
    with _database() as url:
        found = on_engine(url, lambda engine: work(engine, which))
    if as_json:
        document = {"dry_run": not delete, "older_than_minutes": older_than_minutes, "ghost_count": len(found)}
        typer.echo(json.dumps({**document, "deleted": len(found) if delete else 0, "ghosts": found}, default=str))
        return
    for ghost in found:
        owners = [f"{kind} {ghost[name]}" for kind, name in (("user", "user_id"), ("org", "org_id")) if ghost[name]]
        made = f"{ghost['created_at'].astimezone(UTC):%Y-%m-%d %H:%M}"
        typer.echo("  ".join((str(ghost["id"]), made, ghost["agent_id"], *(owners or ["nobody's"]))))
    if not found:
        typer.echo(f"no chat session older than {older_than_minutes} minutes is without a message", err=True)
        return
    done = "deleted" if delete else "to delete with --delete"
    typer.echo(f"{len(found)} chat session{'s' * (len(found) > 1)} without a message, {done}", err=True)


@contextlib.contextmanager
def _database() -> Iterator[str]:
    """Gives the URL of the migrated database."""
    from session_manager.service.db.migrate import migrate as run
    from session_manager.service.server import reachable_database

    with reachable_database(os.environ) as url:
        run(url)
        yield url


def _in_database(work: Callable[[Any], Any]) -> Any:
    from session_manager.service.db.migrate import transaction

    with _database() as url, transaction(url) as connection:
        return work(connection)


if __name__ == "__main__":
    main()
