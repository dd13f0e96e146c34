"""The history client: many marks at once, older services, and a clear sentence for whatever a service does wrong."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Any

import httpx
import pytest
import respx
from small_aria import Hanging, SmallAria
from support import CLOSED_API

from session_manager.core.errors import UsageError
from session_manager.history import client as client_module
from session_manager.history import connection as connection_module
from session_manager.history import marking
from session_manager.history.client import Client, Outcome
from session_manager.history.connection import Unavailable
from session_manager.history.marking import Mark, Status
from session_manager.history.rows import Name
from session_manager.settings import read_settings

URL = "http://aria.test/api"
TOKEN = "s3cret-token"


class Clock:
    """Time that passes only when somebody sleeps, or is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def marks(*session_ids: str, agent: str = "main", status: Status = "ended") -> dict[Name, Status]:
    return {(agent, session_id): status for session_id in session_ids}


def mark(url: str, wanted: Mapping[Name, Mark], token: str | None = None, budget: float = 10.0) -> Outcome:
    with Client(url, token, budget) as client:
        return client.mark(wanted)


def names(*session_ids: str, agent: str = "main") -> set[Name]:
    return {(agent, session_id) for session_id in session_ids}


# A service that takes marks in bulk.


def test_many_marks_are_one_request(aria: SmallAria) -> None:
    wanted = [f"s{i}" for i in range(5000)]
    aria.add_all(wanted[1:])
    outcome = mark(aria.url, marks(*wanted))
    assert outcome == Outcome(names(*wanted[1:]), names("s0"), {}, None)
    assert [(r.method, r.path) for r in aria.requests] == [("PATCH", "/api/sessions")]
    assert aria.ended() == set(wanted[1:])


def test_more_than_fit_are_sent_in_chunks(aria: SmallAria, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marking, "MANY", 10)
    wanted = [f"s{i}" for i in range(25)]
    aria.add_all(wanted)
    assert mark(aria.url, marks(*wanted)).delivered == names(*wanted)
    assert [len(r.body["sessions"]) for r in aria.requests] == [10, 10, 5]


def test_each_status_is_a_request_of_its_own(aria: SmallAria) -> None:
    aria.add("gone")
    aria.add("back", status="ended")
    outcome = mark(aria.url, marks("gone") | marks("back", status="active"))
    assert outcome.delivered == names("gone", "back")
    assert (aria.status("gone"), aria.status("back")) == ("ended", "active")
    assert [r.body["status"] for r in aria.requests] == ["ended", "active"]


def test_a_namesake_in_another_agent_is_left_alone(aria: SmallAria, older_aria: SmallAria) -> None:
    for service in (aria, older_aria):
        for agent in ("main", "other"):
            service.add("same", agent)
        assert mark(service.url, marks("same", agent="other")).delivered == names("same", agent="other")
        assert (service.status("same"), service.status("same", "other")) == ("active", "ended")


def test_a_request_that_is_too_large_is_halved(aria: SmallAria) -> None:
    wanted = [f"s{i}" for i in range(100)]
    aria.add_all(wanted)
    aria.most = 30
    assert mark(aria.url, marks(*wanted)) == Outcome(names(*wanted), set(), {}, None)
    assert len(aria.requests) == 1 + 2 + 4


def test_a_mark_that_is_refused_does_not_block_the_others(aria: SmallAria) -> None:
    wanted = [f"s{i}" for i in range(1000)]
    aria.add_all(wanted)
    aria.refuses = lambda session_id: session_id in ("s7", "s993")
    outcome = mark(aria.url, marks(*wanted))
    assert outcome.refused.keys() == names("s7", "s993")
    assert "422" in outcome.refused["main", "s7"]
    assert outcome.delivered == names(*wanted) - names("s7", "s993")
    assert outcome.error is None
    assert len(aria.requests) < 50


def test_a_service_that_refuses_everything_is_not_asked_for_ever(aria: SmallAria) -> None:
    aria.refuses = lambda session_id: True
    outcome = mark(aria.url, marks(*(f"s{i}" for i in range(5000))))
    assert (outcome.delivered, outcome.missing) == (set(), set())
    assert outcome.error is not None
    assert len(aria.requests) == 64


# An older service.


