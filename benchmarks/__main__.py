"""Prints the ratios: the start of the skill beside a bare import, list and prune beside their floors.

Machines differ and are noisy, so everything is measured beside its yardstick, in turns: a ratio is the median over
the rounds, with the lowest and the highest. TMPDIR says on which file system; 100,000 sessions take 300 MB.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks import sizes, start

START = "start"


def main() -> None:
    """Runs what the command line names, or everything."""
    names = [START, *(str(size.sessions) for size in sizes.SIZES)]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="*", help=f"any of: {', '.join(names)} (default: all)")
    parser.add_argument("--rounds", type=int, help="so many rounds instead of each size's own number")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.what if name not in names]:
        parser.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(names)}")
    wanted = arguments.what or names
    # The temporary folder goes in any case.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="session-manager-bench-") as folder:
        if START in wanted:
            start.run()
        sizes.run(Path(folder), [s for s in sizes.SIZES if str(s.sessions) in wanted], arguments.rounds)


if __name__ == "__main__":
    main()
