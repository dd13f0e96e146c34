"""/sessions and /conversations over HTTP: what they show, their pages, and who may change what."""

from __future__ import annotations

import html
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from chats import Chats, create, say
from service import Databases, Service, cli, running
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from support import Skill, StoreBuilder

from session_manager.service.db import dashboard as queries
from session_manager.service.db.dashboard import Page, Wanted
from session_manager.service.db.ownership import EVERYBODY
from session_manager.service.pages.dashboard import ROWS

NASTY = "<script>alert(1)</script>"


@pytest.fixture
def rows(chats: Chats, client: httpx.Client) -> Chats:
    """The database of the shared service, with no session in it."""
    chats.execute("TRUNCATE agent_sessions")
    return chats


def fill(
    rows: Chats,
    n: int,
    agent: str = "main",
    kind: str = "cron",
    status: str = "active",
    *,
    age_s: int = 60,
    first: int = 1,
) -> None:
    """Adds n sessions of an agent, that started ``age_s`` seconds ago; the first is ``<agent>-s<first>``."""
    rows.execute(
        "INSERT INTO agent_sessions (agent_id, session_type, status, started_at, metadata)"
        " SELECT %s, %s, %s, now() - make_interval(secs => %s), jsonb_build_object("
        "'aria_session_id', %s || '-s' || i, 'label', 'label ' || i) FROM generate_series(%s::int, %s::int) AS i",
        agent,
        kind,
        status,
        age_s,
        agent,
        first,
        first + n - 1,
    )


def shown(page: httpx.Response) -> list[str]:
    """The sessions of a page, in its order."""
    assert page.status_code == 200, page.text
    return re.findall(r"<td><code class=\"clip\" title=\"[^\"]*\">([^<]+)</code>", page.text)


def found(page: httpx.Response) -> str:
    """What the page says was found."""
    words = re.search(r'<p id="found" role="status"[^>]*>(.*?)</p>', page.text, re.DOTALL)
    assert words
    return " ".join(re.sub("<[^>]+>", "", words[1]).split())


def link(page: httpx.Response, name: str) -> str | None:
    address = re.search(rf'<a id="{name}" href="([^"]+)"', page.text)
    return html.unescape(address[1]) if address else None


def test_pages_follow_one_another_in_both_directions_and_new_rows_shift_none(rows: Chats, client: httpx.Client) -> None:
    fill(rows, 2 * ROWS + 7)
    every = [f"main-s{n}" for n in range(2 * ROWS + 7, 0, -1)]
    first = client.get("/sessions")
    assert found(first) == f"{2 * ROWS + 7} sessions."
    assert (link(first, "newest"), link(first, "newer")) == (None, None)
    fill(rows, 1, agent="late")
    second = client.get(link(first, "older") or "")
    third = client.get(link(second, "older") or "")
    assert shown(first) + shown(second) + shown(third) == every
    assert link(third, "older") is None
    back = client.get(link(third, "newer") or "")
    assert shown(back) == shown(second)
    front = client.get(link(back, "newer") or "")
    assert shown(front) == shown(first)
    assert shown(client.get(link(front, "newer") or "")) == ["late-s1"]
    assert shown(client.get(link(third, "newest") or ""))[0] == "late-s1"


def test_filters_alone_and_together(rows: Chats, client: httpx.Client) -> None:
    fill(rows, 2, "main", "cron", "active")
    fill(rows, 3, "main", "direct", "ended", first=3)
    fill(rows, 4, "other", "cron", "active", age_s=7200)
    for query, n in (
        ({}, 9),
        ({"status": "active"}, 6),
        ({"status": "stale"}, 4),
        ({"status": "stale", "agent_id": "main"}, 0),
        ({"status": "stale", "session_type": "cron"}, 4),
        ({"agent_id": "main"}, 5),
        ({"agent_id": "main", "session_type": "direct"}, 3),
        ({"agent_id": "main", "session_type": "direct", "status": "active"}, 0),
        ({"session_type": "cron", "status": "active"}, 6),
        ({"search": "LABEL 2"}, 2),
        ({"search": "label 2", "agent_id": "other"}, 1),
        ({"search": "%"}, 0),
        ({"search": "other-s4", "status": "active"}, 1),
        ({"search": "other-s4", "status": "ended"}, 0),
        ({"search": "\0", "status": " "}, 9),
    ):
        page = client.get("/sessions", params={"agent_id": "", **query})
        assert len(shown(page)) == n, query
        assert found(page).startswith(f"{n} session" if n else "No session matches"), query
    assert "<option selected>gone</option>" in client.get("/sessions?agent_id=gone").text


