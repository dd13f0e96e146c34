"""Talking with the model: what is told, what is stored, and that every failure leaves no trace."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import SHUT_RDWR, create_connection
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from chats import BASE, ENCRYPTED, Chats, create, new_id, say
from service import Databases, Service, running, wait_until
from small_model import USAGE, SmallModel, words
from support import CLOSED_API
from talking import (
    STREAM,
    Say,
    by_socket,
    by_stream,
    done,
    error,
    heard,
    listening,
    one,
    over,
    socket,
    text_of,
)
from websockets.exceptions import ConnectionClosed

from session_manager.service.talk.talks import HISTORY_CHARACTERS, HISTORY_MESSAGES


@pytest.fixture
def chats(server: Databases, service: Service, model: SmallModel) -> Chats:
    """The service's database, with no conversation in it; the model has been asked nothing."""
    found = Chats.of(server, service)
    with model.lock:
        model.asked.clear()
        model.headers.clear()
    return found


@pytest.fixture(params=[by_stream, by_socket], ids=["stream", "socket"])
def talk(request: pytest.FixtureRequest) -> Say:
    """Both faces."""
    found: Say = request.param
    return found


def messages(service: Service, session_id: str) -> list[tuple[str, str]]:
    found = service.client.get(f"{BASE}/{session_id}/messages").json()
    return [(each["role"], each["content"]) for each in found]


def test_a_new_session_exists_with_its_reply(service: Service, chats: Chats, talk: Say) -> None:
    events = talk(service, "say 5", agent_id="writer")
    told = done(events)
    assert events[0] == ("session", {"session_id": told["session_id"], "new": True, "model": "small-1"})
    assert text_of(events) == told["content"] == words(5)
    assert (told["title"], told["message_count"], told["replayed"]) == ("say 5", 2, False)
    assert (told["finish_reason"], told["usage"]) == ("stop", {k: USAGE[k] for k in told["usage"]})
    session = service.client.get(f"{BASE}/{told['session_id']}").json()
    assert (session["agent_id"], session["model"], session["tokens"]) == ("writer", "small-1", USAGE["total_tokens"])
    assert session["metadata"]["has_messages"] is True
    assert [each["id"] for each in session["recent_messages"]] == [told["user_message_id"], told["message_id"]]
    assert messages(service, told["session_id"]) == [("user", "say 5"), ("assistant", words(5))]
    assert chats.counts() == (1, 2)
    chats.check()


def test_nothing_is_stored_before_the_reply_is_complete(service: Service, chats: Chats, model: SmallModel) -> None:
    model.gate.clear()
    with listening(service.client, "hold 2") as events:
        told = [next(events)]
        assert chats.counts() == (0, 0)
        assert service.client.get(f"{BASE}/{told[0][1]['session_id']}").status_code == 404
        model.gate.set()
        told += list(events)
    model.gate.clear()
    assert done(told)["content"] == words(2)
    assert chats.counts() == (1, 2)


def test_a_stream_is_not_buffered_on_its_way(service: Service, chats: Chats) -> None:
    headers = service.client.post(STREAM, json={"message": "say 1"}).headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["x-accel-buffering"] == "no"
    assert headers["cache-control"] == "no-store, no-transform"
    assert "content-length" not in headers


def test_the_model_is_shown_what_was_said_before(service: Service, chats: Chats, model: SmallModel, talk: Say) -> None:
    first = done(talk(service, "say 2"))
    second = talk(service, "say 1 more", session_id=first["session_id"])
    assert second[0][1] == {"session_id": first["session_id"], "new": False, "model": "small-1"}
    assert done(second)["message_count"] == 4
    assert model.asked[-1] == {
        "model": "small-1",
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "user", "content": "say 2"},
            {"role": "assistant", "content": words(2)},
            {"role": "user", "content": "say 1 more"},
        ],
    }
    assert model.headers[-1]["authorization"] == "Bearer sk-of-the-service"
    assert chats.counts() == (1, 4)
    chats.check()


def test_what_the_model_is_shown_has_an_end(service: Service, chats: Chats, model: SmallModel) -> None:
    session_id = create(service.client)["id"]
    for n in range(HISTORY_MESSAGES + 5):
        say(service.client, session_id, f"old {n}")
    say(service.client, session_id, "what a tool said", role="tool")
    service.client.post(f"{BASE}/{session_id}/messages", json={"encrypted": ENCRYPTED})
    by_stream(service, "say 1", session_id=session_id)
    shown = [turn["content"] for turn in model.asked[-1]["messages"]]
    assert shown == [f"old {n}" for n in range(7, HISTORY_MESSAGES + 5)] + ["say 1"]
    say(service.client, session_id, "x" * (HISTORY_CHARACTERS - 5))
    by_stream(service, "say 2", session_id=session_id)
    shown = [turn["content"] for turn in model.asked[-1]["messages"]]
    assert (len(shown), shown[0][:2], shown[-1]) == (2, "xx", "say 2")


