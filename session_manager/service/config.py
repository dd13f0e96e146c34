"""The service's settings: the environment, read once and passed down."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from session_manager.core.errors import Refused, UsageError
from session_manager.settings import Settings, api_token, read_settings

DEFAULT_HOST = "127.0.0.1"
DEFAULT_VOLUME = "default"
# For each job: the variable that sets its interval, and the default, in seconds.
INTERVALS = {
    "volume_sync": ("ARIA_SYNC_SECONDS", 30.0),
    "delivery": ("ARIA_DELIVERY_SECONDS", 30.0),
    "closing": ("ARIA_CLOSING_SECONDS", 600.0),
    "ghost_purge": ("ARIA_GHOST_PURGE_SECONDS", 600.0),
    "expiry": ("ARIA_EXPIRY_SECONDS", 60.0),
    "idle_archive": ("ARIA_IDLE_ARCHIVE_SECONDS", 21_600.0),
}
DEFAULT_LLM_TIMEOUT_S = 60.0
DEFAULT_TTL_MINUTES = 30
LONGEST_TTL_MINUTES = 43_200
_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


class ModelSettings(msgspec.Struct, frozen=True):
    """``base_url`` and ``model`` None: there is no model, and an echo replies.

    ``timeout_s`` is how long the model may be silent; a whole reply may take ten times as long.
    """

    base_url: str | None = None
    api_key: str | None = None
    model: str | None = None
    timeout_s: float = DEFAULT_LLM_TIMEOUT_S


class Config(msgspec.Struct, frozen=True):
    """The service's settings.

    ``database_url`` None means the embedded PostgreSQL; otherwise it is an SQLAlchemy URL for psycopg. ``live`` holds
    the skill's paths, None when there is no volume to sync. ``volume`` names that volume in history: replicas that see
    the same agents directory share one name. ``intervals`` are the jobs' in seconds, by name; 0 switches a job off.
    Chat sessions created before their first message expire after ``cleanup_ttl_minutes`` without one; unless
    ``cleanup_enabled`` they are kept. ``llm`` selects the model that replies.
    """

    host: str
    database_url: str | None
    live: Settings | None
    volume: str
    intervals: Mapping[str, float]
    api_token: str | None
    allowed_hosts: frozenset[str]
    cleanup_enabled: bool
    cleanup_ttl_minutes: int
    llm: ModelSettings

    @property
    def agents_dir(self) -> str | None:
        """The volume to sync, None when there is none."""
        return None if self.live is None else self.live.place.layout.root or self.live.agents_dir

    def volume_settings(self) -> Settings:
        """Returns the skill's paths. Raises Refused (``no_volume``) when there is no volume."""
        if self.live is None:
            raise Refused(
                "this service has no agents directory; set ARIA_AGENTS_DIR to the folder that holds <agent>/sessions",
                code="no_volume",
            )
        return self.live

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Returns whether a host name or address (IPv6 with or without brackets) is the loopback."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def read_config(environ: Mapping[str, str], host: str = DEFAULT_HOST) -> Config:
    """Reads the environment.

    Raises UsageError (``bad_setting``, ``agents_dir_missing``) when a variable is set but unusable. A missing default
    agents directory is no error: a service may run where no volume is mounted.
    """
    volume = environ.get("ARIA_VOLUME", "").strip() or DEFAULT_VOLUME
    if len(volume) > 100 or not volume.isprintable():
        raise _bad("ARIA_VOLUME must be a name of at most 100 printable characters")
    return Config(
        host=host,
        database_url=database_url(environ),
        live=_live(environ),
        volume=volume,
        intervals={job: _seconds(environ, *setting, 86_400, may_be_never=True) for job, setting in INTERVALS.items()},
        api_token=api_token(environ),
        allowed_hosts=_hosts(environ),
        cleanup_enabled=_switch(environ, "SESSION_CLEANUP_ENABLED", default=True),
        cleanup_ttl_minutes=_minutes(environ, "SESSION_CLEANUP_TTL_MINUTES", DEFAULT_TTL_MINUTES),
        llm=_model_settings(environ),
    )