@pytest.mark.parametrize("cap", [200, 50])
@pytest.mark.parametrize("says", [("total", "page", "limit", "pages"), ("pages",), ("total",), ("limit",), ()])
def test_an_older_service_is_read_to_the_end_whatever_it_says(
    older_aria: SmallAria, cap: int, says: tuple[str, ...]
) -> None:
    older_aria.cap, older_aria.says = cap, says
    older_aria.add_all(f"s{i}" for i in range(1000))
    wanted = ["s0", "s250", "s777", "s999"]
    outcome = mark(older_aria.url, marks(*wanted, "nobody"))
    assert outcome == Outcome(names(*wanted), names("nobody"), {}, None)
    assert older_aria.ended() == set(wanted)
    needed = 1000 // cap
    # Without a word about the end, one more page is needed to see it.
    assert older_aria.count() in ({"PATCH": 1 + 4, "GET": needed}, {"PATCH": 1 + 4, "GET": needed + 1})


def test_a_service_that_answers_every_page_with_the_first(older_aria: SmallAria) -> None:
    older_aria.pages, older_aria.says = False, ("pages",)
    older_aria.add_all(f"s{i}" for i in range(1000))
    outcome = mark(older_aria.url, marks("s1", "s999"))
    assert (outcome.delivered, outcome.missing) == (names("s1"), names("s999"))
    assert older_aria.count()["GET"] == 2


def test_a_service_that_finds_the_limit_too_large(older_aria: SmallAria) -> None:
    older_aria.add_all(f"s{i}" for i in range(120))
    refusal = (422, {}, b"{}")
    older_aria.prepared = [(405, {}, b""), refusal]
    assert mark(older_aria.url, marks("s119")).delivered == names("s119")
    assert [r.query.get("limit") for r in older_aria.requests if r.method == "GET"] == ["200", "50", "50", "50"]
    older_aria.prepared = [(405, {}, b""), refusal, refusal]
    assert mark(older_aria.url, marks("s118")).delivered == names("s118")


def test_hidden_rows_are_asked_for(older_aria: SmallAria) -> None:
    for session_id, kind in (("a", "cron"), ("b", "runtime"), ("c", "chat")):
        older_aria.add(session_id, session_type=kind)
    assert mark(older_aria.url, marks("a", "b", "c")).delivered == names("a", "b", "c")


def test_every_row_of_a_session_is_told_and_an_ended_one_is_not_told_again(older_aria: SmallAria) -> None:
    older_aria.add("twice")
    older_aria.add("twice", status="completed")
    older_aria.add("twice", status="ended")
    older_aria.add("over", status="ended")
    assert mark(older_aria.url, marks("twice", "over")).delivered == names("twice", "over")
    assert [row["status"] for row in older_aria.rows] == ["ended"] * 4
    assert older_aria.count()["PATCH"] == 1 + 2


def test_odd_rows_are_passed_over(older_aria: SmallAria) -> None:
    for odd in ({}, {"id": None}, {"id": 5, "metadata": None}, {"id": "x", "agent_id": 7, "metadata": {}}):
        older_aria.rows.append({"agent_id": "main", "metadata": {}, "status": "active", **odd})
    older_aria.rows.append({"id": 12, "agent_id": "main", "status": None, "metadata": {"aria_session_id": "s"}})
    body = {"items": [*older_aria.rows, 3, None, "text"], "pages": 1}
    older_aria.prepared = [(405, {}, b""), (200, {}, json.dumps(body).encode())]
    outcome = mark(older_aria.url, marks("s", "t"))
    assert outcome == Outcome(names("s"), names("t"), {}, None)
    assert older_aria.requests[-1].path == "/api/sessions/12"


def test_one_row_that_is_refused_does_not_block_the_others(older_aria: SmallAria) -> None:
    wanted = [f"s{i}" for i in range(40)]
    older_aria.add_all(wanted)
    older_aria.refuses = lambda session_id: session_id == "s3"
    outcome = mark(older_aria.url, marks(*wanted))
    assert outcome.refused.keys() == names("s3")
    assert outcome.delivered == names(*wanted) - names("s3")
    assert outcome.error is None


def test_what_was_delivered_before_a_breakdown_counts(older_aria: SmallAria) -> None:
    wanted = [f"s{i}" for i in range(60)]
    older_aria.add_all(wanted)
    ordinary: Callable[[], None] = lambda: None  # noqa: E731
    older_aria.prepared = [*[ordinary] * 22, *[(500, {}, b"")] * 60]
    outcome = mark(older_aria.url, marks(*wanted))
    assert outcome.delivered == {("main", session_id) for session_id in older_aria.ended()}
    assert len(outcome.delivered) == 20
    assert "500" in str(outcome.error)
    # Those that were on their way at that moment, and no more.
    assert len(older_aria.requests) <= 22 + connection_module.CONCURRENCY


