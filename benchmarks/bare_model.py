"""A model endpoint that does as little as one can: whatever it is asked, it streams the same words, with no pause.

usage: python -m benchmarks.bare_model; prints its address, and runs until it is ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

WORDS = 20
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)


def _event(document: dict[str, Any] | None) -> bytes:
    data = b"[DONE]" if document is None else json.dumps(document).encode()
    return b"%x\r\ndata: %s\n\n\r\n" % (len(data) + 8, data)


def _choice(text: str | None, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


_REPLY = [_event(_choice(f"word-{n} ")) for n in range(WORDS)]
_END = [
    _event(_choice(None, "stop")),
    _event({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": WORDS}}),
    _event(None) + b"0\r\n\r\n",
]


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            await reader.readexactly(int(length[1]) if length else 0)
            writer.write(_HEAD)
            for event in (*_REPLY, *_END):
                writer.write(event)
                await writer.drain()
    writer.close()


async def _serve() -> None:
    served = await asyncio.start_server(_answer, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{served.sockets[0].getsockname()[1]}/v1", flush=True)
    await served.serve_forever()


@contextlib.contextmanager
def bare_model() -> Iterator[str]:
    """Runs it in a process of its own, and gives its address."""
    command = [sys.executable, "-m", "benchmarks.bare_model"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


if __name__ == "__main__":
    asyncio.run(_serve())