def test_what_a_model_named_is_never_markup(rows: Chats, client: httpx.Client) -> None:
    rows.execute(
        "INSERT INTO agent_sessions (agent_id, session_type, metadata) VALUES (%s, %s, jsonb_build_object("
        "'aria_session_id', %s::text, 'key', %s::text, 'label', %s::text))",
        *[NASTY + '"'] * 5,
    )
    session_id = create(client, title=NASTY, agent_id=NASTY)["id"]
    row_id = rows.execute("SELECT id FROM agent_sessions")[0][0]
    for path in (
        "/sessions",
        f"/sessions?search={NASTY}&agent_id={NASTY}%22",
        f"/sessions/{row_id}/end",
        "/conversations",
        f"/conversations/{session_id}/delete?next=/sessions?{NASTY}",
    ):
        page = client.get(path)
        assert page.status_code == 200
        assert NASTY not in page.text, path
        assert "&lt;script&gt;" in page.text, path
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_a_script_gets_the_rows_alone(rows: Chats, client: httpx.Client) -> None:
    fill(rows, 3)
    part = client.get("/sessions?status=active", headers={"HX-Request": "true", "HX-Target": "history"})
    assert shown(part) == shown(client.get("/sessions?status=active"))
    assert "<html" not in part.text
    assert 'hx-swap-oob="innerHTML"' in part.text
    assert found(part) == "3 sessions match."


def test_htmx_comes_from_here_and_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/sessions").text
    scripts = re.findall(r'<script src="([^"]+)"', page)
    assert len(scripts) == 2
    for script in scripts:
        answer = client.get(script)
        assert answer.headers["content-type"].startswith("text/javascript")
        assert "htmx" in answer.text
    assert re.findall(r'(?:src|href)="(?:https?:)?//', page) == []


def test_totals_count_stale_sessions_and_ghosts(rows: Chats, client: httpx.Client) -> None:
    fill(rows, 2)
    fill(rows, 3, "other", age_s=3700)
    fill(rows, 1, "third", status="error")
    rows.empty(4)
    say(client, create(client)["id"])
    totals = dict(re.findall(r"<dt>([^<]+)</dt><dd>(?:<a [^>]*>)?([^<]*)<", client.get("/sessions").text))
    assert {name: totals[name] for name in ("All", "active", "error", "ended", "Stale", "Ghosts")} == {
        "All": "6",
        "active": "5",
        "error": "1",
        "ended": "0",
        "Stale": "3",
        "Ghosts": "4",
    }


def test_charts_are_drawn_by_hour_by_agent_and_by_type(server: Databases, database: str, tmp_path: Path) -> None:
    rows = Chats(server, database)
    fill(rows, 5, "busy", "cron", age_s=0)
    fill(rows, 2, "calm", "hook", age_s=0)
    fill(rows, 1, "past", "main", age_s=3 * 86_400)
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        day = service.client.get("/sessions").text
        week = service.client.get("/sessions?span=7d").text
        assert "7 in all" in day
        assert day.count("<rect x=") == 24
        assert re.findall(r'<th scope="row"><span class="clip">(\w+)</span></th>', day) == [
            "busy",
            "calm",
            "cron",
            "hook",
        ]
        assert re.findall(r'<rect width="([\d.]+)"', day) == ["100.0", "40.0"] * 2
        assert "8 in all" in week
        assert week.count("<rect x=") == 168
        assert ">past</span></th>" in week
        assert service.client.get("/sessions?span=30d").text.count("<rect x=") == 30
        assert service.client.get("/sessions?span=1y").status_code == 422


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "SCAN", 10)
    monkeypatch.setattr(queries, "MOST", 12)


