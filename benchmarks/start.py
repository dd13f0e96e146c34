"""The whole process: an agent's ``list_sessions`` on 16 sessions beside ``import msgspec``."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from benchmarks.report import Figures, ratio, say

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 40
EXPECTED = 1.6


def run(rounds: int | None) -> None:
    """Measures and prints."""
    rounds = rounds or ROUNDS
    bare = [sys.executable, "-c", "import msgspec"]
    skill = [sys.executable, str(ROOT / "run_skill.py"), "session_manager", "list_sessions"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ARIA_", "OPENCLAW_"))}
    environment["ARIA_AGENTS_DIR"] = str(ROOT / "fixtures/sixteen/agents")
    say(f"whole process, {rounds} rounds")
    found = [(_once(bare, environment), _once(skill, environment)) for _ in range(rounds)]
    wall, cpu = (ratio([s[key] for _, s in found], [b[key] for b, _ in found]) for key in ("seconds", "cpu"))
    bare_ms, skill_ms = (median(r[i]["seconds"] for r in found) * 1000 for i in (0, 1))
    print(f"whole process, 16 sessions: list_sessions {skill_ms:.1f} ms, import msgspec {bare_ms:.1f} ms")
    print(f"ratio {wall} by the clock, {cpu} of processor time; expected: at most {EXPECTED}\n", flush=True)


def _once(command: list[str], environment: dict[str, str]) -> Figures:
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu": cpu}
