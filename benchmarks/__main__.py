"""Prints the ratios. The skill: its start beside a bare import, list and prune beside their floors. aria-api: marks
beside a bare UPDATE, look-ups and pages of a long history beside a short one, the volume sync beside its floors, the
dashboard of a long history beside a short one's, a purge of ghosts beside a bare DELETE, lists of many conversations
beside a few, replies beside the bare model.

Machines differ and are noisy, so everything is measured beside its yardstick, in turns: a ratio is the median over
the rounds, with the lowest and the highest. TMPDIR says on which file system; 100,000 sessions take 300 MB, a
history or conversations of 1,000,000 rows 1 to 3 GB.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks import chats, dashboard, ghosts, marks, pages, sizes, start, streams, syncs

START, MARKS, PAGES, SYNCS = "start", "marks", "pages", "syncs"
GHOSTS, CHATS, STREAMS, DASHBOARD = "ghosts", "chats", "streams", "dashboard"


def main() -> None:
    """Runs what the command line names, or everything."""
    names = [
        START,
        *(str(size.sessions) for size in sizes.SIZES),
        MARKS,
        PAGES,
        SYNCS,
        DASHBOARD,
        GHOSTS,
        CHATS,
        STREAMS,
    ]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="*", help=f"any of: {', '.join(names)} (default: all)")
    parser.add_argument("--rounds", type=int, help="so many rounds instead of each measurement's own number")
    parser.add_argument("--sessions", type=int, help=f"so many instead of {ghosts.SESSIONS:,}, in {GHOSTS} and {CHATS}")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.what if name not in names]:
        parser.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(names)}")
    if arguments.sessions is not None and arguments.sessions < chats.SMALL:
        parser.error(f"--sessions must be at least {chats.SMALL}")
    wanted = arguments.what or names
    # The temporary folder goes in any case.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="session-manager-bench-") as folder:
        if START in wanted:
            start.run()
        sizes.run(Path(folder), [s for s in sizes.SIZES if str(s.sessions) in wanted], arguments.rounds)
        if MARKS in wanted:
            marks.run(arguments.rounds)
        if PAGES in wanted:
            pages.run(arguments.rounds)
        if SYNCS in wanted:
            syncs.run(Path(folder), arguments.rounds)
        if DASHBOARD in wanted:
            dashboard.run(arguments.rounds)
        if GHOSTS in wanted:
            ghosts.run(arguments.rounds, arguments.sessions)
        if CHATS in wanted:
            chats.run(arguments.rounds, arguments.sessions)
        if STREAMS in wanted:
            streams.run(arguments.rounds)


if __name__ == "__main__":
    main()
