"""Replies a second, each in a new session that is stored, beside the bare model asked by the same client.

The model replies at once, so what is measured is what a service adds; a real one takes seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import httpx

from benchmarks.aria_api import Database, server
from benchmarks.bare_model import bare_model
from benchmarks.report import ratio, say

# By how many ask at once, how many replies.
AT_ONCE = {1: 100, 32: 320}
SMALLEST = {1: 5, 4: 8}
ROUNDS = 7
_SAID = "what is there to say?"
_LAST = {"service": b"event: done", "model": b"[DONE]"}


def run(asking: Mapping[int, int], rounds: int | None) -> None:
    """Measures and prints."""
    rounds = rounds or ROUNDS
    found: dict[tuple[str, int], list[float]] = {}
    with bare_model() as model, server() as running:
        database = Database(running, "streams")
        with database.served(ARIA_LLM_BASE_URL=model, ARIA_LLM_MODEL="bare") as client:
            asked: dict[str, tuple[str, dict[str, Any]]] = {
                "service": (str(client.base_url.join("/api/engine/chat/stream")), {"message": _SAID}),
                "model": (
                    f"{model}/chat/completions",
                    {"model": "bare", "stream": True, "messages": [{"role": "user", "content": _SAID}]},
                ),
            }
            say(f"replies, {rounds} rounds of {' and '.join(map(str, asking.values()))}")
            for number in range(-1, rounds):
                for at_once, replies in asking.items():
                    for who, (url, body) in asked.items():
                        seconds = asyncio.run(_ask(url, body, _LAST[who], at_once, replies))
                        if number >= 0:
                            found.setdefault((who, at_once), []).append(replies / seconds)
        stored = database.ask(
            "SELECT (SELECT count(*) FROM chat_sessions), (SELECT sum(message_count) FROM chat_sessions)"
        )
        total = (rounds + 1) * sum(asking.values())
        assert stored == [(total, 2 * total)], stored
    print("replies a second, in a new session each")
    for at_once in asking:
        print(f"  {at_once} at once: {_beside(found['service', at_once], found['model', at_once])}")
    print("all of them were stored\n", flush=True)


def _beside(service: Sequence[float], model: Sequence[float]) -> str:
    figures = f"service {median(service):.0f}, bare model {median(model):.0f}"
    return f"{figures}, ratio {ratio(service, model)}; a reply every {1000 / median(service):.1f} ms"


async def _ask(url: str, body: dict[str, Any], last: bytes, at_once: int, replies: int) -> float:
    """Returns how many seconds so many replies took."""
    left = iter(range(replies))
    async with httpx.AsyncClient(
        timeout=600.0, trust_env=False, limits=httpx.Limits(max_keepalive_connections=at_once)
    ) as client:

        async def one_after_another() -> None:
            for _ in left:
                async with client.stream("POST", url, json=body) as answer:
                    heard = b"".join([part async for part in answer.aiter_raw()])
                assert last in heard, heard

        begin = time.perf_counter()
        await asyncio.gather(*(one_after_another() for _ in range(at_once)))
        return time.perf_counter() - begin