# Asking about one session.


def test_find_asks_a_service_that_can_tell(aria: SmallAria) -> None:
    aria.add_all(f"s{i}" for i in range(500))
    aria.add("s7", "other", "ended")
    with Client(aria.url, None, 10) as client:
        rows, error = client.find("s7")
    assert error is None
    assert {(r.name, r.status) for r in rows} == {(("main", "s7"), "active"), (("other", "s7"), "ended")}
    assert len(aria.requests) == 1


def test_an_older_service_is_read_once_a_run(older_aria: SmallAria) -> None:
    older_aria.add_all(f"s{i}" for i in range(500))
    with Client(older_aria.url, None, 10) as client:
        assert [r.name for r in client.find("s400")[0]] == [("main", "s400")]
        assert client.mark(marks("s400")).delivered == names("s400")
    assert older_aria.count() == {"GET": 3, "PATCH": 1}


# What can go wrong.


def garbage() -> list[Any]:
    deep = b"[" * 100_000
    return [
        pytest.param(b"<html>It works!</html>", id="a page"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b"{}", id="an empty object"),
        pytest.param(b'{"updated": "many", "missing": []}', id="a wrong type"),
        pytest.param(b'{"updated": 1, "missing": [1]}', id="a wrong element"),
        pytest.param(b'{"updated": 1, "missing": [{"agent_id": "main"}]}', id="a part"),
        pytest.param(b'{"updated": 1, "missing": [', id="cut off"),
        pytest.param(b"\xff\xfe\x00", id="bytes"),
        pytest.param(deep, id="deep"),
    ]