def paged(rows: Chats, wanted: Wanted, limit: int = 50, before: int | None = None, after: int | None = None) -> Page:
    page = rows.on_connection(lambda c: queries.page(c, wanted, limit, before=before, after=after))
    assert isinstance(page, Page)
    return page


def names(page: Page) -> list[str]:
    return [row["metadata"]["aria_session_id"] for row in page.rows]


@pytest.mark.usefixtures("small_steps")
def test_a_search_stops_after_so_many_rows_and_goes_on_from_there(rows: Chats) -> None:
    fill(rows, 35)
    wanted = Wanted(search="label 7")
    looked, page = 0, paged(rows, wanted)
    while not page.rows:
        assert page.stopped_at is not None
        assert page.older is not None
        looked += 1
        page = paged(rows, wanted, before=page.older)
    assert (looked, names(page)) == (2, ["main-s7"])
    assert page.older is not None
    last = paged(rows, wanted, before=page.older)
    assert (last.rows, last.older, last.stopped_at) == ([], None, None)
    assert last.newer is not None
    forward = paged(rows, wanted, after=last.newer)
    assert names(forward) == ["main-s7"]
    named = paged(rows, Wanted(search="main-s3"))
    assert (names(named), named.older, named.named) == (["main-s3"], None, True)


@pytest.mark.usefixtures("small_steps")
def test_counts_stop_and_say_so(rows: Chats) -> None:
    fill(rows, 40)
    fill(rows, 9, "other")
    for wanted, counted in (
        (Wanted(), (10, False)),
        (Wanted(search="label 1", agent_id="other"), (1, False)),
        (Wanted(search="main", agent_id="main"), (10, True)),
    ):
        assert rows.on_connection(lambda c, wanted=wanted: queries.count(c, wanted)) == counted


def test_each_query_goes_by_an_index(server: Databases, database: str) -> None:
    rows = Chats(server, database)
    fill(rows, 20_000)
    rows.execute(
        "UPDATE agent_sessions SET agent_id = 'agent-' || seq %% 100, session_type = 'type-' || seq %% 20,"
        " status = CASE WHEN seq %% 50 = 0 THEN 'active' ELSE 'ended' END,"
        " started_at = now() - make_interval(mins => seq::int)"
        " WHERE %s",
        True,
    )
    rows.execute("VACUUM ANALYZE agent_sessions")
    plans = rows.run(_plans, pool_size=1)
    assert len(plans) > 24
    for plan in plans:
        assert "Seq Scan on agent_sessions" not in plan, plan
    assert any("Index Cond: (GREATEST" in plan for plan in plans)
    assert any("idx_agent_sessions_type_seq" in plan for plan in plans)
    assert any("idx_agent_sessions_started" in plan for plan in plans)


async def _plans(engine: AsyncEngine) -> list[str]:
    """How PostgreSQL does what a dashboard asks for, whatever is chosen."""
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    event.listen(engine.sync_engine, "before_cursor_execute", note)
    async with engine.connect() as connection:
        for wanted in (
            Wanted(),
            Wanted(status="active"),
            Wanted(status="stale"),
            Wanted(agent_id="agent-3"),
            Wanted(session_type="type-3", status="active"),
            Wanted(search="main-s5"),
        ):
            await queries.page(connection, wanted, 50, before=15_000)
            await queries.page(connection, wanted, 50, after=15_000)
            await queries.page(connection, wanted, 50)
        await queries.totals(connection, EVERYBODY)
        await queries.names(connection)
        await queries.counts(connection, 24, "hour")
        event.remove(engine.sync_engine, "before_cursor_execute", note)
        plans = [await connection.exec_driver_sql(f"EXPLAIN {statement}", values) for statement, values in asked]
        return ["\n".join(line[0] for line in plan) for plan in plans]


# ---- who may change what


