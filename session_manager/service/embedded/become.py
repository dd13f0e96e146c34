"""Run as a script: changes to an account, ties its life to its parent, and then executes a program.

It is a separate process because a service with threads must not run Python between fork and exec. It uses only the
standard library, and gets all its input in one JSON argument (see ``accounts.start_as``). Exit code 111: it could not,
and standard error says why.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1


def _follow(order: dict[str, Any]) -> None:
    if order["ids"]:
        user, group = order["ids"]
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    # The kernel clears this setting when the user changes, so set it after that.
    if order["signal"] and sys.platform == "linux":
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, order["signal"], 0, 0, 0):
            raise OSError(ctypes.get_errno(), "the kernel cannot stop the server together with its service")
        if os.getppid() != order["parent"]:
            raise OSError("the service ended before its server began")
    os.chdir(order["cwd"])
    os.umask(0o077)
    os.execv(order["argv"][0], order["argv"])


if __name__ == "__main__":
    try:
        _follow(json.loads(sys.argv[1]))
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(111)
