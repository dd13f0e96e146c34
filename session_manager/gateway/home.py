"""A gateway's home, state folder and config file, by the rules of each generation.

Measured on gateways 2026.2.17 and 2026.6.11 (``resolveEffectiveHomeDir``, ``resolveStateDir``,
``resolveDefaultConfigCandidates``); if the rules changed between 2026.3.2 and 2026.4.14, both are tried.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping

import msgspec

STATE_NAME = ".openclaw"
OLDER_STATE_NAMES = (".clawdbot", ".moldbot", ".moltbot")


class Rules(msgspec.Struct, frozen=True):
    """The rules of one generation.

    ``older`` are state folders that are used if there is no newer one. ``falls_back``: a state folder that a variable
    names, and that has no config, is used with the config of a default place.
    """

    older: tuple[str, ...]
    state_variables: tuple[str, ...]
    config_variables: tuple[str, ...]
    config_names: tuple[str, ...]
    falls_back: bool


EARLY = Rules(
    OLDER_STATE_NAMES,
    ("OPENCLAW_STATE_DIR", "CLAWDBOT_STATE_DIR"),
    ("OPENCLAW_CONFIG_PATH", "CLAWDBOT_CONFIG_PATH"),
    ("openclaw.json", "clawdbot.json", "moldbot.json", "moltbot.json"),
    falls_back=True,
)
LATE = Rules(
    OLDER_STATE_NAMES[:1],
    ("OPENCLAW_STATE_DIR",),
    ("OPENCLAW_CONFIG_PATH",),
    ("openclaw.json", "clawdbot.json"),
    falls_back=False,
)


def value_of(environ: Mapping[str, str], variable: str) -> str:
    """Returns a variable without surrounding blanks; "" if it is unset, or set to JavaScript's text for nothing."""
    text = environ.get(variable, "").strip()
    return "" if text in ("undefined", "null") else text


def named_by(environ: Mapping[str, str], variables: Iterable[str]) -> str | None:
    """Returns the first of ``variables`` that is set."""
    return next((name for name in variables if value_of(environ, name)), None)


def home(environ: Mapping[str, str]) -> str:
    """Returns the gateway's home: ``OPENCLAW_HOME``, else the user's."""
    users = value_of(environ, "HOME") or os.path.expanduser("~")
    return os.path.abspath(_expanded(value_of(environ, "OPENCLAW_HOME") or users, users))


def in_home(path: str, environ: Mapping[str, str]) -> str:
    """Returns a path with a leading ``~`` replaced by the gateway's home."""
    return _expanded(path, home(environ))


def _expanded(path: str, users_home: str) -> str:
    return re.sub(r"^~(?=$|[\\/])", lambda _: users_home, path)


def state_dir(environ: Mapping[str, str], rules: Rules) -> tuple[str, str | None]:
    """Returns the state folder, even if it does not exist, and the variable that names it."""
    variable = named_by(environ, rules.state_variables)
    if variable is not None:
        return os.path.abspath(in_home(value_of(environ, variable), environ)), variable
    usual, *older = default_state_dirs(environ, rules)
    found = usual if os.path.exists(usual) else next(filter(os.path.exists, older), usual)
    return found, "OPENCLAW_HOME" if value_of(environ, "OPENCLAW_HOME") else None


def default_state_dirs(environ: Mapping[str, str], rules: Rules) -> list[str]:
    """Returns the default state folders in a home, the usual one first."""
    return [os.path.join(home(environ), name) for name in (STATE_NAME, *rules.older)]


def config_path(environ: Mapping[str, str], rules: Rules, state: str, *, falls_back: bool = True) -> str | None:
    """Returns the config that applies to a state folder, or None."""
    variable = named_by(environ, rules.config_variables)
    if variable is not None:
        path = os.path.abspath(in_home(value_of(environ, variable), environ))
        return path if os.path.exists(path) else None
    folders = [state, *(default_state_dirs(environ, rules) if falls_back else ())]
    paths = (os.path.join(folder, name) for folder in folders for name in rules.config_names)
    return next(filter(os.path.exists, paths), None)
