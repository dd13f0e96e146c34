"""Selection: the sessions that a call applies to, by their properties."""

from __future__ import annotations

from collections.abc import Set

import msgspec

from session_manager.core.session import Session


class Selection(msgspec.Struct, frozen=True):
    """Narrows a call to some sessions; a field that is None or False does not narrow it.

    ``session_type`` is one type or several. ``label`` and ``model`` are names or patterns with ``*`` and ``?``, in
    either case. ``min_bytes`` and ``empty`` need ``Session.size`` and ``Session.empty``, which the caller must look up
    before. ``ids`` are session ids, keys, or ids with their agent: ``<agent>/<id>``.
    """

    session_type: str | tuple[str, ...] | None = None
    label: str | None = None
    model: str | None = None
    min_bytes: int | None = None
    empty: bool = False
    ids: frozenset[str] | None = None

    @property
    def types(self) -> Set[str]:
        """The named types; empty if any type is meant."""
        if self.session_type is None:
            return frozenset()
        return frozenset((self.session_type,) if isinstance(self.session_type, str) else self.session_type)

    def names(self, session: Session) -> bool:
        """Returns True if a session matches as far as its index entry tells."""
        return (
            (self.session_type is None or session.session_type in self.types)
            and (self.ids is None or not self.ids.isdisjoint(names_of(session)))
            and _like(session.label, self.label)
            and _like(session.model, self.model)
        )

    def covers(self, session: Session) -> bool:
        """Returns True if a session matches."""
        return (
            self.names(session)
            and (self.min_bytes is None or (session.size or 0) >= self.min_bytes)
            and (not self.empty or session.empty)
        )


def names_of(session: Session) -> tuple[str, ...]:
    """Returns the names of a session: its id, alone and with its agent, and its keys."""
    return (session.id, full_name(session.agent_id, session.id), *session.keys)


def full_name(agent_id: str, session_id: str) -> str:
    """Returns the name that distinguishes a session from one with the same id in another agent."""
    return f"{agent_id}/{session_id}"


def _like(text: str | None, pattern: str | None) -> bool:
    if pattern is None:
        return True
    if text is None:
        return False
    from fnmatch import fnmatchcase

    # Brackets are common in labels, so they are not part of the pattern.
    return fnmatchcase(text.casefold(), pattern.casefold().replace("[", "[[]"))
