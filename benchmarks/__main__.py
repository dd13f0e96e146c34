"""Prints the ratios: the start of the skill beside a bare import, list and prune beside their floors."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.stores import build

ROOT = Path(__file__).resolve().parents[1]
SIZES = [(1_000, 3_000), (10_000, 3_000), (100_000, 3_000), (240, 230_000)]
ROUNDS = {1_000: 7, 10_000: 5, 100_000: 2, 240: 5}


def main(arguments: list[str]) -> None:
    wanted = [s for s in SIZES if not arguments or str(s[0]) in arguments]
    with tempfile.TemporaryDirectory(prefix="session-manager-bench-") as folder:
        start(Path(folder))
        print(f"\n{'':24}{'ms':>10}{'floor ms':>10}{'ratio':>8}{'spread':>14}{'µs/session':>12}{'memory/index':>14}")
        for sessions, entry_bytes in wanted:
            size(Path(folder), sessions, entry_bytes)


def start(folder: Path) -> None:
    """Whole process: list_sessions on 16 sessions beside ``import msgspec``."""
    agents = folder / "sixteen"
    shutil.copytree(ROOT / "fixtures/sixteen/agents", agents)
    environment = {**os.environ, "ARIA_AGENTS_DIR": str(agents)}
    bare = [sys.executable, "-c", "import msgspec"]
    skill = [sys.executable, str(ROOT / "run_skill.py"), "session_manager", "list_sessions"]
    ratios, times = [], []
    for _ in range(25):
        seconds = []
        for command in (bare, skill):
            begin = time.perf_counter()
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
            seconds.append(time.perf_counter() - begin)
        ratios.append(seconds[1] / seconds[0])
        times.append(seconds)
    ms = [statistics.median(t[i] for t in times) * 1000 for i in (0, 1)]
    print(f"start: list_sessions, 16 sessions {ms[1]:.1f} ms; import msgspec {ms[0]:.1f} ms; {_ratio(ratios)}")


def size(folder: Path, sessions: int, entry_bytes: int) -> None:
    """List and prune of one size, each round on a fresh copy, the floors in between."""
    agents = folder / f"{sessions}"
    say(f"building {sessions:,} sessions of {entry_bytes:,} bytes …")
    build(agents, sessions, entry_bytes)
    index_bytes = (agents / "main/sessions/sessions.json").stat().st_size
    found: dict[str, list[dict[str, float]]] = {}
    for round_number in range(ROUNDS[sessions]):
        say(f"  round {round_number + 1} of {ROUNDS[sessions]}")
        for what in ("read_floor", "list_sessions", "dry_run"):
            found.setdefault(what, []).append(measure(what, agents))
        for what in ("prune_floor", "prune", "ledger_floor"):
            copy = folder / "copy"
            shutil.copytree(agents, copy)
            found.setdefault(what, []).append(measure(what, copy))
            shutil.rmtree(copy)
    shutil.rmtree(agents)
    label = f"{sessions:,} × {entry_bytes / 1000:g} KB"
    row(f"{label} list", found["list_sessions"], found["read_floor"], sessions, index_bytes)
    row(f"{label} dry run", found["dry_run"], found["read_floor"], sessions, index_bytes)
    both = [
        {"seconds": a["seconds"] + b["seconds"]}
        for a, b in zip(found["prune_floor"], found["ledger_floor"], strict=True)
    ]
    row(f"{label} prune", found["prune"], found["prune_floor"], sessions, index_bytes)
    budget = [
        {"seconds": 2 * a["seconds"] + b["seconds"]}
        for a, b in zip(found["prune_floor"], found["ledger_floor"], strict=True)
    ]
    row("  beside floor + ledger", found["prune"], both, sessions, index_bytes)
    row("  beside 2 floor + ledger", found["prune"], budget, sessions, index_bytes)


def measure(what: str, agents: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.measure", what, str(agents)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def row(
    name: str, measured: list[dict[str, float]], floor: list[dict[str, float]], sessions: int, index_bytes: int
) -> None:
    ratios = [m["seconds"] / f["seconds"] for m, f in zip(measured, floor, strict=True)]
    ms = statistics.median(m["seconds"] for m in measured) * 1000
    floor_ms = statistics.median(f["seconds"] for f in floor) * 1000
    memory = statistics.median(m["peak"] for m in measured) / index_bytes
    spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
    print(
        f"{name:24}{ms:10.1f}{floor_ms:10.1f}{statistics.median(ratios):8.2f}{spread:>14}"
        f"{ms * 1000 / sessions:12.1f}{memory:14.2f}",
        flush=True,
    )


def _ratio(ratios: list[float]) -> str:
    return f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