def _hosts(environ: Mapping[str, str]) -> frozenset[str]:
    names = [name.strip().lower() for name in environ.get("ARIA_ALLOWED_HOSTS", "").split(",")]
    for name in names:
        if name and not re.fullmatch(r"[a-z0-9._-]+", name):
            raise _bad(
                f"ARIA_ALLOWED_HOSTS holds {name!r}; it takes plain host names, separated by commas, no scheme or port"
            )
    return frozenset(name for name in names if name)


def database_url(environ: Mapping[str, str]) -> str | None:
    """Returns ``DATABASE_URL`` as an SQLAlchemy URL for psycopg; None when it is unset or empty.

    Raises UsageError (``bad_setting``) for anything that is no PostgreSQL URL; the URL itself, which may hold a
    password, is not repeated.
    """
    url = environ.get("DATABASE_URL", "").strip()
    if not url:
        return None
    scheme, _, rest = url.partition("://")
    # Replaces the driver of an older service by ours.
    if scheme.partition("+")[0] in ("postgresql", "postgres") and rest:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        with contextlib.suppress(ArgumentError, ValueError):
            make_url(f"postgresql+psycopg://{rest}")
            return f"postgresql+psycopg://{rest}"
    raise _bad(
        "DATABASE_URL is not a PostgreSQL URL; it must look like postgresql://user:password@host:5432/database, "
        "with special characters of the password percent-encoded"
    )


def _live(environ: Mapping[str, str]) -> Settings | None:
    try:
        return read_settings(environ)
    except (UsageError, Refused) as error:
        # No directory is configured, and this user can see none.
        if error.code in ("agents_dir_missing", "not_readable") and "variable" not in error.details:
            return None
        raise


def _model_settings(environ: Mapping[str, str]) -> ModelSettings:
    base_url = environ.get("ARIA_LLM_BASE_URL", "").strip().rstrip("/")
    # No message repeats it.
    api_key = environ.get("ARIA_LLM_API_KEY", "").strip()
    model = environ.get("ARIA_LLM_MODEL", "").strip()
    if base_url and not _is_base_url(base_url):
        raise _bad(
            "ARIA_LLM_BASE_URL must look like https://api.openai.com/v1, without user or query; a key has its own"
        )
    if api_key and not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise _bad("ARIA_LLM_API_KEY must be printable ASCII without spaces")
    if len(model) > 200 or not model.isprintable():
        raise _bad("ARIA_LLM_MODEL must be a name of at most 200 printable characters")
    if bool(base_url) != bool(model) or (api_key and not base_url):
        raise _bad("ARIA_LLM_BASE_URL and ARIA_LLM_MODEL belong together: set both, or none of the ARIA_LLM_ variables")
    timeout_s = _seconds(environ, "ARIA_LLM_TIMEOUT", DEFAULT_LLM_TIMEOUT_S, 3600)
    return ModelSettings(base_url or None, api_key or None, model or None, timeout_s)


def _is_base_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port_fits = parts.port is None or parts.port > 0
    except ValueError:
        return False
    plain = parts.username is None and not parts.query and not parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port_fits and plain and text.isprintable()


def _seconds(environ: Mapping[str, str], name: str, default: float, most: int, *, may_be_never: bool = False) -> float:
    text = environ.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not (1 <= value <= most or (may_be_never and value == 0)):
        never = ", or 0 for never" if may_be_never else ""
        raise _bad(f"{name} is {text!r}; it must be seconds from 1 to {most}{never}")
    return value


def _switch(environ: Mapping[str, str], name: str, *, default: bool) -> bool:
    text = environ.get(name, "").strip().lower()
    value = _SWITCH.get(text) if text else default
    if value is None:
        raise _bad(f"{name} is {text!r}; it must be true or false")
    return value


def _minutes(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "").strip()
    value = int(text) if text.isdecimal() and len(text) < 10 else 0 if text else default
    if not 1 <= value <= LONGEST_TTL_MINUTES:
        raise _bad(f"{name} is {text!r}; it must be whole minutes from 1 to {LONGEST_TTL_MINUTES}")
    return value


def _bad(sentence: str) -> UsageError:
    return UsageError(sentence, code="bad_setting")
