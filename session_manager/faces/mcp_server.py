"""The MCP face: every function as a tool, over standard input and output.

Invariants:

- Calls work as in the runner: the same arguments, the same document. They run one at a time, in a thread, so that the
  connection stays alive meanwhile.
- Standard output carries the protocol; everything that code prints goes to standard error.
- A failure becomes a tool error with our sentence as its text: the connection outlives it.
- No answer floods its reader: a long document is cut, and states that.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from typing import IO, Any, cast

import anyio
import msgspec
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp_types import (
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

from session_manager import __version__
from session_manager.core.errors import Failed, Interrupted, SessionManagerError, UsageError
from session_manager.faces.fitting import fitted
from session_manager.faces.runner import call, catalogue_entry, encode
from session_manager.functions import NAMES, load

INSTRUCTIONS = """\
Keeps the agent's sessions clean and loses nothing: removed sessions are archived and can be restored.
After every sub-agent delegation call cleanup_after_delegation with its session id. During a work cycle call
prune_sessions with max_age_minutes 60; with dry_run true it only shows what it would do. Before a session review call
get_session_stats. Never pass force, purge with dry_run false, or erase, unless a person asked for it. A long result is
cut, and "shortened" in it says what is missing: narrow the request.
"""

READ_ONLY = frozenset(
    ("list_sessions", "show_session", "get_session_stats", "check_policy", "list_deleted", "verify_ledger", "doctor")
)
# These add or restore; all others that write are annotated as destructive, although most of them can be undone.
_ADDITIVE = frozenset(("deliver_history", "restore_session", "restore_run", "readopt_orphans", "pin_session"))
# With a limit, the next call continues where this one stopped.
_NOT_IDEMPOTENT = frozenset(("prune_sessions", "delete_sessions"))


class Turn:
    """Serializes calls: one at a time, and none once the server is stopping."""

    def __init__(self) -> None:
        self._one = anyio.Semaphore(1)
        self._ending = False

    async def __aenter__(self) -> None:
        """Waits for the turn. Raises Interrupted when the server stopped first."""
        await self._one.acquire()
        if self._ending:
            self._one.release()
            raise Interrupted("the server is stopping; nothing was done")

    async def __aexit__(self, *_: object) -> None:
        """Releases the turn."""
        self._one.release()

    async def end(self) -> None:
        """Waits until the current call is done; waiting calls never run."""
        self._ending = True
        await self._one.acquire()


def serve(environ: Mapping[str, str]) -> None:
    """Serves until standard input ends. SIGINT and SIGTERM end the process after the current call."""
    anyio.run(_serve, environ)


async def _serve(environ: Mapping[str, str]) -> None:
    turn = Turn()
    server = make_server(environ, turn)
    async with anyio.create_task_group() as group:
        group.start_soon(_end_at_signals, turn)
        async with stdio_server(stdin=anyio.wrap_file(cast(IO[str], _Lines()))) as (read, write):
            await server.run(read, write, server.create_initialization_options())
        group.cancel_scope.cancel()


class _Lines:
    """The lines of standard input, which no other code reads; a lone surrogate in a line becomes U+FFFD.

    JavaScript cuts emoji in half and escapes the remaining surrogate. The SDK drops the whole message for it, and its
    sender would wait for ever.
    """

    def __init__(self) -> None:
        self._wire = os.fdopen(os.dup(0), encoding="utf-8", errors="replace", newline="\n")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)

    def readline(self) -> str:
        """Returns the next line, an empty string at the end."""
        line = self._wire.readline()
        if "\\ud" not in line.lower():
            return line
        try:
            message = json.dumps(json.loads(line), ensure_ascii=False)
        except (ValueError, RecursionError):
            return line
        return message.encode("utf-16", "surrogatepass").decode("utf-16", "replace") + "\n"


async def _end_at_signals(turn: Turn) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            await turn.end()
            # Nothing else ends the thread that reads standard input.
            os._exit(Interrupted.exit_code)


def make_server(environ: Mapping[str, str], turn: Turn) -> Server[Any]:
    """Returns the server; its tools read ``environ`` at every call, as the runner does. Each call holds ``turn``."""

    async def list_tools(context: ServerRequestContext[Any], params: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=[_tool(name) for name in NAMES])

    async def call_tool(context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        try:
            async with turn:
                return await anyio.to_thread.run_sync(_result, params.name, params.arguments or {}, environ)
        except Interrupted as error:
            return _failure(error)

    return Server(
        "session-manager",
        version=__version__,
        title="Session manager",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _tool(name: str) -> Tool:
    entry = catalogue_entry(load(name))
    annotations = ToolAnnotations(
        read_only_hint=name in READ_ONLY,
        destructive_hint=name not in READ_ONLY | _ADDITIVE,
        idempotent_hint=name not in _NOT_IDEMPOTENT,
        open_world_hint=False,
    )
    return Tool(name=name, description=entry["description"], input_schema=entry["arguments"], annotations=annotations)


def _result(name: str, arguments: Mapping[str, Any], environ: Mapping[str, str]) -> CallToolResult:
    """Makes one call; returns the function's document, or the failure's sentence with its details."""
    try:
        # Text left in a buffer would reach the client when standard output is restored at the end.
        with contextlib.redirect_stdout(sys.stderr):
            document = fitted(_call(name, arguments, environ))
    except SessionManagerError as error:
        return _failure(error)
    return _made(_text(document), document, is_error=False)


def _failure(error: SessionManagerError) -> CallToolResult:
    document = fitted(error.document())
    details = {name: value for name, value in document.items() if name not in ("error", "code")}
    text = f"{document['error']} (code {error.code})" + (f"\n{_text(details)}" if details else "")
    return _made(text, document, is_error=True)


def _call(name: str, arguments: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    if name not in NAMES:
        raise UsageError(f"unknown tool {name!r}; known tools: {', '.join(NAMES)}", code="unknown_function")
    try:
        return call(load(name), arguments, environ)
    except SessionManagerError:
        raise
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        raise Failed(
            f"the Python package {package!r} is missing or broken ({error}); install it: pip install {package}",
            code="missing_package",
        ) from error
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        raise Failed(f"internal error ({type(error).__name__}: {error}); the log has the traceback") from error


def _text(document: Mapping[str, Any]) -> str:
    return encode(dict(document)).decode()


def _made(text: str, document: Mapping[str, Any], *, is_error: bool) -> CallToolResult:
    # Via JSON: the protocol cannot carry a lone surrogate, which a label may hold.
    plain = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    structured = msgspec.json.decode(encode(dict(document)))
    return CallToolResult(content=[TextContent(text=plain)], structured_content=structured, is_error=is_error)
