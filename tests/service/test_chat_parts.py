"""The parts of talking by themselves: heartbeats, slow readers, the limit of replies at once, settings, the page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence

import pytest
from chats import Chats
from service import Databases, Service
from sqlalchemy.ext.asyncio import AsyncEngine

from session_manager.core.errors import UsageError
from session_manager.service.api import chat
from session_manager.service.config import read_config
from session_manager.service.db.ownership import EVERYBODY
from session_manager.service.model.base import End, ModelError, Turn
from session_manager.service.model.stream import pieces
from session_manager.service.problems import Unavailable
from session_manager.service.talk import talks
from session_manager.service.talk.talk import Talk
from session_manager.service.talk.talks import Ask, Talks


class Slow:
    """A model that says ``n`` words, with a pause in their middle until ``go`` is set."""

    longest_s = 60.0

    def __init__(self, n: int = 10) -> None:
        self.go = asyncio.Event()
        self.ended = asyncio.Event()
        self._n = n

    def named(self, asked: str | None, kept: str | None) -> str:
        return "slow"

    async def reply(self, name: str, turns: Sequence[Turn]) -> AsyncGenerator[str | End, None]:
        try:
            for n in range(self._n):
                if n == self._n // 2:
                    await self.go.wait()
                yield f"{n} "
            yield End("stop")
        finally:
            self.ended.set()


@pytest.fixture
def chats(database: str, server: Databases) -> Chats:
    return Chats(server, database)


async def begun(engine: AsyncEngine, model: Slow) -> Talk:
    return await Talks(engine, model).begin(EVERYBODY, Ask("hello"))


def test_a_silent_stream_shows_that_it_lives(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chat.HEARTBEAT_S == 15
    monkeypatch.setattr(chat, "HEARTBEAT_S", 0.05)

    async def work(engine: AsyncEngine) -> list[bytes]:
        model = Slow()
        found = []
        async for part in chat._written(await begun(engine, model)):
            found.append(part)
            if found.count(b": still here\n\n") == 3:
                model.go.set()
        return found

    parts = chats.run(work)
    kinds = [part.split(b"\n")[0] for part in parts]
    assert kinds[0] == b"event: session"
    assert kinds.count(b": still here") >= 3
    assert kinds.index(b"event: delta") < kinds.index(b": still here") < len(kinds) - 1
    assert kinds[-1] == b"event: done"
    assert all(part.endswith(b"\n\n") and part.count(b"\n\n") == 1 for part in parts)


def test_a_slow_reader_gets_all_in_one_and_stops_nobody(chats: Chats) -> None:
    async def work(engine: AsyncEngine) -> list[str]:
        model = Slow(1000)
        model.go.set()
        talk = await begun(engine, model)
        await asyncio.wait([talk.task])
        found = [event async for event in talk.events(60)]
        assert [event and event.name for event in found] == ["session", "delta", "done"]
        return [str(event.data["content"]) for event in found[1:] if event is not None]

    assert chats.run(work) == ["".join(f"{n} " for n in range(1000))] * 2
    assert chats.counts() == (1, 2)


@pytest.mark.parametrize("early", [False, True])
def test_whoever_leaves_ends_the_model_s_work(chats: Chats, early: bool) -> None:
    async def work(engine: AsyncEngine) -> None:
        model = Slow()
        talk = await begun(engine, model)
        if not early:
            events = talk.events(60)
            assert [(await anext(events)).name for _ in range(2)] == ["session", "delta"]
        talk.leave()
        async with asyncio.timeout(30):
            rest = [event async for event in talk.events(60)]
        assert all(event and event.name in ("session", "delta") for event in rest)
        assert talk.task.done()
        if not early:
            assert model.ended.is_set()

    chats.run(work)
    assert chats.counts() == (0, 0)


def test_there_is_a_limit_of_replies_at_once(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talks, "MOST_AT_ONCE", 2)

    async def work(engine: AsyncEngine) -> None:
        model = Slow()
        under_way = Talks(engine, model)
        first = await under_way.begin(EVERYBODY, Ask("1"))
        second = await under_way.begin(EVERYBODY, Ask("2"))
        with pytest.raises(Unavailable) as refused:
            await under_way.begin(EVERYBODY, Ask("3"))
        assert refused.value.code == "too_many_talks"
        first.leave()
        await asyncio.wait([first.task])
        third = await under_way.begin(EVERYBODY, Ask("4"))
        model.go.set()
        await asyncio.wait([second.task, third.task])

    chats.run(work)
    assert chats.counts() == (2, 4)


def test_the_end_of_the_service_is_told_and_waited_for(chats: Chats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talks, "LAST_WORDS_S", 0.05)

    async def work(engine: AsyncEngine) -> None:
        under_way = Talks(engine, Slow())
        talk = await under_way.begin(EVERYBODY, Ask("hello"))
        await under_way.finish()
        assert talk.task.done()
        last = [event async for event in talk.events(60)][-1]
        assert last is not None
        assert (last.name, last.data["code"]) == ("error", "shutting_down")
        with pytest.raises(Unavailable) as refused:
            await under_way.begin(EVERYBODY, Ask("hello"))
        assert refused.value.code == "shutting_down"

    chats.run(work)
    assert chats.counts() == (0, 0)


def read(*reasons: str | None) -> list[str | End]:
    """What a stream comes to whose chunks have one word each and these reasons, and that then just ends."""

    async def data() -> AsyncGenerator[bytes, None]:
        for reason in reasons:
            yield json.dumps({"choices": [{"delta": {"content": "word "}, "finish_reason": reason}]}).encode()

    async def main() -> list[str | End]:
        return [piece async for piece in pieces(data())]

    return asyncio.run(main())


@pytest.mark.parametrize(
    "reason",
    ["stop", "length", "tool_calls", "function_call", "content_filter", "eos", "stop_sequence", "end_turn", "tomorrow"],
)
def test_a_reason_known_or_not_ends_a_reply(reason: str) -> None:
    assert read(None, "", reason) == ["word ", "word ", "word ", End(reason)]


@pytest.mark.parametrize(
    "reason", ["error", "ERROR", "network_error", "cancelled", "canceled", "abort", " timeout", "", " "]
)
def test_a_failure_or_nothing_for_a_reason_ends_none(reason: str) -> None:
    with pytest.raises(ModelError) as broken:
        read(None, reason)
    assert broken.value.code == "model_broke_off"


LLM = {"ARIA_LLM_BASE_URL": "https://models.example/v1/", "ARIA_LLM_MODEL": "m", "ARIA_LLM_API_KEY": "sk-secret"}


def test_settings_of_the_model_are_read() -> None:
    found = read_config({**LLM, "ARIA_LLM_TIMEOUT": "2.5"}).llm
    assert (found.base_url, found.model, found.api_key, found.timeout_s) == (
        "https://models.example/v1",
        "m",
        "sk-secret",
        2.5,
    )
    assert read_config({}).llm.base_url is None
    assert read_config({**LLM, "ARIA_LLM_API_KEY": " "}).llm.api_key is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"ARIA_LLM_BASE_URL": "models.example/v1"},
        {"ARIA_LLM_BASE_URL": "ftp://models.example"},
        {"ARIA_LLM_BASE_URL": "https://"},
        {"ARIA_LLM_BASE_URL": "https://user:secret@models.example"},
        {"ARIA_LLM_BASE_URL": "https://models.example?key=secret"},
        {"ARIA_LLM_BASE_URL": "https://models.example:port"},
        {"ARIA_LLM_BASE_URL": "https://[::1"},
        {"ARIA_LLM_BASE_URL": ""},
        {"ARIA_LLM_MODEL": ""},
        {"ARIA_LLM_MODEL": "m" * 201},
        {"ARIA_LLM_API_KEY": "a secret"},
        {"ARIA_LLM_API_KEY": "s\u00e9cret"},
        {"ARIA_LLM_TIMEOUT": "0"},
        {"ARIA_LLM_TIMEOUT": "nan"},
        {"ARIA_LLM_TIMEOUT": "soon"},
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_said(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError) as refused:
        read_config({**LLM, **wrong})
    assert refused.value.code == "bad_setting"
    assert "ARIA_LLM" in refused.value.message
    assert "secret" not in refused.value.message


def test_the_page_runs_our_own_script_only(shared_service: Service) -> None:
    page = shared_service.client.get("/chat")
    policy = page.headers["content-security-policy"]
    assert "script-src 'self'; connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.text.count("<script") == page.text.count('<script src="/chat.js" defer>') == 1
    assert "only echo" in page.text
    script = shared_service.client.get("/chat.js")
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "innerHTML" not in script.text
    assert "script-src" not in shared_service.client.get("/login").headers["content-security-policy"]
    assert shared_service.client.get("/api/engine/sessions").json()["total"] == 0
