"""Asks a person on the terminal, so that no Ctrl-C is lost.

``input()`` misses a signal that arrives just before it reads, and waits on; so do the prompts of Typer, Click and Rich,
which call it. Here another thread reads, and the main thread waits for a pipe into which Python's own signal handler
writes, too (``signal.set_wakeup_fd``, as asyncio does): whenever a signal comes, the wait ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

import typer

_LONGEST_LINE = 4096
# No signal has this number.
_DONE = b"\0"


def line(question: str) -> str:
    """Asks on standard error and returns the line that is typed, without its end.

    Raises KeyboardInterrupt for a signal that stands for it, EOFError when there is no more to read.
    """
    typer.echo(question, nl=False, err=True)
    typed = _typed()
    if not typed:
        raise EOFError
    return typed.decode(sys.stdin.encoding, "replace").strip()


def yes(question: str) -> bool:
    """Asks until the answer is yes or no; no is the default. Raises as ``line`` does."""
    while True:
        answer = line(f"{question} [y/N]: ").lower()
        if answer in ("y", "yes"):
            return True
        if answer in ("", "n", "no"):
            return False
        typer.echo("Answer y or n.", err=True)


def _typed() -> bytes:
    """Returns one line of standard input as the terminal gives it."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    found: list[bytes] = []

    def read() -> None:
        # A terminal that hung up fails; that is its end.
        with contextlib.suppress(OSError):
            found.append(os.read(0, _LONGEST_LINE))
        os.write(wake, _DONE)

    reader = threading.Thread(target=read, name="prompt", daemon=True)
    woken_before = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        reader.start()
        while os.read(woken, 1) != _DONE:
            pass
    finally:
        signal.set_wakeup_fd(woken_before)
    # Not after a signal: the thread may write there yet, and the number would be another file's.
    os.close(woken)
    os.close(wake)
    return b"".join(found)