def test_a_session_s_model_replies_unless_another_is_asked_for(
    service: Service, chats: Chats, model: SmallModel
) -> None:
    for made, asked, expected in ((None, None, "small-1"), ("big", None, "big"), ("big", "huge", "huge")):
        session_id = create(service.client, **({"model": made} if made else {}))["id"]
        assert done(by_stream(service, "say 1", session_id=session_id, model=asked))["model"] == expected
        assert model.asked[-1]["model"] == expected
    new = done(by_stream(service, "say 1", model="huge"))["session_id"]
    assert service.client.get(f"{BASE}/{new}").json()["model"] == "huge"


def test_a_session_that_was_made_before_its_first_message_is_used(service: Service, chats: Chats, talk: Say) -> None:
    session_id = create(service.client, ttl_minutes=1)["id"]
    assert done(talk(service, "say 1", session_id=session_id))["session_id"] == session_id
    chats.age(session_id, 60)
    assert service.client.delete(f"{BASE}/expired").json()["deleted"] == 0
    assert chats.counts() == (1, 2)


# The model.


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        ("breaks-off", "model_broke_off", "was lost"),
        ("ends-early", "model_broke_off", "stopped in the middle"),
        ("ends-for-no-reason", "model_broke_off", "stopped in the middle"),
        ("ends-in-failure", "model_broke_off", "(network_error)"),
        ("fails-midway", "model_failed", "out of memory"),
        ("says-nothing", "model_empty", "empty reply"),
        ("says-too-much", "reply_too_long", "262144"),
        ("has-long-lines", "model_garbled", "ARIA_LLM_BASE_URL"),
        ("sends-a-page", "model_garbled", "ARIA_LLM_BASE_URL"),
        ("sends-nonsense", "model_garbled", "ARIA_LLM_BASE_URL"),
        ("redirects", "model_failed", "has moved (307)"),
        ("refuses-the-key", "model_failed", "ARIA_LLM_API_KEY"),
        ("is-busy", "model_busy", "429"),
        ("is-broken", "model_failed", "500: boom boom"),
        ("knows-no-such-model", "model_failed", "`x` does not exist"),
    ],
)
def test_a_model_that_fails_leaves_no_trace(
    service: Service, chats: Chats, talk: Say, message: str, code: str, words: str
) -> None:
    kept = done(talk(service, "say 1"))["session_id"]
    for session_id in (None, kept):
        events = talk(service, message, session_id=session_id, idempotency_key="k")
        assert error(events) == code
        assert words in events[-1][1]["error"]
        assert "\n" not in events[-1][1]["error"]
        assert len(events[-1][1]["error"]) < 300
        assert chats.counts() == (1, 2)
    chats.check()


@pytest.mark.parametrize(
    ("message", "content", "reason", "tokens"),
    [
        ("cuts-emoji", "a\N{GRINNING FACE}b\ufffdc\ufffd\ufffdz\ufffd", "stop", 18),
        ("is-peculiar", "one\u2028two \u00e9", "length", 0),
        ("counts-oddly", "ok", None, 0),
        ("ends-oddly", "ok", "st\ufffdop", 0),
        ("knows-no-options", "You said so.", "stop", 18),
    ],
)
def test_what_is_compatible_in_its_own_way_is_understood(
    service: Service, chats: Chats, message: str, content: str, reason: str | None, tokens: int
) -> None:
    events = by_stream(service, message)
    told = done(events)
    assert (text_of(events), told["content"], told["finish_reason"]) == (content, content, reason)
    ((kept,),) = chats.execute("SELECT tokens FROM chat_sessions")
    assert kept == tokens


def test_a_model_that_is_silent_or_has_no_end_is_given_up(
    server: Databases, database: str, model: SmallModel, tmp_path: Path
) -> None:
    with (
        running(tmp_path / "log", DATABASE_URL=database, **{**model.env, "ARIA_LLM_TIMEOUT": "1"}) as service,
        ThreadPoolExecutor(2) as pool,
    ):
        silent = pool.submit(by_stream, service, "is-silent")
        endless = pool.submit(by_socket, service, "trickles")
        assert error(silent.result()) == error(endless.result()) == "model_timeout"
        assert "ARIA_LLM_TIMEOUT" in silent.result()[-1][1]["error"]
    assert Chats(server, database).counts() == (0, 0)


