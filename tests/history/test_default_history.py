"""Nobody has named aria-api: what is at the default address hears nothing before it has shown itself to be one."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from service import Service
from small_aria import Hanging, SmallAria
from support import CLOSED_API, Skill, StoreBuilder, ledger_sql, now_ms

from session_manager.core.errors import NotFound, SessionManagerError
from session_manager.functions import load
from session_manager.functions.context import Context
from session_manager.settings import DEFAULT_API_URL, read_settings
from session_manager.stores.openclaw_files.volume import Volume

TOKEN = "secret-token"
REMOVERS: list[tuple[str, dict[str, Any]]] = [
    ("delete_session", {"session_id": "old"}),
    ("cleanup_after_delegation", {"session_id": "old"}),
    ("prune_sessions", {}),
    ("delete_sessions", {"session_ids": ["old"], "dry_run": False}),
    ("erase_session", {"session_id": "old", "confirm": "old"}),
]


@pytest.fixture
def store(agents: Path) -> StoreBuilder:
    store = StoreBuilder(agents)
    store.add("cron:a", 300, "old")
    store.add("cron:b", 5, "young")
    return store.write()


def call(agents: Path, url: str, function: str, token: str = "", **arguments: Any) -> dict[str, Any]:
    """Makes a call whose default address is ``url``, in an environment that does not name one."""
    environ = {"ARIA_AGENTS_DIR": str(agents), "ARIA_API_TOKEN": token, "ARIA_ALLOW_ERASE": "1"}
    settings = msgspec.structs.replace(read_settings(environ), api_url=url)
    loaded = load(function)
    arguments = msgspec.convert(arguments, loaded.arguments)
    try:
        return loaded.run(Context(settings, Volume(str(agents)), now_ms), arguments)
    except SessionManagerError as error:
        return error.document()


def told(aria: SmallAria) -> list[tuple[str, str, bool]]:
    """What was asked: method, path, and whether the token went with it."""
    return [(r.method, r.path, TOKEN in json.dumps(r.headers)) for r in aria.requests]


def waiting(agents: Path) -> int:
    return len(ledger_sql(agents, "SELECT 1 FROM marks WHERE state = 'pending'"))


def test_only_a_name_makes_an_address_trusted(agents: Path) -> None:
    assert read_settings({"ARIA_AGENTS_DIR": str(agents)}).api_url == DEFAULT_API_URL
    assert read_settings({"ARIA_AGENTS_DIR": str(agents)}).api_named is False
    for url in (DEFAULT_API_URL, ""):
        assert read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": url}).api_named is True


def test_the_service_says_who_it_is(shared_service: Service) -> None:
    for path in ("/healthz", "/health"):
        for method in ("GET", "HEAD"):
            answer = shared_service.client.request(method, path, headers={"Authorization": ""})
            assert (answer.status_code, answer.headers["x-service"]) == (200, "aria-api"), path


@pytest.mark.parametrize(("function", "arguments"), REMOVERS)
@pytest.mark.parametrize("there", ["nobody", "another"])
def test_without_aria_api_all_is_quiet(
    store: StoreBuilder, agents: Path, aria: SmallAria, there: str, function: str, arguments: dict[str, Any]
) -> None:
    aria.service = ""
    url = CLOSED_API if there == "nobody" else aria.url
    document = call(agents, url, function, **arguments)
    assert "error" not in document
    assert (document["pg_status_updated"], document.get("pg_pending", 0)) == (False, 0)
    assert "pg_error" not in document
    assert "message" not in document or document["message"].endswith("no history service")
    assert set(store.read()) == {"agent:main:cron:b"}
    assert waiting(agents) == 0
    assert call(agents, url, "deliver_history")["pending"] == 0
    assert call(agents, url, "doctor")["ok"] is True
    assert set(told(aria)) <= {("GET", "/healthz", False)}


@pytest.mark.parametrize(("function", "arguments"), REMOVERS)
def test_an_aria_api_at_the_default_address_is_used(
    store: StoreBuilder, agents: Path, aria: SmallAria, function: str, arguments: dict[str, Any]
) -> None:
    aria.token = TOKEN
    aria.add_all(["old", "young"])
    document = call(agents, aria.url, function, TOKEN, **arguments)
    assert document["pg_status_updated"] is True
    assert aria.ended() == {"old"}
    assert told(aria)[0] == ("GET", "/healthz", False)
    assert all(with_token for _, _, with_token in told(aria)[1:])
    assert waiting(agents) == 0
    checks = {check["name"]: check["ok"] for check in call(agents, aria.url, "doctor", TOKEN)["checks"]}
    assert (checks["aria_api"], checks["aria_api_token"]) == (True, True)


def test_without_a_token_it_is_used_as_well(store: StoreBuilder, agents: Path, aria: SmallAria) -> None:
    aria.add_all(["old", "only-there"])
    assert call(agents, aria.url, "prune_sessions")["pg_updated"] == 1
    assert call(agents, aria.url, "delete_session", session_id="only-there")["pg_status_updated"] is True
    assert aria.ended() == {"old", "only-there"}


def test_what_was_reached_once_is_owed_what_it_cannot_hear_now(
    store: StoreBuilder, agents: Path, aria: SmallAria
) -> None:
    aria.add_all(["old", "young"])
    call(agents, aria.url, "delete_session", session_id="old")
    for url in (CLOSED_API, aria.url):
        # Gone, or another program sits at its address.
        aria.service = ""
        aria.requests.clear()
        document = call(agents, url, "delete_session", TOKEN, session_id="young")
        assert (document["pg_status_updated"], document["pg_pending"]) == (False, True)
        assert url in document["pg_error"]
        assert set(told(aria)) <= {("GET", "/healthz", False)}
        assert call(agents, url, "doctor")["code"] == "aria_api_unreachable"
        assert waiting(agents) == 1
    aria.service = "aria-api"
    assert call(agents, aria.url, "deliver_history")["delivered"] == 1
    assert aria.ended() == {"old", "young"}


def test_a_token_says_that_there_is_a_history(store: StoreBuilder, agents: Path, aria: SmallAria) -> None:
    aria.service = ""
    document = call(agents, aria.url, "delete_session", TOKEN, session_id="old")
    assert (document["pg_pending"], "does not identify itself" in document["pg_error"]) == (True, True)
    assert told(aria) == [("GET", "/healthz", False)]
    aria.service = "aria-api"
    aria.add_all(["old"])
    assert call(agents, aria.url, "deliver_history", TOKEN)["delivered"] == 1


def test_what_is_owed_to_one_that_was_named_stays_owed(
    store: StoreBuilder, agents: Path, skill: Skill, aria: SmallAria
) -> None:
    skill("delete_session", {"session_id": "old"})
    document = call(agents, CLOSED_API, "delete_session", session_id="young")
    assert "pg_pending" not in document
    assert waiting(agents) == 1
    aria.add_all(["old", "young"])
    assert skill("deliver_history", ARIA_API_URL=aria.url).document["delivered"] == 1
    assert aria.ended() == {"old"}


def test_what_does_not_answer_is_not_waited_for_long_and_hears_no_more(
    store: StoreBuilder, agents: Path, aria: SmallAria
) -> None:
    hanging = Hanging()
    aria.prepared = [hanging]
    document = call(agents, aria.url, "delete_session", session_id="old")
    assert ("pg_pending" in document, document["message"].endswith("no history service")) == (False, True)
    hanging.free.set()
    for thread in threading.enumerate():
        if thread.name == "history":
            thread.join(60)
    assert told(aria) == [("GET", "/healthz", False)]


def test_nothing_is_asked_when_there_is_nothing_to_tell(store: StoreBuilder, agents: Path, aria: SmallAria) -> None:
    call(agents, CLOSED_API, "delete_session", session_id="old")
    assert call(agents, aria.url, "prune_sessions")["pg_updated"] == 0
    assert call(agents, aria.url, "restore_session", session_id="old")["message"].endswith("no history service")
    assert call(agents, aria.url, "deliver_history")["pending"] == 0
    assert aria.requests == []


def test_an_unknown_session_is_looked_for_only_where_there_is_a_history(agents: Path, aria: SmallAria) -> None:
    StoreBuilder(agents).write()
    for url in (CLOSED_API, aria.url):
        document = call(agents, url, "delete_session", session_id="nobody")
        assert (document["code"], "history" in document) == (NotFound.default_code, False)
    assert [path for _, path, _ in told(aria)] == ["/healthz", "/api/sessions"]
