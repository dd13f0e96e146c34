"""The state of the embedded database, for readiness checks and for the caller of the service."""

from __future__ import annotations

from collections.abc import Callable

from session_manager.service import metrics
from session_manager.service.embedded.keeper import Standing


class Watch:
    """``standing`` is the state of the embedded PostgreSQL, None when the service has none."""

    def __init__(self) -> None:
        self.standing: Standing | None = None
        self._then: Callable[[], object] | None = None

    def hear(self, standing: Standing) -> None:
        """Records its current state; callable from any thread."""
        before = self.standing.restarts if self.standing else 0
        self.standing = standing
        metrics.embedded_database(standing.up, standing.restarts - before)
        self._act()

    def when_lost(self, then: Callable[[], object]) -> None:
        """Registers a callback for when it cannot be restarted."""
        self._then = then
        self._act()

    def raise_lost(self) -> None:
        """Raises the reason if it could not be restarted."""
        if self.standing is not None and self.standing.lost is not None:
            raise self.standing.lost

    def _act(self) -> None:
        if self._then is not None and self.standing is not None and self.standing.lost is not None:
            self._then()
