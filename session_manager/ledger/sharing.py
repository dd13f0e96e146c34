"""Files that several sessions have: which removal holds one, and which removals only name it."""

from __future__ import annotations

import msgspec

from session_manager.ledger import chain
from session_manager.ledger.connection import Connection, clear_sqlite_errors
from session_manager.ledger.removals import change_state, select_removed
from session_manager.ledger.rows import RESTORED, Details, Removed
from session_manager.ledger.run import Run, note_run

_STANDING = " WHERE a.kind = 'remove' AND a.state <> 'intent' AND r.state = 'removed' AND r.details IS NOT NULL"


class Sharing(Connection):
    """The part of the ledger for files that several sessions share."""

    def holders(self, agent_id: str, folder: str = "") -> dict[str, Removed]:
        """Returns, for each archived file of an agent, the newest removal that holds it.

        ``folder`` is the inode number of a folder that several agents share: then another agent's removal may hold it.
        """
        where = f"{_STANDING} AND (a.agent_id = ? OR a.store_id LIKE ?) ORDER BY r.removal_id"
        with clear_sqlite_errors(self.path):
            found = select_removed(self.sql, where, (agent_id, f"%:{folder}" if folder else ""))
            return {source: removed for removed in found for source, _ in removed.files}

    def sharers(self, agent_id: str, folder: str = "") -> dict[str, list[Removed]]:
        """Returns, for each file of an agent that removals of any agent name but do not hold, the removals that can be
        undone, newest first. ``folder`` as for ``holders``.
        """
        found: dict[str, list[Removed]] = {}
        with clear_sqlite_errors(self.path):
            where = f"{_STANDING} AND r.details LIKE '%\"shares\":%' ORDER BY r.removal_id DESC"
            for removed in select_removed(self.sql, where, ()):
                own = removed.agent_id == agent_id or (bool(folder) and removed.store_id.endswith(f":{folder}"))
                for shared in removed.shares if removed.has_entries else ():
                    agent, _, name = shared.rpartition("/")
                    if agent == ("" if own else agent_id):
                        found.setdefault(name, []).append(removed)
        return found

    def hand_over(self, run: Run, name: str, holder_id: int, taker_id: int) -> None:
        """Records that another removal of the agent now holds an archived file; the former holder only names it.

        A removal without keys and files is over: it counts as restored.
        """
        with self.transaction() as c:
            note_run(c, run)
            holder, taker = self._details(holder_id), self._details(taker_id)
            pair = next(pair for pair in holder.files if pair[0] == name)
            holder.files.remove(pair)
            holder.shares.append(name)
            taker.files.append(pair)
            taker.shares = [shared for shared in taker.shares if shared != name]
            self._rewrite(holder_id, holder)
            self._rewrite(taker_id, taker)
            if not holder.keys and not holder.files:
                change_state(c, run.run_id, RESTORED, [holder_id], {})
        run.noted = True

    def _details(self, removal_id: int) -> Details:
        text = self.sql.execute("SELECT details FROM removals WHERE removal_id = ?", (removal_id,)).fetchone()[0]
        return msgspec.json.decode(text, type=Details)

    def _rewrite(self, removal_id: int, details: Details) -> None:
        chain.reseal(self.sql, removal_id, msgspec.json.encode(details))
