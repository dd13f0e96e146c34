"""What the service answers when something is wrong: to programs, to browsers, and to its own log."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from pkgutil import iter_modules

import httpx
import pytest
from service import ROOT, Service, running, wait_until
from test_service_security import TOKEN, handshake, status_of

from session_manager.service import api, pages
from session_manager.service.app import create_app
from session_manager.service.config import read_config

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.mark.parametrize("path", [f"/sessions?before={2**63}", "/sessions?after=x", f"/sessions?search={'x' * 201}"])
def test_a_bad_query_of_a_page_is_a_page_for_browsers_and_json_for_programs(shared_service: Service, path: str) -> None:
    field = path.partition("?")[2].partition("=")[0]
    page = shared_service.client.get(path, headers=BROWSER)
    assert (page.status_code, page.headers["content-type"]) == (422, "text/html; charset=utf-8")
    assert f"{field}: " in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    document = shared_service.client.get(path).json()
    assert (document["code"], document["field"]) == ("invalid", field)
    assert document["error"] in page.text


def test_an_address_of_nothing_is_a_page_for_browsers_but_never_below_the_api(shared_service: Service) -> None:
    page = shared_service.client.get("/nothing/<b>", headers=BROWSER)
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "<b>" not in page.text
    assert shared_service.client.get("/api/nothing", headers=BROWSER).json()["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/sessions", {"GET", "HEAD", "PATCH", "POST"}),
        ("GET", "/api/sessions/00000000-0000-4000-8000-000000000000", {"DELETE", "PATCH"}),
        ("DELETE", "/healthz", {"GET", "HEAD"}),
        ("DELETE", "/login", {"GET", "HEAD", "POST"}),
        ("PATCH", "/sessions", {"GET", "HEAD"}),
        ("PATCH", "/api/sessions/stats", {"GET", "HEAD"}),
        ("DELETE", "/api/sessions/sync", {"POST"}),
        ("PATCH", "/api/engine/sessions/ghosts", {"DELETE", "GET", "HEAD"}),
        ("GET", "/api/engine/sessions/cleanup", {"POST"}),
    ],
)
def test_405_names_every_method_that_the_address_knows(
    shared_service: Service, method: str, path: str, allowed: set[str]
) -> None:
    for headers in ({}, BROWSER):
        answer = shared_service.client.request(method, path, headers=headers)
        assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, allowed)


def test_head_answers_what_get_does_without_its_body(shared_service: Service) -> None:
    client = shared_service.client
    row = client.post("/api/sessions", json={"agent_id": "head"}).json()["id"]
    chat = client.post("/api/engine/sessions", json={}).json()["id"]
    ids = {"/api/engine/": chat, "/conversations/": chat, "/sessions/": row}
    paths = answered_by_get() | {"/openapi.json"}
    assert {"/health", "/healthz", "/sessions", "/conversations", "/api/sessions", "/metrics"} <= paths
    for template in sorted(paths):
        found = next((found for start, found in ids.items() if template.startswith(start)), "")
        for path in (template.replace("{id}", found), f"{template.replace('{id}', 'x')}?limit=0"):
            asked, told = client.get(path), client.head(path)
            assert (told.status_code, told.content) == (asked.status_code, b""), path
            assert told.headers.get("content-type") == asked.headers.get("content-type"), path
            if "/metrics" not in path and "/jobs" not in path and path != "/sessions":
                assert told.headers["content-length"] == asked.headers["content-length"], path
    for path in ("/nothing", "/api/chat/nothing"):
        assert client.head(path).status_code == 404
    assert client.head("/api/sessions/sync").status_code == client.get("/api/sessions/sync").status_code == 405
    assert "HEAD /sessions/" in shared_service.log


def answered_by_get() -> set[str]:
    """The paths of all routers, as their routes write them."""
    modules = [
        importlib.import_module(f"{p.__name__}.{m.name}") for p in (api, pages) for m in iter_modules(p.__path__)
    ]
    routes = [route for module in modules if hasattr(module, "router") for route in module.router.routes]
    return {route.path for route in routes if "GET" in (getattr(route, "methods", None) or ())}


def test_health_goes_by_the_name_that_older_clients_know(shared_service: Service) -> None:
    assert shared_service.client.get("/health").json() == shared_service.client.get("/healthz").json()
    assert httpx.get(f"{shared_service.url}/health", headers={"Host": "10.1.2.3"}, trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        (b'{"title": "x"}', "text/plain", "body: must be a JSON object, sent with Content-Type: application/json"),
        (b"[]", "application/json", "body: must be a JSON object, sent with Content-Type: application/json"),
        (b"{'title'}", "application/json", "body: not readable as JSON (Expecting property name enclosed in"),
        (b"\xff", "application/json", "body: not readable as JSON"),
        (b'{"titel": "x"}', "application/json", "titel: there is no such field"),
        (b'{"title": "\\ud83d"}', "application/json", "title: must not contain half a character"),
    ],
)
def test_what_is_wrong_with_a_body_is_said_in_words(
    shared_service: Service, body: bytes, kind: str, sentence: str
) -> None:
    answer = shared_service.client.post("/api/engine/sessions", content=body, headers={"content-type": kind})
    document = answer.json()
    assert (answer.status_code, document["code"]) == (422, "invalid")
    assert document["error"].startswith(sentence)
    assert document["error"] == f"{document['field']}: {document['fields'][0]['error']}"


def test_the_description_says_how_to_authenticate(shared_service: Service) -> None:
    api: dict[str, dict[str, dict[str, dict[str, object]]]] = shared_service.client.get("/openapi.json").json()
    schemes = api["components"]["securitySchemes"]
    assert [(s["type"], s["scheme"]) for s in schemes.values()] == [("http", "bearer")]
    needed = [{name: []} for name in schemes]
    for path, operations in api["paths"].items():
        for operation in operations.values():
            assert operation.get("security") == (None if path in ("/healthz", "/readyz") else needed), path


def test_a_request_that_ends_in_an_exception_is_noted_as_500(database: str, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(read_config({"HOME": "/nonexistent"}), database)

    @app.get("/fails")
    async def fails() -> None:
        raise ZeroDivisionError

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.get("/fails")
        await app.state.engine.dispose()
        return answer

    with caplog.at_level(logging.INFO, "session_manager.access"):
        answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert [record.getMessage().split()[:3] for record in caplog.records if record.name.endswith("access")] == [
        ["GET", "/fails", "500"]
    ]


def test_a_websocket_that_is_refused_or_leads_nowhere_is_closed_quietly(database: str, tmp_path: Path) -> None:
    with running(tmp_path / "log", DATABASE_URL=database, ARIA_API_TOKEN=TOKEN) as service:
        bearer = f"Authorization: Bearer {TOKEN}"
        assert status_of(handshake(service.url, bearer, path="/nothing")) in (403, 404)
        assert status_of(handshake(service.url, bearer, path="/api/sessions")) in (403, 404)
        assert status_of(handshake(service.url, path="/nothing")) == 401
        assert status_of(handshake(service.url, bearer, "Origin: https://evil.example")) == 403
        service.client.get("/healthz")
        wait_until(lambda: "GET /healthz 200" in service.log)
    assert "ERROR" not in service.log


BROKEN = """
import sys
from session_manager.faces import cli
from session_manager.service import server

def fail(*arguments):
    raise ZeroDivisionError("first line\\nsecond line")

server.serve = fail
sys.argv[1:] = ["serve"]
cli.main()
"""


@pytest.mark.parametrize("traceback", [None, "1"])
def test_an_unforeseen_error_of_the_command_line_is_one_sentence(traceback: str | None) -> None:
    env = {**os.environ, **({"ARIA_TRACEBACK": traceback} if traceback else {})}
    done = subprocess.run(
        [sys.executable, "-c", BROKEN], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (70, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: internal error (ZeroDivisionError: first line)")
    assert (done.stderr.count("\n") == 1) == (traceback is None)
    assert ("Traceback" in done.stderr) == (traceback is not None)
