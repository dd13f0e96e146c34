"""The context of every function, and checks of arguments that several functions share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from session_manager.core.errors import INTERRUPTED, Interrupted, SessionManagerError, UsageError
from session_manager.core.keys import KINDS, safe_name
from session_manager.core.selection import Selection
from session_manager.settings import Settings

if TYPE_CHECKING:
    from session_manager.core.policy import Pins, RetentionPolicy
    from session_manager.ledger import Run
    from session_manager.stores.base import Volume

Minutes = Annotated[int, msgspec.Meta(ge=1, description="minutes, at least 1")]
Limit = Annotated[int, msgspec.Meta(ge=1, description="at most this many, at least 1")]
Agent = Annotated[str, msgspec.Meta(description="one agent's name; default: all agents")]
Agents = (
    Annotated[str, msgspec.Meta(description="one agent's name, or a list of names; default: all agents")] | list[str]
)
Label = Annotated[str, msgspec.Meta(description="only sessions with this label, or matching this pattern (* and ?)")]
Model = Annotated[str, msgspec.Meta(description="only sessions of this model, or matching this pattern (* and ?)")]
MinBytes = Annotated[int, msgspec.Meta(ge=1, description="only sessions whose files have at least this many bytes")]
Empty = Annotated[bool, msgspec.Meta(description="only sessions whose transcript has no message")]
SessionType = (
    Annotated[str, msgspec.Meta(description=f"one of these types, or a list of them: {', '.join(KINDS)}")] | list[str]
)
AllRows = Annotated[bool, msgspec.Meta(description="list every row, not just the first 100")]
SessionIds = Annotated[
    list[str], msgspec.Meta(description="only these sessions: full ids, keys, or <agent>/<id>; at least one")
]

Unguarded = Annotated[
    bool, msgspec.Meta(description="proceed where files cannot be swapped atomically; only while no gateway is writing")
]


class Filters(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Arguments that narrow a call to some sessions, the same in every function that takes them."""

    session_type: SessionType | None = None
    label: Label | None = None
    model: Model | None = None
    min_bytes: MinBytes | None = None
    empty: Empty = False
    session_ids: SessionIds | None = None

    def selection(self) -> Selection:
        """Returns them as a Selection. Raises UsageError for an unknown type, and for an empty list."""
        types = named(self.session_type, "session_type")
        for name in types or ():
            check_session_type(name)
        return Selection(types, self.label, self.model, self.min_bytes, self.empty, self._ids())

    def _ids(self) -> frozenset[str] | None:
        ids = named(self.session_ids, "session_ids")
        if ids is None:
            return None
        from session_manager.functions.naming import tidied

        return frozenset(tidied(name) for name in ids)


class Context(msgspec.Struct, frozen=True):
    """Settings, the agents directory and the clock (epoch milliseconds); once read, also the policy and all pins.

    ``pins`` holds the policy's pins and those set one by one; None means that there are none, if the context is
    ``informed`` (see ``policy.with_policy``); without that nothing is removed.
    """

    settings: Settings
    volume: Volume
    clock: Callable[[], int]
    policy: RetentionPolicy | None = None
    pins: Pins | None = None
    informed: bool = False


def named(given: str | Iterable[str] | None, argument: str) -> tuple[str, ...] | None:
    """Returns one name or several as a sequence without duplicates; None when nothing was given.

    Raises UsageError for an empty list: it could mean all or none.
    """
    if given is None:
        return None
    names = tuple(dict.fromkeys((given,) if isinstance(given, str) else given))
    if not names:
        raise UsageError(f"{argument} is an empty list; name at least one, or leave it out for all", argument=argument)
    return names


@contextlib.contextmanager
def named_when_interrupted(run: Run, so_far: Callable[[], Mapping[str, object]] = dict) -> Iterator[None]:
    """Turns Ctrl-C into Interrupted with the ``run_id`` for which list_deleted shows the completed work.

    ``so_far`` returns the completed work that list_deleted does not show.
    """
    try:
        yield
    except KeyboardInterrupt:
        details: dict[str, Any] = {} if run.shown_id is None else {"run_id": run.shown_id}
        with contextlib.suppress(SessionManagerError):
            details |= so_far()
        raise Interrupted(INTERRUPTED, **details) from None


def iso_utc(epoch_ms: float | None) -> str | None:
    """Writes a time (epoch ms) as ISO 8601 in UTC, with milliseconds unless they are zero."""
    if epoch_ms is None:
        return None

    milliseconds = int(epoch_ms)
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC).replace(microsecond=milliseconds % 1000 * 1000)
    return moment.isoformat(timespec="milliseconds" if milliseconds % 1000 else "seconds")


def check_session_type(name: str) -> None:
    """Raises UsageError when ``name`` is not a session type, naming the nearest."""
    if name in KINDS:
        return
    from difflib import get_close_matches

    near = get_close_matches(name, KINDS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known types: {', '.join(KINDS)}"
    raise UsageError(f"{name!r} is not a session type{hint}", argument="session_type")


def check_session_id(session_id: str) -> None:
    """Raises UsageError for an impossible id. A session key (it holds a ``:``) is valid, too."""
    if ":" in session_id and len(session_id) <= 1000 and "\0" not in session_id:
        return
    if not safe_name(session_id):
        raise UsageError(
            f"{session_id!r} is not a session id: full ids only, no path, no '..', no leading dot or dash",
            argument="session_id",
        )
