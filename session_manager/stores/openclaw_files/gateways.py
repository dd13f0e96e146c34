"""Gateways that are visible from here, and the stores that they belong to.

Only a gateway of the same store proves that a pid which is dead here is dead: one of another store proves nothing about
a run in another container. Facts, measured on gateways 2026.2.17 and 2026.6.11: the process calls itself
``openclaw-gateway`` or ``openclaw``, keeps its environment, and holds ``gateway.<hash>.lock`` open, a JSON object that
names its configuration. None of this is visible without a /proc, or for another user's process.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from session_manager.files.liveness import (
    RUNTIMES,
    Marker,
    arguments_of,
    now_ms,
    process_lives,
    process_stat,
    read_marker,
    written_at,
)
from session_manager.gateway.home import EARLY, LATE, STATE_NAME, home, named_by, state_dir, value_of

_TITLE = "openclaw-gateway"
_SCRIPTS = ("openclaw", "openclaw.mjs")
_GATEWAY_LOCK = re.compile(r"gateway\.[0-9a-f]+\.lock")
# Names in a state folder, which may also be the program's folder (/app), or a home.
_KEPT = frozenset(
    ("agents", "state", "memory", "logs", "cron", "tasks", "flows", "subagents", "credentials", "identity")
)


class _GatewayLock(msgspec.Struct, rename="camel"):
    config_path: str


def vouches(sessions_dir: str, gateway_dir: str = "") -> bool:
    """Returns True if a gateway of a store runs in our process namespace, so that a dead pid is really dead.

    ``gateway_dir`` is its agents directory, in its state folder; left out, it is two levels up.
    """
    gateway_dir = gateway_dir or os.path.dirname(os.path.dirname(sessions_dir))
    named: set[int] | None = None
    for pid in _pids():
        if not _is_gateway(pid) or not _shares_our_pids(pid):
            continue
        if _is_of(pid, sessions_dir, gateway_dir):
            return True
        if named is None:
            named = _named_by_locks(sessions_dir)
        if int(pid) in named:
            return True
    return False


def vouched_in(sessions_dir: str, gateway_dir: str = "") -> Callable[[], bool]:
    """Returns a function that tells if a gateway of a store is visible here; it looks once, at its first call."""

    @functools.cache
    def looked() -> bool:
        return vouches(sessions_dir, gateway_dir)

    return looked


def _pids() -> list[str]:
    try:
        return [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _is_gateway(pid: str) -> bool:
    arguments = arguments_of(pid)
    if not arguments:
        return False
    names = [os.path.basename(argument) for argument in arguments]
    if names[0] == _TITLE:
        return True
    script = names[1:] if names[0] in RUNTIMES else names
    if script[:1] and script[0] in _SCRIPTS:
        return "gateway" in script or (len(script) == 1 and any(True for _ in _gateway_locks(pid)))
    return False


def _shares_our_pids(pid: str) -> bool:
    """Returns True if a process has the same pid in its own namespace, unlike a container's seen from its host."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            return any(line.startswith(b"NSpid:") and len(line.split()) == 2 for line in file)
    except OSError:
        return False


def _is_of(pid: str, sessions_dir: str, gateway_dir: str) -> bool:
    """Returns True if a gateway belongs to a store, judged by its open files or its environment."""
    state = os.path.dirname(gateway_dir)
    folders = [os.path.realpath(folder) for folder in (sessions_dir, gateway_dir)]
    if any(_lies_in(path, folders, os.path.realpath(state)) for path, _ in _open_files(pid)):
        return True
    environ = _environment(pid)
    configured = [config for config in _gateway_locks(pid) if config]
    if configured and not named_by(environ, EARLY.config_variables):
        return any(_is_same(f"/proc/{pid}/root{os.path.dirname(config)}", state) for config in configured)
    return any(_is_same(f"/proc/{pid}/root{found}/agents", gateway_dir) for found in _state_dirs(environ))


def _lies_in(path: str, folders: Iterable[str], state: str) -> bool:
    if any(_below(path, folder) is not None for folder in folders):
        return True
    first, *more = (_below(path, state) or "").split("/")
    return first in _KEPT or (first != "" and not more)


def _below(path: str, folder: str) -> str | None:
    start = folder.rstrip("/") + "/"
    return path.removeprefix(start) if path.startswith(start) else None


def _open_files(pid: str) -> Iterator[tuple[str, str]]:
    """Yields path and /proc entry of each open file of a process that is the same file for us."""
    folder = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(folder)
    except OSError:
        return
    for number in numbers:
        place = f"{folder}/{number}"
        try:
            path = os.readlink(place)
        except OSError:
            continue
        if path.startswith("/") and _is_same(place, path):
            yield path, place


def _gateway_locks(pid: str) -> Iterator[str]:
    """Yields the configuration path named by each of a gateway's own locks, empty if it names none."""
    for path, place in _open_files(pid):
        if _GATEWAY_LOCK.fullmatch(os.path.basename(path)):
            try:
                with open(place, "rb") as file:
                    yield msgspec.json.decode(file.read(65536), type=_GatewayLock).config_path
            except (OSError, msgspec.DecodeError, UnicodeDecodeError):
                yield ""


def _environment(pid: str) -> Mapping[str, str]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            pairs = (os.fsdecode(pair).partition("=") for pair in file.read().split(b"\0"))
            return {name: value.strip() for name, _, value in pairs if value.strip()}
    except OSError:
        return {}


def _state_dirs(environ: Mapping[str, str]) -> Iterator[str]:
    """Yields the state folders that gateways of any version would use in an environment."""
    if not named_by(environ, (*EARLY.state_variables, "OPENCLAW_HOME", "HOME")):
        return
    profile = value_of(environ, "OPENCLAW_PROFILE")
    if profile.lower() in ("", "default") or named_by(environ, EARLY.state_variables):
        yield from dict.fromkeys(state_dir(environ, rules)[0] for rules in (LATE, EARLY))
    else:
        yield os.path.join(home(environ), f"{STATE_NAME}-{profile}")


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samestat(os.stat(one), os.stat(other))
    except (OSError, ValueError):
        return False


def _named_by_locks(sessions_dir: str) -> set[int]:
    """Returns the pids of live processes that locks in a sessions folder name as holders."""
    try:
        names = [name for name in os.listdir(sessions_dir) if name.endswith(".lock")]
    except OSError:
        return set()
    markers = (read_marker(os.path.join(sessions_dir, name)) for name in names)
    return {m.payload.pid for m in markers if m is not None and m.payload is not None and _is_its_holder(m)}


def _is_its_holder(marker: Marker) -> bool:
    """Returns True if the process with a lock's pid wrote it, judged by its age if it names no start time."""
    payload = marker.payload
    if payload is None or marker.ours or not process_lives(payload.pid, payload.starttime):
        return False
    return payload.starttime is not None or began(payload.pid) <= written_at(marker, now_ms())


def began(pid: int) -> float:
    """Returns the start time of a process in epoch milliseconds; infinity if unknown."""
    status = process_stat(pid)
    try:
        with open("/proc/stat", "rb") as file:
            booted = next(int(line.split()[1]) for line in file if line.startswith(b"btime "))
    except (OSError, StopIteration, ValueError, IndexError):
        booted = None
    if status is None or booted is None:
        return math.inf
    return (booted + status[1] / os.sysconf("SC_CLK_TCK")) * 1000
