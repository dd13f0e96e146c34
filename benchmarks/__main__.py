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
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks import chats, dashboard, ghosts, marks, pages, sizes, start, streams, syncs

Run = Callable[[int | None], None]


def main() -> None:
    """Runs what the command line names, or everything; ends with an error at the first one that fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="*", help=f"any of: {', '.join(_runs(Path(), smallest=False))} (default: all)")
    parser.add_argument("--rounds", type=int, help="so many rounds instead of each measurement's own number")
    parser.add_argument("--sessions", type=int, help=f"so many instead of {ghosts.SESSIONS:,}, in ghosts and chats")
    parser.add_argument(
        "--smallest", action="store_true", help="one round at the smallest sizes: that each runs, not how fast"
    )
    arguments = parser.parse_args()
    if arguments.sessions is not None and arguments.sessions < chats.SMALL:
        parser.error(f"--sessions must be at least {chats.SMALL}")
    # The temporary folder goes in any case.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="session-manager-bench-") as folder:
        runs = _runs(Path(folder), smallest=arguments.smallest, sessions=arguments.sessions)
        if unknown := [name for name in arguments.what if name not in runs]:
            parser.error(f"unknown: {', '.join(unknown)}; there are: {', '.join(runs)}")
        for name, run in runs.items():
            if name in (arguments.what or runs):
                run(1 if arguments.smallest else arguments.rounds)


def _runs(folder: Path, *, smallest: bool, sessions: int | None = None) -> dict[str, Run]:
    """Returns all benchmarks by name, in their order; each takes the number of rounds, None for its own."""
    measured = sizes.SMALLEST if smallest else sizes.SIZES
    return {
        "start": start.run,
        **{str(size.sessions): partial(sizes.run, folder, size) for size in measured},
        "marks": partial(marks.run, marks.SMALLEST if smallest else marks.ROWS),
        "pages": partial(pages.run, *(pages.SMALLEST if smallest else (pages.SMALL, pages.LARGE))),
        "syncs": partial(syncs.run, folder, syncs.SMALLEST if smallest else syncs.SESSIONS),
        "dashboard": partial(dashboard.run, *(dashboard.SMALLEST if smallest else (dashboard.SMALL, dashboard.LARGE))),
        "ghosts": partial(ghosts.run, ghosts.SMALLEST if smallest else sessions or ghosts.SESSIONS),
        "chats": partial(chats.run, *(chats.SMALLEST if smallest else (chats.SMALL, sessions or chats.LARGE))),
        "streams": partial(streams.run, streams.SMALLEST if smallest else streams.AT_ONCE),
    }


if __name__ == "__main__":
    main()
