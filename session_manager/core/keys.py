"""Session keys and the kinds they tell; names that may become part of a path."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec

MAIN = "main"
UNKNOWN = "unknown"
KINDS = (
    MAIN,
    "cron",
    "subagent",
    "hook",
    "acp",
    "heartbeat",
    "node",
    "voice",
    "slash",
    "api",
    "explicit",
    "ui",
    "thread",
    "group",
    "channel",
    "direct",
    UNKNOWN,
)

_PREFIXES = {
    "cron": "cron",
    "subagent": "subagent",
    "hook": "hook",
    "acp": "acp",
    "acp-bridge": "acp",
    "node": "node",
    "voice": "voice",
    "explicit": "explicit",
    "dashboard": "ui",
    "openai": "api",
    "openai-user": "api",
    "openresponses": "api",
    "openresponses-user": "api",
}
_ROUTES = {"group": "group", "channel": "channel", "direct": "direct", "dm": "direct", "slash": "slash"}
_THREADS = frozenset(("thread", "topic"))
_MARKERS = {*_PREFIXES, *_ROUTES, *_THREADS}

NAME_LIMIT = 200
_FORBIDDEN = frozenset("/\\\0")


def safe_name(name: str) -> bool:
    """Returns True if an agent name or session id may become part of a path.

    Both are data from a language model. No separator, no ``..``, no control character, no leading
    dot or dash, nothing that a file system cannot encode.
    """
    return (
        0 < len(name) <= NAME_LIMIT
        and name[0] not in ".-"
        and ".." not in name
        and name.isprintable()
        and not _FORBIDDEN.intersection(name)
    )


class SessionKey(msgspec.Struct, frozen=True):
    """A parsed session key: ``agent:<agent_id>:<rest>``, or a bare ``rest`` with ``agent_id`` None."""

    text: str
    agent_id: str | None
    rest: str
    kind: str


def parse_key(text: str) -> SessionKey:
    """Parses a session key. Never raises: a key of another form has the kind ``unknown``.

    Key grammar: gateway 2026.2.17 ``parseAgentSessionKey`` and its ``is…SessionKey`` predicates;
    keys are stored in lower case, except some peer ids.
    """
    parts = text.split(":", 2)
    if parts[0].lower() == "agent":
        if len(parts) < 3 or not parts[1]:
            return SessionKey(text, None, text, UNKNOWN)
        return SessionKey(text, parts[1].lower(), parts[2], _kind(parts[2].lower()))
    return SessionKey(text, None, text, _kind(text.lower()))


def _kind(rest: str) -> str:
    if rest in (MAIN, "global"):
        return MAIN
    parts = rest.split(":")
    if _is_heartbeat(parts):
        return "heartbeat"
    # A thread inside another kind of key is a conversation of its own: durable wins.
    if not _THREADS.isdisjoint(parts) and any(p in _THREADS and following for p, following in pairwise(parts)):
        return "thread"
    head = parts[0]
    if len(parts) > 1 and parts[1] and head in _PREFIXES:
        return _PREFIXES[head]
    if head.startswith("node-") and len(head) > 5:
        return "node"
    if head.startswith("tui-") and len(head) > 4:
        return "ui"
    for part, following in pairwise(parts[:4]):
        if part in _ROUTES and following:
            return _ROUTES[part]
    return UNKNOWN


def _is_heartbeat(parts: Sequence[str]) -> bool:
    if parts[0] == "heartbeat" or parts[0].startswith("heartbeat-recovered-"):
        return True
    # In `telegram:direct:heartbeat` and `cron:heartbeat` the last part is an id, not a suffix.
    return len(parts) > 1 and parts[-1] == "heartbeat" and bool(parts[-2]) and parts[-2] not in _MARKERS
