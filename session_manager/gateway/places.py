"""Finds the agents directory: the one named by a variable, else the one that the gateway would use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from session_manager.core.errors import Refused, SessionManagerError, UsageError
from session_manager.core.layout import USUAL, Layout
from session_manager.files.owners import run_as
from session_manager.gateway.home import (
    EARLY,
    LATE,
    OLDER_STATE_NAMES,
    STATE_NAME,
    config_path,
    home,
    named_by,
    state_dir,
    value_of,
)

CONTAINER = "/app/agents"
DEFAULT = "a default place"


class Place(msgspec.Struct, frozen=True):
    """An agents directory, and how the indexes lie.

    ``why`` says what named it; ``variable`` is set if a variable alone did. ``config`` is the gateway's config or None,
    and ``problem`` the reason why it cannot be read. ``elsewhere`` is the place that this config names for the indexes,
    if another one is used. ``passed_over`` are agents directories of its home that a gateway does not use, because of a
    newer one.
    """

    agents_dir: str
    layout: Layout
    why: str
    variable: str | None = None
    config: str | None = None
    problem: str | None = None
    elsewhere: str | None = None
    passed_over: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """The folder that holds the indexes."""
        return self.layout.root or self.agents_dir

    @property
    def text(self) -> str:
        """The place of the indexes, as results show it."""
        return self.agents_dir if self.layout.root is None else self.layout.text


def named_place(agents_dir: str, variable: str, environ: Mapping[str, str]) -> Place:
    """Returns the explicitly configured place; the config beside it supplies the rest."""
    config = config_path(environ, EARLY, os.path.dirname(agents_dir), falls_back=False)
    place = Place(agents_dir, Layout(), variable, variable, config)
    if config is None:
        return place
    from session_manager.gateway.config import Unreadable, read_layout

    try:
        store, said = read_layout(config, environ)
    except Unreadable as error:
        return msgspec.structs.replace(place, problem=str(error))
    elsewhere = None if store is None or _is_the_same(store, agents_dir) else store.text
    return msgspec.structs.replace(place, layout=said, elsewhere=elsewhere)


def _is_the_same(store: Layout, agents_dir: str) -> bool:
    """Returns True if a config means this folder, which the gateway may know by a path of another mount."""
    if store.pattern != USUAL or store.root is None:
        return False
    if os.path.isdir(store.root):
        return os.path.realpath(store.root) == os.path.realpath(agents_dir)
    return os.path.basename(store.root) == os.path.basename(agents_dir)


def find_place(environ: Mapping[str, str]) -> Place:
    """Returns the place that the gateway would use.

    Raises UsageError: ``agents_dir_missing`` (with ``variable`` when one names it), ``agents_dir_ambiguous`` (with
    ``candidates``) if gateways of different versions would take different ones, or both default places exist,
    ``bad_gateway_config``. Raises Refused (``not_readable``) if this user may not read it.
    """
    found: dict[tuple[str, str], Place] = {}
    for place in _candidates(environ):
        found.setdefault((os.path.realpath(place.root), place.layout.pattern), place)
    here = [place for place in found.values() if os.path.isdir(place.root)]
    for place in found.values():
        if place.variable is not None and all(place.variable != each.variable for each in here):
            raise missing(place.root, place.variable)
    if len(here) == 1:
        return msgspec.structs.replace(here[0], passed_over=tuple(_passed_over(environ, here[0].agents_dir)))
    if here:
        raise _ambiguous(here)
    for place in found.values():
        if (closed := _closed(place.root, {"path": place.root})) is not None:
            raise closed
    tried = [p.text if p.layout.root is None else f"{p.text} ({p.why})" for p in found.values()]
    others = [f"; {path} exists, but no gateway would use it now" for path in _passed_over(environ, None)]
    raise UsageError(
        f"no agents directory at {' or '.join(tried)}; set ARIA_AGENTS_DIR to the folder that holds <agent>/sessions"
        f"{''.join(others)}",
        code="agents_dir_missing",
    )


def missing(path: str, variable: str) -> SessionManagerError:
    """Returns the error for a folder that a variable names, but that does not exist or cannot be read."""
    details = {"path": path, "variable": variable}
    what = f"the agents directory {path!r} does not exist; correct or unset {variable}"
    return _closed(path, details) or UsageError(what, code="agents_dir_missing", **details)


def _closed(path: str, details: dict[str, str]) -> SessionManagerError | None:
    """Returns the error for a folder that this user may not search for, None for any other."""
    place = os.path.expanduser(path)
    try:
        os.stat(place)
    except PermissionError as error:
        what = f"the agents directory {path!r} cannot be read: {error.strerror}; {run_as(place)}"
        return Refused(what, code="not_readable", **details)
    except (OSError, ValueError):
        pass
    return None


def _ambiguous(places: Iterable[Place]) -> UsageError:
    each = [f"{place.text} ({place.why})" for place in places]
    return UsageError(
        f"several agents directories are possible: {', '.join(each[:-1])} and {each[-1]}; set ARIA_AGENTS_DIR to "
        "the right one, or OPENCLAW_STATE_DIR and OPENCLAW_CONFIG_PATH to what the gateway uses",
        code="agents_dir_ambiguous",
        candidates=[place.text for place in places],
    )


def _candidates(environ: Mapping[str, str]) -> Iterator[Place]:
    late, early = (state_dir(environ, rules) for rules in (LATE, EARLY))
    found = [(*state, config_path(environ, rules, state[0], falls_back=rules.falls_back or state[1] is None))
             for state, rules in ((late, LATE), (early, EARLY))]  # fmt: skip
    if early[1] is None:
        container = os.path.dirname(CONTAINER)
        found.insert(0, (container, None, config_path(environ, EARLY, container, falls_back=False)))
    for state, variable, config in dict.fromkeys(found):
        yield _place(environ, state, variable or _why(state), variable, config)
    profile = value_of(environ, "OPENCLAW_PROFILE")
    if profile.lower() not in ("", "default") and "/" not in profile and not named_by(environ, EARLY.state_variables):
        # No gateway uses the variable alone, but a user who sets it means that profile.
        state = os.path.join(home(environ), f"{STATE_NAME}-{profile}")
        if os.path.isdir(os.path.join(state, "agents")):
            config = config_path(environ, LATE, state, falls_back=False)
            yield _place(environ, state, "OPENCLAW_PROFILE", None, config)


def _why(state: str) -> str:
    name = os.path.basename(state)
    return (
        f"an older default place, as there is no {STATE_NAME} beside {name}" if name in OLDER_STATE_NAMES else DEFAULT
    )


def _place(environ: Mapping[str, str], state: str, why: str, variable: str | None, config: str | None) -> Place:
    agents_dir = os.path.join(state, "agents")
    if config is None:
        return Place(agents_dir, Layout(), why, variable)
    from session_manager.gateway.config import Unreadable, read_layout

    try:
        store, said = read_layout(config, environ)
    except Unreadable as error:
        what = f"the gateway's config {config} may say where its sessions are, but cannot be used: {error}"
        how = "set ARIA_AGENTS_DIR to the folder that holds <agent>/sessions"
        if error.denied_at is not None:
            how = f"{run_as(error.denied_at)}, or {how}"
            raise Refused(f"{what}; {how}", code="not_readable", path=error.denied_at) from error
        raise UsageError(f"{what}; correct it, or {how}", code="bad_gateway_config", path=config) from error
    if store is None or (store.pattern == USUAL and os.path.realpath(store.root or "") == os.path.realpath(agents_dir)):
        return Place(agents_dir, said, why, variable, config)
    return Place(agents_dir, store, f"session.store of {config}", None, config)


def _passed_over(environ: Mapping[str, str], taken: str | None) -> list[str]:
    """Returns the agents directories in the gateway's home except the one taken."""
    found = (os.path.join(home(environ), name, "agents") for name in (STATE_NAME, *OLDER_STATE_NAMES))
    real = None if taken is None else os.path.realpath(taken)
    return [path for path in found if os.path.isdir(path) and os.path.realpath(path) != real]
