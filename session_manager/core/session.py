"""Sessions and session keys, read from index entries that may be malformed."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from session_manager.core.backends import SPAWNED, forget_inherited, is_bound, is_held, threads_of
from session_manager.core.keys import SessionKey, parse_key

DAY_MS = 86_400_000
# 2015-01-01: no gateway of this family is older.
EARLIEST_MS = 1_420_070_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The gateway's own staleness of a transcript's lock (2026.2.17 to 2026.7.1: 30 min): a run that has been silent for
# longer is considered dead.
RUN_STALE_MS = 1_800_000
EXACT_LIMIT = 2**53


# The characters that JavaScript's trim() removes.
_BLANKS = "\t\n\v\f\r \xa0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff" + "".join(map(chr, range(0x2000, 0x200B)))


class Entry(msgspec.Struct, rename="camel"):
    """The fields of a SessionEntry that this tool reads, each as found: any JSON value, or None.

    Field list: gateway 2026.2.17 to 2026.7.1, type SessionEntry. Unknown fields are skipped unread.
    """

    session_id: Any = None
    session_file: Any = None
    updated_at: Any = None
    last_interaction_at: Any = None
    last_activity_at: Any = None
    ended_at: Any = None
    label: Any = None
    origin: Any = None
    delivery_context: Any = None
    context_tokens: Any = None
    model: Any = None
    pinned_at: Any = None
    status: Any = None
    spawned_by: Any = None
    parent_session_key: Any = None
    pending_final_delivery: Any = None
    pending_final_delivery_text: Any = None
    pending_final_delivery_intent_id: Any = None
    restart_recovery_delivery_context: Any = None
    restart_recovery_delivery_run_id: Any = None
    restart_recovery_delivery_receipt_state: Any = None
    total_tokens: Any = None
    input_tokens: Any = None
    output_tokens: Any = None
    estimated_cost_usd: Any = None
    started_at: Any = None
    session_started_at: Any = None
    cli_session_bindings: Any = None
    cli_session_ids: Any = None
    claude_cli_session_id: Any = None
    acp: Any = None
    spawn_mode: Any = None
    last_thread_id: Any = None


def epoch_ms(value: object, now_ms: int) -> int | None:
    """Reads a time in epoch milliseconds; None if it is no time or an absurd one. Never raises.

    Times between 2015 and a day after ``now_ms`` are plausible. A digit string counts as a number; a number that is
    plausible only as seconds or microseconds, and an RFC 3339 string, are read as that time.
    """
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) <= 20 else _iso_ms(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    latest = now_ms + DAY_MS
    # NaN is in no range.
    if EARLIEST_MS <= value <= latest:
        return int(value)
    for scaled in (value * 1000, value // 1000):
        if EARLIEST_MS <= scaled <= latest:
            return int(scaled)
    return None


def _iso_ms(text: str) -> int | None:
    """Reads a date with a time of day, in UTC if it has no offset."""
    if len(text) > 64 or text[10:11] not in ("T", "t", " "):
        return None
    # RFC 3339 allows small letters and a leap second.
    seconds = ":59" if text[16:19] == ":60" else text[16:19]
    try:
        moment = datetime.fromisoformat(f"{text[:16]}{seconds}{text[19:]}".upper())
    except ValueError:
        return None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)


def text_or_none(value: object) -> str | None:
    """Returns a non-empty string, or None for anything else."""
    return value if isinstance(value, str) and value else None


def trimmed_or_none(value: object) -> str | None:
    """Returns a string without surrounding blanks, as gateways read ids and paths; None if nothing is left."""
    return value.strip(_BLANKS) or None if isinstance(value, str) else None


def count_or_none(value: object) -> int | float | None:
    """Returns a number that every JSON reader reads exactly, or None for anything else (also 1e400, 400 digits)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -EXACT_LIMIT <= value <= EXACT_LIMIT else None


def entry_label(entry: Entry) -> str | None:
    """Returns the entry's label, else ``origin.label``, else ``deliveryContext.to``."""
    origin, delivery = entry.origin, entry.delivery_context
    return (
        text_or_none(entry.label)
        or (text_or_none(origin.get("label")) if isinstance(origin, dict) else None)
        or (text_or_none(delivery.get("to")) if isinstance(delivery, dict) else None)
    )