@pytest.mark.parametrize("body", garbage())
def test_garbage_delivers_nothing_and_is_said(aria: SmallAria, body: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    aria.prepared = [(200, {"Content-Type": "text/html"}, body)]
    outcome = mark(aria.url, marks("a", "b"))
    assert (outcome.delivered, outcome.missing, outcome.refused) == (set(), set(), {})
    assert "ARIA_API_URL" in str(outcome.error)
    assert len(aria.requests) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("body", [b"<html>", b"null", b'{"items": {}}', b'{"rows": []}', b"7"])
def test_garbage_in_place_of_rows(older_aria: SmallAria, body: bytes) -> None:
    older_aria.prepared = [(405, {}, b""), (200, {}, body)]
    outcome = mark(older_aria.url, marks("a"))
    assert (outcome.delivered, outcome.missing) == (set(), set())
    assert "ARIA_API_URL" in str(outcome.error)


def test_names_that_were_not_asked_for_are_not_believed(aria: SmallAria) -> None:
    answer = {
        "updated": 1,
        "missing": [{"agent_id": "main", "aria_session_id": "b"}, {"agent_id": "x", "aria_session_id": "y"}],
    }
    aria.prepared = [(200, {}, json.dumps(answer).encode())]
    assert mark(aria.url, marks("a", "b")) == Outcome(names("a"), names("b"), {}, None)


@pytest.mark.parametrize("packed", [False, True])
def test_an_endless_answer_is_not_read_to_the_end(
    aria: SmallAria, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "MAX_ANSWER_BYTES", 100_000)
    body = b'{"updated": 1, "missing": [' + b" " * 1_000_000 + b"]}"
    headers = {"Content-Encoding": "gzip"} if packed else {}
    aria.prepared = [(200, headers, gzip.compress(body) if packed else body)]
    assert "larger" in str(mark(aria.url, marks("a")).error)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_says_which_variable_to_set(aria: SmallAria, status: int) -> None:
    aria.always = (status, {}, b"{}")
    with Client(aria.url, TOKEN, 10) as client:
        first, second = client.mark(marks("a")), client.mark(marks("a"))
    assert "ARIA_API_TOKEN" in str(first.error)
    assert TOKEN not in str(first.error)
    assert first == second
    assert len(aria.requests) == 1


def test_erasures_come_last_and_end_the_rows_first(aria: SmallAria) -> None:
    aria.add_all(["a", "b", "c"])
    outcome = mark(aria.url, {**marks("a"), ("main", "b"): "erased", ("main", "nobody"): "erased"})
    assert (outcome.delivered, outcome.missing, outcome.refused, outcome.error) == (
        names("a", "b"), names("nobody"), {}, None,
    )  # fmt: skip
    assert [r.method for r in aria.requests] == ["PATCH", "PATCH", "POST"]
    assert [set(row["metadata"]) for row in aria.rows] == [
        {"aria_session_id"}, {"aria_session_id", "erased_at"}, {"aria_session_id"},
    ]  # fmt: skip
    assert aria.ended() == {"a", "b"}


@pytest.mark.parametrize("older", [False, True], ids=["bulk", "row by row"])
def test_a_service_that_cannot_erase_ends_the_row_at_least(older: bool) -> None:
    service = SmallAria(older=older)
    service.erases = False
    service.add_all(["a", "b"])
    try:
        outcome = mark(service.url, {**marks("a"), ("main", "b"): "erased"})
    finally:
        service.stop()
    assert (outcome.delivered, outcome.missing, outcome.error) == (names("a"), set(), None)
    assert "too old" in outcome.refused["main", "b"]
    assert service.ended() == {"a", "b"}


def test_a_token_that_may_not_erase_delivers_the_other_marks(aria: SmallAria) -> None:
    aria.add_all(["a", "b"])
    aria.prepared = [lambda: None, lambda: None, (403, {}, b"{}")]
    outcome = mark(aria.url, {**marks("a"), ("main", "b"): "erased"})
    assert outcome.delivered == names("a")
    assert "delete" in str(outcome.error)
    assert aria.ended() == {"a", "b"}


@pytest.mark.parametrize(
    "body",
    [b"no json", b"[]", b'{"erased": "many", "missing": []}', b'{"erased": 1}', b'{"updated": 1, "missing": []}'],
)
def test_an_answer_to_an_erasure_that_is_none(aria: SmallAria, body: bytes) -> None:
    aria.add("a")
    aria.prepared = [lambda: None, (200, {}, body)]
    outcome = mark(aria.url, {("main", "a"): "erased"})
    assert outcome.delivered == set()
    assert "does not answer as" in str(outcome.error)


def test_the_token_is_sent_with_every_request() -> None:
    service = SmallAria(older=True, token=TOKEN)
    service.add("a")
    assert mark(service.url, marks("a"), TOKEN).delivered == names("a")
    assert {r.headers["authorization"] for r in service.requests} == {f"Bearer {TOKEN}"}
    service.stop()


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_failing_service_is_asked_once(aria: SmallAria, status: int) -> None:
    aria.always = (status, {}, b"oh")
    assert str(status) in str(mark(aria.url, marks("a")).error)
    assert len(aria.requests) == 1


@pytest.mark.parametrize("status", [204, 302, 304, 404, 409, 418])
def test_other_answers_are_no_delivery(aria: SmallAria, status: int) -> None:
    aria.always = (status, {}, b"")
    outcome = mark(aria.url, marks("a"))
    assert (outcome.delivered, outcome.missing) == (set(), set())
    assert outcome.error


def test_an_answer_that_breaks_off(aria: SmallAria) -> None:
    aria.always = "die"
    outcome = mark(aria.url, marks("a"))
    assert (outcome.delivered, outcome.missing) == (set(), set())
    assert "closed the connection" in str(outcome.error)
    assert len(aria.requests) == 1


def test_a_dead_host_is_tried_once_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[Any] = []

    def refuse(address: Any, timeout: float, **rest: Any) -> socket.socket:
        attempts.append(timeout)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with Client("http://127.0.0.1:8000/api", None, 10) as client:
        rows, error = client.find("a")
        outcome = client.mark(marks("a"))
    assert (rows, outcome.delivered, len(attempts)) == ([], set(), 1)
    assert 0 < attempts[0] <= 2
    assert "cannot be reached" in str(error)
    assert outcome.error == error


def test_connecting_never_takes_more_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[float] = []

    def refuse(address: Any, timeout: float, **rest: Any) -> socket.socket:
        attempts.append(timeout)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert mark("http://127.0.0.1:8000/api", marks("a"), budget=0.5).error
    assert attempts[0] <= 0.5


@pytest.mark.parametrize("stuck", ["name server", "service"])
def test_the_caller_is_not_held_by_what_never_answers(
    aria: SmallAria, stuck: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = Hanging()
    if stuck == "service":
        aria.always = hanging
        budget = 0.3
    else:
        monkeypatch.setattr(client_module, "CONNECT_S", 0.1)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **rest: hanging() or [])
        budget = 60.0
    try:
        with Client(aria.url, None, budget) as client:
            first = client.mark(marks("a"))
            assert first.error
            assert first.delivered == set()
            asked = len(aria.requests)
            assert client.mark(marks("b")).error
            assert client.find("a") == ([], first.error)
            assert len(aria.requests) == asked
    finally:
        hanging.free.set()
        for thread in threading.enumerate():
            if thread.name == "history":
                thread.join(5)


def test_nothing_is_asked_when_the_budget_is_used_up(older_aria: SmallAria) -> None:
    clock = Clock()
    older_aria.add_all(f"s{i}" for i in range(1000))

    def slowly() -> None:
        clock.now += 4

    older_aria.always = slowly
    with Client(older_aria.url, None, 10, clock, clock.sleep) as client:
        outcome = client.mark(marks("s1"))
    assert "ARIA_API_TIMEOUT" in str(outcome.error)
    assert len(older_aria.requests) == 3


# A busy service.


def busy(retry_after: str | None, status: int = 429) -> tuple[int, dict[str, str], bytes]:
    return status, {} if retry_after is None else {"Retry-After": retry_after}, b""


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("said", "waited"), [("3", 3.0), ("0", 0.1), (None, 0.25), ("soon", 0.25), ("-1", 0.25)])
def test_a_busy_service_is_asked_again_when_it_says(
    aria: SmallAria, status: int, said: str | None, waited: float
) -> None:
    clock = Clock()
    aria.add("a")
    aria.prepared = [busy(said, status)]
    with Client(aria.url, None, 10, clock, clock.sleep) as client:
        assert client.mark(marks("a")).delivered == names("a")
    assert clock.slept == [pytest.approx(waited)]
    assert len(aria.requests) == 2


