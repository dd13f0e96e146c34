"""Reads the session settings of a gateway's config as the gateway does: JSON5, ``$include``, ``${VARIABLE}``.

Source: gateways 2026.2.17 and 2026.6.11, ``createConfigIO``, ``IncludeProcessor``, ``substituteString``,
``resolveStorePath`` and ``resolveDefaultAgentId``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from session_manager.core.layout import AGENT, MAIN_AGENT, Layout, agent_name
from session_manager.gateway.home import in_home

_VARIABLE = r"\$(\$?)\{([A-Z_][A-Z0-9_]*)\}"
_DEEPEST = 10


class Unreadable(Exception):
    """The place of the sessions cannot be read from a config; the message says why, as the end of a sentence.

    ``denied_at`` is a file that this user may not read, if that is the reason.
    """

    denied_at: str | None = None


def read_layout(path: str, environ: Mapping[str, str]) -> tuple[Layout | None, Layout]:
    """Returns the layout of the indexes that a config sets, or None, and the layout with its other settings.

    Raises Unreadable.
    """
    config = _object(_load(path, ()), "it")
    session = _object(config.get("session"), "session")
    texts = _Texts(environ, _object(config.get("env"), "env"))
    main_key = texts.get(session, "session", "mainKey").strip().lower()
    agents = _object(config.get("agents"), "agents").get("list")
    named = [a for a in agents if isinstance(a, dict) and a.get("id")] if isinstance(agents, list) else []
    ids = [agent_name(str(agent["id"])) for agent in named]
    default = next((agent_id for agent_id, agent in zip(ids, named, strict=True) if agent.get("default")), None)
    said = Layout(
        default_agent=default or (ids[0] if ids else MAIN_AGENT),
        agents=tuple(dict.fromkeys(ids)),
        main_key=main_key if main_key not in ("", "main") else None,
    )
    store = texts.get(session, "session", "store")
    return (_place(store, said, environ) if store else None), said


def _object(value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Unreadable(f"{what} is not an object")
    return value


def _place(store: str, said: Layout, environ: Mapping[str, str]) -> Layout:
    path = in_home(store, environ)
    if not path.startswith("/"):
        raise Unreadable(
            f"session.store is {store!r}, which is relative to the folder in which the gateway was started; make it an "
            "absolute path"
        )
    parts = os.path.normpath(path).strip("/").split("/")
    first = next((i for i, part in enumerate(parts) if AGENT in part), len(parts) - 1)
    root, pattern = "/" + "/".join(parts[:first]), "/".join(parts[first:])
    return msgspec.structs.replace(said, root=root, pattern=pattern)


class _Texts:
    """A config's texts, with variables replaced by their values."""

    def __init__(self, environ: Mapping[str, str], own: Mapping[str, Any]) -> None:
        variables = own.get("vars")
        given = {name: text for name, text in environ.items() if text.strip()}
        self._known = {**(variables if isinstance(variables, dict) else {}), **own, **given}

    def get(self, section: Mapping[str, Any], name: str, key: str) -> str:
        """Returns a text, "" if there is none. Raises Unreadable."""
        value = section.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise Unreadable(f"{name}.{key} is not a string")

        def filled(found: re.Match[str]) -> str:
            escaped, variable = found.groups()
            if escaped:
                return found[0][1:]
            text = self._known.get(variable)
            if not text or not isinstance(text, str):
                raise Unreadable(f"{name}.{key} needs the variable {variable}, which is not set here; set it")
            return text

        return re.sub(_VARIABLE, filled, value)


def _load(path: str, above: tuple[str, ...]) -> Any:
    if path in above or len(above) > _DEEPEST:
        raise Unreadable(f"{path} includes itself, or is nested too deeply")
    try:
        # Opening a pipe in its place would block.
        if not os.path.isfile(path):
            raise FileNotFoundError(2, "there is no such file", path)
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        unreadable = Unreadable(f"{path} cannot be read: {error.strerror}")
        unreadable.denied_at = path if isinstance(error, PermissionError) else None
        raise unreadable from error
    value = _parsed(data, path)
    return _with_included(value, path, (*above, path)) if b"$include" in data else value


def _parsed(data: bytes, path: str) -> Any:
    try:
        # Gateways write plain JSON.
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        import pyjson5
    except ImportError as error:
        raise Unreadable(
            f"{path} is not plain JSON, and the Python package that reads JSON5 is missing; install it: python3 -m pip "
            "install pyjson5"
        ) from error
    try:
        return pyjson5.decode(data.decode("utf-8", "replace"))
    except (pyjson5.Json5Exception, RecursionError) as error:
        # The rest of the error quotes the config itself, with its tokens.
        what = getattr(error, "message", None) or type(error).__name__
        raise Unreadable(f"{path} is not valid JSON5: {what}") from None


def _with_included(value: Any, path: str, above: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_with_included(each, path, above) for each in value]
    if not isinstance(value, dict):
        return value
    own = {k: _with_included(each, path, above) for k, each in value.items() if k != "$include"}
    if "$include" not in value:
        return own
    names = value["$include"]
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Unreadable(f"$include in {path} is neither a string nor a list of strings")
    folder = os.path.dirname(path)
    merged: Any = {}
    for name in names:
        merged = _merged(merged, _load(os.path.normpath(os.path.join(folder, name)), above))
    return _merged(merged, own) if own else merged


def _merged(base: Any, above: Any) -> Any:
    if isinstance(base, list) and isinstance(above, list):
        return [*base, *above]
    if isinstance(base, dict) and isinstance(above, dict):
        return {**base, **{k: _merged(base[k], v) if k in base else v for k, v in above.items()}}
    return above