def test_a_model_that_cannot_be_reached_is_said(server: Databases, database: str, tmp_path: Path) -> None:
    env = {"ARIA_LLM_BASE_URL": CLOSED_API, "ARIA_LLM_MODEL": "m"}
    with running(tmp_path / "log", DATABASE_URL=database, **env) as service:
        assert error(by_stream(service, "hello")) == "model_unreachable"
    assert Chats(server, database).counts() == (0, 0)


def test_without_a_model_an_echo_replies_and_says_so(shared_service: Service) -> None:
    told = done(by_stream(shared_service, "one  two\nthree", model="gpt-4o"))
    assert told["content"] == "[echo: no model is set, see ARIA_LLM_BASE_URL] one  two\nthree"
    assert told["model"] == "echo"
    assert len(done(by_stream(shared_service, "x" * 2**18))["content"]) < 3000


def test_a_session_that_an_echo_began_goes_on_with_a_model(
    server: Databases, database: str, model: SmallModel, tmp_path: Path
) -> None:
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        session_id = done(by_stream(service, "hello"))["session_id"]
    with running(tmp_path / "log", DATABASE_URL=database, **model.env) as service:
        assert done(by_stream(service, "say 1", session_id=session_id))["model"] == "small-1"


def test_logs_hold_neither_the_key_nor_what_was_said(service: Service, chats: Chats) -> None:
    told = done(by_stream(service, "say 1 of my secret"))
    for message in (f"{way} my secret" for way in ("refuses-the-key", "repeats-the-key", "fails-midway", "is-broken")):
        events = by_socket(service, message)
        assert error(events) == "model_failed"
        assert "sk-of" not in str(events)
    for secret in ("sk-of-the-service", "my secret", "word-0", "out of memory", told["session_id"]):
        assert secret not in service.log
    assert f"exchange in {told['session_id'][:8]}…: stored" in service.log


# The client.


def test_a_reader_who_goes_away_in_mid_stream_leaves_no_trace(
    service: Service, chats: Chats, model: SmallModel
) -> None:
    kept = done(by_stream(service, "say 1"))["session_id"]
    log = len(service.log)
    for n, session_id in enumerate((None, kept)):
        message = f"hold 2 of {n}"
        with listening(service.client, message, session_id=session_id) as events:
            assert [next(events)[0], next(events)[0]] == ["session", "delta"]
        wait_until(lambda message=message: model.gone[message])
        wait_until(lambda n=n: service.log[log:].count(": left after") > n)
        assert chats.counts() == (1, 2)
    assert done(by_stream(service, "say 1", session_id=kept))["message_count"] == 4
    chats.check()


def test_a_socket_that_is_closed_in_mid_reply_leaves_no_trace(
    service: Service, chats: Chats, model: SmallModel
) -> None:
    for n, abrupt in enumerate((False, True)):
        message = f"hold 1 socket {n}"
        with socket(service) as line:
            line.send(json.dumps({"message": message}))
            assert [one(line)[0], one(line)[0]] == ["session", "delta"]
            if abrupt:
                line.socket.shutdown(SHUT_RDWR)
        wait_until(lambda message=message: model.gone[message])
    assert chats.counts() == (0, 0)


def test_a_complete_reply_is_stored_although_its_reader_goes(
    server: Databases, service: Service, chats: Chats, model: SmallModel
) -> None:
    """Half stored is never; from the end of the reply on it is all."""
    session_id = create(service.client)["id"]
    log = len(service.log)
    with server.connect(chats.url) as holder, holder.transaction():
        holder.execute("SELECT 1 FROM chat_sessions FOR UPDATE")
        with listening(service.client, "say 2", session_id=session_id) as events:
            assert text_of([next(events), next(events)])
            wait_until(lambda: chats.execute("SELECT 1 FROM pg_locks WHERE NOT granted"))
        wait_until(lambda: "POST /api/engine/chat/stream" in service.log[log:])
    wait_until(lambda: ": stored after" in service.log[log:])
    assert messages(service, session_id) == [("user", "say 2"), ("assistant", words(2))]
    chats.check()


# The database.


