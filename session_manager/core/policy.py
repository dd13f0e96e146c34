"""The retention policy: the content of its file, and how strictly it is read.

A policy removes sessions while nobody looks, so nothing in it is guessed: anything unknown is an error that names the
key.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from session_manager.core.errors import UsageError
from session_manager.core.keys import KINDS, MAIN
from session_manager.core.selection import full_name
from session_manager.core.session import Session

AGENT, JOB = "agent", "job"
_AGE_UNITS = {"m": 1, "h": 60, "d": 1440}
_SIZE_UNITS = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40
}  # fmt: skip
_QUANTITY = r"([0-9]{1,15}) ?([A-Za-z]+)"
_LONGEST_AGE = 36_500 * 1440
_HIGHEST_COUNT = 10**9
_PINS = ("keys", "labels", "ids")


class Rule(msgspec.Struct, frozen=True):
    """Limits for one session type in each agent; None means no limit.

    ``keep_newest`` counts per agent, or per cron job with ``per_job``. ``budget`` is in bytes of transcripts.
    """

    max_age_minutes: int | None = None
    keep_newest: int | None = None
    per_job: bool = False
    budget: int | None = None


class Pins(msgspec.Struct, frozen=True):
    """Sessions that are never touched. ``keys`` are in lower case.

    ``restored`` are those (``<agent>/<id>``) restored lately: only removals by age skip them.
    """

    keys: frozenset[str] = frozenset()
    labels: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    restored: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.keys or self.labels or self.ids or self.restored)

    def mark(self, session: Session) -> None:
        """Sets ``pinned`` and ``restored`` of a session."""
        session.pinned = session.pinned or self.holds(session)
        session.restored = full_name(session.agent_id, session.id) in self.restored

    def holds(self, session: Session) -> bool:
        """Returns True if a session is pinned, by any of its keys or their labels, or by its id."""
        return self.name(session.id, session.keys, (session.label, *session.labels))

    def name(self, session_id: str, keys: Iterable[str], labels: Iterable[str | None]) -> bool:
        """Returns True if they name the session with this id, these keys or labels."""
        return (
            session_id in self.ids
            or (bool(self.labels) and not self.labels.isdisjoint(labels))
            or (bool(self.keys) and any(key.lower() in self.keys for key in keys))
        )


class RetentionPolicy(msgspec.Struct, frozen=True):
    """A policy file's content: rules by session type, bytes for all transcripts of an agent, pins."""

    rules: dict[str, Rule]
    agent_budget: int | None
    pins: Pins

    @property
    def has_rules(self) -> bool:
        """Returns True if the policy can remove anything; one with only pins cannot."""
        return bool(self.rules) or self.agent_budget is not None


def parse_policy(text: str) -> RetentionPolicy:
    """Reads a policy file's text. Raises UsageError (``bad_policy``), which names the key but not the file."""
    import tomllib

    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad(f"it is not valid TOML: {error}") from error
    _check_names("", found, ("types", "agents", "pins"))
    types = _table("types", found.get("types", {}))
    rules = {name: _rule(name, _table(f"types.{name}", table)) for name, table in types.items()}
    agents = _table("agents", found.get("agents", {}))
    _check_names("agents", agents, ("budget",))
    if "agents" in found and not agents:
        raise _bad("agents is empty: add a budget")
    budget = _size("agents.budget", agents["budget"]) if agents else None
    pins = _pins(_table("pins", found.get("pins", {})))
    if not rules and budget is None and not pins:
        raise _bad("it is empty: add a rule in [types.<type>], a budget in [agents], or [pins], or remove the file")
    return RetentionPolicy(rules, budget, pins)


def _rule(name: str, table: Mapping[str, Any]) -> Rule:
    key = f"types.{name}"
    if name not in KINDS:
        raise _bad(f"{_shown(key)} does not name a session type{_nearest(name, KINDS)}")
    if name == MAIN:
        raise _bad(f"{key}: main sessions are never removed, so there is no rule for them")
    _check_names(key, table, ("max_age", "keep_newest", "keep_per", "budget"))
    if not table:
        raise _bad(f"{key} is empty: add max_age, keep_newest or budget")
    if "keep_per" in table and "keep_newest" not in table:
        raise _bad(f"{key}.keep_per needs {key}.keep_newest, which is not set")
    return Rule(
        max_age_minutes=_age(f"{key}.max_age", table["max_age"]) if "max_age" in table else None,
        keep_newest=_count(f"{key}.keep_newest", table["keep_newest"]) if "keep_newest" in table else None,
        per_job=_per(name, table.get("keep_per", AGENT)) == JOB,
        budget=_size(f"{key}.budget", table["budget"]) if "budget" in table else None,
    )


def _pins(table: Mapping[str, Any]) -> Pins:
    _check_names("pins", table, _PINS)
    found: dict[str, frozenset[str]] = {}
    for name in _PINS:
        values = table.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, str) and value.strip() for value in values):
            raise _bad(f"pins.{name} is {_shown(values)}: it must be a list of strings, none of them empty")
        found[name] = frozenset(value.lower() if name == "keys" else value for value in values)
    return Pins(**found)


def _age(key: str, value: object) -> int:
    minutes = _quantity(key, value, _AGE_UNITS, '"60m", "2h" or "30d"')
    if minutes > _LONGEST_AGE:
        raise _bad(f"{key} is {_shown(value)}: it must be at most 36500d")
    return minutes


def _size(key: str, value: object) -> int:
    return _quantity(key, value, _SIZE_UNITS, '"500 MB" or "2 GiB"')


def _quantity(key: str, value: object, units: Mapping[str, int], like: str) -> int:
    found = re.fullmatch(_QUANTITY, value) if isinstance(value, str) else None
    if found is None:
        raise _bad(f"{key} is {_shown(value)}: it must be a whole number with a unit, in quotes, such as {like}")
    if found[2] not in units:
        raise _bad(f"{key} is {_shown(value)}: its unit must be one of {', '.join(units)}")
    if int(found[1]) == 0:
        raise _bad(f"{key} is {_shown(value)}: it must be at least 1{found[2]}; leave the key out for no limit")
    return int(found[1]) * units[found[2]]


def _count(key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _HIGHEST_COUNT:
        raise _bad(f"{key} is {_shown(value)}: it must be a whole number from 1 to {_HIGHEST_COUNT}")
    return value


def _per(name: str, value: object) -> object:
    allowed = (AGENT, JOB) if name == "cron" else (AGENT,)
    if value not in allowed:
        quoted = " or ".join(f'"{each}"' for each in allowed)
        raise _bad(f"types.{name}.keep_per is {_shown(value)}: it must be {quoted}")
    return value


def _table(key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad(f"{key} is {_shown(value)}: it must be a table, [{key}]")
    return value


def _check_names(key: str, table: Collection[str], known: Collection[str]) -> None:
    for name in table:
        if name not in known:
            whole = f"{key}.{name}" if key else name
            raise _bad(f"unknown key {_shown(whole)}{_nearest(name, known)}")


def _nearest(name: str, known: Collection[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"


def _shown(value: object) -> str:
    # A number of thousands of digits cannot even be written.
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _HIGHEST_COUNT**2:
        return "too large a number"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _bad(what: str) -> UsageError:
    return UsageError(what, code="bad_policy")
