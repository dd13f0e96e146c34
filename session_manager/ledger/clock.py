"""How far the clock can be trusted, judged by the times in the ledger.

Old data is dropped and purged permanently, and a clock that is far ahead makes everything old. This looks like a ledger
that nobody used meanwhile; so after a jump between two events, ages count from the event before it until the ledger has
been in use for a day since, and no pause in that day counts more than some hours. A jump back needs no rule: data
recorded under a clock that was ahead merely stays longer.
"""

from __future__ import annotations

import msgspec

from session_manager.core.session import DAY_MS
from session_manager.files.liveness import iso_ms
from session_manager.ledger import chain
from session_manager.ledger.connection import Connection, clear_sqlite_errors

_HOUR_MS = 3_600_000
# A day, and the usual delay of a daily call.
JUMP_MS = DAY_MS + _HOUR_MS
_LONGEST_PAUSE_MS = 8 * _HOUR_MS


class Clock(msgspec.Struct, frozen=True):
    """The clock ``now`` (epoch ms), the time that ages count from, and the time of the ledger's last write, if any.

    Without one, ``last`` may be the time of another write.
    """

    now: int
    trusted: int
    last: int | None
    by: str = "the ledger's last entry"

    @property
    def is_ahead(self) -> bool:
        """Returns True if the clock is more than a day ahead of the ledger's last event."""
        return self.last is not None and self.now - self.last > JUMP_MS

    def told(self) -> str:
        """Returns the beginning of a sentence about a clock that is ahead."""
        assert self.last is not None
        days = round((self.now - self.last) / DAY_MS)
        return f"the clock says {iso_ms(self.now)}, {days} days after {self.by} ({iso_ms(self.last)})"

    def document(self) -> dict[str, object]:
        """Returns a result's ``clock_ahead``; empty if the clock is not ahead."""
        if self.last is None or not self.is_ahead:
            return {}
        kept = "nothing expires yet; correct the clock if it is wrong"
        found = {"now": iso_ms(self.now), "last_entry": iso_ms(self.last), "note": f"{self.told()}: {kept}"}
        return {"clock_ahead": found}


class Clocks(Connection):
    """The part of the ledger that checks the clock."""

    def clock(self, now: int) -> Clock:
        """Returns how far ``now`` can be trusted: wholly if the ledger has no events yet."""
        seen, later, trusted = 0, now, now
        last: int | None = None
        with clear_sqlite_errors(self.path):
            for (at,) in self.sql.execute("SELECT at FROM events ORDER BY seq DESC"):
                last = at if last is None else last
                if later - at > JUMP_MS:
                    trusted = at
                seen += min(max(0, later - at), _LONGEST_PAUSE_MS)
                if seen >= DAY_MS:
                    break
                later = at
        return Clock(now, min(trusted, now), last)

    def note_use(self, clock: Clock) -> None:
        """Records that the ledger is in use, if there was no other event for some hours."""
        if clock.last is not None and abs(clock.now - clock.last) >= _LONGEST_PAUSE_MS:
            with self.transaction() as c:
                chain.append(c, "seen", {})
