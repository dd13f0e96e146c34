"""The JSON face: ``run_skill.py session_manager <function> ['<json object>' | -]``.

Invariant: standard output carries exactly one JSON document and a newline, whatever happens (``--help`` prints text).
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from session_manager.core.errors import (
    INTERRUPTED,
    PARTIAL_EXIT_CODE,
    Failed,
    Interrupted,
    SessionManagerError,
    UsageError,
)
from session_manager.functions import NAMES, Function, load

SKILL_NAMES = ("session_manager", "session-manager", "aria-sessionmanager", "aria-session-manager")

USAGE = """\
usage: run_skill.py session_manager <function> ['<json object>' | -]
       run_skill.py --list
       run_skill.py --help

Prints one JSON document on standard output; logs go to standard error.
The arguments are one JSON object; default: {}; -: read it from standard input.

functions:
%s

environment:
  ARIA_AGENTS_DIR    folder that holds <agent>/sessions; default: where the gateway keeps them, by
                     OPENCLAW_STATE_DIR, OPENCLAW_HOME, OPENCLAW_PROFILE and session.store in its
                     config (OPENCLAW_CONFIG_PATH); else /app/agents or ~/.openclaw/agents
  ARIA_STATE_DIR     folder of the ledger and of the archives' second names
                     (default <agents dir>/.session_manager)
  ARIA_SESSION_ID    id or key of the calling session, which is never deleted (also OPENCLAW_SESSION_ID,
                     OPENCLAW_MCP_SESSION_ID, and OPENCLAW_MCP_SESSION_KEY with OPENCLAW_MCP_AGENT_ID)
  ARIA_AGENT_ID      the agent that calls; recorded in the ledger
  ARIA_API_URL       URL of aria-api, the history service; unset: http://localhost:8000/api, if
                     aria-api answers there; empty: history is turned off
  ARIA_API_TOKEN     token for aria-api
  ARIA_API_TIMEOUT   seconds that one call may spend on history (default 10)
  ARIA_LOCK_TIMEOUT  seconds to wait for a lock (default 10)
  ARIA_KEEP_DAYS     days that removed index entries, and archives' second names, are kept
                     in the state directory (default 7)
  ARIA_ALLOW_ERASE   1: erase_session may erase (default: it refuses)
  ARIA_ALLOW_NO_EXCHANGE
                     1: change an index even where its file system cannot swap two files atomically;
                     only with a gateway that takes the lock, or while the gateway is stopped
  ARIA_POLICY        retention policy (default session-manager.toml in the state directory,
                     if there is one)

exit codes: 0 ok, 2 usage, 3 done in part, 4 refused, 5 not found, 6 locked, 7 damaged,
            70 internal error, 130 interrupted
"""


def main(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs one call (``argv`` without the program's name) and returns the exit code."""
    if any(argument in ("--help", "-h") for argument in argv):
        functions = [load(name) for name in NAMES]
        text = USAGE % "\n".join(f"  {f.name}\n      {f.description}" for f in functions)
        return 0 if write(text.encode()) else Failed.exit_code
    # One short call: its memory is freed with the process.
    gc.disable()
    # A library's output must not end up beside the document.
    stdout, sys.stdout = sys.stdout, sys.stderr
    try:
        document, exit_code = _answer(argv, environ)
    finally:
        sys.stdout = stdout
    return exit_code if write(encode(document) + b"\n") else Failed.exit_code


