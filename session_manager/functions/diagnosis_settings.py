"""The doctor's checks of the retention policy, and of the free space where the tool writes."""

from __future__ import annotations

import os
from collections.abc import Iterator

from session_manager.core.diagnosis import Check, failed, plural, size
from session_manager.core.errors import Refused, SessionManagerError
from session_manager.files.owners import run_as
from session_manager.functions.context import Context
from session_manager.functions.policy import read_kept, with_policy

# A disk is nearly full when less than a tenth of it, and less than this, is free.
_BYTES = 10**9
_FILES = 10_000


def policy_check(context: Context) -> Check:
    """Returns the check of the retention policy, which every removal reads."""
    path = context.settings.policy_path
    try:
        policy = with_policy(context).policy
    except SessionManagerError as error:
        advice = run_as(path) if error.code == "not_writable" else "correct the file, or move it away"
        return failed("policy", error, f"{advice}; until then no call that uses it removes anything")
    kept = read_kept(context.settings)
    also = f"; {plural(len(kept.pins), 'session')} pinned by pin_session" if kept is not None and kept.pins else ""
    if policy is None:
        return Check("policy", True, f"there is no policy file at {path}{also}")
    rules = len(policy.rules) + (policy.agent_budget is not None)
    pins = len(policy.pins.keys) + len(policy.pins.labels) + len(policy.pins.ids)
    return Check("policy", True, f"{path}: {plural(rules, 'rule')}, {plural(pins, 'pin')}{also}")


def config_checks(context: Context) -> Iterator[Check]:
    """Yields the check of the gateway's config, which may relocate the sessions; nothing when there is no config."""
    place = context.settings.place
    if place.config is None:
        return
    if place.problem is not None:
        what = f"this tool cannot tell where the gateway keeps its sessions, or what its main key is: {place.problem}"
        yield Check(
            "gateway_config",
            False,
            what,
            f"correct {place.config}; until then the place that {place.why} names is used",
        )
    elif place.elsewhere is not None:
        what = (
            f"session.store of {place.config} puts the sessions at {place.elsewhere}: they are not read, because "
            f"{place.why} names {context.settings.agents_dir}"
        )
        advice = f"unset {place.why}, and set OPENCLAW_STATE_DIR to the gateway's state directory"
        yield Check("gateway_config", False, what, advice)
    else:
        layout = place.layout
        what = (
            f"{place.config}: sessions at {layout.text}"
            if layout.root
            else f"{place.config}: sessions in the default place"
        )
        what += "" if layout.main_key is None else f"; sessions with the key {layout.main_key} are main sessions, too"
        yield Check("gateway_config", True, what)


def disk_checks(context: Context) -> Iterator[Check]:
    """Yields a check for each file system that holds sessions or the state directory, or both."""
    seen = set()
    for path in (context.volume.root, context.settings.state_dir):
        place = path
        while not os.path.isdir(place) and place != os.path.dirname(place):
            place = os.path.dirname(place)
        try:
            device, found = os.stat(place).st_dev, os.statvfs(place)
        except OSError:
            # The check that needs this folder reports why it is missing.
            continue
        if device not in seen:
            seen.add(device)
            yield _disk(path, found)


def _disk(path: str, found: os.statvfs_result) -> Check:
    name, free = f"disk {path}", found.f_bavail * found.f_frsize
    what = f"{size(free)} of {size(found.f_blocks * found.f_frsize)} free"
    advice = "free some space, or nothing more can be archived; purge_archives permanently deletes old archives"
    # Some file systems do not count bytes or files, and report 0.
    no_room, no_names = free == 0 < found.f_blocks, found.f_favail == 0 < found.f_files
    if no_room or no_names:
        said = f"no space left for {path}" if no_room else f"no more files can be created at {path}"
        return failed(name, Refused(said, code="disk_full"), advice)
    if found.f_files > 0 and found.f_favail < min(_FILES, found.f_files / 10):
        return Check(name, False, f"{what}, but only {plural(found.f_favail, 'more file')} can be created", advice)
    is_low = free < min(_BYTES, found.f_blocks * found.f_frsize / 10)
    return Check(name, not is_low, what, advice if is_low else None)
