"""Every page and every answer over rows that other programs' SQL has written: times that no calendar has, no numbers,
metadata of any shape. The tables allow them, so nothing may fail because of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
from psycopg.types.json import Jsonb
from service import Databases, Service, cli, running
from support import StoreBuilder

from session_manager.service.db.values import DEPTH, load_json

EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC).isoformat(), datetime.max.replace(tzinfo=UTC).isoformat()
# What PostgreSQL holds, and what is shown of it.
MOMENTS = {
    "infinity": LATEST,
    "-infinity": EARLIEST,
    "0044-03-15 BC": EARLIEST,
    "4714-11-24 00:00:00+00 BC": EARLIEST,
    "294276-12-31 23:59:59.999999+00": LATEST,
    "10000-01-01 00:00:00+00": LATEST,
    "0001-01-01 00:00:00+00": EARLIEST,
}
DEEP = '{"a": ' * 3_000 + "1" + "}" * 3_000
METADATA = [
    *(f'{{"aria_session_id": {value}}}' for value in ("5", "[]", "{}", "null", '""', "true", '{"a": [1e400]}')),
    *(f'{{"aria_session_id": "odd {name} {i}", "{name}": {value}}}'
      for name in ("key", "label", "model", "context_tokens", "erased_at")
      for i, value in enumerate(("[1, {}]", '{"<b>": 1}', "-0.0", "true", "null", '"\\u0001\\u200f<script>"'))),
    f'{{"huge": {"9" * 100_000}, "tiny": 1e-9999, "large": {"9" * 5_000}.5}}',
    f'{{"deep": {DEEP}, "behind": "]}}\\"["}}',
    json.dumps({"label": "x" * 2_000_000, "key": "agent:" * 50_000}),
    "{}",
]  # fmt: skip
WORDS = ["", " ", "weird", "<script>alert(1)</script>", "a\nb\t'\"&;--", "\u202e", "é" * 2_000, "x" * 20_000, ".."]
ROWS_ALONE = {"HX-Request": "true", "HX-Target": "history"}
INSERT = """
    INSERT INTO agent_sessions (agent_id, session_type, status, started_at, ended_at, last_activity_at, status_at,
                                messages_count, tokens_used, cost_usd, metadata)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


def fill(server: Databases, url: str) -> None:
    """Writes every odd row of history."""
    usual = ["odd", "cron", "active", "now", None, None, "now", 0, 0, 0, "{}"]
    rows = []
    for moment in MOMENTS:
        for status in ("active", "ended"):
            rows.append([*usual[:2], status, moment, None, None, "now", *usual[7:]])
            rows.append([*usual[:2], status, "now", moment, moment, moment, *usual[7:]])
            rows.append([*usual[:2], status, moment, moment, moment, moment, *usual[7:]])
    rows += [[*usual[:10], metadata] for metadata in METADATA]
    for place in range(3):
        rows += [[*usual[:place], word, *usual[place + 1 :]] for word in WORDS]
    for count, tokens in ((-(2**31), -(2**63)), (2**31 - 1, 2**63 - 1)):
        rows += [[*usual[:7], count, tokens, cost, "{}"] for cost in ("NaN", "-9999999999.999999", "9999999999.999999")]
    with server.connect(url) as connection:
        connection.cursor().executemany(INSERT, rows)
        connection.execute(
            "INSERT INTO agent_sessions (seq, agent_id) SELECT unnest(ARRAY[0, -1, -7, -9223372036854775808,"
            " 4611686018427387904, 9223372036854775806, 9223372036854775807]), 'numbered'"
        )


