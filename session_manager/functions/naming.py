"""Resolves session names that an agent has copied inexactly."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from session_manager.core.keys import parse_key, safe_name
from session_manager.core.selection import names_of
from session_manager.core.session import Session

_AROUND = " \t\"'`\u201c\u201d\u2018\u2019"
_ENDS_WITH_UUID = re.compile(r"(?:.*:)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.DOTALL | re.IGNORECASE)
_SHOWN = 3


def tidied(name: str) -> str:
    """Returns a name without the blanks and quotes around it."""
    return name.strip(_AROUND)


def keys_of(sessions: Iterable[Session]) -> list[str]:
    """Returns all keys of some sessions."""
    return [key for session in sessions for key in session.keys]


def meant(name: str, keys: Collection[str], *, by_end: bool = False) -> str:
    """Returns the one of ``keys`` that a name means: the name itself, or the only key that differs just in case.

    With ``by_end`` also the only key with this ending, when it is a sub-agent's and the name ends with its uuid:
    ``sessions_spawn`` (gateway 2026.2.17) answers with ``childSessionKey``, and agents pass on the end of it. With no
    such key, or several: ``name``.
    """
    if name in keys:
        return name
    found = alike(name, keys)
    same = [key for key in found if key.lower() == name.lower()]
    if len(same) == 1:
        return same[0]
    if by_end and len(found) == 1 and _ENDS_WITH_UUID.fullmatch(name) and parse_key(found[0]).kind == "subagent":
        return found[0]
    return name


def spelled(names: Iterable[str], sessions: Sequence[Session]) -> tuple[dict[str, str], list[str]]:
    """Returns the given names by the session names that they mean, and those that mean none."""
    known = {name for session in sessions for name in names_of(session)}
    keys: dict[str, set[str]] = {}
    for key in keys_of(sessions):
        keys.setdefault(key.lower(), set()).add(key)
    found, absent = {}, []
    for name in names:
        same = keys.get(name.lower(), set())
        if name in known or len(same) == 1:
            found[name if name in known else next(iter(same))] = name
        else:
            absent.append(name)
    return found, absent


def parted(name: str) -> tuple[str | None, str]:
    """Returns the agent, if the name has one, and the id or key."""
    agent, slash, plain = name.partition("/")
    return (agent, plain) if slash and ":" not in agent and safe_name(agent) else (None, name)


def alike(name: str, keys: Iterable[str]) -> list[str]:
    """Returns the keys that equal a name but for case, or end with it after a colon; each once, in order."""
    low = name.lower()
    return sorted({key for key in keys if key.lower() == low or key.lower().endswith(f":{low}")})


def hint(name: str, keys: Iterable[str]) -> str:
    """Returns the part of a sentence that names similar keys; empty when there are none."""
    found = alike(name, keys)
    if len(found) == 1:
        return f"; did you mean the key {found[0]!r}?"
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"; keys that end so: {', '.join(map(repr, found[:_SHOWN]))}{more}" if found else ""
