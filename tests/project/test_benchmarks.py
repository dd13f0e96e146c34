"""How the benchmarks are called; what they measure is their own affair."""

from __future__ import annotations

import subprocess
import sys

from support import ROOT

FAILS = """
import sys
from benchmarks import __main__, start

def fail(*arguments):
    assert not arguments, "a measurement failed"

start._once = fail
sys.argv[1:] = ["--smallest", "start"]
__main__.main()
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_one_runs_once_at_its_smallest_size() -> None:
    done = run(sys.executable, "-m", "benchmarks", "--smallest", "start")
    assert done.returncode == 0, done.stderr
    assert "whole process, 1 rounds" in done.stderr
    assert "ratio" in done.stdout


def test_one_that_fails_ends_them_with_an_error() -> None:
    done = run(sys.executable, "-c", FAILS)
    assert done.returncode == 1
    assert "a measurement failed" in done.stderr


def test_an_unknown_one_is_named() -> None:
    done = run(sys.executable, "-m", "benchmarks", "speed")
    assert done.returncode == 2
    assert "unknown: speed; there are: start, 1000, 10000" in done.stderr


def test_make_passes_the_size_on() -> None:
    assert "-m benchmarks --smallest\n" in run("make", "-n", "bench", "SIZE=smallest").stdout
    assert "--smallest" not in run("make", "-n", "bench").stdout