@pytest.fixture(scope="module")
def odd(server: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service on a history of odd rows; nothing runs by itself."""
    url = server.create()
    fill(server, url)
    log = tmp_path_factory.mktemp("odd") / "log"
    with running(log, DATABASE_URL=url, HOME=str(log.parent)) as service:
        yield service
        assert "internal error" not in service.log
        assert "Traceback" not in service.log
    server.drop(url)


def document(service: Service, path: str, **query: Any) -> Any:
    answer = service.client.get(path, params=query)
    assert answer.status_code == 200, f"{path} {query}: {answer.text[:500]}"
    return answer.json()


def everything(service: Service) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    for page in (1, 2, 3, 4):
        items += document(service, "/api/sessions", limit=50, page=page)["items"]
    return items


def test_every_row_of_history_is_listed(odd: Service, server: Databases) -> None:
    with server.connect(odd.database_url) as connection:
        (total,) = connection.execute("SELECT count(*) FROM agent_sessions").fetchone() or (0,)
    items = everything(odd)
    assert len(items) == total > 120
    assert {item["started_at"] for item in items} >= {EARLIEST, LATEST}
    assert {item["ended_at"] for item in items} >= {EARLIEST, LATEST, None}
    assert all(isinstance(item["cost_usd"], float) for item in items)
    assert min(item["tokens_used"] for item in items) == -(2**63)


def test_times_that_no_calendar_has_are_the_nearest_that_it_has(server: Databases, odd: Service) -> None:
    with server.connect(odd.database_url) as connection:
        found = connection.execute("SELECT id::text, started_at::text FROM agent_sessions WHERE ended_at IS NULL")
        times = dict(found.fetchall())
    shown = {item["id"]: item["started_at"] for item in everything(odd)}
    for row_id, written in times.items():
        if written in ("infinity", "-infinity") or "BC" in written or len(written.split("-")[0]) > 4:
            assert shown[row_id] == (EARLIEST if written.startswith("-") or "BC" in written else LATEST)


def test_statistics_count_them_and_leave_out_what_is_no_number(odd: Service) -> None:
    stats = document(odd, "/api/sessions/stats")
    assert stats["total_sessions"] == sum(stats["by_status"].values()) == sum(stats["by_agent"].values())
    assert stats["total_cost_usd"] == pytest.approx(0, abs=0.01)
    for hours in (1, 24, 744):
        assert len(document(odd, "/api/sessions/hourly", hours=hours)["items"]) == hours
        document(odd, "/api/sessions/hourly", hours=hours, agent_id="odd")


@pytest.mark.parametrize("query", [
    {"order": "desc"}, {"status": "active"}, {"agent_id": "odd"}, {"agent_id": " "}, {"session_type": ".."},
    {"search": "x"}, {"search": "<b>"}, {"search": "\\"}, {"aria_session_id": "5"}, {"aria_session_id": "odd key 1"},
    {"include_cron_events": "false"}, {"include_runtime_events": "false"}, {"page": "2", "limit": "7"},
])  # fmt: skip
def test_every_filter_works_on_them(odd: Service, query: dict[str, str]) -> None:
    document(odd, "/api/sessions", **query)


def page(service: Service, path: str, **headers: str) -> str:
    answer = service.client.get(path, headers={"Accept": "text/html", **headers})
    assert answer.status_code == 200, f"{path}: {answer.text[-1500:]}"
    return answer.text


def link(text: str, name: str) -> str | None:
    found = re.search(rf'<a id="{name}" href="([^"]*)"', text)
    return unescape(found[1]) if found else None


def walk(service: Service, name: str, path: str) -> tuple[int, str]:
    """Follows a link from page to page; returns how many rows there were, and the last page's address."""
    rows = 0
    while True:
        text = page(service, path, **ROWS_ALONE)
        rows += text.count('<td class="at">') // 2
        following = link(text, name)
        if following is None:
            return rows, path
        path = following


def test_the_dashboard_shows_all_of_them_forwards_and_backwards(odd: Service) -> None:
    total = document(odd, "/api/sessions")["total"]
    rows, last = walk(odd, "older", "/sessions")
    assert rows == total
    rows, _ = walk(odd, "newer", last)
    assert rows == total
    for query in ("status=stale", "status=ended", "agent_id=odd", "session_type=cron", "search=x", "search=odd+1",
                  "agent_id=odd&status=active", "span=7d", "span=30d", "status=weird"):  # fmt: skip
        page(odd, f"/sessions?{query}")


def test_what_the_dashboard_offers_to_choose_can_be_chosen(odd: Service) -> None:
    text = page(odd, "/sessions")
    for name, values in re.findall(r'<select name="(\w+)">(.*?)</select>', text, re.DOTALL):
        for value in re.findall(r"<option(?: selected)?>([^<]*)</option>", values):
            answer = odd.client.get("/sessions", params={name: unescape(value)})
            assert answer.status_code == 200, (name, value[:50])


def test_every_row_can_be_looked_at_marked_changed_and_deleted(server: Databases, tmp_path: Path) -> None:
    url = server.create()
    fill(server, url)
    with running(tmp_path / "log", DATABASE_URL=url) as service:
        items = everything(service)
        for item in items:
            page(service, f"/sessions/{item['id']}/end")
        named = [item for item in items if isinstance(item["metadata"].get("aria_session_id"), str)]
        refs = [
            {"agent_id": item["agent_id"], "aria_session_id": item["metadata"]["aria_session_id"]}
            for item in named
            if 0 < len(item["agent_id"]) <= 200 and item["metadata"]["aria_session_id"]
        ]
        for status in ("active", "ended"):
            answer = service.client.patch("/api/sessions", json={"status": status, "sessions": refs})
            assert (answer.status_code, answer.json()["missing"]) == (200, [])
        assert service.client.post("/api/sessions/erase", json={"sessions": refs}).status_code == 200
        for change in ({"status": "active"}, {"tokens_used": 1, "metadata": {"a": 1}}, {"status": "error"}):
            for item in items:
                answer = service.client.patch(f"/api/sessions/{item['id']}", json=change)
                assert answer.status_code == 200, answer.text[:300]
        assert len(everything(service)) == len(items)
        for name in ("closing", "ghost_purge", "expiry", "idle_archive"):
            answer = service.client.post(f"/api/jobs/{name}/run")
            assert answer.json()["outcome"] == "ok", answer.text
        for item in items:
            assert service.client.delete(f"/api/sessions/{item['id']}").status_code == 200
        assert "internal error" not in service.log
    server.drop(url)


def test_the_sync_goes_on_beside_them(server: Databases, agents: Path, tmp_path: Path) -> None:
    url = server.create()
    store = StoreBuilder(agents)
    for n, moment in enumerate(MOMENTS):
        store.add(f"cron:{n}", 5, session_id=f"s{n}")
        for status in ("active", "ended"):
            values = (status, moment, moment, moment, Jsonb({"aria_session_id": f"s{n}" if status == "active" else n}))
            with server.connect(url) as connection:
                connection.execute(
                    "INSERT INTO agent_sessions (agent_id, session_type, status, started_at, last_activity_at,"
                    " status_at, tokens_used, cost_usd, metadata)"
                    " VALUES ('main', 'odd', %s, %s, %s, %s, -5, 'NaN', %s)",
                    values,
                )
    store.write()
    with running(tmp_path / "log", DATABASE_URL=url, ARIA_AGENTS_DIR=str(agents), ARIA_SYNC_SECONDS="0") as service:
        answer = service.client.post("/api/sessions/sync")
        assert (answer.status_code, answer.json()["errors"]) == (200, [])
        assert answer.json()["updated"] == len(MOMENTS)
        answer = service.client.post("/api/jobs/closing/run")
        assert answer.json()["outcome"] == "ok"
        assert document(service, "/api/sessions")["total"] == 2 * len(MOMENTS)
    server.drop(url)


# Conversations: the tables refuse more, their archives do not.

SESSION, MESSAGE = "00000000-0000-4000-8000-{:012}", "10000000-0000-4000-8000-{:012}"
ARCHIVED = """
    INSERT INTO chat_sessions_archive (id, title, agent_id, session_type, status, message_count, tokens, created_at,
                                       updated_at, last_message_at, ended_at, metadata, archived_at)
    VALUES (%s, %s, %s, 'chat', %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""
ARCHIVED_MESSAGE = """
    INSERT INTO chat_messages_archive (id, session_id, position, role, content, encrypted, tokens, created_at)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s)
