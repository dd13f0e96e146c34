"""Queries over ``api_tokens``: only hashes are kept."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from sqlalchemy import Connection, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from session_manager.core.errors import NotFound
from session_manager.service.db.ownership import Viewer
from session_manager.service.db.tables import api_tokens as t

SCOPES = ("read", "write", "delete", "admin")
PREFIX = "smt"


def digest(token: str) -> bytes:
    """Returns the stored hash of a token. Tokens have 256 random bits, so a plain hash withstands a search."""
    return hashlib.sha256(token.encode()).digest()


class Principal(msgspec.Struct, frozen=True):
    """A sender and its scopes; ``admin`` may do everything, and sees everybody's conversations."""

    name: str
    scopes: frozenset[str]
    user_id: str | None = None
    orgs: frozenset[str] = frozenset()

    def may(self, scope: str) -> bool:
        """Returns whether the token has a scope."""
        return scope in self.scopes or "admin" in self.scopes

    @property
    def viewer(self) -> Viewer:
        """The conversations that the sender may see."""
        return Viewer(self.user_id, self.orgs, sees_all=self.may("admin"))


def create(
    connection: Connection, name: str, scopes: Iterable[str], user_id: str | None = None, orgs: Iterable[str] = ()
) -> str:
    """Creates a token and returns it, ``smt_<id>_<secret>``; it cannot be shown again."""
    token_id = secrets.token_hex(4)
    token = f"{PREFIX}_{token_id}_{secrets.token_urlsafe(32)}"
    connection.execute(
        insert(t).values(
            id=token_id,
            name=name,
            token_hash=digest(token),
            scopes=sorted(set(scopes)),
            user_id=user_id,
            orgs=sorted(set(orgs)),
        )
    )
    return token


def listed(connection: Connection) -> list[dict[str, Any]]:
    """Returns all tokens, oldest first, as dicts of id, name, scopes, user_id, orgs, created_at and revoked_at."""
    columns = (t.c.id, t.c.name, t.c.scopes, t.c.user_id, t.c.orgs, t.c.created_at, t.c.revoked_at)
    found = connection.execute(select(*columns).order_by(t.c.created_at, t.c.id)).mappings()
    return [{**row, "scopes": list(_names(row["scopes"])), "orgs": list(_names(row["orgs"]))} for row in found]


def revoke(connection: Connection, token_id: str) -> bool:
    """Revokes a token; False when it was revoked before. Raises NotFound (``token_not_found``)."""
    if connection.scalar(select(t.c.id).where(t.c.id == token_id)) is None:
        raise NotFound(f"there is no token {token_id!r}; session-manager token list shows them", code="token_not_found")
    query = update(t).where(t.c.id == token_id, t.c.revoked_at.is_(None)).values(revoked_at=func.now())
    return connection.execute(query.returning(t.c.id)).first() is not None


def any_valid(connection: Connection) -> bool:
    """Returns whether there is a token that is not revoked."""
    return connection.scalar(select(t.c.id).where(t.c.revoked_at.is_(None)).limit(1)) is not None


async def any_made(connection: AsyncConnection) -> bool:
    """Returns whether a token was ever created: revoking the last one must not open the service to everybody."""
    return bool(await connection.scalar(text("SELECT EXISTS (SELECT FROM api_tokens)")))


async def holder(connection: AsyncConnection, token: str) -> Principal | None:
    """Returns the holder of a valid token, None for an invalid one."""
    prefix, _, rest = token.partition("_")
    token_id = rest.partition("_")[0]
    if prefix != PREFIX or not (token_id.isascii() and token_id.isalnum()):
        return None
    query = select(t).where(t.c.id == token_id, t.c.revoked_at.is_(None))
    row = (await connection.execute(query)).first()
    if row is None or not hmac.compare_digest(bytes(row.token_hash), digest(token)):
        return None
    return Principal(row.name, frozenset(_names(row.scopes)), row.user_id, frozenset(_names(row.orgs)))


def _names(values: Iterable[Any]) -> Iterator[str]:
    """Returns the texts of an array, without NULLs: in PostgreSQL, ``text[]`` can have any number of dimensions."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif value is not None:
            yield from _names(value)
