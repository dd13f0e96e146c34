"""Orphans: transcripts without an entry, and entries without any file; decides which of them may be removed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set

import msgspec

from session_manager.core.policy import Pins
from session_manager.core.protection import protection
from session_manager.core.retention import RESTORED, Policy, decide
from session_manager.core.session import Entry, Session, build_sessions

# Classes of files in a sessions folder.
LIVE = "live"
PREVIOUS = "previous_generation"
TOPIC = "topic_file"
SIDECAR = "sidecar"
PARTIAL = "partial"
ORPHAN = "true_orphan"
OTHER = "other"
OWN = "own_temp"
ARCHIVES = {"reset": "reset_archive", "deleted": "deleted_archive", "bak": "backup_archive"}
CLASSES = (LIVE, PREVIOUS, *ARCHIVES.values(), TOPIC, SIDECAR, PARTIAL, ORPHAN, OWN, OTHER)

YOUNG = "young"
UNREADABLE = "unreadable"


class Orphan(msgspec.Struct):
    """A session id without an entry, with the transcripts and sidecars of that name; or a dead writer's own file.

    ``size`` is in bytes; ``last_activity`` (epoch ms) is the newest of the files' mtimes and of the times inside
    them, None when a file cannot be read. ``busy``: one of the files' locks is held, or its writer lives. ``kind`` is
    the class of the first of its files, transcripts before all others.
    """

    agent_id: str
    id: str
    files: list[str]
    size: int
    last_activity: int | None
    busy: bool
    kind: str = ORPHAN

    @property
    def is_session(self) -> bool:
        """Returns True if it is the rest of a session; otherwise it is one file, whose name is its id."""
        return self.files != [self.id]


class Judged(msgspec.Struct):
    """An orphan, or a session without files: ``reason`` says why it stays, None if it may be removed."""

    subject: Orphan | Session
    reason: str | None


def judge_orphans(orphans: Iterable[Orphan], cutoff: int, current: Set[str], pins: Pins | None = None) -> list[Judged]:
    """Decides about each orphan; it may be removed if idle, unprotected and older than ``cutoff`` (epoch ms)."""
    return [Judged(orphan, _reason(orphan, cutoff, current, pins)) for orphan in orphans]


def _reason(orphan: Orphan, cutoff: int, current: Set[str], pins: Pins | None) -> str | None:
    (session,) = build_sessions(orphan.agent_id, [("", Entry(orphan.id))], 0)
    session.keys = []
    session.busy = orphan.busy
    if pins is not None:
        pins.mark(session)
    protected = protection(session, current)
    if protected is not None:
        return protected.reason
    if orphan.last_activity is None:
        return UNREADABLE
    if session.restored:
        return RESTORED
    return None if orphan.last_activity < cutoff else YOUNG


def judge_entries(
    sessions: Sequence[Session],
    found: Collection[str],
    policy: Policy,
    now_ms: int,
    current: Set[str],
    relatives: Sequence[Session] = (),
) -> list[Judged]:
    """Decides about each session that is not in ``found`` (ids of sessions that have anything besides the entry).

    The rules are those of a prune that includes durable types: an unknown age, a protection and a family keep it.
    """
    return [
        Judged(d.session, None if d.prune else d.reason or YOUNG)
        for d in decide(sessions, policy, now_ms, current, relatives)
        if d.session.id not in found
    ]


def too_many(going: int, total: int) -> bool:
    """Returns True if so many of an agent's transcripts would be removed that its index was probably lost.

    That is more than half, however few there are: two leftovers beside one live session look just like a small agent
    whose index was emptied, and a question costs less than a conversation archived as an orphan.
    """
    return 2 * going > total
