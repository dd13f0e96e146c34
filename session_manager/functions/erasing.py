"""The live part of erase_session: its work in each agent's store, under the store's lock."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import msgspec

from session_manager.core.errors import Refused, SessionManagerError, failure
from session_manager.core.protection import BUSY, Protection, protection
from session_manager.core.session import Session
from session_manager.functions.context import Context
from session_manager.functions.reading import AgentRead, View, foreign_references, names_referred_to, observe
from session_manager.functions.refusal import refusal
from session_manager.functions.shared_files import archive_left, left_by
from session_manager.stores.openclaw_files.erasure import Erased, Traces, erase, erase_lost, find_traces
from session_manager.stores.openclaw_files.gateway_lock import StoreLock
from session_manager.stores.openclaw_files.orphans import held_ids
from session_manager.stores.openclaw_files.reappeared import reported
from session_manager.stores.openclaw_files.removal import Remover
from session_manager.stores.openclaw_files.sharing import others_too, pass_on
from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import UNSUPPORTED, Snapshot, Store, listing


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
        self, context: Context, remover: Remover, everyone: View, scope: View, session_id: str, *, force: bool
    ) -> None:
        self._context = context
        self._remover = remover
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
                if read.store is not None and self._is_concerned(read, read.store):
                    self._remover.locked(read.store, partial(self._erase_in, read.store))
            except SessionManagerError as error:
                failed.append((read.agent_id, error))
        failed += self._erase_left()
        result.spared += [file for file in self._shared if file not in result.spared and self._is_there(*file)]
        if self._lost_too:
            failed += self._erase_lost()
        # An unreadable store may hold data that the ledger knows.
        known = {agent_id for agent_id, _ in self._remover.removed(self._session_id, None)}
        unread = [error for agent_id, error in self._scope.failed if agent_id in known]
        if not result.done and not result.begun and (failed or unread):
            raise failed[0][1] if failed else unread[0]
        result.errors += [failure(error, agent_id, self._session_id) for agent_id, error in failed]

    def _is_there(self, agent_id: str, name: str) -> bool:
        return any(
            agent.agent_id == agent_id and name in listing(agent.store) for agent in self._everyone if agent.store
        )

    def _erase_left(self) -> list[tuple[str, SessionManagerError]]:
        """Erases its files in other agents' folders if no other session has them; returns the failures."""
        left = archive_left(self._context, self._remover, self._left)
        self.result.errors += left.errors
        failed: list[tuple[str, SessionManagerError]] = []
        for agent_id in sorted({agent for agent, removal in left.archived if removal.session_id == self._session_id}):
            store = self._context.volume.archive_store(agent_id)
            assert store is not None
            try:
                self._remover.locked(store, partial(self._erase_in, store))
            except SessionManagerError as error:
                failed.append((agent_id, error))
        return failed

    def _is_concerned(self, read: AgentRead, store: Store) -> bool:
        return (
            any(session.id == self._session_id for session in read.sessions)
            or self._remover.has_unfinished(store, read.names)
            or self._is_in_ledger(store.agent_id)
            or bool(self._remover.removed(self._session_id, store.agent_id))
            or bool(self._traces(store, read.sessions, read.names, ()).files)
        )

    def _is_in_ledger(self, agent_id: str) -> bool:
        ledger = self._remover.existing_ledger
        return ledger is not None and ledger.holds(agent_id, self._session_id)

    def _traces(
        self, store: Store, sessions: Sequence[Session], names: Sequence[str], shared: Collection[str]
    ) -> Traces:
        ledger = self._remover.existing_ledger
        return find_traces(store, sessions, names, self._session_id, ledger, self._remover.second_names, shared)

    def _erase_in(self, store: Store, lock: StoreLock) -> None:
        """Removes the live session and erases the rest, for a caller that holds the lock. Raises LockLost, too."""
        agent_id, now = store.agent_id, self._context.clock()
        gone = [(done, self._session_id) for done in self.result.done]
        shared = names_referred_to(self._references, store, gone)
        keys = self._remove(store, lock, shared)
        pass_on(self._remover, store, self._session_id)
        self._shared += others_too(self._remover, store, self._session_id)
        names = listing(store)
        if not self._force and held_ids(store, names, (self._session_id,), now):
            raise refusal(Protection(BUSY, overridable=True), self._session_id, "erased")
        traces = self._traces(store, read_snapshot(store, now).sessions, names, shared)
        if traces.files or self._is_in_ledger(agent_id):
            ledger, run = self._remover.ledger, self._remover.run
            self._add(agent_id, erase(store, lock, ledger, run, self._session_id, traces, keys))
        elif self._remover.removed(self._session_id, agent_id):
            self.result.done.append(agent_id)

    def _remove(self, store: Store, lock: StoreLock, shared: Collection[str]) -> int:
        """Removes the session from the index; returns how many keys it had there."""
        if store.database:
            self._leave_to_gateway(store, lock)
            return 0
        outcome = self._remover.remove_locked(store, lock, self._choose, shared, erased=self._session_id)
        result = self.result
        result.recovered += outcome.recovered
        result.reappeared += reported(store.agent_id, outcome.reappeared)
        self._left += left_by(r for r in outcome.removed if r.session_id == self._session_id)
        keys = sum(len(removal.keys) for removal in outcome.removed)
        result.keys += keys
        if outcome.alive:
            raise Refused(f"session {self._session_id} has just become active and was kept", code="session_busy")
        for session_id, error in outcome.failures:
            if session_id == self._session_id:
                raise error
            result.errors.append(failure(error, store.agent_id, session_id))
        return keys

    def _leave_to_gateway(self, store: Store, lock: StoreLock) -> None:
        """Recovers an interrupted run. Raises Refused when the gateway's database has the session."""
        _, recovered, failures = self._remover.end_earlier(store, lock)
        self.result.recovered += recovered
        self.result.errors += [failure(error, store.agent_id, session_id) for session_id, error in failures]
        if any(s.id == self._session_id for s in read_snapshot(store, self._context.clock()).sessions):
            raise Refused(
                f"session {self._session_id} of agent {store.agent_id!r} is in the gateway's database, which only the "
                "gateway may edit; delete it there (`openclaw sessions`), then call again",
                code=UNSUPPORTED,
                agentId=store.agent_id,
            )

    def _choose(self, snapshot: Snapshot) -> list[tuple[Session, str]]:
        observe(snapshot, self._context.clock(), None, self._context.pins)
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
        for agent_id, _ in self._remover.removed(self._session_id, None):
            if agent_id in here:
                continue
            if not self._is_in_ledger(agent_id):
                self.result.done.append(agent_id)
                continue
            try:
                store = self._context.volume.store(agent_id) if self._context.volume.shared else None
                if store is not None:
                    self._remover.locked(store, partial(self._erase_in, store))
                    continue
                erased = erase_lost(self._remover.ledger, self._remover.run, agent_id, self._session_id)
            except SessionManagerError as error:
                failed.append((agent_id, error))
            else:
                self._add(agent_id, erased)
        return failed

    def _add(self, agent_id: str, erased: Erased) -> None:
        result = self.result
        result.changed = True
        result.files += erased.files
        result.bytes += erased.bytes
        result.ledger_entries += erased.entries
        result.spared += [(agent_id, name) for name in erased.spared]
        result.errors += [failure(error, agent_id, session_id) for session_id, error in erased.failures]
        (result.begun if erased.failures else result.done).append(agent_id)
