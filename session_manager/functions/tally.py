"""The results of decisions about many sessions, over all agents, for every function that removes many."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import msgspec

from session_manager.core.errors import failure
from session_manager.core.retention import Decision
from session_manager.functions.reading import AgentRead
from session_manager.functions.rows import row
from session_manager.functions.shared_files import left_by
from session_manager.stores.base import Store, reported

if TYPE_CHECKING:
    from session_manager.core.rules import Overrun
    from session_manager.stores.results import Outcome

ACTIVE = "active"

# A document's `recovered`, `reappeared` and `woken`, unless empty.
Notes = dict[str, list[dict[str, object]]]


def note(notes: Notes, store: Store, outcome: Outcome) -> list[dict[str, object]]:
    """Adds additional work done in a store; returns the failures as a document's ``errors``."""
    for name, found in (
        ("recovered", outcome.recovered),
        ("reappeared", reported(store.agent_id, outcome.reappeared)),
        ("woken", [one.document() for one in outcome.woken]),
    ):
        if found:
            notes.setdefault(name, []).extend(found)
    return [failure(error, store.agent_id, session_id) for session_id, error in outcome.failures]


def still_outside(files: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns those files ``left_alone`` that were not archived since with the other sessions that had them."""
    return [file for file, paths in files.items() if not paths or any(map(os.path.lexists, paths))]


class Tally(msgspec.Struct):
    """The results of the decisions so far. ``removed`` holds (agent id, session id), ``left`` is from ``left_by``."""

    decisions: list[Decision]
    removed: list[tuple[str, str]]
    alive: set[tuple[str, str]]
    errors: list[dict[str, object]]
    agents: list[AgentRead] = []
    left: list[tuple[str, str]] = []
    left_alone: dict[str, list[str]] = {}
    notes: Notes = {}
    overruns: list[tuple[str, Overrun]] = []

    def add(self, store: Store, outcome: Outcome, last: list[Decision], earlier: Mapping[str, Decision]) -> None:
        """Adds the results of one store, by its ``last`` decisions and, session id -> decision, ``earlier`` ones."""
        removed = [r.session_id for r in outcome.removed]
        ghosts = {r.session_id for r in outcome.reappeared}
        decisions = [d for d in last if d.session.id not in ghosts]
        # A session removed before the lock was lost and retaken is in no later read.
        read = {d.session.id for d in last}
        decisions += [earlier[i] for i in removed if i not in read and i in earlier]
        self.decisions += decisions
        self.removed += [(store.agent_id, session_id) for session_id in removed]
        self.alive |= {(store.agent_id, session_id) for session_id in outcome.alive}
        self.left_alone |= outcome.left_alone
        self.left += left_by(outcome.removed)
        self.errors += note(self.notes, store, outcome)

    def add_second_look(self, looked: Iterable[tuple[Store, Outcome]]) -> None:
        """Adds the findings of the second read of the stores: a session that woke up was not removed."""
        for store, outcome in looked:
            woken = {(store.agent_id, one.session_id) for one in outcome.woken}
            self.removed = [name for name in self.removed if name not in woken]
            self.alive |= woken
            self.errors += note(self.notes, store, outcome)

    def foresee(self, decisions: Sequence[Decision]) -> None:
        """Adds the planned results for one store."""
        self.decisions += decisions
        self.removed += [(d.session.agent_id, d.session.id) for d in decisions if d.prune]

    def kept(self) -> list[dict[str, Any]]:
        """Returns each session that stayed for a reason, with the reason."""
        gone = set(self.removed)
        kept = []
        for decision in self.decisions:
            session = decision.session
            name = (session.agent_id, session.id)
            reason = ACTIVE if name in self.alive else decision.reason
            if reason is not None and name not in gone:
                kept.append({"id": session.id, "agentId": session.agent_id, "reason": reason})
        return kept

    def document(self, count: str, *, dry_run: bool) -> dict[str, Any]:
        """Returns a function's document; ``count`` names the member for removals. In a dry run it means "would"."""
        return {
            "total_sessions": len(self.decisions),
            count: len(self.removed),
            "kept_count": len(self.decisions) - len(self.removed),
            "dry_run": dry_run,
            "deleted_ids": [session_id for _, session_id in self.removed],
            "errors": self.errors,
            "kept": self.kept(),
        }

    def on_the_way(self) -> dict[str, Any]:
        """Returns the optional members of a document: only those with content."""
        left_alone = still_outside(self.left_alone)
        return ({"left_alone": left_alone} if left_alone else {}) | self.notes


def plan_rows(decisions: Sequence[Decision], current: Set[str]) -> list[dict[str, Any]]:
    """Returns a row for each session to remove, with the rule that selects it, and for each that stays for a reason."""
    return [
        {**row(d.session, current), "prune": d.prune, "reason": d.rule if d.prune else d.reason}
        for d in decisions
        if d.prune or d.reason is not None
    ]
