"""A small OpenAI-compatible endpoint over real HTTP, in a thread.

How it replies stands in the message that it is asked: ``say <n>`` gives n words, ``hold <n>`` gives n words and then
nothing until whoever asked is gone, anything else is one of BEHAVIOURS. It keeps what it was asked.
"""

from __future__ import annotations

import contextlib
import json
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
PATIENCE_S = 60.0


def words(n: int) -> str:
    """The reply to ``say n``."""
    return "".join(f"word-{number} " for number in range(n))


def delta(text: str | None, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None, **choice}]}


class SmallModel:
    """``pause_s`` is between two words. ``gate`` must be set for ``hold`` to go on to a complete reply.

    Another ``handler`` gives it other behaviours.
    """

    def __init__(self, handler: type[SmallModelHandler] | None = None) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.gone = Counter[str]()
        self.pause_s = 0.0
        self.gate = threading.Event()
        self.lock = threading.Lock()

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 512

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that has gone away is what some tests are about."""

        class Handler(handler or SmallModelHandler):  # type: ignore[misc]
            model = self

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def env(self) -> dict[str, str]:
        """What a service needs to ask it."""
        return {"ARIA_LLM_BASE_URL": self.url, "ARIA_LLM_API_KEY": "sk-of-the-service", "ARIA_LLM_MODEL": "small-1"}

    def stop(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()

    def times_asked(self, message: str) -> int:
        with self.lock:
            return sum(asked["messages"][-1]["content"] == message for asked in self.asked)


class SmallModelHandler(BaseHTTPRequestHandler):
    model: SmallModel
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.model.lock:
            self.model.asked.append(body)
            self.model.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.path != "/v1/chat/completions":
            return self.refuse(404, "no such path")
        said = body["messages"][-1]["content"]
        what, _, rest = said.partition(" ")
        try:
            if what in ("say", "hold"):
                return self.speak(what, int(rest.split()[0]), said)
            return BEHAVIOURS.get(what, SmallModelHandler.unknown)(self)
        except (BrokenPipeError, ConnectionResetError):
            with self.model.lock:
                self.model.gone[said] += 1
            self.close_connection = True

    def speak(self, what: str, n: int, said: str) -> None:
        self.begin()
        for number in range(n):
            self.event(delta(f"word-{number} "))
            time.sleep(self.model.pause_s)
        if what == "hold":
            self.until_alone()
        self.complete()

    def until_alone(self) -> None:
        """Waits until whoever asked has gone away, or the gate is open."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and not self.model.gate.is_set():
            if select.select([self.connection], [], [], 0.02)[0] and not self.connection.recv(1):
                raise ConnectionResetError

    def begin(self, kind: str = "text/event-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def raw(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def event(self, document: Any) -> None:
        self.raw(b"data: " + json.dumps(document).encode() + b"\n\n")

    def complete(self, reason: str = "stop") -> None:
        self.event(delta(None, finish_reason=reason))
        self.event({"choices": [], "usage": USAGE})
        self.raw(b"data: [DONE]\n\n")
        self.raw(b"")

    def cut(self) -> None:
        """Ends the connection in the middle of an answer."""
        self.close_connection = True

    def refuse(self, status: int, message: str) -> None:
        data = json.dumps({"error": {"message": message, "type": "x"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def unknown(self) -> None:
        self.begin()
        self.event(delta("You said so."))
        self.complete()

    def log_message(self, *args: object) -> None:
        """Nothing of it belongs into a test's output."""


def _breaks_off(handler: SmallModelHandler) -> None:
    handler.begin()
    handler.event(delta("half a "))
    handler.cut()


def _ends_early(handler: SmallModelHandler) -> None:
    handler.begin()
    handler.event(delta("half a "))
    handler.raw(b"")


def _ends_for_no_reason(handler: SmallModelHandler) -> None:
    """Each piece has a reason without a word in it, and the last one does not come."""
    handler.begin()
    handler.event(delta("half a ", finish_reason=""))
    handler.raw(b"")


def _ends_in_failure(handler: SmallModelHandler) -> None:
    handler.begin()
    handler.event(delta("half a "))
    handler.complete("Network_Error")


def _fails_midway(handler: SmallModelHandler) -> None:
    handler.begin()
    handler.event(delta("half a "))
    handler.event({"error": {"message": "out of\nmemory for sk-of-the-service", "code": 500}})
    handler.raw(b"")


def _says_nothing(handler: SmallModelHandler) -> None:
    handler.begin()
    handler.event(delta(" \n"))
    handler.complete()


def _is_silent(handler: SmallModelHandler) -> None:
    handler.begin()
    handler.event(delta("one word "))
    handler.until_alone()


def _trickles(handler: SmallModelHandler) -> None:
    handler.begin()
    for _ in range(1000):
        handler.event(delta("x"))
        time.sleep(0.1)


def _says_too_much(handler: SmallModelHandler) -> None:
    handler.begin()
    for _ in range(100):
        handler.event(delta("x" * 10_000))
    handler.complete()


def _has_long_lines(handler: SmallModelHandler) -> None:
    handler.begin()
    handler.raw(b"data: " + b"x" * 2_000_000 + b"\n\n")
    handler.complete()


def _sends_a_page(handler: SmallModelHandler) -> None:
    handler.begin("text/html")
    handler.raw(b"<html>data: no</html>\n")
    handler.raw(b"")


def _sends_nonsense(handler: SmallModelHandler) -> None:
    handler.begin()
    handler.raw(b"data: [[[[\n\n")
    handler.raw(b"")


def _cuts_emoji(handler: SmallModelHandler) -> None:
    """As JavaScript does: half a character in each piece, and one half without its other; a NUL, too."""
    handler.begin()
    for text in (b"a\\ud83d", b"\\ude00b", b"\\ud83d", b"c\\u0000\\udc00", b"z\\ud83d"):
        handler.raw(b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % text)
    handler.complete()


def _is_peculiar(handler: SmallModelHandler) -> None:
    """What endpoints do that are compatible in their own way."""
    handler.begin()
    handler.raw(b": PROCESSING\r\n\r\nevent: message\r\nid: 7\r\n")
    handler.raw(b'data:{"choices": [{"delta": {"role": "assistant"}}], "usage": null}\r\n\r\n')
    handler.raw('data: {"choices": [{"delta": {"content": "one\u2028two '.encode())
    handler.raw('\u00e9"}}]}\n\ndata: {"choices": [{"delta": {"reasoning_content": "hm"}}]}\n\n'.encode())
    handler.raw(b'data: {"choices": [{"delta": {}, "finish_reason": "length"}]}\n\n')
    handler.raw(b"")


def _counts_oddly(handler: SmallModelHandler) -> None:
    handler.begin()
    handler.event(delta("ok"))
    handler.event({"choices": [], "usage": {"prompt_tokens": -1, "completion_tokens": "7"}})
    handler.raw(b"data: [DONE]\n\n")
    handler.raw(b"")


def _ends_oddly(handler: SmallModelHandler) -> None:
    handler.begin()
    handler.raw(b'data: {"choices": [{"delta": {"content": "ok"}, "finish_reason": "st\\ud83dop"}]}\n\n')
    handler.raw(b"")


def _knows_no_options(handler: SmallModelHandler) -> None:
    if "stream_options" in handler.model.asked[-1]:
        return handler.refuse(400, "Unrecognized request argument supplied: stream_options")
    return handler.unknown()


def _redirects(handler: SmallModelHandler) -> None:
    handler.send_response(307)
    handler.send_header("Location", handler.model.url + "/elsewhere")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


BEHAVIOURS: dict[str, Callable[[SmallModelHandler], None]] = {
    "breaks-off": _breaks_off,
    "ends-early": _ends_early,
    "ends-for-no-reason": _ends_for_no_reason,
    "ends-in-failure": _ends_in_failure,
    "fails-midway": _fails_midway,
    "says-nothing": _says_nothing,
    "is-silent": _is_silent,
    "trickles": _trickles,
    "says-too-much": _says_too_much,
    "has-long-lines": _has_long_lines,
    "sends-a-page": _sends_a_page,
    "sends-nonsense": _sends_nonsense,
    "cuts-emoji": _cuts_emoji,
    "is-peculiar": _is_peculiar,
    "counts-oddly": _counts_oddly,
    "ends-oddly": _ends_oddly,
    "knows-no-options": _knows_no_options,
    "redirects": _redirects,
    "refuses-the-key": lambda handler: handler.refuse(401, "Incorrect API key provided: sk-of-the-service"),
    "repeats-the-key": lambda handler: handler.refuse(400, "x" * 190 + "No sk-of-the-service is known"),
    "is-busy": lambda handler: handler.refuse(429, "slow down"),
    "is-broken": lambda handler: handler.refuse(500, "boom\n" * 500),
    "knows-no-such-model": lambda handler: handler.refuse(404, "The model `x` does not exist"),
}


@contextlib.contextmanager
def small_model() -> Iterator[SmallModel]:
    model = SmallModel()
    try:
        yield model
    finally:
        model.stop()