def entry_activity(entry: Entry, now_ms: int) -> int | None:
    """Returns the newest of the entry's own times in epoch milliseconds, or None if it has none."""
    newest = 0
    for value in (entry.updated_at, entry.last_interaction_at, entry.last_activity_at, entry.ended_at):
        if value is not None:
            newest = max(newest, epoch_ms(value, now_ms) or 0)
    return newest or None


def awaits_delivery(entry: Entry) -> bool:
    """Returns True if a result of the session is not delivered to its requester yet.

    ``pendingFinalDelivery`` is a flag (gateway 2026.6.11) or an object (later), its text or intent may stand alone;
    ``restartRecoveryDelivery…`` is the claim on an answer that a restart interrupted.
    """
    pending = entry.pending_final_delivery
    if pending is None:
        pending = text_or_none(entry.pending_final_delivery_text) or text_or_none(
            entry.pending_final_delivery_intent_id
        )
    return (
        bool(pending)
        or bool(entry.restart_recovery_delivery_context)
        or text_or_none(entry.restart_recovery_delivery_run_id) is not None
        or entry.restart_recovery_delivery_receipt_state == "terminal-pending"
    )


class Session(msgspec.Struct):
    """One session of one agent, with every key that points at it.

    The ``entry_…`` fields come from the index; ``transcript_activity``, ``size`` (bytes of its files), ``empty`` (its
    transcripts hold no message) and ``elsewhere`` (one may lie in a place that cannot be read) from the files beside
    it: they keep their defaults until these were read. ``busy`` comes from both: the entry shows a run whose
    transcript does not exist yet, or is not locked. ``labels`` are those of all its keys if there are several,
    ``label`` is that of the most telling. ``usage`` holds the entry's counters as found: total, input and output
    tokens, cost in US dollars, start of the session, start of the last run. ``restored``: it was restored lately.

    ``held``: another program holds its messages. ``bound``: a person still uses it, though its type is one of
    programs; ``threads``, the channel threads that a spawned session has for itself, also make it bound, unless the
    gateway says otherwise.

    ``observed``: somebody has looked if it is busy and if it is pinned. No store removes a session before.
    """

    agent_id: str
    id: str
    keys: list[str]
    kinds: frozenset[str]
    key: str
    session_type: str
    label: str | None
    updated_at: int | None
    entry_activity: int | None
    context_tokens: int | float | None
    model: str | None
    pinned: bool
    running: bool
    undelivered: bool
    session_files: tuple[str, ...]
    parents: tuple[str, ...]
    usage: tuple[object, ...]
    busy: bool = False
    elsewhere: bool = False
    transcript_activity: int | None = None
    size: int | None = None
    empty: bool = False
    labels: tuple[str, ...] = ()
    restored: bool = False
    held: bool = False
    bound: bool = False
    threads: tuple[str, ...] = ()
    observed: bool = False

    @property
    def last_activity(self) -> int | None:
        """Newest sign of life in epoch milliseconds; None if the entry holds no time (unknown age)."""
        if self.entry_activity is None:
            return None
        return max(self.entry_activity, self.transcript_activity or 0)


def build_sessions(agent_id: str, entries: Iterable[tuple[str, Entry]], now_ms: int) -> list[Session]:
    """Groups index entries (key, entry) into sessions, one per session id, in index order.

    Entries without a session id are no sessions and are left out.
    """
    grouped: dict[str, list[tuple[str, Entry]]] = {}
    for key, entry in entries:
        session_id = trimmed_or_none(entry.session_id)
        if session_id is not None:
            grouped.setdefault(session_id, []).append((key, entry))
    sessions = [_session(agent_id, session_id, members, now_ms) for session_id, members in grouped.items()]
    if threaded := [session for session in sessions if session.threads]:
        forget_inherited(threaded, {key: entry for members in grouped.values() for key, entry in members})
    return sessions


def bare_sessions(agent_id: str, entries: Iterable[tuple[str, Entry]], now_ms: int) -> list[Session]:
    """Returns the entries (key, entry) without a session id, each as a session whose id is its key."""
    bare = [(key, entry) for key, entry in entries if trimmed_or_none(entry.session_id) is None]
    return [_with_one_key(agent_id, key, key, entry, now_ms) for key, entry in bare]


