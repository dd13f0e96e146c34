"""Runs one measurement in a process of its own: time, processor time, and peak memory above what it began with.

usage: python -m benchmarks.measure <what> <agents dir>; prints one JSON line.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import floors, stores
from session_manager.files.liveness import now_ms
from session_manager.functions import load
from session_manager.functions.context import Context
from session_manager.settings import read_settings
from session_manager.stores.registry import open_volume

Action = Callable[[Path], object]


def call(agents: Path, function: str, **arguments: Any) -> dict[str, Any]:
    """Calls a function of the skill as the runner does."""
    # The live layer is measured, and no aria-api of this machine may hear of made-up sessions.
    settings = read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": ""})
    loaded = load(function)
    return loaded.run(Context(settings, open_volume(settings), now_ms), loaded.arguments(**arguments))


def list_sessions(agents: Path) -> None:
    """Lists all sessions."""
    call(agents, "list_sessions")


def dry_run(agents: Path) -> None:
    """Asks what a prune would remove."""
    call(agents, "prune_sessions", dry_run=True)


def prune(agents: Path) -> None:
    """Prunes all but the young ones."""
    document = call(agents, "prune_sessions")
    expected = document["total_sessions"] - -(-document["total_sessions"] // stores.YOUNG_EVERY)
    assert document["pruned_count"] == expected, (document["pruned_count"], expected)


def restorer(agents: Path) -> Action:
    """Returns what takes the store's last run back."""
    run_id = call(agents, "list_deleted", limit=1)["deleted"][0]["run_id"]

    def restore(agents: Path) -> None:
        document = call(agents, "restore_run", run_id=run_id)
        assert document["restored_count"] == document["restored_files"] > 0, document

    return restore


def prepared(what: str, agents: Path) -> Action:
    """Returns what is to be measured, ready to run."""
    if what == "ledger_floor":
        return floors.Ledger(agents)
    if what == "restore":
        with tempfile.TemporaryDirectory() as folder:
            stores.build(Path(folder), 20, 3_000)
            prune(Path(folder))
            restorer(Path(folder))(Path(folder))
        return restorer(agents)
    actions: dict[str, Action] = {
        "read_floor": floors.read,
        "prune_floor": floors.prune,
        "list_sessions": list_sessions,
        "dry_run": dry_run,
        "prune": prune,
    }
    action = actions[what]
    if not what.endswith("_floor"):
        # Imports belong to the whole process, which is measured by itself.
        with tempfile.TemporaryDirectory() as folder:
            stores.build(Path(folder), 20, 3_000)
            action(Path(folder))
    return action


def forget_peak() -> None:
    """Makes the peak of what went before no peak any more, where the system can do that."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def memory(field: str) -> int:
    """Returns VmRSS (now) or VmHWM (peak) of this process in bytes."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(what: str, agents: Path) -> None:
    """Measures ``what``."""
    # As the runner does.
    gc.disable()
    action = prepared(what, agents)
    os.sync()
    # As the runner does for its one short call.
    gc.disable()
    forget_peak()
    before = memory("VmRSS")
    cpu, start = time.process_time(), time.perf_counter()
    action(agents)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": memory("VmHWM") - before}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
