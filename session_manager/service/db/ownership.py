"""The conversations that a viewer may see, as an SQL condition: for the viewer, no others exist."""

from __future__ import annotations

import msgspec
from sqlalchemy import ColumnElement, FromClause, and_, or_


class Viewer(msgspec.Struct, frozen=True):
    """The viewer of conversations.

    A viewer's own conversations are those of its user without an organisation; without a user, those without an owner.
    A conversation of an organisation belongs to all its members, whoever started it.
    """

    user_id: str | None = None
    orgs: frozenset[str] = frozenset()
    sees_all: bool = False

    def sees(self, table: FromClause) -> list[ColumnElement[bool]]:
        """Returns the conditions under which a row of a table of sessions may be seen."""
        if self.sees_all:
            return []
        own = and_(table.c.org_id.is_(None), table.c.user_id.is_not_distinct_from(self.user_id))
        return [or_(own, table.c.org_id.in_(sorted(self.orgs))) if self.orgs else own]

    def may_create_for(self, org_id: str | None) -> bool:
        """Returns whether a session may be created in an organisation."""
        return org_id is None or self.sees_all or org_id in self.orgs


EVERYBODY = Viewer(sees_all=True)
