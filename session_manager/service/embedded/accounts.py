"""The account that the database runs as, and how to start a program as that account."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from signal import SIGKILL
from typing import IO

from session_manager.core.errors import Failed, Refused
from session_manager.service.embedded import become

# PostgreSQL refuses to run as root.
SYSTEM_USER = "session-manager"
_CREATE = (
    ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/", "--shell", "/bin/false"],
    ["adduser", "--system", "--group", "--no-create-home", "--home", "/", "--shell", "/bin/false"],
)
# When two services start at once, both try to create the account, and one finds the password file locked.
_PATIENCE_S = 5.0
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Account:
    """``other``: it is not this process's own account; only root can run programs as another."""

    name: str
    uid: int
    gid: int
    other: bool


def database_account() -> Account:
    """Returns this process's own account, or for root the system user, creating it if necessary.

    Raises Refused (``database_account``).
    """
    uid = os.geteuid()
    if uid == 0:
        return _system_account()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        raise Refused(
            f"user id {uid} has no name in /etc/passwd, and PostgreSQL needs one; add it, or set DATABASE_URL",
            code="database_account",
        ) from None
    return Account(entry.pw_name, uid, os.getegid(), other=False)


def _system_account() -> Account:
    create = next((command for command in _CREATE if shutil.which(command[0], path=_PATH)), None)
    said = "neither useradd nor adduser is installed"
    end = time.monotonic() + _PATIENCE_S
    while True:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(SYSTEM_USER)
            if entry.pw_uid == 0:
                raise Refused(f"the user {SYSTEM_USER} is root under another name", code="database_account")
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid, other=True)
        if create is None or time.monotonic() > end:
            raise Refused(
                f"PostgreSQL does not run as root, and the system user {SYSTEM_USER} cannot be created ({said}); "
                f"create it, run the service as an ordinary user, or set DATABASE_URL",
                code="database_account",
            )
        done = subprocess.run(
            [*create, SYSTEM_USER],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": _PATH, "LC_ALL": "C"},
            check=False,
        )
        said = done.stdout.decode(errors="replace").strip() or said
        time.sleep(0.1)


def start_as(
    account: Account,
    argv: list[str],
    *,
    cwd: str,
    output: int | IO[bytes],
    stdin: int = subprocess.DEVNULL,
    signal: int = 0,
    keep: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:
    """Starts a program as ``account``: it inherits nothing of our environment, and no open file but ``keep``.

    Standard error goes where ``output`` goes. ``signal`` reaches the program when the thread that started it ends
    (Linux). Raises OSError.
    """
    order = {
        "argv": argv,
        "cwd": cwd,
        "ids": [account.uid, account.gid] if account.other else None,
        "signal": signal,
        "parent": os.getpid(),
    }
    # A Python outside the system's folders may need it to find its own library.
    libraries = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", os.path.abspath(become.__file__), json.dumps(order)],
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT,
        cwd="/",
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", **libraries},
        pass_fds=keep,
        # The terminal's Ctrl-C is for the service, which stops its database last.
        start_new_session=True,
    )


def run_as(
    account: Account, argv: list[str], *, cwd: str, text: str = "", keep: tuple[int, ...] = ()
) -> tuple[int, str]:
    """Runs a program to its end with ``text`` as its input; returns exit code and output. It dies with this process.

    Raises Failed (``database_failed``) when it cannot be started.
    """
    pipe = subprocess.PIPE
    try:
        process = start_as(account, argv, cwd=cwd, output=pipe, stdin=pipe, signal=SIGKILL, keep=keep)
    except OSError as error:
        raise Failed(f"cannot run {argv[0]}: {error.strerror}", code="database_failed") from error
    printed, _ = process.communicate(text.encode())
    return process.returncode, printed.decode(errors="replace").strip()
