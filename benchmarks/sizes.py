"""List and prune at several sizes beside their floors, and the prune's undoing beside the prune.

Every measurement is made in a fresh process, every prune on a copy.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks import stores
from benchmarks.report import Figures, ratio, say

ROOT = Path(__file__).resolve().parents[1]
WIDTHS = (20, 9, 9, 20, 20, 11, 13)
HEADINGS = ("", "ms", "floor ms", "ratio (spread)", "processor time", "µs/session", "memory/index")

Rounds = dict[str, list[Figures]]


class Size(NamedTuple):
    """So many sessions with entries of so many bytes, measured so many times."""

    sessions: int
    entry_bytes: int
    rounds: int


SMALLEST = (Size(100, 3_000, 1), Size(20, 230_000, 1))
SIZES = (Size(1_000, 3_000, 9), Size(10_000, 3_000, 7), Size(100_000, 3_000, 3), Size(240, 230_000, 7))


def run(folder: Path, size: Size, rounds: int | None) -> None:
    """Measures a size and prints a table; the cost per session should be the same at 1,000 and at 100,000."""
    found, index_bytes = measure(folder, size._replace(rounds=rounds or size.rounds))
    table(size, found, index_bytes)


def measure(folder: Path, size: Size) -> tuple[Rounds, int]:
    """Returns each measurement's rounds, in turns, and the size of the index."""
    agents, copy = folder / "agents", folder / "copy"
    say(f"building {size.sessions:,} sessions of {size.entry_bytes:,} bytes")
    index_bytes = stores.build(agents, size.sessions, size.entry_bytes).stat().st_size
    found: Rounds = {}
    for number in range(size.rounds):
        say(f"  round {number + 1} of {size.rounds}")
        for what in ("read_floor", "list_sessions", "dry_run", "prune_floor", "prune", "ledger_floor"):
            on_copy = what in ("prune_floor", "prune")
            where = stores.copy(agents, copy) if on_copy else agents
            found.setdefault(what, []).append(_once(what, where))
            if what == "prune":
                found.setdefault("restore", []).append(_once("restore", where))
            if on_copy:
                shutil.rmtree(copy)
    shutil.rmtree(agents)
    return found, index_bytes


def _once(what: str, agents: Path) -> Figures:
    command = [sys.executable, "-m", "benchmarks.measure", what, str(agents)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    result: Figures = json.loads(done.stdout)
    return result


def table(size: Size, found: Rounds, index_bytes: int) -> None:
    """Prints one size's rows."""
    _line(f"{size.sessions:,} x {size.entry_bytes // 1000} KB", *HEADINGS[1:])
    budget = [
        {key: 2 * floor[key] + ledger[key] for key in ("seconds", "cpu")}
        for floor, ledger in zip(found["prune_floor"], found["ledger_floor"], strict=True)
    ]
    _row("list", found["list_sessions"], found["read_floor"], size, index_bytes)
    _row("dry run", found["dry_run"], found["read_floor"], size, index_bytes)
    _row("prune", found["prune"], found["prune_floor"], size, index_bytes)
    _row("prune, budget", found["prune"], budget, size, index_bytes)
    _row("restore / prune", found["restore"], found["prune"], size, index_bytes)
    print(
        "expected: prune at most 1 x its budget (2 x floor + the ledger's floor); memory at most 2.5 x the index to"
        " prune, 3 x to restore\n",
        flush=True,
    )


def _row(name: str, measured: list[Figures], floor: list[Figures], size: Size, index_bytes: int) -> None:
    seconds, floor_seconds = (median(figures["seconds"] for figures in side) for side in (measured, floor))
    peak = median(figures["peak"] for figures in measured)
    ratios = [ratio([m[key] for m in measured], [f[key] for f in floor]) for key in ("seconds", "cpu")]
    _line(
        f"  {name}",
        f"{seconds * 1e3:.1f}",
        f"{floor_seconds * 1e3:.1f}",
        *ratios,
        f"{seconds * 1e6 / size.sessions:.1f}",
        f"{peak / index_bytes:.2f}",
    )


def _line(name: str, *cells: str) -> None:
    print(f"{name:{WIDTHS[0]}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS[1:], strict=True)))
