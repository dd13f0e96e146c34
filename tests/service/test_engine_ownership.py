"""Whose conversations somebody sees: what is not theirs does not exist for them, and is changed by nothing they do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from chats import BASE, Chats, create, listed, new_id, say
from service import Databases, Service, running
from test_service_security import tool

ALL_AGES = {"older_than_minutes": 0}


class People:
    """A service with an admin, and with people who belong to organisations or not."""

    def __init__(self, service: Service, chats: Chats, stack: contextlib.ExitStack) -> None:
        self.chats = chats
        self.admin = service.client
        self._url = service.url
        self._stack = stack
        self.ann = self.somebody("--user", "ann", "--org", "acme", "--org", "zoo")
        self.bob = self.somebody("--user", "bob", "--org", "acme")
        self.eve = self.somebody("--user", "eve")
        self.robot = self.somebody("--name", "robot")

    def somebody(self, *arguments: str) -> httpx.Client:
        """A client with a token of its own."""
        done = tool(self.chats.url, "token", "create", "--scope", "read,write,delete", *arguments)
        assert done.returncode == 0, done.stderr
        headers = {"Authorization": f"Bearer {done.stdout.strip()}"}
        return self._stack.enter_context(
            httpx.Client(base_url=self._url, headers=headers, trust_env=False, timeout=60.0)
        )


@pytest.fixture(scope="module")
def everybody(server: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    url = server.create()
    log = tmp_path_factory.mktemp("service") / "log"
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(
            running(log, DATABASE_URL=url, HOME=str(log.parent), ARIA_API_TOKEN="the-operator")
        )
        yield People(service, Chats(server, url), stack)
    server.drop(url)


@pytest.fixture
def people(everybody: People) -> People:
    everybody.chats.clear()
    return everybody


def test_a_session_belongs_to_the_token_s_user(people: People) -> None:
    assert (create(people.ann)["user_id"], create(people.ann, user_id="ann")["user_id"]) == ("ann", "ann")
    assert create(people.robot)["user_id"] is None
    made = create(people.ann, org_id="acme")
    assert (made["user_id"], made["org_id"]) == ("ann", "acme")
    assert create(people.admin, user_id="eve", org_id="moon")["org_id"] == "moon"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"org_id": "moon"}, "foreign_organisation"),
        ({"user_id": "bob"}, "foreign_user"),
        ({"user_id": "bob", "org_id": "acme"}, "foreign_user"),
    ],
    ids=str,
)
def test_nobody_creates_sessions_for_others(people: People, fields: dict[str, str], code: str) -> None:
    answer = people.ann.post(BASE, json=fields)
    assert (answer.status_code, answer.json()["code"]) == (403, code)
    assert people.chats.counts() == (0, 0)


def test_each_sees_their_own_their_organisations_and_the_admin_sees_all(people: People) -> None:
    anns = create(people.ann)["id"]
    bobs = create(people.bob)["id"]
    acmes = create(people.ann, org_id="acme")["id"]
    zoos = create(people.ann, org_id="zoo")["id"]
    robots = create(people.robot)["id"]
    lost = create(people.admin, user_id="eve", org_id="acme")["id"]
    everything = {anns, bobs, acmes, zoos, robots, lost}
    for who, theirs in (
        (people.ann, {anns, acmes, zoos, lost}),
        (people.bob, {bobs, acmes, lost}),
        (people.eve, set()),
        (people.robot, {robots}),
        (people.admin, everything),
    ):
        assert set(listed(who)) == theirs
        assert who.get(f"{BASE}/stats").json()["total_sessions"] == len(theirs)
        assert {s["id"] for s in who.get(f"{BASE}/ghosts", params=ALL_AGES).json()["sessions"]} == theirs
        for session_id in everything:
            assert who.get(f"{BASE}/{session_id}").status_code == (200 if session_id in theirs else 404)
            assert set(listed(who, search=session_id)) == {session_id} & theirs


def requests_about(session_id: str) -> list[tuple[str, str, Any]]:
    return [
        ("GET", f"{BASE}/{session_id}", None),
        ("GET", f"{BASE}/{session_id}/messages", None),
        ("POST", f"{BASE}/{session_id}/messages", {"content": "mine now"}),
        ("POST", f"{BASE}/{session_id}/messages", {"content": "private", "idempotency_key": "k"}),
        ("PATCH", f"{BASE}/{session_id}", {"model": "mine"}),
        ("PATCH", f"{BASE}/{session_id}/title", {"title": "mine"}),
        ("POST", f"{BASE}/{session_id}/end", None),
        ("POST", f"{BASE}/{session_id}/archive", None),
        ("DELETE", f"{BASE}/{session_id}", None),
    ]


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("org", [None, "zoo"])
def test_somebody_else_s_session_is_as_if_it_did_not_exist(people: People, archived: bool, org: str | None) -> None:
    session_id, nothing = create(people.ann, org_id=org)["id"], new_id()
    say(people.ann, session_id, "private", idempotency_key="k")
    if archived:
        people.ann.post(f"{BASE}/{session_id}/archive")
    before = people.ann.get(f"{BASE}/{session_id}").json()
    for stranger in (people.bob, people.eve, people.robot):
        for (method, path, body), (_, other, _) in zip(
            requests_about(session_id), requests_about(nothing), strict=True
        ):
            answer = stranger.request(method, path, json=body)
            assert answer.status_code == 404, (method, path)
            assert answer.text.replace(session_id, nothing) == stranger.request(method, other, json=body).text
        assert stranger.get(f"{BASE}/archived").json()["total"] == 0
    assert people.ann.get(f"{BASE}/{session_id}").json() == before
    assert [m["content"] for m in people.ann.get(f"{BASE}/{session_id}/messages").json()] == ["private"]
    assert people.ann.get(f"{BASE}/archived").json()["total"] == int(archived)


def test_members_share_the_sessions_of_their_organisation(people: People) -> None:
    session_id = create(people.ann, org_id="acme")["id"]
    say(people.bob, session_id, "from a colleague")
    assert people.ann.get(f"{BASE}/{session_id}").json()["recent_messages"][0]["content"] == "from a colleague"
    assert people.bob.post(f"{BASE}/{session_id}/archive").status_code == 200
    assert people.ann.get(f"{BASE}/archived").json()["total"] == 1
    assert people.bob.delete(f"{BASE}/{session_id}").status_code == 200


def test_who_has_left_an_organisation_loses_its_sessions(people: People) -> None:
    """The token says who is a member now, whoever made the session."""
    session_id = create(people.admin, user_id="eve", org_id="acme")["id"]
    assert people.eve.get(f"{BASE}/{session_id}").status_code == 404


def test_cleanups_reach_only_what_the_token_may_see(people: People) -> None:
    chats = people.chats
    anns, acmes, bobs = create(people.ann)["id"], create(people.ann, org_id="acme")["id"], create(people.bob)["id"]
    old = create(people.ann)["id"]
    say(people.ann, old)
    for session_id in (anns, acmes, bobs, old):
        chats.age(session_id, 40 * 24 * 60)
    cleanup = f"{BASE}/cleanup?dry_run=false"
    assert people.eve.delete(f"{BASE}/ghosts").json()["deleted"] == 0
    assert people.eve.delete(f"{BASE}/expired").json()["deleted"] == 0
    assert people.eve.post(cleanup).json()["pruned_count"] == 0
    assert people.eve.post(f"{BASE}/cleanup").json()["pruned_count"] == 0
    assert chats.ids() == {anns, acmes, bobs, old}
    assert people.bob.delete(f"{BASE}/ghosts").json()["deleted"] == 2
    assert chats.ids() == {anns, old}
    assert people.ann.post(cleanup).json()["pruned_count"] == 1
    assert people.admin.delete(f"{BASE}/expired").json()["deleted"] == 1
    assert (chats.ids(), chats.ids("chat_sessions_archive")) == (set(), {old})


def test_scopes_are_asked_for_here_too(people: People) -> None:
    session_id = create(people.ann)["id"]
    done = tool(people.chats.url, "token", "create", "--user", "ann", "--scope", "read")
    reader = {"Authorization": f"Bearer {done.stdout.strip()}"}
    for method, path, body in requests_about(session_id):
        answer = people.admin.request(method, path, json=body, headers=reader)
        assert answer.status_code == (200 if method == "GET" else 403), (method, path)
    assert people.admin.delete(f"{BASE}/ghosts", headers=reader).status_code == 403


# The command line.


def test_a_token_says_whose_it_is(database: str) -> None:
    done = tool(database, "token", "create", "--user", "ann", "--org", "zoo", "--org", "acme", "--org", "zoo", "--json")
    made = json.loads(done.stdout)
    assert {name: made[name] for name in ("name", "scopes", "user_id", "orgs")} == {
        "name": "ann",
        "scopes": ["read", "write"],
        "user_id": "ann",
        "orgs": ["acme", "zoo"],
    }
    tool(database, "token", "create", "--name", "laptop", "--user", "bob")
    shown = [
        (token["name"], token["user_id"], token["orgs"])
        for token in json.loads(tool(database, "token", "list", "--json").stdout)["tokens"]
    ]
    assert shown == [("ann", "ann", ["acme", "zoo"]), ("laptop", "bob", [])]
    first, second = tool(database, "token", "list").stdout.splitlines()
    assert first.endswith("  ann  user ann  org acme  org zoo")
    assert second.endswith("  laptop  user bob")


@pytest.mark.parametrize(
    "arguments", [("--user", ""), ("--user", " "), ("--user", "a\nb"), ("--user", "u", "--org", ""), ()], ids=str
)
def test_a_token_for_nobody_is_refused(database: str, arguments: tuple[str, ...]) -> None:
    done = tool(database, "token", "create", *arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "--" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(tool(database, "token", "list", "--json").stdout) == {"tokens": []}
