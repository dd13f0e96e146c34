"""Asks on the terminal without losing a Ctrl-C.

``input()`` misses a signal that arrives just before it reads, and keeps waiting; so do the prompts of Typer, Click and
Rich, which call it. Here another thread reads, and the main thread waits on a pipe to which Python's own signal handler
also writes (``signal.set_wakeup_fd``, as asyncio does): any signal ends the wait.
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
    """Asks on standard error and returns the typed line without its line break.

    Raises KeyboardInterrupt for a signal that means it, EOFError at the end of the input.
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
    """Returns one raw line of standard input."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    found: list[bytes] = []

    def read() -> None:
        # Reading a terminal that hung up fails: treat it as the end.
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
    # Not after a signal: the thread may still write there, and another file could get this number.
    os.close(woken)
    os.close(wake)
    return b"".join(found)
