"""All pages: what a browser is told when something is wrong, what hostile input makes of them, and parts of them."""

from __future__ import annotations

import asyncio
import html
import json
import re
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import postgres
import pytest
from chats import Chats
from service import Databases, Service, cli, running
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from support import Skill, StoreBuilder

from session_manager.service.db.dashboard import NAMED
from session_manager.service.embedded import EmbeddedPostgres
from session_manager.service.pages.dashboard import Drawn, _drawn

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
PART = {"HX-Request": "true", "HX-Target": "history"}


@pytest.fixture
def rows(chats: Chats, client: httpx.Client) -> Chats:
    """The database of the shared service, with no session in it."""
    chats.execute("TRUNCATE agent_sessions")
    return chats


@pytest.fixture
def closed(server: Databases, database: str, tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path / "log", DATABASE_URL=database, ARIA_API_TOKEN="the-operator") as service:
        yield service


def add(rows: Chats, *, agent: str = "main", kind: str = "cron", metadata: str = "{}") -> str:
    ((row_id,),) = rows.execute(
        "INSERT INTO agent_sessions (agent_id, session_type, metadata) VALUES (%s, %s, %s::jsonb) RETURNING id::text",
        agent,
        kind,
        metadata,
    )
    return str(row_id)


def told(page: httpx.Response) -> str:
    """The sentence of a page that says what is wrong."""
    assert page.headers["content-type"].startswith("text/html"), page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    (words,) = re.findall(r'role="alert">(.*?)<', page.text)
    return html.unescape(words)


def link(page: httpx.Response, name: str) -> str | None:
    address = re.search(rf'<a id="{name}" href="([^"]+)"', page.text)
    return html.unescape(address[1]) if address else None


# ---- refusals


@pytest.mark.parametrize("given", [{}, {"ARIA_API_TOKEN": "the-operator"}])
def test_without_its_database_every_page_says_so(tmp_path: Path, given: dict[str, str]) -> None:
    # A pooler would wait for its database, and the page with it.
    with (
        postgres.reachable_folder() as folder,
        EmbeddedPostgres.start(str(folder / "base"), None, postgres.FAST) as database,
        running(tmp_path / "log", DATABASE_URL=database.url, **given) as service,
    ):
        database.stop()
        for path in ("/sessions", "/sessions?search=x", "/conversations", f"/sessions/{uuid.uuid4()}/end"):
            page = service.client.get(path, headers=BROWSER)
            assert (page.status_code, page.headers["retry-after"]) == (503, "2"), path
            assert "the database does not answer" in told(page)
        assert service.client.get("/login", headers=BROWSER).status_code == 200
        login = httpx.post(f"{service.url}/login", data={"token": "x"}, headers=BROWSER, trust_env=False)
        assert "the database does not answer" in told(login)
        for path, headers in (("/api/sessions", BROWSER), ("/sessions", {}), ("/sessions", PART)):
            assert service.client.get(path, headers=headers).json()["code"] == "database_unavailable"