def test_a_database_that_refuses_at_the_commit_leaves_no_trace(service: Service, chats: Chats, talk: Say) -> None:
    chats.execute(
        "CREATE OR REPLACE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'not today: %%', NEW.content; END $$"
    )
    chats.execute(
        "CREATE CONSTRAINT TRIGGER no AFTER INSERT ON chat_messages DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION no()"
    )
    try:
        events = talk(service, "say 2", idempotency_key="k")
    finally:
        chats.execute("DROP TRIGGER no ON chat_messages")
    assert (text_of(events), error(events)) == (words(2), "internal_error")
    assert "not today" not in events[-1][1]["error"]
    assert chats.counts() == (0, 0)
    assert done(talk(service, "say 2", idempotency_key="k"))["replayed"] is False


def test_a_database_that_is_lost_while_a_reply_is_stored_gets_it_once(
    server: Databases, service: Service, chats: Chats, talk: Say
) -> None:
    session_id = create(service.client)["id"]
    with ThreadPoolExecutor(1) as pool:
        with server.connect(chats.url) as holder, holder.transaction():
            holder.execute("SELECT 1 FROM chat_sessions FOR UPDATE")
            talking = pool.submit(talk, service, "say 2", session_id=session_id)
            wait_until(lambda: chats.execute("SELECT 1 FROM pg_locks WHERE NOT granted"))
            chats.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE NOT granted")
        assert done(talking.result())["message_count"] == 2
    assert chats.counts() == (1, 2)


# Retries, and several at once.


@pytest.mark.parametrize("existing", [False, True])
def test_a_retry_is_told_what_is_stored(
    service: Service, chats: Chats, model: SmallModel, talk: Say, existing: bool
) -> None:
    session_id = create(service.client)["id"] if existing else None
    first = talk(service, "say 3", session_id=session_id, idempotency_key="k")
    again = talk(service, "say 3", session_id=session_id, idempotency_key="k")
    told, retold = done(first), done(again)
    assert retold == {**told, "replayed": True, "usage": retold["usage"], "finish_reason": None}
    assert again[0] == ("session", {"session_id": told["session_id"], "new": False, "model": "small-1"})
    assert text_of(again) == words(3)
    assert model.times_asked("say 3") == 1
    assert error(talk(service, "say 4", session_id=session_id, idempotency_key="k")) == "idempotency_conflict"
    service.client.post(f"{BASE}/{told['session_id']}/end")
    assert done(talk(service, "say 3", session_id=told["session_id"], idempotency_key="k"))["replayed"] is True
    assert chats.counts() == (1, 2)


def test_a_retry_after_a_lost_connection_is_answered(service: Service, chats: Chats, model: SmallModel) -> None:
    with listening(service.client, "hold 1 lost", idempotency_key="k") as events:
        assert [next(events)[0], next(events)[0]] == ["session", "delta"]
    wait_until(lambda: model.gone["hold 1 lost"])
    model.gate.set()
    told = done(by_stream(service, "hold 1 lost", idempotency_key="k"))
    model.gate.clear()
    assert told["replayed"] is False
    assert chats.counts() == (1, 2)


@pytest.mark.parametrize("existing", [False, True])
def test_attempts_at_the_same_moment_are_stored_once(service: Service, chats: Chats, existing: bool) -> None:
    session_id = create(service.client)["id"] if existing else None
    with ThreadPoolExecutor(8) as pool:
        talks = [
            pool.submit(talk, service, "say 3", session_id=session_id, idempotency_key="k")
            for talk in (by_stream, by_socket) * 4
        ]
        told = [done(each.result()) for each in talks]
    assert sorted(each["replayed"] for each in told) == [False] + [True] * 7
    assert len({(each["session_id"], each["message_id"], each["content"]) for each in told}) == 1
    assert chats.counts() == (1, 2)
    chats.check()


def test_several_at_once_in_one_session_are_all_stored(service: Service, chats: Chats) -> None:
    session_id = create(service.client)["id"]
    with ThreadPoolExecutor(8) as pool:
        talks = [
            pool.submit(talk, service, f"say {n}", session_id=session_id)
            for n, talk in enumerate((by_stream, by_socket) * 4, 1)
        ]
        assert sorted(done(each.result())["message_count"] for each in talks) == list(range(2, 18, 2))
    said = messages(service, session_id)
    assert dict(zip(said[::2], said[1::2], strict=True)) == {
        ("user", f"say {n}"): ("assistant", words(n)) for n in range(1, 9)
    }
    chats.check()


# Who may, and what is wrong with a request.


