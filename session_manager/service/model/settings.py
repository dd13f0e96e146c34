"""The model's settings: three variables and a timeout."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

import msgspec

from session_manager.core.errors import UsageError

DEFAULT_TIMEOUT_S = 60.0


class ModelSettings(msgspec.Struct, frozen=True):
    """``base_url`` and ``model`` None: there is no model, and an echo replies.

    ``timeout_s`` is how long the model may be silent; a whole reply may take ten times as long.
    """

    base_url: str | None = None
    api_key: str | None = None
    model: str | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S


def read_model_settings(environ: Mapping[str, str]) -> ModelSettings:
    """Reads the environment. Raises UsageError (``bad_setting``); a key is not repeated."""
    base_url = environ.get("ARIA_LLM_BASE_URL", "").strip().rstrip("/")
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
    return ModelSettings(base_url or None, api_key or None, model or None, _timeout(environ))


def _is_base_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port_fits = parts.port is None or parts.port > 0
    except ValueError:
        return False
    plain = parts.username is None and not parts.query and not parts.fragment
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port_fits and plain and text.isprintable()


def _timeout(environ: Mapping[str, str]) -> float:
    text = environ.get("ARIA_LLM_TIMEOUT", "").strip()
    try:
        value = float(text) if text else DEFAULT_TIMEOUT_S
    except ValueError:
        value = 0.0
    if not 1 <= value <= 3600:
        raise _bad(f"ARIA_LLM_TIMEOUT is {text!r}; it must be seconds from 1 to 3600")
    return value


def _bad(sentence: str) -> UsageError:
    return UsageError(sentence, code="bad_setting")