def token(database: str, *arguments: str) -> str:
    done = cli("token", "create", "--name", "somebody", *arguments, DATABASE_URL=database)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_row_is_ended_after_a_question_and_keeps_the_filters(rows: Chats, client: httpx.Client) -> None:
    fill(rows, 1)
    ((row_id,),) = rows.execute("SELECT id::text FROM agent_sessions")
    page = client.get("/sessions?status=active&search=label")
    (address,) = re.findall(rf'href="(/sessions/{row_id}/end[^"]*)"', page.text)
    question = client.get(html.unescape(address))
    assert "Mark this session as ended?" in question.text
    assert rows.execute("SELECT status FROM agent_sessions") == [("active",)]
    (where,) = re.findall(r'name="next" value="([^"]+)"', question.text)
    answer = client.post(f"/sessions/{row_id}/end", data={"next": html.unescape(where)})
    assert (answer.status_code, answer.headers["location"]) == (303, "/sessions?search=label&status=active")
    assert rows.execute("SELECT status, ended_by, ended_at IS NULL FROM agent_sessions") == [
        ("ended", "request", False)
    ]
    assert f"/sessions/{row_id}/end" not in client.get("/sessions").text
    assert "nothing to end" in client.get(f"/sessions/{row_id}/end").text


def test_what_is_not_active_stays_as_it_is(rows: Chats, client: httpx.Client) -> None:
    fill(rows, 1, status="error")
    ((row_id,),) = rows.execute("SELECT id::text FROM agent_sessions")
    assert client.post(f"/sessions/{row_id}/end").status_code == 303
    assert rows.execute("SELECT status FROM agent_sessions") == [("error",)]
    for method in ("GET", "POST"):
        assert client.request(method, f"/sessions/{uuid.uuid4()}/end").status_code == 404
        assert client.request(method, "/sessions/x/end").status_code == 400