"""
# Position, role, content and encrypted payload.
ODD_MESSAGES = [
    (-(2**31), "user", "x", None),
    (-1, "weird", None, "[]"),
    (0, "", None, "null"),
    (7, "user", None, None),
    (2**31 - 1, "tool", "x", "5"),
]


def fill_archive(server: Databases, url: str) -> int:
    rows: list[list[Any]] = [
        [None, "a", "weird", -1, -5, m, m, m, m, metadata, m]
        for m, metadata in zip(MOMENTS, ("[]", "5", "null", '"x"', "true", "{}", DEEP), strict=True)
    ]
    rows += [[w, w, w, 2**31 - 1, 2**63 - 1, "now", "now", None, None, "{}", "now"] for w in WORDS]
    with server.connect(url) as connection:
        for n, row in enumerate(rows):
            connection.execute(ARCHIVED, [SESSION.format(n), *row])
            moment = list(MOMENTS)[n % len(MOMENTS)]
            for place, message in enumerate(ODD_MESSAGES):
                values = [MESSAGE.format(n * 10 + place), SESSION.format(n), *message, 2**63 - 1, moment]
                connection.execute(ARCHIVED_MESSAGE, values)
    return len(rows)


def test_every_archived_conversation_is_listed_shown_and_deleted(server: Databases, tmp_path: Path) -> None:
    url = server.create()
    many = fill_archive(server, url)
    with running(tmp_path / "log", DATABASE_URL=url) as service:
        found = document(service, "/api/engine/sessions/archived", limit=200)
        assert (found["total"], len(found["sessions"])) == (many, many)
        assert {session["archived_at"] for session in found["sessions"]} >= {EARLIEST, LATEST}
        for session in found["sessions"]:
            base = f"/api/engine/sessions/{session['id']}"
            shown = document(service, base)
            assert len(shown["recent_messages"]) == 5
            assert isinstance(shown["metadata"], dict)
            assert len(document(service, f"{base}/messages")) == 5
            page(service, f"/conversations/{session['id']}/delete")
            assert service.client.patch(base, json={"title": "x"}).status_code == 409
        for session in found["sessions"]:
            answer = service.client.post(f"/api/engine/sessions/{session['id']}/messages", json={"content": "back"})
            assert answer.status_code == 409, answer.text
            assert answer.json()["code"] == "archive_damaged"
            assert service.client.delete(f"/api/engine/sessions/{session['id']}").status_code == 200
        assert document(service, "/api/engine/sessions/archived")["total"] == 0
        assert "internal error" not in service.log
    server.drop(url)


def test_conversations_at_the_end_of_their_counters_take_messages(server: Databases, tmp_path: Path) -> None:
    url = server.create()
    with server.connect(url) as connection:
        for n, (count, tokens, position) in enumerate(((2**31 - 1, 2**63 - 1, 2**31 - 1), (0, -(2**63), -5))):
            connection.execute(
                "INSERT INTO chat_sessions (id, title, message_count, tokens, metadata) VALUES (%s, '', %s, %s, %s)",
                (SESSION.format(n), count, tokens, Jsonb({"has_messages": [], "ttl_minutes": {}})),
            )
            connection.execute(
                "INSERT INTO chat_messages (session_id, position, role, content, created_at)"
                " VALUES (%s, %s, 'user', '', '2199-12-31 23:59:59.999999Z')",
                (SESSION.format(n), position),
            )
        for n, word in enumerate(WORDS):
            connection.execute(
                "INSERT INTO chat_sessions (title, agent_id, session_type, model, user_id, org_id, metadata)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s)",
                (word, word, word, word, word, word, DEEP if n else "{}"),
            )
    with running(tmp_path / "log", DATABASE_URL=url) as service:
        body = {"content": "x", "tokens": 5}
        paths = [f"/api/engine/sessions/{SESSION.format(n)}/messages" for n in (0, 1)]
        answers = [service.client.post(path, json=body) for path in paths]
        assert [(answer.status_code, answer.json().get("code")) for answer in answers] == [
            (409, "session_full"),
            (201, None),
        ]
        assert document(service, f"/api/engine/sessions/{SESSION.format(0)}")["message_count"] == 2**31 - 1
        for path in ("", "/stats", "/ghosts"):
            document(service, f"/api/engine/sessions{path}")
        for query in ("", "?search=x", "?agent_id=..", "?empty=true"):
            page(service, f"/conversations{query}")
        for session in document(service, "/api/engine/sessions", limit=200)["sessions"]:
            document(service, f"/api/engine/sessions/{session['id']}")
            page(service, f"/conversations/{session['id']}/delete")
    listed = cli("ghosts", "--older-than-minutes", "1", DATABASE_URL=url)
    assert listed.returncode == 0, listed.stderr
    server.drop(url)


# Jobs and tokens


def test_runs_of_jobs_that_nobody_ran_are_shown_and_do_not_stop_them(server: Databases, tmp_path: Path) -> None:
    url = server.create()
    odd_runs = [
        ("closing", "infinity", "infinity", "weird", "[]", 2**31 - 1, "infinity"),
        ("ghost_purge", "-infinity", "0044-03-15 BC", "ok", "5", -(2**31), "-infinity"),
        ("expiry", "294276-01-01", "294276-01-01", "failed", DEEP, -1, "294276-01-01"),
        ("idle_archive", "now", "now", "", "null", 5, None),
    ]
    with server.connect(url) as connection:
        connection.cursor().executemany(
            "INSERT INTO job_runs (name, volume, started_at, ended_at, outcome, result, failures, next_run_at)"
            " VALUES (%s, '', %s, %s, %s, %s, %s, %s)",
            odd_runs,
        )
    with running(tmp_path / "log", DATABASE_URL=url) as service:
        items = {item["name"]: item for item in document(service, "/api/jobs")["items"]}
        assert items["closing"]["started_at"] == LATEST
        assert all(items[name]["outcome"] in ("ok", "failed", None) for name, *_ in odd_runs)
        assert all(items[name]["failures"] >= 0 for name, *_ in odd_runs)
        page(service, "/sessions")
        for name, *_ in odd_runs:
            answer = service.client.post(f"/api/jobs/{name}/run")
            assert (answer.status_code, answer.json()["outcome"]) == (200, "ok"), answer.text
    server.drop(url)


def test_tokens_that_nobody_made_are_no_obstacle(server: Databases, tmp_path: Path) -> None:
    url = server.create()
    made = cli("token", "create", "--name", "good", "--scope", "read", DATABASE_URL=url)
    assert made.returncode == 0, made.stderr
    token = next(word for word in made.stdout.split() if word.startswith("smt_"))
    good = token.split("_")[1]
    odd_tokens = [
        ("inf", "infinity", "{read,NULL,weird}", "{NULL,a}"),
        ("bc", "0044-03-15 BC", "{{read,write},{admin,delete}}", "{{a,b},{c,d}}"),
        ("", "-infinity", "{}", "{}"),
    ]
    with server.connect(url) as connection:
        connection.cursor().executemany(
            "INSERT INTO api_tokens (id, name, token_hash, created_at, scopes, orgs) VALUES (%s, '', '', %s, %s, %s)",
            odd_tokens,
        )
    listed = cli("token", "list", "--json", DATABASE_URL=url)
    assert listed.returncode == 0, listed.stderr
    assert len(json.loads(listed.stdout)["tokens"]) == 4
    assert cli("token", "list", DATABASE_URL=url).returncode == 0
    assert cli("token", "revoke", "inf", DATABASE_URL=url).returncode == 0
    with running(tmp_path / "log", DATABASE_URL=url) as service:

        def ask() -> httpx.Response:
            return service.client.get("/api/engine/sessions", headers={"Authorization": f"Bearer {token}"})

        assert ask().status_code == 200
        for orgs in ("{NULL,a}", "{{a,b},{c,d}}"):
            with server.connect(url) as connection:
                connection.execute("UPDATE api_tokens SET orgs = %s, user_id = '' WHERE id = %s", (orgs, good))
            assert ask().status_code == 200
        for scopes in ("{{read,write},{x,y}}", "{NULL,read}"):
            with server.connect(url) as connection:
                connection.execute("UPDATE api_tokens SET scopes = %s WHERE id = %s", (scopes, good))
            assert ask().status_code in (200, 403)
    server.drop(url)


# What is read of jsonb


@pytest.mark.parametrize("levels", [DEPTH, DEPTH + 1, 5_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a": ', "}")])
def test_what_is_nested_deeper_than_an_answer_can_be_is_cut_there(levels: int, opening: str, closing: str) -> None:
    found = load_json((opening * levels + "7" + closing * levels).encode())
    depth = 0
    while isinstance(found, list | dict):
        found = next(iter(found.values() if isinstance(found, dict) else found))
        depth += 1
    assert (depth, found) == ((levels, 7) if levels == DEPTH else (DEPTH, "…"))


def test_brackets_in_texts_are_no_depth() -> None:
    value = {"a": "[" * 5_000 + '\\"', "b": ["]" * 5_000, "{" * 5_000]}
    assert load_json(json.dumps(value).encode()) == value


def test_numbers_that_no_reader_takes_are_null() -> None:
    text = f"[1e400, -1e400, {'9' * 5_000}, {'9' * 5_000}.5, 1e-9999, 12345678901234567890123]"
    assert load_json(text.encode()) == [None, None, None, None, 0.0, 12345678901234567890123]
