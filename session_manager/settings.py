"""Settings: the environment, read once and passed down."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import msgspec

from session_manager.core.errors import UsageError
from session_manager.gateway.places import Place, find_place, missing, named_place

STATE_DIR_NAME = ".session_manager"
LEDGER_NAME = "ledger.sqlite"
POLICY_NAME = "session-manager.toml"
KEPT_NAME = "kept.json"
DEFAULT_API_URL = "http://localhost:8000/api"
DEFAULT_API_TIMEOUT = 10.0
DEFAULT_LOCK_TIMEOUT = 10.0
DEFAULT_KEEP_DAYS = 7
# The gateway names the session to the programs of its CLI-backed runs by the last two (2026.4.14: the key alone;
# 2026.6.11, ``prepareCliBundleMcpConfig``), and sets them empty where it knows none.
CALLER_VARIABLES = ("ARIA_SESSION_ID", "OPENCLAW_SESSION_ID", "OPENCLAW_MCP_SESSION_ID", "OPENCLAW_MCP_SESSION_KEY")
# No user name or password in it: the URL is shown in messages.
_API_URL = re.compile(r"(?i:https?)://(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?(?:/[!-~]*)?")
_HIGHEST_PORT = 65535


class Settings(msgspec.Struct, frozen=True):
    """Paths, limits and the caller.

    ``api_url`` (without a trailing slash) None means that history is turned off; unless ``api_named`` it is the default
    address, where a service may run. ``api_timeout`` is the time that one run may spend on it. ``lock_timeout`` and
    ``api_timeout`` are in seconds, ``keep_days`` in days. ``current`` holds the session ids or keys of the caller.
    ``allow_erase`` is a guard rail, not a wall: anyone who can set the variable may erase. ``allow_no_exchange``: the
    user guarantees that no gateway writes an index during a change. ``agents_dir_from`` names the variable that sets
    the agents directory, or the place where it was found; ``place`` describes the layout of the indexes, in it or
    elsewhere. ``policy_named``: the user has configured ``policy_path``, so the file must exist.
    """

    agents_dir: str
    state_dir: str
    api_url: str | None
    api_named: bool
    api_token: str | None
    api_timeout: float
    lock_timeout: float
    keep_days: int
    current: frozenset[str]
    asked_by: str | None
    allow_erase: bool
    allow_no_exchange: bool
    agents_dir_from: str
    policy_path: str
    policy_named: bool
    place: Place

    def __repr__(self) -> str:
        # Debug output must not put the token into a log.
        return f"Settings({self.agents_dir!r})"


def ledger_path(settings: Settings) -> str:
    """Returns the path of the ledger."""
    return os.path.join(settings.state_dir, LEDGER_NAME)


def kept_path(settings: Settings) -> str:
    """Returns the path of the file that lists pins and recent restores."""
    return os.path.join(settings.state_dir, KEPT_NAME)


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Reads the environment.

    Raises UsageError (``agents_dir_missing``, ``agents_dir_ambiguous``, ``bad_gateway_config``, ``bad_setting``): a
    wrong setting is never skipped in favour of the next place. Raises Refused (``not_readable``) when this user may not
    read the place.
    """
    place = _place(environ)
    agents_dir = os.path.realpath(place.agents_dir)
    state_dir = environ.get("ARIA_STATE_DIR") or os.path.join(agents_dir, STATE_DIR_NAME)
    state_dir = os.path.abspath(os.path.expanduser(state_dir))
    policy = environ.get("ARIA_POLICY", "").strip()
    return Settings(
        agents_dir=agents_dir,
        state_dir=state_dir,
        api_url=_api_url(environ.get("ARIA_API_URL", DEFAULT_API_URL).strip()),
        api_named="ARIA_API_URL" in environ,
        api_token=api_token(environ),
        api_timeout=_number(environ, "ARIA_API_TIMEOUT", DEFAULT_API_TIMEOUT, least=0.1, most=3600.0),
        lock_timeout=_number(environ, "ARIA_LOCK_TIMEOUT", DEFAULT_LOCK_TIMEOUT, least=0.0, most=3600.0),
        keep_days=int(_number(environ, "ARIA_KEEP_DAYS", DEFAULT_KEEP_DAYS, least=1, most=36500)),
        current=_callers(environ),
        asked_by=environ.get("ARIA_AGENT_ID") or None,
        allow_erase=_switch(environ, "ARIA_ALLOW_ERASE"),
        allow_no_exchange=_switch(environ, "ARIA_ALLOW_NO_EXCHANGE"),
        agents_dir_from=place.why,
        policy_path=os.path.abspath(os.path.expanduser(policy)) if policy else os.path.join(state_dir, POLICY_NAME),
        policy_named=bool(policy),
        place=place,
    )


def _callers(environ: Mapping[str, str]) -> frozenset[str]:
    """Returns the ids and keys of the calling session; a key also in the gateway's stored form."""
    named = {value for name in CALLER_VARIABLES if (value := environ.get(name, "").strip())}
    stored = {value.lower() for value in named if ":" in value}
    agent, key = environ.get("OPENCLAW_MCP_AGENT_ID", "").strip(), environ.get("OPENCLAW_MCP_SESSION_KEY", "").strip()
    if agent and key and not key.lower().startswith("agent:"):
        stored.add(f"agent:{agent}:{key}".lower())
    return frozenset(named | stored)


def _place(environ: Mapping[str, str]) -> Place:
    explicit = environ.get("ARIA_AGENTS_DIR")
    if explicit is None:
        return find_place(environ)
    path = os.path.abspath(os.path.expanduser(explicit))
    if not explicit or not os.path.isdir(path):
        raise missing(explicit, "ARIA_AGENTS_DIR")
    return named_place(path, "ARIA_AGENTS_DIR", environ)


def _api_url(text: str) -> str | None:
    if not text:
        return None
    found = _API_URL.fullmatch(text)
    if found is None or "?" in text or "#" in text or not 0 < int(found[1] or 1) <= _HIGHEST_PORT:
        shown = repr(text) if "@" not in text else "not a plain URL"
        raise UsageError(
            f"ARIA_API_URL is {shown}; it must look like {DEFAULT_API_URL} (no user name, no query), or be empty "
            "to turn history off",
            code="bad_setting",
        )
    return text.rstrip("/")


def api_token(environ: Mapping[str, str]) -> str | None:
    """Returns ``ARIA_API_TOKEN``, None when it is unset or empty. Raises UsageError (``bad_setting``)."""
    text = environ.get("ARIA_API_TOKEN", "").strip()
    if not all("!" <= character <= "~" for character in text):
        raise UsageError(
            "ARIA_API_TOKEN contains blanks, control characters or non-ASCII letters; set it to the bare token",
            code="bad_setting",
        )
    return text or None


def _switch(environ: Mapping[str, str], name: str) -> bool:
    text = environ.get(name, "").strip()
    if text not in ("", "0", "1"):
        raise UsageError(f"{name} is {text!r}; it must be 1 (on), or 0 or empty (off)", code="bad_setting")
    return text == "1"


def _number(environ: Mapping[str, str], name: str, default: float, *, least: float, most: float) -> float:
    text = environ.get(name, "").strip()
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:
        raise UsageError(f"{name} is {text!r}; it must be a number from {least:g} to {most:g}", code="bad_setting")
    return value
