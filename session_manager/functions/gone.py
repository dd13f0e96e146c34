"""Sessions that are in no store any more: removed before, or known only to history."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from session_manager.core.errors import NotFound
from session_manager.functions.naming import hint, keys_of, meant, parted
from session_manager.functions.reading import View

if TYPE_CHECKING:
    from session_manager.archives.work import Work
    from session_manager.functions.delivery import History
    from session_manager.history.rows import Row
    from session_manager.ledger import Ledger

# Agent id and session id.
Name = tuple[str, str]


def removed_before(
    ledger: Ledger | None, scope: View, wanted: str, agent_id: str | None, *, by_end: bool = False
) -> dict[Name, list[str]]:
    """Returns earlier removals of a name, by us or by the gateway, with the archives in its folder.

    ``agent_id`` is the named agent; ``by_end`` as for ``naming.meant``.
    """
    gone: dict[Name, list[str]] = {name: [] for name in _removed(ledger, wanted, agent_id)}
    for read in scope.agents:
        if read.snapshot is not None and agent_id in (None, read.agent_id):
            names = read.snapshot.archives_of(wanted, read.names)
            gone |= {(read.agent_id, wanted): names} if names else {}
    if not gone and (key := meant(wanted, removed_keys(ledger, wanted), by_end=by_end)) != wanted:
        gone = {name: [] for name in _removed(ledger, key, agent_id)}
    return gone


def _removed(ledger: Ledger | None, wanted: str, agent_id: str | None) -> list[Name]:
    return [] if ledger is None else ledger.removed(wanted, agent_id)


def removed_keys(ledger: Ledger | None, end: str) -> list[str]:
    """Returns the keys of removed sessions with this ending."""
    return [] if ledger is None else ledger.keys_ending(end)


def rows_in_history(
    history: History | None, scope: View, session_id: str, agents: Collection[str] | None
) -> tuple[list[Row], dict[str, Any]]:
    """Returns history's rows of a session, and the failure's details when history did not answer.

    An agent that could not be read may still have the session. ``agents``: those that were named, None for all.
    """
    if history is None:
        return [], {}
    rows, error = history.find(session_id)
    unread = {agent_id for agent_id, _ in scope.failed}
    found = [r for r in rows if r.agent_id not in unread and (agents is None or r.agent_id in agents)]
    return found, {} if error is None else {"history": "unknown", "pg_error": error}


class Absent:
    """Named sessions that are in no store, and the outcome for each.

    ``already`` were removed before, ``only_in_history`` are ended there, now or before; ``owed`` are those that this
    call reports to history, ``errors`` report unknown ones.
    """

    def __init__(self, scope: View, names: Sequence[str]) -> None:
        self._scope = scope
        self._names = names
        self.already: list[Name] = []
        self.only_in_history: list[Name] = []
        self.owed: list[Name] = []
        self.errors: list[tuple[str, NotFound]] = []

    @property
    def known(self) -> bool:
        """Whether any layer knows at least one of them."""
        return bool(self.already or self.only_in_history)

    def look(self, ledger: Ledger | None) -> None:
        """Looks for earlier removals."""
        for name in self._names:
            agent_id, wanted = parted(name)
            if gone := removed_before(ledger, self._scope, wanted, agent_id):
                self.already += sorted(gone)
            else:
                self.errors.append((name, not_found(self._scope, ledger, wanted, {})))

    def owe(self, work: Work, history: History) -> None:
        """Records as pending for history the end of earlier removals, and of sessions that only history knows."""
        heard = work.owe_marks(self.already)
        self.owed += [name for name in self.already if name not in heard]
        errors, self.errors = self.errors, []
        for name, error in errors:
            agent_id, wanted = parted(name)
            rows, details = rows_in_history(history, self._scope, wanted, None if agent_id is None else {agent_id})
            if not rows:
                error.details |= details
                self.errors.append((name, error))
            self.only_in_history += sorted({row.name for row in rows})
            active = sorted({row.name for row in rows if row.status == "active"})
            work.owe_marks(active, again=True)
            self.owed += active

    def document(self) -> dict[str, Any]:
        """Returns the optional members of a document: only those with content."""
        also = {"already_deleted": self.already, "only_in_history": self.only_in_history}
        return {name: [session_id for _, session_id in found] for name, found in also.items() if found}


def not_found(scope: View, ledger: Ledger | None, wanted: str, details: dict[str, Any]) -> NotFound:
    """Returns the error for a session that no layer knows; it names similar keys."""
    keys = [*keys_of(scope.sessions), *removed_keys(ledger, wanted)]
    return NotFound(
        f"no session {wanted!r}: give the full id or key as list_sessions shows it{hint(wanted, keys)}", **details
    )