def test_a_session_that_is_not_there_and_one_that_has_ended(
    service: Service, chats: Chats, model: SmallModel, talk: Say
) -> None:
    assert error(talk(service, "say 1", session_id=new_id())) == "session_not_found"
    session_id = create(service.client)["id"]
    service.client.post(f"{BASE}/{session_id}/end")
    assert error(talk(service, "say 1", session_id=session_id)) == "session_ended"
    for asked, status in ((new_id(), 404), (session_id, 409)):
        answer = service.client.post(STREAM, json={"message": "say 1", "session_id": asked})
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert model.asked == []
    assert chats.counts() == (1, 0)


WRONG: list[tuple[Any, str]] = [
    ({}, "message"),
    ({"message": ""}, "message"),
    ({"message": 7}, "message"),
    ({"message": "a\0b"}, "message"),
    ({"message": "x" * (2**18 + 1)}, "message"),
    ({"message": "a", "session_id": "abc"}, "session_id"),
    ({"message": "a", "session_id": ""}, "session_id"),
    ({"message": "a", "agent_id": ""}, "agent_id"),
    ({"message": "a", "model": "m" * 201}, "model"),
    ({"message": "a", "idempotency_key": "k" * 201}, "idempotency_key"),
    ({"message": "a", "mesage": "b"}, "mesage"),
    ({"encrypted": ENCRYPTED}, "body"),
    ({"message": ENCRYPTED}, "body"),
    ([], "body"),
    (None, "body"),
]


@pytest.mark.parametrize(("wrong", "field"), WRONG, ids=lambda each: str(each)[:40])
def test_a_wrong_request_is_told_what_is_wrong(
    service: Service, chats: Chats, model: SmallModel, wrong: Any, field: str
) -> None:
    answer = service.client.post(STREAM, json=wrong)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, "invalid", field)
    with socket(service) as line:
        line.send(json.dumps(wrong))
        (told,) = heard(line)
        assert told[0] == "error"
        assert (told[1]["code"], told[1]["field"]) == ("invalid", field)
        assert told[1]["error"].startswith(f"{field}: ")
        assert done(over(line, "say 1"))["content"] == words(1)
    assert chats.counts() == (1, 2)
    assert len(model.asked) == 1


def test_an_encrypted_message_is_not_talked_with(service: Service, chats: Chats) -> None:
    answer = service.client.post(STREAM, json={"encrypted": ENCRYPTED})
    assert "no model can read it" in answer.json()["error"]
    assert f"{BASE}/{{id}}/messages" in answer.json()["error"]


@pytest.mark.parametrize("frame", ["", "{", "nonsense", '{"message": "\\ud83d"}', b"\x00\x01", "[" * 100_000])
def test_a_frame_that_is_no_json_is_told_so_and_the_connection_stays(
    service: Service, chats: Chats, frame: str | bytes
) -> None:
    with socket(service) as line:
        line.send(frame)
        assert error(heard(line)) == "invalid"
        assert done(over(line, "say 1"))["content"] == words(1)


def test_a_frame_that_is_no_text_is_told_so_and_one_that_is_no_utf_8_ends_the_connection_quietly(
    service: Service, chats: Chats
) -> None:
    with socket(service) as line:
        line.send(b'{"message": "say 1"}')
        assert "text frame" in heard(line)[-1][1]["error"]
        line.send(b"\xff\xfe", text=True)
        with pytest.raises(ConnectionClosed) as closed:
            line.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1007
    assert "Traceback" not in service.log


def test_a_frame_that_is_too_long_ends_the_connection(service: Service, chats: Chats) -> None:
    with socket(service) as line:
        line.send("x" * (2**22 + 1))
        with pytest.raises(ConnectionClosed) as closed:
            line.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1009
    assert chats.counts() == (0, 0)


def test_the_longest_message_can_be_said(service: Service, chats: Chats, talk: Say) -> None:
    assert done(talk(service, "say 1 " + "\N{GRINNING FACE}" * (2**18 - 6)))["content"] == words(1)


def test_a_hundred_sockets_that_say_nothing_are_in_nobody_s_way(service: Service, chats: Chats) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket(service)) for _ in range(100)]
        assert done(by_socket(service, "say 1"))["content"] == words(1)
        assert service.client.get("/readyz").status_code == 200
        assert done(over(silent[-1], "say 1"))["content"] == words(1)
    chats.check()


