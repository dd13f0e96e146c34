"""The ledger: what was removed, by which run, how far it got, and the pending marks for history.

One SQLite file in the state directory, shared by several processes. Tables:

- ``runs``: one row a run that changed something: function, time, who asked.
- ``attempts``: one row an agent and run; ``kind`` is ``remove``, ``restore`` or ``purge`` (of the removals
  ``restores``), or ``erase`` (and spare the files ``restores``).
  ``state``: ``intent`` (durable before anything is touched), then ``done``, or ``undone`` when nothing came of it.
  An attempt that is still ``intent`` belongs to a killed process, or to one that holds the store's lock right now.
- ``removals``: one row a session of an attempt. ``details``: its keys, its files from → to and a few facts, no content.
  ``state`` is ``removed`` until it is known to live (``kept``), or was ``restored``, ``purged`` or ``erased``.
  An attempt to erase has one of its own, the receipt: that a session of this id was erased, when and by whom.
- ``chunks``: the raw entries of many removals each; dropped after ``ARIA_KEEP_DAYS``.
- ``marks``: what history must be told, at most one a session, whoever removed it: that it ``ended``, is ``active``
  again, or was ``erased``, which no later end overwrites. Marks come into being in the
  transaction that ends the attempt, so a removal without its mark cannot be. ``state`` is ``pending``, then
  ``delivered``, or ``missing`` (history has had no such row for days), ``refused`` (nor would it take the mark),
  ``cancelled`` (the session was restored before history heard) or ``superseded`` (it came back to life before that).
  ``sent``: history may have heard, of this mark or of one before, that the session ended.
- ``events``: the hash chain over all that, see ``chain``.

For whoever restores, purges or erases:

- ``removals(run_id=…)`` or ``removals(session=…)`` finds what there is, newest first; ``members`` gives its raw
  members. A session may have several removals: one that was brought back by a gateway's cache and removed again left
  its files with the first.
- A file that several sessions have is archived with one of them, the last to go; the others ``share`` it.
  ``hand_over`` passes it on: to the one that comes back first, or to one that can still come back.
- ``second_names.path`` says where a file's second name is (by run, agent and archive name).
- Restore: under the store's lock, ``intend_restore``, then the files, then the index, then ``finish`` with the
  sessions that live now. Killed in between, ``recover`` ends it. It marks them restored and takes back their marks.
- Purge: under the store's lock, ``intend_purge``, then the files, then ``finish_purge`` with the removals of which
  all are gone.
- Erase: under the store's lock, an ordinary removal of what lives; then ``intend_erasure``, then the files, then
  ``forget_session``, ``compact`` and ``finish_erasure``. Both are ended by ``recover`` when they were killed.
"""

from __future__ import annotations

from session_manager.live.ledger.attempts import Attempts
from session_manager.live.ledger.clock import Clock
from session_manager.live.ledger.endings import Endings
from session_manager.live.ledger.marks import Marks
from session_manager.live.ledger.removals import Removals
from session_manager.live.ledger.rows import (
    ERASE,
    PURGE,
    REMOVE,
    REMOVED,
    RESTORE,
    RESTORED,
    Archived,
    Attempt,
    Facts,
    Mark,
    Removal,
    Removed,
    Temp,
)
from session_manager.live.ledger.run import Run, is_owed, new_run_id, run_started_at, start_run
from session_manager.live.ledger.sharing import Sharing
from session_manager.live.ledger.unfinished import Openness, Unfinished
from session_manager.live.ledger.verification import Verification

__all__ = [
    "ERASE",
    "PURGE",
    "REMOVE",
    "REMOVED",
    "RESTORE",
    "RESTORED",
    "Archived",
    "Attempt",
    "Clock",
    "Facts",
    "Ledger",
    "Mark",
    "Removal",
    "Removed",
    "Run",
    "Temp",
    "Unfinished",
    "is_owed",
    "new_run_id",
    "run_started_at",
    "start_run",
]


class Ledger(Attempts, Endings, Marks, Openness, Removals, Sharing, Verification):
    """The whole ledger, opened. A context manager; leaving it closes the file."""
