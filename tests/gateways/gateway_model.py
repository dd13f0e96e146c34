"""The model behind a real gateway: small, deterministic, and slow or silent when told.

It replies to the last word of what a person said (gateways put a time and the sender in front of it): ``heard <word>``.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from small_model import PATIENCE_S, SmallModel, SmallModelHandler, delta

MODEL = "small-1"


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, whose content is a string or a list of parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def said(messages: list[dict[str, Any]]) -> list[str]:
    """The last word of each message of a person or the model: a conversation as one reads it."""
    return [words[-1] for m in messages if m["role"] in ("user", "assistant") and (words := text_of(m).split())]


class GatewayModel(SmallModel):
    """``delay_s`` is before each reply. A reply to a held word waits until that word is let go.

    A word that ``calls`` names is answered with that call of a tool first, and then as any other.
    """

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.delay_s = 0.0
        self.calls: dict[str, dict[str, Any]] = {}
        self.arrived = threading.Condition()
        self._held: dict[str, threading.Event] = {}
        self._seen: dict[str, list[str]] = {}

    def hold(self, word: str) -> None:
        self._held[word] = threading.Event()

    def let_go(self, word: str) -> None:
        self._held[word].set()

    def wait_for(self, word: str, timeout_s: float = 20.0) -> list[str]:
        """What the model was told when it was asked about that word, as soon as it has been: its context."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: word in self._seen, timeout_s), f"the model was never asked {word}"
            return self._seen[word]

    def note(self, word: str, context: list[str]) -> None:
        with self.arrived:
            self._seen[word] = context
            self.arrived.notify_all()

    def pause(self, word: str) -> None:
        if self.delay_s:
            threading.Event().wait(self.delay_s)
        if word in self._held:
            self._held[word].wait(PATIENCE_S)


class _Handler(SmallModelHandler):
    model: GatewayModel

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        messages = body["messages"]
        context = said(messages)
        word = said([m for m in messages if m["role"] == "user"])[-1]
        self.model.note(word, context)
        call = self.model.calls.get(word)
        try:
            self.begin()
            if call and messages[-1]["role"] != "tool":
                return self.call_tool(call)
            self.event(delta(""))
            self.model.pause(word)
            self.event(delta(f"heard {word}"))
            self.complete()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def call_tool(self, call: dict[str, Any]) -> None:
        function = {"name": call["name"], "arguments": json.dumps(call["arguments"])}
        tool = {"index": 0, "id": "call_1", "type": "function", "function": function}
        self.event({"choices": [{"index": 0, "delta": {"tool_calls": [tool]}, "finish_reason": None}]})
        self.complete("tool_calls")


@contextmanager
def gateway_model() -> Iterator[GatewayModel]:
    model = GatewayModel()
    try:
        yield model
    finally:
        for word in list(model._held):
            model.let_go(word)
        model.stop()
