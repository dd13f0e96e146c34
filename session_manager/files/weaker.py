"""Records what a file system cannot do, wherever a weaker way is used instead, for the call's result."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

EXCHANGE, LINKS, FLOCK, FSYNC, MODES = "exchange", "hard_links", "flock", "fsync", "modes"
SENTENCES = {
    EXCHANGE: "the file system cannot swap two files atomically: what a gateway writes at that moment may be lost",
    LINKS: "the file system has no hard links: second names of archives are copies, and take up space",
    FLOCK: "the file system has no flock: calls of this tool exclude each other by a lock file only",
    FSYNC: "the file system has no fsync: a power failure may undo or damage the latest changes",
    MODES: "the file system stores no file modes: the mount options decide who can read the files",
}

_noted: ContextVar[set[str] | None] = ContextVar("noted", default=None)
ADVICE = (
    "stop the gateway and call with force: true, or set ARIA_ALLOW_NO_EXCHANGE=1 for a gateway that takes the lock "
    "(2026.4.29 or older)"
)


def note(lack: str) -> None:
    """Records that a weaker way is used, because ``lack`` is missing."""
    found = _noted.get()
    if found is not None:
        found.add(lack)


@contextlib.contextmanager
def noted() -> Iterator[set[str]]:
    """Gives a set that collects all that is recorded in the body."""
    found: set[str] = set()
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


def document(found: Iterable[str]) -> dict[str, object]:
    """Returns a result's ``weaker``; empty when nothing is."""
    told = [{"lacks": lack, "note": SENTENCES[lack]} for lack in SENTENCES if lack in found]
    return {"weaker": told} if told else {}
