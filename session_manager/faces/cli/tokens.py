"""token create, list and revoke: who may use aria-api."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from session_manager.core.errors import UsageError
from session_manager.faces.cli import options
from session_manager.faces.cli.database import in_database
from session_manager.faces.cli.environment import ENVIRONMENT


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    tokens = typer.Typer(help="Tokens for aria-api.", no_args_is_help=True)
    tokens.command("create", epilog=ENVIRONMENT)(create_token)
    tokens.command("list", epilog=ENVIRONMENT)(list_tokens)
    tokens.command("revoke", epilog=ENVIRONMENT)(revoke_token)
    app.add_typer(tokens, name="token", rich_help_panel=options.SERVING)


def create_token(
    name: Annotated[
        str | None, typer.Option(help="Who will use the token; shown in the log. Default: the user's name.")
    ] = None,
    user: Annotated[
        str | None,
        typer.Option(
            help="The user whose chat sessions the token can read and create. Default: only sessions without an owner."
        ),
    ] = None,
    org: Annotated[
        list[str] | None, typer.Option(help="An organisation whose chat sessions it can read, too; repeat for more.")
    ] = None,
    scope: Annotated[
        str, typer.Option(help="Its scopes, separated by commas: read, write, delete, admin (all).")
    ] = "read,write",
    as_json: options.AsJson = False,
) -> None:
    """Create a token and print it once; only its hash is stored."""
    from session_manager.service.db import tokens

    scopes = [part.strip() for part in scope.split(",") if part.strip()]
    unknown = [part for part in scopes if part not in tokens.SCOPES]
    if unknown or not scopes:
        raise UsageError(
            f"--scope takes {', '.join(tokens.SCOPES)}, separated by commas; not {', '.join(unknown) or 'nothing'}"
        )
    if name is None and user is None:
        raise UsageError("give --name, who will use the token, or --user, whose chat sessions it can read")
    shown = _name("--name", name if name is not None else user)
    user_id = None if user is None else _name("--user", user)
    orgs = sorted({_name("--org", each) for each in org or ()})
    token = in_database(lambda connection: tokens.create(connection, shown, scopes, user_id, orgs))
    made = {"token": token, "name": shown, "scopes": sorted(set(scopes)), "user_id": user_id, "orgs": orgs}
    typer.echo(json.dumps(made) if as_json else token)


def _name(option: str, value: str | None) -> str:
    name = (value or "").strip()
    if not name or len(name) > 100 or not name.isprintable():
        raise UsageError(f"{option} must be 1 to 100 printable characters")
    return name


def list_tokens(as_json: options.AsJson = False) -> None:
    """List tokens; the tokens themselves cannot be shown again."""
    from session_manager.service.db import tokens

    found = in_database(tokens.listed)
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


def revoke_token(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The id that `token list` shows.")],
) -> None:
    """Revoke a token; the next request with it is refused."""
    from session_manager.service.db import tokens

    revoked = in_database(lambda connection: tokens.revoke(connection, token_id))
    typer.echo(f"token {token_id} is revoked" if revoked else f"token {token_id} was already revoked")