def test_retry_after_may_be_a_date(aria: SmallAria) -> None:
    clock = Clock()
    aria.add("a")
    aria.prepared = [busy(formatdate(time.time() + 5, usegmt=True))]
    with Client(aria.url, None, 10, clock, clock.sleep) as client:
        assert client.mark(marks("a")).delivered == names("a")
    assert 3 <= clock.slept[0] <= 5


def test_a_wait_beyond_the_budget_is_not_begun(aria: SmallAria) -> None:
    clock = Clock()
    aria.always = busy("3600")
    with Client(aria.url, None, 10, clock, clock.sleep) as client:
        assert "3600 s" in str(client.mark(marks("a")).error)
    assert (clock.slept, len(aria.requests)) == ([], 1)


def test_a_service_that_stays_busy_is_left_in_peace(aria: SmallAria) -> None:
    clock = Clock()
    aria.always = busy(None, 503)
    with Client(aria.url, None, 60, clock, clock.sleep) as client:
        assert "busy" in str(client.mark(marks("a")).error)
    assert len(aria.requests) == 4


def test_a_busy_older_service_is_waited_for_while_reading_and_while_telling(older_aria: SmallAria) -> None:
    clock = Clock()
    older_aria.add("a")
    older_aria.prepared = [(405, {}, b""), busy("1"), lambda: None, busy("2")]
    with Client(older_aria.url, None, 10, clock, clock.sleep) as client:
        assert client.mark(marks("a")).delivered == names("a")
    assert clock.slept == [pytest.approx(1), pytest.approx(2)]


# Where requests go.


@respx.mock
@pytest.mark.parametrize(
    "location",
    [
        "http://elsewhere.test/api/sessions",
        "https://aria.test/api/sessions",
        "//elsewhere.test/x",
        "http://aria.test:81/api/sessions",
    ],
)
def test_the_token_does_not_follow_a_redirect_to_another_place(location: str) -> None:
    there = respx.route(host="elsewhere.test").respond(200, json={"updated": 1, "missing": []})
    respx.patch(f"{URL}/sessions").respond(307, headers={"Location": location})
    outcome = mark(URL, marks("a"), TOKEN)
    assert outcome.delivered == set()
    assert "redirects" in str(outcome.error)
    assert not there.called
    assert len(respx.calls) == 1


@respx.mock
def test_a_redirect_within_the_service_is_followed() -> None:
    respx.patch(f"{URL}/sessions").respond(307, headers={"Location": "/api/sessions/"})
    end = respx.patch(f"{URL}/sessions/").respond(200, json={"updated": 1, "missing": []})
    assert mark(URL, marks("a")).delivered == names("a")
    assert json.loads(end.calls[0].request.content)["sessions"] == [{"agent_id": "main", "aria_session_id": "a"}]


