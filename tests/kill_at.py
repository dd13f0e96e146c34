"""Runs one call of the skill and kills it (SIGKILL) when the n-th named step has been completed.

usage: kill_at.py <n, or 0 for never> <file for the steps' names> <function> <json>

SM_TEST_LACKS names, with commas, what the file systems cannot do (see ``lacking``).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lacking import lacking

from session_manager.faces import runner
from session_manager.files import steps

LIMIT, LOG = int(sys.argv[1]), sys.argv[2]
seen = 0


def watch(name: str) -> None:
    global seen
    seen += 1
    with open(LOG, "a") as file:
        file.write(name + "\n")
    if seen == LIMIT:
        os.kill(os.getpid(), signal.SIGKILL)


steps.watcher = watch
with lacking(os.environ.pop("SM_TEST_LACKS", "").split(",")):
    code = runner.main(["session_manager", *sys.argv[3:]], os.environ)
sys.exit(code)
