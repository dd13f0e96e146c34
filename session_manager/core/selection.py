"""Selection: which sessions a call is about, by what is known of each."""

from __future__ import annotations

import msgspec

from session_manager.core.session import Session


class Selection(msgspec.Struct, frozen=True):
    """Narrows a call to some sessions; what is None or False does not narrow.

    ``label`` and ``model`` are names or patterns with ``*`` and ``?``, in either case. ``min_bytes`` and ``empty`` ask
    for ``Session.size`` and ``Session.empty``, which somebody must have looked up.
    """

    session_type: str | None = None
    label: str | None = None
    model: str | None = None
    min_bytes: int | None = None
    empty: bool = False

    def names(self, session: Session) -> bool:
        """Says whether a session is meant as far as its index entry tells."""
        return (
            self.session_type in (None, session.session_type)
            and _like(session.label, self.label)
            and _like(session.model, self.model)
        )

    def covers(self, session: Session) -> bool:
        """Says whether a session is meant."""
        return (
            self.names(session)
            and (self.min_bytes is None or (session.size or 0) >= self.min_bytes)
            and (not self.empty or session.empty)
        )


def _like(text: str | None, pattern: str | None) -> bool:
    if pattern is None:
        return True
    if text is None:
        return False
    from fnmatch import fnmatchcase

    # Brackets are common in labels, and no part of the pattern.
    return fnmatchcase(text.casefold(), pattern.casefold().replace("[", "[[]"))
