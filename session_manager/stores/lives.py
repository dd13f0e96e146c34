"""Removals of one session that belong together, and what is in the way of undoing them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from session_manager.archives.archive import Failures
from session_manager.core.errors import Refused
from session_manager.ledger import REMOVED, Ledger, Removal, Removed

if TYPE_CHECKING:
    from session_manager.stores.base import Place

# Reasons of removals that a store's owner caused: written back out of a cache; without an entry; no conversation.
REAPPEARED, ORPHAN, LEFTOVER = "reappeared", "orphan", "leftover"
KEY_TAKEN, FILE_EXISTS, NOT_RESTORABLE, UNFINISHED = "key_taken", "file_exists", "not_restorable", "unfinished"

# One session's removals that belong together, newest first: an entry that a gateway wrote back and we removed again,
# or a transcript that it began anew and we archived as an orphan, and the removal before that.
Life = Sequence[Removed]
Find = Callable[[Ledger], Sequence[Life]]


class Obstacle(msgspec.Struct, frozen=True):
    """Why a session cannot be restored: one of the codes above, and a sentence without its subject's name."""

    code: str
    reason: str


# A life that cannot be restored, and why.
Blocked = tuple[Life, Obstacle]


class Restored(msgspec.Struct):
    """What happened in one store: removals that were undone, and lives that could not be restored, with the reason."""

    removals: list[Removal]
    blocked: list[tuple[Life, Obstacle]]
    recovered: list[dict[str, object]]
    failures: Failures


def lives(removed: Iterable[Removed]) -> list[Life]:
    """Groups one session's removals, newest first: those of one group can only be undone together.

    An orphan that was written under the name of a removed session, and archived, continues that session. A removal that
    only holds files which an earlier removal shares is undone through that one.
    """
    removed = list(removed)
    shared = {name for removal in removed for name in removal.shares}
    found: list[list[Removed]] = []
    # A leftover is no conversation: conversations come first, and it blocks none.
    leftovers = [[removal] for removal in removed if removal.reason == LEFTOVER]
    for removal in removed:
        if removal.reason == LEFTOVER:
            continue
        if not removal.keys and removal.state != "erased" and shared.issuperset(source for source, _ in removal.files):
            continue
        last = found[-1][-1] if found else None
        goes_on = last is not None and last.reason == ORPHAN and removal.state == last.state == REMOVED
        if last is None or not (last.reason == REAPPEARED or goes_on):
            found.append([])
        found[-1].append(removal)
    return [*found, *leftovers]


def refusal(blocked: Sequence[tuple[Life, Obstacle]]) -> Refused:
    """Returns the error that names the obstacle."""
    life, obstacle = blocked[0]
    more = f"; and {len(blocked) - 1} more sessions cannot be" if len(blocked) > 1 else ""
    conflicts = [
        {"id": life[0].session_id, "agentId": life[0].agent_id, "code": obstacle.code, "reason": obstacle.reason}
        for life, obstacle in blocked
    ]
    return Refused(
        f"session {life[0].session_id} of agent {life[0].agent_id!r} cannot be restored: {obstacle.reason}{more}; "
        "nothing was changed",
        code=obstacle.code,
        conflicts=conflicts,
    )


def split(place: Place, found: Iterable[Life]) -> tuple[list[Life], list[Blocked]]:
    """Returns the lives that can be restored, and the others with their obstacles; omits those already restored."""
    going: list[Life] = []
    blocked: list[Blocked] = []
    for life in found:
        if place.was_taken_back(life):
            continue
        obstacle = place.obstacle(life)
        if obstacle is None:
            place.claim(life)
            going.append(life)
        else:
            blocked.append((life, obstacle))
    return going, blocked