def _answer(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[dict[str, Any], int]:
    try:
        _interrupt_on_sigterm()
        document = _dispatch(argv, environ)
    except SessionManagerError as error:
        return error.document(), error.exit_code
    except KeyboardInterrupt:
        interrupted = Interrupted(INTERRUPTED)
        return interrupted.document(), interrupted.exit_code
    except ImportError as error:
        name = (error.name or "").partition(".")[0]
        missing = Failed(
            f"the Python package {name!r} is missing or broken ({error}); install it: python3 -m pip install {name}",
            code="missing_package",
        )
        return missing.document(), missing.exit_code
    except BaseException as error:
        import traceback

        traceback.print_exc(file=sys.stderr)
        failed = Failed(f"internal error ({type(error).__name__}: {error}); the traceback is on standard error")
        return failed.document(), failed.exit_code
    return document, PARTIAL_EXIT_CODE if document.get("code") == "partial" else 0


def _interrupt_on_sigterm() -> None:
    import signal

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        # A signal that nohup ignores stays ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def _dispatch(argv: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    if "--list" in argv:
        return {"functions": [catalogue_entry(load(name)) for name in NAMES]}
    if not argv:
        raise UsageError("no skill given: run_skill.py session_manager <function> ['<json object>' | -]", code="usage")
    skill, *rest = argv
    if skill not in SKILL_NAMES:
        raise UsageError(f"unknown skill {skill!r}; this runner has session_manager", code="unknown_skill")
    if not rest:
        raise UsageError(f"no function given; known functions: {', '.join(NAMES)}", code="unknown_function")
    name, *texts = rest
    function = _function(name)
    if len(texts) > 1:
        raise UsageError(
            "more than one argument after the function; give one JSON object, in quotes, or - for standard input",
            code="usage",
        )
    return call(function, _object(texts[0] if texts else "{}"), environ)


def call(function: Function, given: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """Calls a function with unchecked arguments, and returns its document. Raises SessionManagerError."""
    arguments = _arguments(function, given)

    from session_manager.files.liveness import now_ms
    from session_manager.functions.context import Context
    from session_manager.settings import read_settings
    from session_manager.stores.registry import open_volume

    settings = read_settings(environ)
    return function.run(Context(settings, open_volume(settings), now_ms), arguments)


def _function(name: str) -> Function:
    plain = name.replace("-", "_").lower()
    if plain in NAMES:
        return load(plain)
    raise UsageError(
        f"unknown function {name!r}{_nearest(plain, NAMES) or '; known functions: ' + ', '.join(NAMES)}",
        code="unknown_function",
    )


def _nearest(name: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _object(text: str) -> dict[str, Any]:
    """Reads the one JSON object that holds the arguments. Raises UsageError."""
    data = _standard_input() if text == "-" else text.encode("utf-8", "surrogateescape")
    try:
        value = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the arguments are not valid JSON: {error}", code="bad_json") from error
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
        raise UsageError(f"the arguments must be one JSON object, not {kind}", code="bad_json")
    return value


def _arguments(function: Function, value: Mapping[str, Any]) -> msgspec.Struct:
    """Reads the arguments laxly: ``"60"`` is 60, ``"true"`` is true. Raises UsageError."""
    known = function.arguments.__struct_fields__
    for name in value:
        if name not in known:
            hint = _nearest(name, known) or f"; {function.name} takes: {', '.join(known)}"
            raise UsageError(f"unknown argument {name!r}{hint}", code="unknown_argument", argument=name)
    try:
        return msgspec.convert(value, function.arguments, strict=False)
    except (msgspec.ValidationError, OverflowError) as error:
        raise UsageError(f"{function.name}: {error}", code="bad_argument") from error


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise UsageError("standard input is closed; give the arguments as one JSON object instead of -", code="usage")
    return sys.stdin.buffer.read()


def catalogue_entry(function: Function) -> dict[str, Any]:
    """Returns a function's name, its description, and the JSON Schema of its arguments."""
    _, components = msgspec.json.schema_components((function.arguments,))
    schema = components[function.arguments.__name__]
    return {
        "name": function.name,
        "description": function.description,
        "arguments": {k: v for k, v in schema.items() if k not in ("title", "description")},
    }


def encode(document: dict[str, Any]) -> bytes:
    """Writes a document as JSON that strict parsers read: a lone surrogate becomes U+FFFD."""
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError:
        import json

        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def write(data: bytes) -> bool:
    """Prints the answer; returns False when that fails. A closed pipe is no failure."""
    if sys.stdout is None:
        return False
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        # Python's own flush at exit must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"the result cannot be written: {error}\n")
            return False
    return True