def test_a_request_that_is_cut_off_leaves_no_trace(service: Service, chats: Chats, model: SmallModel) -> None:
    whole = b'{"message": "say 1"}'
    head = f"POST {STREAM} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    address = ("127.0.0.1", urlsplit(service.url).port)
    log = len(service.log)
    for sent in (b"", whole[:1], whole[:-1]):
        with create_connection(address, timeout=60) as line:
            line.sendall(head.encode() + f"Content-Length: {len(whole)}\r\n\r\n".encode() + sent)
    assert done(by_stream(service, "say 2"))["message_count"] == 2
    assert [asked["messages"][-1]["content"] for asked in model.asked] == ["say 2"]
    assert "Traceback" not in service.log[log:]


def test_one_socket_takes_one_message_after_the_other(service: Service, chats: Chats, model: SmallModel) -> None:
    with socket(service) as line:
        first = done(over(line, "say 2"))
        line.send(json.dumps({"message": "hold 1", "session_id": first["session_id"]}))
        assert [one(line)[0], one(line)[0]] == ["session", "delta"]
        assert error(over(line, "say 1")) == "busy"
        model.gate.set()
        assert heard(line)[-1][1]["message_count"] == 4
        model.gate.clear()
        assert done(over(line, "say 3", session_id=first["session_id"]))["message_count"] == 6
    assert chats.counts() == (1, 6)


def test_a_page_of_another_site_cannot_talk(service: Service, chats: Chats) -> None:
    answer = service.client.post(STREAM, json={"message": "say 1"}, headers={"Origin": "https://evil.example"})
    assert (answer.status_code, answer.json()["code"]) == (403, "origin")
    with pytest.raises(Exception, match="403"), socket(service, origin="https://evil.example"):
        pass
    with socket(service, origin=service.url) as line:
        assert done(over(line, "say 1"))["content"] == words(1)
    assert chats.counts() == (1, 2)


def test_the_api_describes_it(service: Service) -> None:
    described = service.client.get("/openapi.json").json()["paths"][STREAM]["post"]
    assert set(described["responses"]) == {"200", "401", "403", "404", "409", "413", "422", "503"}
    assert set(described["responses"]["200"]["content"]) == {"text/event-stream"}
    assert "/api/engine/chat/ws" in described["description"]
    answer = service.client.get(STREAM)
    assert answer.status_code == 405


# The end.


def test_a_service_that_stops_ends_its_streams_and_leaves_no_trace(
    server: Databases, database: str, model: SmallModel, tmp_path: Path
) -> None:
    service = Service(tmp_path / "log", DATABASE_URL=database, **model.env)
    model.gate.clear()
    with (
        listening(service.client, "hold 1 stream") as events,
        socket(service) as line,
        httpx.Client(base_url=service.url, trust_env=False, timeout=60) as other,
    ):
        line.send(json.dumps({"message": "hold 1 socket"}))
        told = [next(events), next(events)]
        assert [one(line)[0], one(line)[0]] == ["session", "delta"]
        other.get("/healthz")
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: other.post(STREAM, json={"message": "say 1"}).status_code == 503)
        assert other.post(STREAM, json={"message": "say 1"}).json()["code"] == "shutting_down"
        assert error(told + list(events)) == "shutting_down"
        assert error(heard(line)) == "shutting_down"
        with pytest.raises(ConnectionClosed) as closed:
            line.recv(timeout=60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    assert service.stop() == 0
    assert "Traceback" not in service.log
    chats = Chats(server, database)
    chats.execute("DELETE FROM chat_sessions WHERE title = 'say 1'")
    assert chats.counts() == (0, 0)


def test_a_reply_that_ends_soon_is_waited_for_by_a_service_that_stops(
    server: Databases, database: str, model: SmallModel, tmp_path: Path
) -> None:
    service = Service(tmp_path / "log", DATABASE_URL=database, **model.env)
    with listening(service.client, "hold 1") as events:
        told = [next(events), next(events)]
        service.process.send_signal(signal.SIGTERM)
        threading.Timer(0.3, model.gate.set).start()
        assert done(told + list(events))["content"] == words(1)
    model.gate.clear()
    assert service.stop() == 0
    assert Chats(server, database).counts() == (1, 2)


def test_a_killed_service_leaves_no_trace(server: Databases, database: str, model: SmallModel, tmp_path: Path) -> None:
    service = Service(tmp_path / "log", DATABASE_URL=database, **model.env)
    with listening(service.client, "hold 3") as events:
        assert [next(events)[0], next(events)[0]] == ["session", "delta"]
        service.process.kill()
        with pytest.raises(httpx.HTTPError):
            list(events)
    service.stop()
    assert Chats(server, database).counts() == (0, 0)
