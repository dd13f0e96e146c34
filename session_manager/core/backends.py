"""Sessions that only look like leftovers: another program holds their messages, or a person still uses them.

Facts: gateways 2026.2.17 to 2026.6.11 (``setCliSessionBinding``, ``rowToAcpSessionMeta``, ``spawnSubagentDirect``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from session_manager.core.keys import SessionKey
    from session_manager.core.session import Entry, Session

SPAWNED = frozenset({"subagent", "acp"})


def is_held(key: SessionKey, entry: Entry) -> bool:
    """Returns True if a CLI or ACP backend holds the conversation: its transcript here may have no message."""
    return (
        bool(entry.cli_session_bindings)
        or bool(entry.cli_session_ids)
        or bool(entry.claude_cli_session_id)
        or bool(entry.acp)
        or key.rest.lower().startswith("acp:")
    )


def is_bound(key: SessionKey, entry: Entry) -> bool:
    """Returns True if a person uses the session, as far as its entry tells; an ACP mode is persistent by default."""
    return (
        (isinstance(entry.acp, dict) and entry.acp.get("mode") != "oneshot")
        or entry.spawn_mode == "session"
        or key.rest.lower().startswith("acp:binding:")
    )


def threads_of(entry: Entry) -> tuple[str, ...]:
    """Returns the ids of the channel threads that an entry answers to, in lower case, as keys have them."""
    found = [entry.last_thread_id]
    found += [place.get("threadId") for place in (entry.delivery_context, entry.origin) if isinstance(place, dict)]
    texts = (str(thread).strip().lower() for thread in found if isinstance(thread, str | int) and thread is not True)
    return tuple(dict.fromkeys(text for text in texts if text))


def forget_inherited(sessions: Sequence[Session], entries: Mapping[str, Entry]) -> None:
    """Removes from ``Session.threads`` the threads that a session inherited from the one that spawned it.

    A sub-agent that was spawned within a thread also answers to that thread, and is done when it has answered.
    """
    for session in sessions:
        inherited = {thread for key in session.parents if key in entries for thread in threads_of(entries[key])}
        session.threads = tuple(
            thread
            for thread in session.threads
            if thread not in inherited and not any(_names(key, thread) for key in session.parents)
        )


def observe(sessions: Iterable[Session], told: Mapping[str, bool] | None) -> None:
    """Sets ``bound`` from the gateway's files outside the index: session key (lower case) -> bound or not.

    This overrides a thread in the entry. None: it cannot be read, and no spawned session is known to be free.
    """
    for session in sessions:
        words = {True} if told is None else {told.get(key.lower()) for key in session.keys}
        if True in words:
            session.bound = True
        elif False in words:
            session.threads = ()


def _names(key: str, thread: str) -> bool:
    return f"{key.lower()}:".endswith(f":{thread}:") or f":thread:{thread}:" in key.lower()