def test_a_conversation_is_deleted_after_a_question(rows: Chats, client: httpx.Client) -> None:
    session_id = create(client, title="Bread")["id"]
    say(client, session_id)
    assert "Bread" in client.get("/conversations").text
    assert "Delete this conversation?" in client.get(f"/conversations/{session_id}/delete").text
    assert rows.counts() == (1, 1)
    answer = client.post(f"/conversations/{session_id}/delete", data={"next": "https://evil.example"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/conversations")
    assert rows.counts() == (0, 0)
    assert client.post(f"/conversations/{session_id}/delete").status_code == 404


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_no_other_site_ends_or_deletes(rows: Chats, client: httpx.Client, headers: dict[str, str]) -> None:
    fill(rows, 1)
    ((row_id,),) = rows.execute("SELECT id::text FROM agent_sessions")
    (session_id,) = rows.empty()
    for path in (f"/sessions/{row_id}/end", f"/conversations/{session_id}/delete"):
        answer = client.post(path, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "origin")
    assert rows.execute("SELECT status FROM agent_sessions") == [("active",)]
    assert rows.counts() == (1, 0)


@pytest.fixture
def closed(server: Databases, database: str, tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path / "log", DATABASE_URL=database, ARIA_API_TOKEN="the-operator") as service:
        yield service


def test_without_the_scope_a_page_only_shows(closed: Service, server: Databases, database: str) -> None:
    rows = Chats(server, database)
    fill(rows, 1)
    ((row_id,),) = rows.execute("SELECT id::text FROM agent_sessions")
    (session_id,) = rows.empty()
    paths = (f"/sessions/{row_id}/end", f"/conversations/{session_id}/delete")
    for scopes, may in (("read", False), ("read,write", False), ("read,delete", True)):
        given = token(database, "--scope", scopes)
        with httpx.Client(base_url=closed.url, cookies={"aria_token": given}, trust_env=False) as person:
            assert ("End…" in person.get("/sessions").text) is may
            assert ("Delete…" in person.get("/conversations").text) is may
            for path in paths:
                assert person.get(path).status_code == (200 if may else 403)
                if not may:
                    assert person.post(path).status_code == 403
    assert rows.execute("SELECT status FROM agent_sessions") == [("active",)]
    assert rows.counts() == (1, 0)
    with httpx.Client(base_url=closed.url, trust_env=False) as stranger:
        for path in (*paths, "/conversations"):
            answer = stranger.get(path)
            assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/login")
            assert path == "/conversations" or stranger.post(path).status_code == 401


def test_conversations_show_only_what_the_token_may_see(closed: Service, server: Databases, database: str) -> None:
    rows = Chats(server, database)
    rows.execute("INSERT INTO chat_sessions (title, user_id) VALUES ('of anna', 'anna'), ('of ben', 'ben')")
    given = token(database, "--scope", "read,delete", "--user", "anna")
    ((of_ben,),) = rows.execute("SELECT id::text FROM chat_sessions WHERE user_id = 'ben'")
    with httpx.Client(base_url=closed.url, cookies={"aria_token": given}, trust_env=False) as anna:
        page = anna.get("/conversations").text
        assert "of anna" in page
        assert "of ben" not in page
        assert re.search(r"<dt>Ghosts</dt><dd><a [^>]*>1<", anna.get("/sessions").text)
        for method in ("GET", "POST"):
            assert anna.request(method, f"/conversations/{of_ben}/delete").status_code == 404
    assert rows.counts() == (2, 0)


# ---- conversations


def test_conversations_are_paged_and_filtered(rows: Chats, client: httpx.Client) -> None:
    rows.execute(
        "INSERT INTO chat_sessions (title, agent_id, message_count, updated_at, created_at)"
        " SELECT 'talk ' || n, 'agent-' || n %% 2, n %% 3, now() - make_interval(mins => n / 2), now()"
        " FROM generate_series(1, 120) AS n"
    )

    def all_of(query: str) -> list[str]:
        titles: list[str] = []
        path: str | None = f"/conversations{query}"
        while path:
            page = client.get(path)
            assert page.status_code == 200, page.text
            titles += re.findall(r'<a class="clip" href="/chat[^>]*>([^<]+)</a>', page.text)
            path = link(page, "older")
        return titles

    everything = all_of("")
    assert len(everything) == len(set(everything)) == 120
    assert len(all_of("?agent_id=agent-1")) == 60
    empty = all_of("?empty=true")
    assert sorted(empty) == sorted(f"talk {n}" for n in range(3, 121, 3))
    assert all_of("?search=talk+77") == ["talk 77"]
    assert "No conversation matches" in client.get("/conversations?search=nothing").text
    for place in ("x", "2026-01-01~x", f"2026-01-01~{uuid.uuid4()}", f"9999-12-31T00:00:00+00:00~{uuid.uuid4()}"):
        answer = client.get("/conversations", params={"before": place})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid"), place


# ---- the volume: runs and marks


def test_runs_and_marks_of_the_ledger(database: str, agents: Path, tmp_path: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    for n in range(25):
        store.add(f"cron:old{n}", 120, session_id=f"old{n}")
    store.write()
    with running(tmp_path / "log", DATABASE_URL=database, ARIA_AGENTS_DIR=str(agents)) as service:
        assert "Nothing has been removed yet" in service.client.get("/sessions").text
        run_id = skill("prune_sessions", {"max_age_minutes": 60}).document["run_id"]
        restored = skill("restore_session", {"session_id": "old3"})
        assert restored.exit_code == 0, restored.document
        page = service.client.get("/sessions").text
        assert f"<code>{run_id}</code>" in page
        assert "removed 25 sessions; 1 restored since" in page
        assert "<code>old0</code> of main" in page
        assert "and 5 more" in page
        assert "restore: 1 session<" in page
        assert "24 status updates for history pending" in page
        assert re.search(r"<dt>Pending updates</dt><dd><a [^>]*>24</a>", page)
        assert "volume_sync" in page
        (agents / ".session_manager" / "ledger.sqlite").write_bytes(b"no ledger at all" * 1000)
        broken = service.client.get("/sessions")
        assert broken.status_code == 200
        assert "The ledger cannot be read" in broken.text
        assert re.search(r"<dt>Pending updates</dt><dd><span class=\"more\">unknown", broken.text)


def test_without_a_volume_that_is_said(client: httpx.Client) -> None:
    page = client.get("/sessions").text
    assert "has no agents directory" in page
    assert re.search(r"<dt>Pending updates</dt><dd><span class=\"more\">no volume", page)


def test_jobs_show_what_came_of_them(rows: Chats, client: httpx.Client) -> None:
    rows.empty(3, minutes=120)
    assert client.post("/api/jobs/ghost_purge/run").status_code == 200
    page = client.get("/sessions").text
    line = re.search(r"<td>ghost_purge</td>(.*?)</tr>", page, re.DOTALL)
    assert line
    assert ">ok<" in line[1]
    assert "deleted: 3" in line[1]
