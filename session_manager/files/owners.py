"""Names the owner of a file that this user may not access, and the fix."""

from __future__ import annotations

import os

from session_manager.core.errors import SessionManagerError

_OTHER_USER = "run as the gateway's user, where the agents directory is mounted"


def run_as(path: str) -> str:
    """Returns what to do about a path that may not be read or written: ``run as the gateway's user node (uid 1000)``.

    The owner is that of the path, or of the nearest parent folder that can be read.
    """
    uid = _owner(path)
    if uid == os.geteuid():
        if uid == 0:
            return "not even root can do that there: check the mount options and the file's attributes"
        return "it is your own: change its mode (chmod u+rwX), or that of the folder above it"
    return f"run as the gateway's user {_named(uid)}"


def advice_about(error: SessionManagerError, path: str) -> str:
    """Returns what to do about a failure with a path."""
    return run_as(path) if error.code in ("not_readable", "not_writable") else _OTHER_USER


def _owner(path: str) -> int:
    while True:
        try:
            return os.lstat(path).st_uid
        except OSError:
            above = os.path.dirname(path)
            if above == path:
                raise
            path = above or os.curdir


def _named(uid: int) -> str:
    import pwd

    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"(uid {uid})"