def _session(agent_id: str, session_id: str, members: list[tuple[str, Entry]], now_ms: int) -> Session:
    each = [_with_one_key(agent_id, session_id, key, entry, now_ms) for key, entry in members]
    if len(each) == 1:
        return each[0]
    best = min(range(len(each)), key=lambda i: _telling(each[i], members[i][1], i))
    return msgspec.structs.replace(
        each[best],
        keys=[key for key, _ in members],
        kinds=frozenset(s.session_type for s in each),
        updated_at=max(s.updated_at or 0 for s in each) or None,
        entry_activity=max(s.entry_activity or 0 for s in each) or None,
        pinned=any(s.pinned for s in each),
        running=any(s.running for s in each),
        busy=any(s.busy for s in each),
        undelivered=any(s.undelivered for s in each),
        session_files=tuple(dict.fromkeys(f for s in each for f in s.session_files)),
        parents=tuple(dict.fromkeys(p for s in each for p in s.parents)),
        labels=tuple(s.label for s in each if s.label is not None),
        held=any(s.held for s in each),
        bound=any(s.bound for s in each),
        threads=tuple(dict.fromkeys(thread for s in each for thread in s.threads)),
    )


def _with_one_key(agent_id: str, session_id: str, key: str, entry: Entry, now_ms: int) -> Session:
    parsed = parse_key(key)
    session_file = trimmed_or_none(entry.session_file)
    activity = entry_activity(entry, now_ms)
    return Session(
        agent_id=agent_id,
        id=session_id,
        keys=[key],
        kinds=frozenset((parsed.kind,)),
        key=key,
        session_type=parsed.kind,
        label=entry_label(entry),
        updated_at=epoch_ms(entry.updated_at, now_ms),
        entry_activity=activity,
        context_tokens=count_or_none(entry.context_tokens),
        model=text_or_none(entry.model),
        pinned=entry.pinned_at is not None and entry.pinned_at is not False,
        running=entry.status == "running",
        busy=entry.status == "running" and _began_lately(entry, activity, now_ms),
        undelivered=awaits_delivery(entry),
        session_files=(session_file,) if session_file else (),
        parents=_parents(parsed, entry),
        usage=(
            entry.total_tokens,
            entry.input_tokens,
            entry.output_tokens,
            entry.estimated_cost_usd,
            entry.session_started_at,
            entry.started_at,
        ),
        held=is_held(parsed, entry),
        bound=is_bound(parsed, entry),
        threads=threads_of(entry) if parsed.kind in SPAWNED else (),
    )


def _began_lately(entry: Entry, activity: int | None, now_ms: int) -> bool:
    """Returns True if an entry's status is running, and the run is too young to be considered dead.

    Gateway 2026.4.14 to 2026.7.1 write ``status`` and ``startedAt`` when a run begins, before there is a transcript,
    and 2026.6.11 releases the transcript's lock around each request to the model.
    """
    return max(activity or 0, epoch_ms(entry.started_at, now_ms) or 0) > now_ms - RUN_STALE_MS


def _telling(session: Session, entry: Entry, position: int) -> tuple[bool, bool, bool, int]:
    """Returns a sort key that puts the most telling key first: cron and sub-agent keys, then those with a label."""
    return (
        session.session_type not in ("cron", "subagent"),
        text_or_none(entry.label) is None,
        session.label is None,
        position,
    )


def _parents(key: SessionKey, entry: Entry) -> tuple[str, ...]:
    """Returns the keys of the sessions that spawned this one: from the entry, and from a nested sub-agent key."""
    if entry.spawned_by is None and entry.parent_session_key is None and key.kind != "subagent":
        return ()
    named = (text_or_none(entry.spawned_by), text_or_none(entry.parent_session_key), _outer(key))
    return tuple(dict.fromkeys(parent for parent in named if parent))


def _outer(key: SessionKey) -> str | None:
    if key.kind != "subagent":
        return None
    outer = key.text[: max(0, key.text.lower().rfind(":subagent:"))]
    return outer if parse_key(outer).kind == "subagent" else None