def test_a_form_that_is_refused_is_answered_with_a_page(closed: Service, database: str) -> None:
    path = f"/sessions/{uuid.uuid4()}/end"
    reader = {**BROWSER, "Cookie": f"aria_token={token(database, 'read')}"}
    with httpx.Client(base_url=closed.url, trust_env=False) as browser:
        nobody = browser.post(path, headers=BROWSER)
        assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, "Bearer")
        assert "a valid token is needed" in told(nobody)
        assert '<a href="/login">' in nobody.text
        assert "lacks the scope 'delete'" in told(browser.post(path, headers=reader))
        for foreign in ({"Origin": "null"}, {"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "same-site"}):
            page = browser.post(path, headers={**BROWSER, "Cookie": "aria_token=the-operator", **foreign})
            assert page.status_code == 403
            assert "another site" in told(page)
        assert "host name" in told(browser.get("/login", headers={**BROWSER, "Host": "evil.example"}))
        assert browser.get("/api/sessions", headers=BROWSER).json()["code"] == "unauthorized"


def token(database: str, scopes: str) -> str:
    done = cli("token", "create", "--name", "somebody", "--scope", scopes, DATABASE_URL=database)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_whoever_may_only_read_can_log_out(closed: Service, database: str) -> None:
    for given in (token(database, "read"), "no-token-any-more"):
        with httpx.Client(base_url=closed.url, cookies={"aria_token": given}, trust_env=False) as person:
            answer = person.post("/logout", headers=BROWSER)
            assert (answer.status_code, answer.headers["location"]) == (303, "/login")
            assert 'aria_token=""' in answer.headers["set-cookie"]
    assert httpx.post(f"{closed.url}/logout", headers={"Origin": "null"}, trust_env=False).status_code == 403


def test_a_script_is_sent_to_the_login_with_its_whole_page(closed: Service) -> None:
    answer = httpx.get(f"{closed.url}/sessions?status=error", headers=PART, trust_env=False)
    assert answer.status_code == 401
    assert answer.headers["hx-redirect"] == "/login?next=/sessions%3Fstatus%3Derror"


# ---- hostile input


@pytest.mark.parametrize(
    "query",
    [
        *(
            "before=0",
            "before=-1",
            "before=x",
            "before=1.5",
            "before=1e3",
            "after=",
            f"before={2**63}",
            f"after={10**30}",
        ),
        *("before=1&after=1", "before=1", f"after={2**61}", f"before={2**61}", "span=1y", "span=", "status=nonsense"),
        *(
            "search=%ff%fe",
            "search=%ed%a0%80",
            "search=%00",
            "search=%25_%5C",
            "search=%27%3B--",
            "search=" + "%F0%9F%98%80" * 200,
        ),
        *("status=a&status=b", "agent_id=" + "x" * 201, "empty=maybe", "before=2026-01-01~x", "after=2026-01-01~x"),
        *(
            f"before=0001-01-01T00:00:00%2B14:00~{uuid.UUID(int=0)}",
            f"after=1970-01-01T00:00:00%2B23:59~{uuid.UUID(int=0)}",
        ),
    ],
)
def test_no_query_breaks_a_page(rows: Chats, client: httpx.Client, query: str) -> None:
    add(rows)
    for path in ("/sessions", "/conversations"):
        for headers in (BROWSER, PART):
            answer = client.get(f"{path}?{query}", headers=headers)
            assert answer.status_code in (200, 422), answer.text
            if answer.status_code == 422 and headers is BROWSER:
                assert ": " in told(answer)


@pytest.mark.parametrize(
    "metadata",
    [
        {"aria_session_id": 5, "key": 7.5, "label": True},
        {"aria_session_id": ["a"], "key": {"b": {}}, "label": [1, "<b>bold</b>"]},
        {"aria_session_id": "", "key": "", "label": ""},
        {"aria_session_id": None, "label": False},
        {"aria_session_id": "a\"b' onmouseover=alert(1) ", "key": '"><img src=x>', "label": "javascript:alert(1)"},
        {
            "aria_session_id": "i" * 100_000,
            "key": "k" * 100_000,
            "label": "</td></table><script>alert(1)</script>" * 9999,
        },
    ],
)
def test_no_metadata_breaks_a_page(rows: Chats, client: httpx.Client, metadata: dict[str, object]) -> None:
    row_id = add(rows, agent='"><svg onload=alert(1)>', kind="' onclick='alert(1)", metadata=json.dumps(metadata))
    for path in ("/sessions", "/sessions?span=30d", f"/sessions/{row_id}/end"):
        page = client.get(path, headers=BROWSER)
        assert page.status_code == 200, path
        assert_no_markup_of_others(page)
    assert len(client.get("/sessions", headers=PART).content) < 10_000


def assert_no_markup_of_others(page: httpx.Response) -> None:
    tags = re.findall(r"<[a-zA-Z][^>]*>", page.text)
    assert len(tags) > 20
    for tag in tags:
        outside = re.sub(r'"[^"]*"|\'[^\']*\'', "", tag)
        assert not re.search(r"\s(on\w+|style)\s*(=|>)", outside), tag
        assert not re.match("<(img|b|svg onload)[ >]", tag), tag
        assert not re.search(r'(?:href|src|action)="(?!/|#|data:,")', tag), tag
    assert "unsafe" not in page.headers["content-security-policy"]


# ---- the ledger


@pytest.fixture
def ledger(agents: Path, skill: Skill) -> Path:
    """The ledger of a volume where a run removed a session."""
    StoreBuilder(agents).write()
    store = StoreBuilder(agents)
    store.add("cron:old", 120, session_id="old")
    store.write()
    assert skill("prune_sessions").document["pruned_count"] == 1
    return agents / ".session_manager" / "ledger.sqlite"


def test_a_ledger_of_whatever_kind_breaks_no_page(database: str, agents: Path, ledger: Path, tmp_path: Path) -> None:
    good = ledger.read_bytes()
    with running(
        tmp_path / "log", DATABASE_URL=database, ARIA_AGENTS_DIR=str(agents), ARIA_SYNC_SECONDS="0"
    ) as service:

        def shown() -> str:
            page = service.client.get("/sessions", headers=BROWSER)
            assert page.status_code == 200, service.log
            return page.text

        assert "removed 1 session" in shown()
        for change, words in (
            ("UPDATE runs SET started_at = 9223372036854775807", "removed 1 session"),
            ("UPDATE runs SET started_at = 1e30", "that this tool never writes"),
            ("UPDATE runs SET started_at = 'soon'", "that this tool never writes"),
            ("UPDATE attempts SET kind = 'restore', restores = 'x'", "cannot be read (malformed JSON)"),
            ("UPDATE runs SET function = x'ff'", "removed 1 session"),
            ("PRAGMA user_version = 99", "newer version"),
            ("DROP TABLE runs", "no such table"),
            ("DELETE FROM runs", "Nothing has been removed yet"),
        ):
            for name in ledger.parent.glob("ledger.sqlite-*"):
                name.unlink()
            ledger.write_bytes(good)
            connection = sqlite3.connect(ledger, isolation_level=None)
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute(change)
            connection.close()
            assert words in shown(), change
        ledger.write_bytes(good[:3000])
        assert "cannot be read" in shown()
        ledger.unlink()
        ledger.mkdir()
        assert "The ledger cannot be read" in shown()
        shutil.rmtree(agents)
        assert "does not exist" in shown()


# ---- parts


def test_a_part_brings_its_address_and_the_links_of_the_charts(rows: Chats, client: httpx.Client) -> None:
    add(rows)
    part = client.get("/sessions?search=&status=active&agent_id=&span=7d", headers=PART)
    assert part.headers["hx-push-url"] == "/sessions?status=active&span=7d"
    addresses = [html.unescape(each) for each in re.findall(r'href="(/sessions\?[^"]*span=[^"]*)"', part.text)]
    assert "/sessions?status=active&span=30d" in addresses
    assert re.search(r'<a href="/sessions\?status=active&amp;span=7d" aria-current="true">7 days', part.text)
    assert 'href="/sessions?span=7d">Clear' in client.get("/sessions?status=active&span=7d").text


def test_charts_are_counted_once_for_all_who_ask_at_once(server: Databases, database: str) -> None:
    counted: list[str] = []

    async def ask(engine: AsyncEngine) -> None:
        state = SimpleNamespace(drawn={}, drawing=asyncio.Lock())
        request: Any = SimpleNamespace(app=SimpleNamespace(state=state))
        event.listen(engine.sync_engine, "before_cursor_execute", lambda *given: counted.append(given[2]))

        async def one() -> Drawn:
            async with engine.connect() as connection:
                return await _drawn(request, connection, "24h")

        assert len({id(drawn) for drawn in await asyncio.gather(*(one() for _ in range(8)))}) == 1

    Chats(server, database).run(ask)
    assert len([statement for statement in counted if "WITH cells" in statement]) == 1


def test_a_choice_that_is_not_whole_says_so(rows: Chats, client: httpx.Client) -> None:
    rows.execute(
        "INSERT INTO agent_sessions (agent_id, session_type) SELECT 'a' || n, 'x' FROM generate_series(1, %s) AS n",
        NAMED,
    )
    assert "Only the first 200 agents are listed; use the search" in client.get("/sessions").text
    rows.execute("DELETE FROM agent_sessions WHERE agent_id = 'a7'")
    assert "are listed; use the search" not in client.get("/sessions").text


def test_empty_pages_say_why_they_are_empty(rows: Chats, client: httpx.Client) -> None:
    for query, words in (
        ("", "There is no session yet."),
        ("?status=error", "No session matches."),
        ("?before=1", "No session here."),
    ):
        assert words in client.get(f"/sessions{query}").text
    place = f"2026-01-01T00:00:00%2B00:00~{uuid.UUID(int=0)}"
    for query, words in (
        ("", "There is no conversation yet."),
        ("?search=x", "No conversation matches."),
        (f"?before={place}", "No conversation here."),
    ):
        page = client.get(f"/conversations{query}")
        assert words in page.text
        assert ("newest" in page.text) is ("before" in query)


# ---- conversations


def titles(page: httpx.Response) -> list[str]:
    assert page.status_code == 200, page.text
    return re.findall(r'<a class="clip" href="/chat[^>]*>([^<]+)</a>', page.text)


@pytest.mark.parametrize("query", ["", "?agent_id=busy", "?empty=true", "?search=talk"])
def test_conversations_go_forth_and_back_and_what_comes_or_goes_shifts_none(
    rows: Chats, client: httpx.Client, query: str
) -> None:
    # Many have the same time.
    rows.execute(
        "INSERT INTO chat_sessions (title, agent_id, updated_at, created_at)"
        " SELECT 'talk ' || n, 'busy', date_trunc('hour', now()) - make_interval(mins => n / 40), now()"
        " FROM generate_series(1, 130) AS n WHERE %s",
        True,
    )
    first = client.get(f"/conversations{query}")
    assert (link(first, "newer"), link(first, "newest")) == (None, None)
    second = client.get(link(first, "older") or "", headers=PART)
    third = client.get(link(second, "older") or "")
    every = titles(first) + titles(second) + titles(third)
    assert [len(titles(page)) for page in (first, second, third)] == [50, 50, 30]
    assert sorted(every) == sorted(f"talk {n}" for n in range(1, 131))
    assert link(third, "older") is None
    rows.execute("INSERT INTO chat_sessions (title, agent_id) VALUES ('talk later', 'busy')")
    rows.execute("DELETE FROM chat_sessions WHERE title = %s", titles(third)[0])
    back = client.get(link(third, "newer") or "")
    assert titles(back) == titles(second)
    front = client.get(link(back, "newer") or "")
    assert titles(front) == titles(first)
    assert titles(client.get(link(front, "newer") or "")) == ["talk later"]
    assert titles(client.get(link(front, "older") or "")) == titles(second)
    assert titles(client.get(link(third, "newest") or ""))[0] == "talk later"


def test_a_script_gets_the_conversations_alone(rows: Chats, client: httpx.Client) -> None:
    rows.empty(2)
    part = client.get("/conversations?empty=true&search=", headers=PART)
    assert "<html" not in part.text
    assert 'hx-swap-oob="innerHTML">2 conversations.' in " ".join(part.text.split()).replace("> 2", ">2")
    assert part.headers["hx-push-url"] == "/conversations?empty=true"


# ---- /docs


def test_the_description_of_the_api_is_written_for_people(client: httpx.Client) -> None:
    page = client.get("/docs", headers=BROWSER)
    assert "<code>/api/engine/sessions</code> are conversations" in page.text
    assert "`" not in page.text
    assert_no_markup_of_others(page)