@respx.mock
def test_a_redirect_in_circles_ends() -> None:
    respx.patch(f"{URL}/sessions").respond(307, headers={"Location": "/api/sessions"})
    assert "in a loop" in str(mark(URL, marks("a")).error)
    assert len(respx.calls) == 3


@respx.mock
@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("no"), httpx.ConnectTimeout("no"), httpx.ReadTimeout("no"), httpx.WriteTimeout("no"),
        httpx.PoolTimeout("no"), httpx.ReadError("no"), httpx.RemoteProtocolError("no"), httpx.ProxyError("no"),
        httpx.UnsupportedProtocol("no"), httpx.DecodingError("no"), ConnectionResetError("no"), ValueError("no"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_no_failure_of_the_transport_gets_out(failure: Exception) -> None:
    respx.patch(f"{URL}/sessions").mock(side_effect=failure)
    outcome = mark(URL, marks("a"))
    assert (outcome.delivered, outcome.missing) == (set(), set())
    assert outcome.error
    assert len(respx.calls) == 1


@pytest.mark.parametrize(
    ("url", "near"),
    [
        ("http://localhost:8000/api", True), ("http://127.0.0.1/api", True), ("http://[::1]:8000/api", True),
        ("http://aria-api:8000/api", True), ("http://aria.example.org/api", False), ("http://10.0.0.7/api", False),
        ("http://[2001:db8::1]/api", False),
    ],
)  # fmt: skip
def test_proxies_are_for_far_hosts_only(url: str, near: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", CLOSED_API.removesuffix("/api"))
    connection = connection_module.Connection(url, None, 1)
    assert bool(connection._client._mounts) is not near
    connection.close()


def test_an_unusable_proxy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://proxy:70")
    with pytest.raises(Unavailable, match="proxy"):
        Client("http://aria.example.org/api", None, 1)


# The settings.


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("http://localhost:8000/api", "http://localhost:8000/api"), (" http://h/api/ ", "http://h/api"),
        ("https://aria.example.org", "https://aria.example.org"), ("http://[::1]:8000/api", "http://[::1]:8000/api"),
        ("HTTP://H:80/", "HTTP://H:80"), ("", None), ("  ", None),
    ],
)  # fmt: skip
def test_the_url_of_the_history_layer(agents: Any, url: str, read: str | None) -> None:
    assert read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": url}).api_url == read


def test_the_default_url(agents: Any) -> None:
    settings = read_settings({"ARIA_AGENTS_DIR": str(agents)})
    assert (settings.api_url, settings.api_token, settings.api_timeout) == ("http://localhost:8000/api", None, 10.0)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/api", "ftp://h/api", "http://", "http:///api", "http://h:port/api", "http://h:99999/api",
        "http://h:0/api", "http://h/a b", "http://h/\n", "http://h/api?x=1", "http://h/api#x", "//h/api", "http//h",
        "http://user:secret@h/api", "http://h/ä", "file:///etc/passwd",
    ],
)  # fmt: skip
def test_a_malformed_url_is_a_usage_error(agents: Any, url: str) -> None:
    if url.endswith("\n"):
        url += "x"
    with pytest.raises(UsageError, match="ARIA_API_URL") as caught:
        read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": url})
    assert caught.value.code == "bad_setting"
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("token", ["a\nb", "a b", "a\x00", "a\x7f", "schlüssel", "a\r\nX-Other: 1"])
def test_a_token_that_cannot_be_one(agents: Any, token: str) -> None:
    with pytest.raises(UsageError, match="ARIA_API_TOKEN") as caught:
        read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_TOKEN": token})
    assert caught.value.code == "bad_setting"
    assert token not in caught.value.message


@pytest.mark.parametrize(("token", "read"), [("", None), ("  ", None), (f" {TOKEN}\n", TOKEN)])
def test_a_token_is_read_without_blanks_around_it(agents: Any, token: str, read: str | None) -> None:
    settings = read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_TOKEN": token})
    assert settings.api_token == read
    assert TOKEN not in repr(settings)


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "nan", "inf"])
def test_a_budget_that_cannot_be_one(agents: Any, timeout: str) -> None:
    with pytest.raises(UsageError, match="ARIA_API_TIMEOUT"):
        read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_TIMEOUT": timeout})
