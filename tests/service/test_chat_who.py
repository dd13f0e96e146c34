"""Who may talk, and where: over the stream and the WebSocket the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from chats import BASE, Chats, create
from service import Databases, Service, running
from talking import STREAM, done, error, events_of, over, socket
from test_service_security import tool
from websockets.exceptions import ConnectionClosed, InvalidStatus


class Person:
    """Somebody with a token of their own."""

    def __init__(self, service: Service, database: str, stack: contextlib.ExitStack, *arguments: str) -> None:
        made = tool(database, "token", "create", *arguments)
        assert made.returncode == 0, made.stderr
        self.token = made.stdout.strip()
        self.database = database
        self._service = service
        headers = {"Authorization": f"Bearer {self.token}"}
        self.client = stack.enter_context(
            httpx.Client(base_url=service.url, headers=headers, trust_env=False, timeout=60.0)
        )

    def talk(self, face: str, message: str, **fields: Any) -> list[Any]:
        if face == "socket":
            with socket(self._service, self.token) as line:
                return over(line, message, **fields)
        answer = self.client.post(STREAM, json={"message": message, **fields})
        return events_of(answer.text) if answer.status_code == 200 else [("error", answer.json())]

    def revoke(self) -> None:
        done = tool(self.database, "token", "revoke", self.token.split("_")[1])
        assert done.returncode == 0, done.stderr


class People:
    def __init__(self, service: Service, chats: Chats, stack: contextlib.ExitStack) -> None:
        self.service, self.chats, self._stack = service, chats, stack
        self.ann = self.somebody("--user", "ann", "--org", "acme")
        self.bob = self.somebody("--user", "bob", "--org", "acme")

    def somebody(self, *arguments: str) -> Person:
        return Person(self.service, self.chats.url, self._stack, *arguments)


@pytest.fixture(scope="module")
def everybody(server: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    url = server.create()
    log = tmp_path_factory.mktemp("service") / "log"
    with contextlib.ExitStack() as stack:
        env = {"DATABASE_URL": url, "HOME": str(log.parent), "ARIA_API_TOKEN": "the-operator"}
        yield People(stack.enter_context(running(log, **env)), Chats(server, url), stack)
    server.drop(url)


@pytest.fixture
def people(everybody: People) -> People:
    everybody.chats.clear()
    return everybody


@pytest.fixture(params=["stream", "socket"])
def face(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_new_session_is_its_user_s(people: People, face: str) -> None:
    told = done(people.ann.talk(face, "hello"))
    assert people.ann.client.get(f"{BASE}/{told['session_id']}").json()["user_id"] == "ann"
    assert people.bob.client.get(f"{BASE}/{told['session_id']}").status_code == 404


def test_somebody_else_s_session_does_not_exist(people: People, face: str) -> None:
    session_id = create(people.ann.client)["id"]
    for key in ({}, {"idempotency_key": "k"}):
        assert error(people.bob.talk(face, "hello", session_id=session_id, **key)) == "session_not_found"
    assert done(people.ann.talk(face, "hello", session_id=session_id, idempotency_key="k"))["message_count"] == 2
    assert error(people.bob.talk(face, "hello", session_id=session_id, idempotency_key="k")) == "session_not_found"
    assert people.bob.client.post(STREAM, json={"message": "a", "session_id": session_id}).status_code == 404
    assert people.chats.counts() == (1, 2)


def test_members_of_an_organisation_talk_in_its_sessions(people: People, face: str) -> None:
    told = done(people.ann.talk(face, "hello", org_id="acme"))
    assert done(people.bob.talk(face, "hello", session_id=told["session_id"]))["message_count"] == 4
    assert error(people.ann.talk(face, "hello", org_id="moon")) == "foreign_organisation"
    assert people.chats.counts() == (1, 4)


def test_a_key_of_somebody_else_tells_nothing(people: People, face: str) -> None:
    first = done(people.ann.talk(face, "hello", idempotency_key="k"))
    second = done(people.bob.talk(face, "hello", idempotency_key="k"))
    assert (first["replayed"], second["replayed"]) == (False, False)
    assert first["session_id"] != second["session_id"]


def test_who_may_only_read_cannot_talk(people: People) -> None:
    reader = people.somebody("--name", "reader", "--scope", "read")
    assert reader.client.post(STREAM, json={"message": "hello"}).status_code == 403
    with pytest.raises(InvalidStatus) as refused, socket(people.service, reader.token):
        pass
    assert refused.value.response.status_code == 403
    assert people.chats.counts() == (0, 0)


def test_a_token_that_is_revoked_ends_its_connections_at_the_next_message(people: People) -> None:
    cat = people.somebody("--user", "cat")
    with socket(people.service, cat.token) as line:
        assert done(over(line, "hello"))["message_count"] == 2
        cat.revoke()
        line.send(json.dumps({"message": "hello"}))
        with pytest.raises(ConnectionClosed) as closed:
            line.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "unauthorized")
    assert people.chats.counts() == (1, 2)
