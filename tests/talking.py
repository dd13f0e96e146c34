"""Clients of /api/engine/chat: the stream and the WebSocket, with the same words for both."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from service import Service
from websockets.sync.client import ClientConnection, connect

STREAM = "/api/engine/chat/stream"
Event = tuple[str, dict[str, Any]]
Say = Callable[..., list[Event]]


def parse(block: str) -> Event:
    """Reads one server-sent event."""
    first, second = block.split("\n")
    assert first.startswith("event: ")
    assert second.startswith("data: ")
    return first[7:], json.loads(second[6:])


def events_of(text: str) -> list[Event]:
    """Reads a whole stream; comments are left out."""
    assert text.endswith("\n\n")
    return [parse(block) for block in text.split("\n\n")[:-1] if not block.startswith(":")]


def body(message: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"message": message, **{name: value for name, value in fields.items() if value is not None}}


def by_stream(service: Service, message: str, **fields: Any) -> list[Event]:
    """Talks over the stream and returns all events; a refusal counts as an ``error``."""
    answer = service.client.post(STREAM, json=body(message, fields))
    return events_of(answer.text) if answer.status_code == 200 else [("error", answer.json())]


def by_socket(service: Service, message: str, **fields: Any) -> list[Event]:
    """Talks over a WebSocket of its own and returns all events."""
    with socket(service) as line:
        return over(line, message, **fields)


@contextlib.contextmanager
def socket(service: Service, token: str | None = None, **options: Any) -> Iterator[ClientConnection]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = service.url.replace("http://", "ws://") + "/api/engine/chat/ws"
    with connect(url, additional_headers=headers, proxy=None, open_timeout=60, **options) as line:
        yield line


def over(line: ClientConnection, message: str, **fields: Any) -> list[Event]:
    """Says something on an open connection and returns the events, to the last one."""
    line.send(json.dumps(body(message, fields)))
    return heard(line)


def heard(line: ClientConnection) -> list[Event]:
    """Returns events up to the next ``done`` or ``error``."""
    found: list[Event] = []
    while not found or found[-1][0] not in ("done", "error"):
        found.append(one(line))
    return found


def one(line: ClientConnection) -> Event:
    frame = json.loads(line.recv(timeout=60))
    assert set(frame) == {"event", "data"}
    return frame["event"], frame["data"]


@contextlib.contextmanager
def listening(client: httpx.Client, message: str, **fields: Any) -> Iterator[Iterator[Event]]:
    """A stream that is read event by event; leaving the block closes the connection."""
    with client.stream("POST", STREAM, json=body(message, fields)) as answer:
        assert answer.status_code == 200, answer.read()
        yield _events(answer)


def _events(answer: httpx.Response) -> Iterator[Event]:
    rest = ""
    for text in answer.iter_text():
        *blocks, rest = (rest + text).split("\n\n")
        yield from (parse(block) for block in blocks if not block.startswith(":"))


def text_of(events: list[Event]) -> str:
    """The reply as its pieces make it."""
    return "".join(data["content"] for name, data in events if name == "delta")


def done(events: list[Event]) -> dict[str, Any]:
    """The data of ``done``; fails when there is none."""
    assert [name for name, _ in events if name != "delta"] == ["session", "done"], events
    assert events[-1][0] == "done"
    return events[-1][1]


def error(events: list[Event]) -> str:
    """The code of the ``error`` that ended it."""
    name, data = events[-1]
    assert name == "error", events
    assert data["error"]
    return str(data["code"])
