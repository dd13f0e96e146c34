"""How far the clock can be trusted, by what the ledger has seen of it.

What is old is dropped and purged for good, and a clock that is far ahead makes everything old. It cannot be told from a
ledger that nobody used meanwhile; so after a jump from one event to the next, ages count from the event before it until
the ledger has been in use for a day since, and no pause in that day counts more than some hours. A jump back needs no
rule: what was noted under a clock that was ahead merely stays longer.
"""

from __future__ import annotations

import msgspec

from session_manager.core.session import DAY_MS
from session_manager.live.ledger import chain
from session_manager.live.ledger.connection import Connection, clear_sqlite_errors
from session_manager.live.liveness import iso_ms

_HOUR_MS = 3_600_000
# A day, and what a daily call is late at times.
JUMP_MS = DAY_MS + _HOUR_MS
_LONGEST_PAUSE_MS = 8 * _HOUR_MS


class Clock(msgspec.Struct, frozen=True):
    """The clock ``now`` (epoch ms), the time that ages count from, and when the ledger was last written, if ever.

    Where it was not, ``last`` may be when something else was.
    """

    now: int
    trusted: int
    last: int | None
    by: str = "the ledger's last entry"

    @property
    def is_ahead(self) -> bool:
        """Says whether it is more than a day ahead of the ledger's last event."""
        return self.last is not None and self.now - self.last > JUMP_MS

    def told(self) -> str:
        """Returns a sentence without its end on a clock that is ahead."""
        assert self.last is not None
        days = round((self.now - self.last) / DAY_MS)
        return f"the clock says {iso_ms(self.now)}, {days} days after {self.by} ({iso_ms(self.last)})"

    def document(self) -> dict[str, object]:
        """Returns a result's ``clock_ahead``; empty when it is not."""
        if self.last is None or not self.is_ahead:
            return {}
        kept = "nothing expires yet; correct the clock if it is wrong"
        found = {"now": iso_ms(self.now), "last_entry": iso_ms(self.last), "note": f"{self.told()}: {kept}"}
        return {"clock_ahead": found}


class Clocks(Connection):
    """The part of the ledger that has seen the time pass."""

    def clock(self, now: int) -> Clock:
        """Returns how far ``now`` can be trusted; wholly where the ledger has seen nothing yet."""
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
        """Notes that the ledger is in use, where nothing else has said so for some hours."""
        if clock.last is not None and abs(clock.now - clock.last) >= _LONGEST_PAUSE_MS:
            with self.transaction() as c:
                chain.append(c, "seen", {})
