"""The ledger: what was removed, by which run, how far it got, and the pending marks for history.

One SQLite file in the state directory, shared by several processes. Tables:

- ``runs``: one row per run that changed something: function, time, caller.
- ``attempts``: one row per agent and run; ``kind`` is ``remove``, ``restore`` or ``purge`` (of the removals
  ``restores``), or ``erase`` (and spare the files ``restores``).
  ``state``: ``intent`` (durable before anything is touched), then ``done``, or ``undone`` when nothing came of it.
  An attempt that is still ``intent`` belongs to a killed process, or to one that holds the store's lock right now.
- ``removals``: one row per session of an attempt. ``details``: its keys, its files from → to, facts, no content.
  ``state`` is ``removed`` until the session turns out to live (``kept``), or is ``restored``, ``purged`` or ``erased``.
  An attempt to erase has its own row, the receipt: that a session of this id was erased, when and by whom.
- ``chunks``: the raw entries of many removals each; dropped after ``ARIA_KEEP_DAYS``.
- ``marks``: status updates for history, at most one per session, whoever removed it: that it ``ended``, is ``active``
  again, or was ``erased``, which no later end overwrites. Marks are recorded in the
  transaction that ends the attempt, so that no removal lacks its mark. ``state`` is ``pending``, then
  ``delivered``, or ``missing`` (history has had no such row for days), ``refused`` (history rejects the mark),
  ``cancelled`` (the session was restored before delivery) or ``superseded`` (it came back to life before delivery).
  ``sent``: history may have received, with this mark or an earlier one, that the session ended.
- ``events``: the hash chain over all tables, see ``chain``.

To restore, purge or erase:

- ``removals(run_id=…)`` or ``removals(session=…)`` returns removals, newest first; ``members`` returns their raw
  members. A session may have several removals: if a gateway's cache wrote it back and it was removed again, its files
  are with the first.
- A file that several sessions have is archived with the last of them to be removed; the others ``share`` it.
  ``hand_over`` passes it on: to the first session restored, or to one that can still be restored.
- ``second_names.path`` returns the path of a file's second name (by run, agent and archive name).
- Restore: under the store's lock, ``intend_restore``, then the files, then the index, then ``finish`` with the live
  sessions, which become ``restored`` and have their marks withdrawn. If killed, ``recover`` ends it.
- Purge: under the store's lock, ``intend_purge``, then the files, then ``finish_purge`` with the removals whose files
  are all gone.
- Erase: under the store's lock, an ordinary removal of a live session; then ``intend_erasure``, then the files, then
  ``forget_session``, ``compact`` and ``finish_erasure``. If purge or erase was killed, ``recover`` ends it.
"""

from __future__ import annotations

from session_manager.ledger.attempts import Attempts
from session_manager.ledger.clock import Clock
from session_manager.ledger.endings import Endings
from session_manager.ledger.marks import Marks
from session_manager.ledger.removals import Removals
from session_manager.ledger.rows import (
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
from session_manager.ledger.run import Run, new_run_id, run_started_at
from session_manager.ledger.sharing import Sharing
from session_manager.ledger.start import is_owed, start_run
from session_manager.ledger.unfinished import Openness, Unfinished
from session_manager.ledger.verification import Verification

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
