"""session-manager, the command line for people: data on standard output, talk on standard error.

``main`` imports the commands' modules itself: it handles a Ctrl-C during the import, and a missing extra.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import NoReturn

from session_manager.core.errors import Failed, Interrupted, SessionManagerError

_OWN_PACKAGES = ("typer", "rich", "click")


def main() -> NoReturn:
    """Runs the command line and exits with the documented codes."""
    try:
        _open_what_is_closed()
        for number in (signal.SIGTERM, signal.SIGHUP):
            # A signal that nohup ignores stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _interrupt)
        code = _run()
    except KeyboardInterrupt:
        code = Interrupted.exit_code
    _end(code)


def _run() -> int:
    try:
        from session_manager.faces.cli.commands import app

        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else Failed.exit_code if end.code else 0
    except SessionManagerError as error:
        return _failed(error.message, error.exit_code)
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        extra = "cli" if name in _OWN_PACKAGES else "service"
        sys.stderr.write(f"error: the Python package {name!r} is missing: pip install 'aria-sessionmanager[{extra}]'\n")
        return Failed.exit_code
    except OSError as error:
        return _failed(str(error))
    except Exception as error:
        if os.environ.get("ARIA_TRACEBACK"):
            traceback.print_exc()
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return _failed(f"internal error ({said}); ARIA_TRACEBACK=1 shows where")
    return 0


def _failed(sentence: str, code: int = Failed.exit_code) -> int:
    from session_manager.faces.cli.screen import talk

    talk(f"error: {sentence}")
    return code


def _end(code: int) -> NoReturn:
    """Ends the process with ``code``; a Ctrl-C no longer changes it.

    After a signal during an import, Python itself dies of it, even when it was caught.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # Python would retry, and exit with its own code.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if code == Interrupted.exit_code:
        os._exit(code)
    raise SystemExit(code)


def _open_what_is_closed() -> None:
    """Opens closed standard streams on the null device: else the next file, perhaps an index, gets their number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
