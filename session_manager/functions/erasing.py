"""The live part of erase_session: its work in each agent's store, under the store's lock."""

from __future__ import annotations

import msgspec

from session_manager.archives.work import Work
from session_manager.core.errors import SessionManagerError, failure
from session_manager.core.protection import protection, refusal
from session_manager.core.session import Session
from session_manager.functions.context import Context
from session_manager.functions.reading import View, foreign_references, names_referred_to, observe
from session_manager.functions.shared_files import archive_left, left_by
from session_manager.stores.base import Snapshot, Store, reported
from session_manager.stores.results import Erasure


class Result(msgspec.Struct):
    """What was erased, over all agents.

    ``done`` are the agents where nothing is left, by this call (``changed``) or since an earlier one; ``begun`` are
    those where something could not go yet. ``spared`` are (agent id, file) of files that belong to others, too.
    """

    done: list[str] = msgspec.field(default_factory=list)
    begun: list[str] = msgspec.field(default_factory=list)
    changed: bool = False
    keys: int = 0
    files: int = 0
    bytes: int = 0
    ledger_entries: int = 0
    spared: list[tuple[str, str]] = msgspec.field(default_factory=list)
    recovered: list[dict[str, object]] = msgspec.field(default_factory=list)
    reappeared: list[dict[str, object]] = msgspec.field(default_factory=list)
    errors: list[dict[str, object]] = msgspec.field(default_factory=list)


class Erasing:
    """One call's work on the live layer. ``scope`` are the agents in question, ``everyone`` is all of them."""

    def __init__(
        self, context: Context, work: Work, everyone: View, scope: View, session_id: str, *, force: bool
    ) -> None:
        self._context = context
        self._work = work
        self._scope = scope
        self._lost_too = scope is everyone
        self._session_id = session_id
        self._force = force
        self._everyone = everyone.agents
        self._references = foreign_references(everyone.agents)
        self._left: list[tuple[str, str]] = []
        self._shared: list[tuple[str, str]] = []
        self.result = Result()

    def run(self) -> None:
        """Erases the session wherever it is. Raises the obstacle when nothing was done."""
        result = self.result
        failed: list[tuple[str, SessionManagerError]] = []
        for read in self._scope.agents:
            try:
                store = read.store
                if store is not None and store.knows(self._work, self._session_id, read.sessions, read.names):
                    self._erase_in(store)
            except SessionManagerError as error:
                failed.append((read.agent_id, error))
        failed += self._erase_left()
        result.spared += [file for file in self._shared if file not in result.spared and self._is_there(*file)]
        if self._lost_too:
            failed += self._erase_lost()
        # An unreadable store may hold data that the ledger knows.
        known = {agent_id for agent_id, _ in self._work.removed(self._session_id, None)}
        unread = [error for agent_id, error in self._scope.failed if agent_id in known]
        if not result.done and not result.begun and (failed or unread):
            raise failed[0][1] if failed else unread[0]
        result.errors += [failure(error, agent_id, self._session_id) for agent_id, error in failed]

    def _is_there(self, agent_id: str, name: str) -> bool:
        return any(a.agent_id == agent_id and a.store is not None and a.store.holds(name) for a in self._everyone)

    def _erase_left(self) -> list[tuple[str, SessionManagerError]]:
        """Erases its files in other agents' folders if no other session has them; returns the failures."""
        left = archive_left(self._context, self._work, self._left)
        self.result.errors += left.errors
        failed: list[tuple[str, SessionManagerError]] = []
        for agent_id in sorted({agent for agent, removal in left.archived if removal.session_id == self._session_id}):
            store = self._context.volume.archive_store(agent_id)
            assert store is not None
            try:
                self._erase_in(store)
            except SessionManagerError as error:
                failed.append((agent_id, error))
        return failed

    def _erase_in(self, store: Store) -> None:
        """Removes the live session from a store, and erases the rest."""
        gone = [(done, self._session_id) for done in self.result.done]
        shared = names_referred_to(self._references, store, gone)
        erasure = Erasure()
        try:
            store.erase(self._work, self._session_id, self._choose, shared, erasure, force=self._force)
        finally:
            self._add(store.agent_id, erasure)

    def _choose(self, snapshot: Snapshot) -> list[tuple[Session, str]]:
        observe(self._context, snapshot, self._context.clock())
        found = [session for session in snapshot.sessions if session.id == self._session_id]
        for session in found:
            protected = protection(session, self._context.settings.current)
            if protected is not None and not (protected.overridable and self._force):
                raise refusal(protected, session.id, "erased")
        return [(session, "to be erased") for session in found]

    def _erase_lost(self) -> list[tuple[str, SessionManagerError]]:
        """Erases known data of agents that have no store any more; returns the failures."""
        failed: list[tuple[str, SessionManagerError]] = []
        here = {read.agent_id for read in self._scope.agents if read.store is not None}
        here.update(agent_id for agent_id, _ in self._scope.failed)
        for agent_id, _ in self._work.removed(self._session_id, None):
            if agent_id in here:
                continue
            ledger = self._work.existing_ledger
            if ledger is None or not ledger.holds(agent_id, self._session_id):
                self.result.done.append(agent_id)
                continue
            try:
                store = self._context.volume.store(agent_id) if self._context.volume.shared else None
                if store is not None:
                    self._erase_in(store)
                    continue
                erased = self._context.volume.erase_lost(self._work, agent_id, self._session_id)
            except SessionManagerError as error:
                failed.append((agent_id, error))
            else:
                self._add(agent_id, erased)
        return failed

    def _add(self, agent_id: str, erasure: Erasure) -> None:
        result = self.result
        self._left += left_by(erasure.gone)
        self._shared += erasure.shared
        result.changed = result.changed or erasure.changed
        result.keys += erasure.keys
        result.files += erasure.files
        result.bytes += erasure.bytes
        result.ledger_entries += erasure.entries
        result.spared += [(agent_id, name) for name in erasure.spared]
        result.recovered += erasure.recovered
        result.reappeared += reported(agent_id, erasure.reappeared)
        failures = [*erasure.failures, *erasure.unerased]
        result.errors += [failure(error, agent_id, session_id) for session_id, error in failures]
        if erasure.known:
            (result.begun if erasure.unerased else result.done).append(agent_id)
