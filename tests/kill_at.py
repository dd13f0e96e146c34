"""Runs one call of the skill and kills it (SIGKILL) when the n-th named step has been completed.

usage: kill_at.py <n, or 0 for never> <file for the steps' names> <function> <json>

With SM_TEST_NO_LINKS set the file systems know no hard links.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from session_manager.faces import runner
from session_manager.live import steps

LIMIT, LOG = int(sys.argv[1]), sys.argv[2]
seen = 0


def watch(name: str) -> None:
    global seen
    seen += 1
    with open(LOG, "a") as file:
        file.write(name + "\n")
    if seen == LIMIT:
        os.kill(os.getpid(), signal.SIGKILL)


def no_link(source: str, target: str, **rest: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM), source, None, target)


if "SM_TEST_NO_LINKS" in os.environ:
    os.link = no_link
steps.watcher = watch
sys.exit(runner.main(["session_manager", *sys.argv[3:]], os.environ))
