"""Who may ask: each attack is made, and fails."""

from __future__ import annotations

import base64
import html
import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from service import ROOT, Databases, Service, cli, running

from session_manager.service.config import is_loopback

TOKEN = "a-token-of-the-operator"
SID = "5ec2e7f0-0000-4000-8000-00000000cafe"


@pytest.fixture(scope="module")
def closed(server: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with ARIA_API_TOKEN; its client sends the token."""
    url = server.create()
    log = tmp_path_factory.mktemp("service") / "log"
    with running(log, DATABASE_URL=url, HOME=str(log.parent), ARIA_API_TOKEN=TOKEN) as service:
        yield service
    server.drop(url)


def raw(url: str, request: str) -> str:
    """Sends a request as it is, and returns the answer."""
    address = urlsplit(url)
    assert address.port is not None
    with socket.create_connection((address.hostname or "", address.port), timeout=30) as connection:
        connection.sendall(request.replace("\n", "\r\n").encode())
        connection.settimeout(30)
        answer = b""
        while b"\r\n\r\n" not in answer:
            chunk = connection.recv(65536)
            if not chunk:
                break
            answer += chunk
    return answer.decode(errors="replace")


def status_of(answer: str) -> int:
    return int(answer.split()[1])


def total(service: Service) -> int:
    return int(service.client.get("/api/sessions/stats").json()["total_sessions"])


NEW = {"agent_id": "victim", "metadata": {}}

# What a browser sends along when a page of another site asks it to.
FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://evil.example:8000"},
    {"Origin": "null"},
    {"Origin": "http://localhost:1"},
    {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize("method", ["POST", "PATCH", "DELETE", "PUT"])
def test_a_page_of_another_site_cannot_change_anything(
    shared_service: Service, headers: dict[str, str], method: str
) -> None:
    before = total(shared_service)
    answer = shared_service.client.request(method, "/api/sessions", json=NEW, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "origin")
    assert total(shared_service) == before


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_form_cannot_pretend_to_be_json(shared_service: Service, kind: str) -> None:
    """Old browsers send neither Origin nor Sec-Fetch-Site; a form can only send these types."""
    before = total(shared_service)
    answer = shared_service.client.post("/api/sessions", content=json.dumps(NEW), headers={"Content-Type": kind})
    assert answer.status_code in (415, 422)
    assert total(shared_service) == before


def test_a_cross_site_form_cannot_use_the_cookie(closed: Service) -> None:
    login = httpx.post(f"{closed.url}/login", data={"token": TOKEN}, trust_env=False)
    cookie = login.headers["set-cookie"]
    assert "httponly" in cookie.lower()
    assert "samesite=strict" in cookie.lower()
    with httpx.Client(base_url=closed.url, cookies=login.cookies, trust_env=False) as browser:
        forged = browser.post("/api/sessions", json=NEW, headers={"Origin": "https://evil.example"})
        assert forged.status_code == 403
        logout = browser.post("/logout", headers={"Origin": "https://evil.example"})
        assert logout.status_code == 403
        assert browser.post("/api/sessions", json=NEW, headers={"Origin": closed.url}).status_code == 201


def test_a_browser_s_word_counts_even_when_the_origin_looks_right(shared_service: Service) -> None:
    headers = {"Origin": shared_service.url, "Sec-Fetch-Site": "cross-site"}
    assert shared_service.client.post("/api/sessions", json=NEW, headers=headers).status_code == 403


def test_behind_a_proxy_there_is_no_local_user(shared_service: Service) -> None:
    for name in ("Forwarded", "X-Forwarded-For", "X-Real-IP"):
        assert shared_service.client.get("/api/sessions", headers={name: "198.51.100.7"}).status_code == 401


def test_probes_may_go_by_an_address(shared_service: Service) -> None:
    for path in ("/healthz", "/readyz"):
        assert shared_service.client.head(path, headers={"Host": "10.1.2.3:8000"}).status_code == 200


@pytest.mark.parametrize("names", ["https://aria.example", "aria.example:8000", "a b"])
def test_names_that_no_host_has_are_refused(names: str, database: str) -> None:
    done = tool(database, "serve", "--port", "0", ARIA_ALLOWED_HOSTS=names)
    assert (done.returncode, done.stdout) == (2, "")
    assert "ARIA_ALLOWED_HOSTS" in done.stderr


def test_no_path_forges_a_line_of_the_log(shared_service: Service) -> None:
    raw(shared_service.url, "GET /a%0AERROR%20x/%1b[31m HTTP/1.1\nHost: localhost\nConnection: close\n\n")
    assert "\nERROR x" not in shared_service.log
    assert "\x1b" not in shared_service.log


def test_a_page_gets_no_leave_to_read_answers(shared_service: Service) -> None:
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "DELETE"}
    for answer in (
        shared_service.client.options("/api/sessions", headers=asked),
        shared_service.client.get("/api/sessions", headers={"Origin": "https://evil.example"}),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "localhost@evil.example",
        "10.0.0.1",
        "0.0.0.0",
        "[::]",
        "",
        "evil.example#localhost",
        "2130706433",
        "127.0.0.1/x",
    ],
)
@pytest.mark.parametrize("path", ["/api/sessions", "/sessions", "/login"])
def test_dns_rebinding_gets_no_answer(shared_service: Service, host: str, path: str) -> None:
    answer = raw(shared_service.url, f"GET {path} HTTP/1.1\nHost: {host}\nConnection: close\n\n")
    assert status_of(answer) in (400, 403), answer


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.8.8.8:80", "[::1]:8000", "localhost."])
def test_loopback_by_any_name_is_answered(shared_service: Service, host: str) -> None:
    answer = raw(shared_service.url, f"GET /healthz HTTP/1.1\nHost: {host}\nConnection: close\n\n")
    assert status_of(answer) == 200, answer


def test_a_configured_name_is_answered_and_may_ask(server: Databases, database: str, tmp_path: Path) -> None:
    with running(tmp_path / "log", DATABASE_URL=database, ARIA_ALLOWED_HOSTS="aria.example, Other.example") as service:
        client = service.client
        assert client.get("/api/sessions", headers={"Host": "aria.example"}).status_code == 200
        assert client.get("/api/sessions", headers={"Host": "other.example:8443"}).status_code == 200
        assert client.get("/api/sessions", headers={"Host": "evil.example"}).status_code == 403
        proxied = {"Host": "127.0.0.1:8000", "Origin": "https://aria.example"}
        assert client.post("/api/sessions", json=NEW, headers=proxied).status_code == 201
        assert client.post("/api/sessions", json=NEW, headers={"Origin": "https://evil.example"}).status_code == 403


def handshake(url: str, *headers: str, path: str = "/api/engine/chat/ws") -> str:
    key = base64.b64encode(os.urandom(16)).decode()
    host = urlsplit(url).netloc
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *headers,
    ]
    return raw(url, "\n".join(lines) + "\n\n")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
def test_a_foreign_origin_gets_no_websocket(shared_service: Service, origin: str) -> None:
    answer = handshake(shared_service.url, f"Origin: {origin}")
    assert status_of(answer) == 403
    assert '"code":"origin"' in answer


def test_a_websocket_needs_a_token_like_anything_else(closed: Service) -> None:
    refused = handshake(closed.url, f"Origin: {closed.url}")
    assert status_of(refused) == 401
    assert '"code":"unauthorized"' in refused
    passed = handshake(closed.url, f"Origin: {closed.url}", f"Authorization: Bearer {TOKEN}")
    assert "unauthorized" not in passed
    assert "origin" not in passed


GUESSES = [
    "-",
    "x",
    TOKEN[:-1],
    TOKEN + "x",
    TOKEN.upper(),
    "smt_",
    "smt__",
    "smt_00000000_" + "A" * 43,
    "smt_' OR '1'='1_x",
    "smt_\x7f_x",
    "null",
]
PROTECTED = ["/api/sessions", "/api/sessions/stats", "/metrics", "/openapi.json", "/nothing/at/all"]


@pytest.mark.parametrize("path", PROTECTED)
@pytest.mark.parametrize("guess", GUESSES)
def test_a_guessed_token_is_refused(closed: Service, path: str, guess: str) -> None:
    with httpx.Client(base_url=closed.url, trust_env=False) as stranger:
        for headers in ({"Authorization": f"Bearer {guess}"}, {"Cookie": f"aria_token={guess}"}):
            answer = stranger.get(path, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"


def test_without_a_token_browsers_are_led_to_the_login_and_only_health_is_open(closed: Service) -> None:
    with httpx.Client(base_url=closed.url, trust_env=False) as stranger:
        for path in ("/sessions", "/docs", "/"):
            answer = stranger.get(path)
            assert (answer.status_code, answer.headers["location"].split("?")[0]) == (303, "/login")
        for path in ("/healthz", "/readyz", "/login", "/style.css"):
            assert stranger.get(path).status_code == 200
        for method in ("POST", "PATCH", "DELETE"):
            assert stranger.request(method, "/api/sessions", json=NEW).status_code == 401
        assert stranger.post("/sessions").status_code == 401


def test_the_login_turns_a_token_into_a_cookie_and_the_logout_ends_it(closed: Service) -> None:
    with httpx.Client(base_url=closed.url, trust_env=False) as browser:
        wrong = browser.post("/login", data={"token": "guess", "next": "/sessions"})
        assert wrong.status_code == 401
        assert "set-cookie" not in wrong.headers
        assert browser.get("/sessions").status_code == 303
        right = browser.post("/login", data={"token": f" {TOKEN}\n", "next": "/docs"})
        assert (right.status_code, right.headers["location"]) == (303, "/docs")
        assert browser.get("/sessions").status_code == 200
        assert "Log out" in browser.get("/sessions").text
        browser.post("/logout")
        assert browser.get("/sessions").status_code == 303


@pytest.mark.parametrize(
    "address",
    [
        f"/chat?session={SID}",
        "/sessions?status=ended&agent_id=a%26b&search=50%25+of+%C3%A4&page=1",
        "/chat?next=https%3A%2F%2Fevil.example",
        "/chat?next=//evil.example&token=x%23y",
        "/chat?%0d%0aSet-Cookie:%20a=b",
    ],
)
def test_the_login_leads_back_to_the_address_with_its_query(closed: Service, address: str) -> None:
    with httpx.Client(base_url=closed.url, trust_env=False) as browser:
        sent = browser.get(address).headers["location"]
        assert sent.startswith("/login?next=/")
        form = browser.get(sent).text
        (following,) = re.findall(r'name="next" value="([^"]*)"', form)
        answer = browser.post("/login", data={"token": TOKEN, "next": html.unescape(following)})
        assert (answer.status_code, answer.headers["location"]) == (303, address)
        assert list(answer.cookies) == ["aria_token"]


@pytest.mark.parametrize("address", ["/chat?" + "x" * 2001, "/chat?", "/chat"])
def test_a_query_that_is_none_or_no_page_s_is_left_out(closed: Service, address: str) -> None:
    answer = httpx.get(closed.url + address, trust_env=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/chat")


def test_the_cookie_is_secure_behind_https(closed: Service) -> None:
    plain = httpx.post(f"{closed.url}/login", data={"token": TOKEN}, trust_env=False)
    assert "secure" not in plain.headers["set-cookie"].lower()
    tls = httpx.post(
        f"{closed.url}/login", data={"token": TOKEN}, headers={"X-Forwarded-Proto": "https"}, trust_env=False
    )
    assert "secure" in tls.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example",
        "https://evil.example?/chat",
        "//evil.example",
        "//evil.example/chat?session=x",
        "/\\evil.example",
        "/chat?\r\nLocation: https://evil.example",
        "?next=//evil.example",
        "javascript:alert(1)",
        "/\tx",
        "",
    ],
)
def test_the_login_leads_nowhere_else(closed: Service, target: str) -> None:
    answer = httpx.post(f"{closed.url}/login", data={"token": TOKEN, "next": target}, trust_env=False)
    assert answer.headers["location"] == "/sessions"
    page = httpx.get(f"{closed.url}/login", params={"next": target}, trust_env=False)
    assert "evil.example" not in page.text


def tool(database: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`session-manager` on a database."""
    return cli(*arguments, DATABASE_URL=database, **env)


def created(database: str, *arguments: str) -> str:
    done = tool(database, "token", "create", "--name", "somebody", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def asks(service: Service, token: str | None, method: str = "GET", path: str = "/api/sessions", **body: Any) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.request(method, f"{service.url}{path}", headers=headers, trust_env=False, **body).status_code


def test_tokens_are_made_limited_listed_and_revoked(server: Databases, database: str, tmp_path: Path) -> None:
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        assert asks(service, None) == 200
        reader = created(database, "--scope", "read")
        assert asks(service, None) == 401, "from the first token on, everybody needs one"
        writer, deleter, admin = (
            created(database),
            created(database, "--scope", "delete"),
            created(database, "--scope", "admin"),
        )
        row = "/api/sessions/00000000-0000-4000-8000-000000000000"
        for token, read, write, delete in (
            (reader, 200, 403, 403),
            (writer, 200, 201, 403),
            (deleter, 403, 403, 404),
            (admin, 200, 201, 404),
        ):
            assert asks(service, token) == read
            assert asks(service, token, "POST", json=NEW) == write
            assert asks(service, token, "DELETE", row) == delete
            body = {"sessions": [{"agent_id": "a", "aria_session_id": "b"}]}
            assert asks(service, token, "POST", "/api/sessions/erase", json=body) == (200 if delete == 404 else 403)
            assert asks(service, token, "POST", "/api/sessions/erase/", json=body) != 200
        assert asks(service, reader[:-1]) == 401
        assert asks(service, reader[:13] + writer[13:]) == 401
        listed = json.loads(tool(database, "token", "list", "--json").stdout)["tokens"]
        assert [t["scopes"] for t in listed] == [["read"], ["read", "write"], ["delete"], ["admin"]]
        for token in (reader, writer, deleter, admin):
            done = tool(database, "token", "revoke", token.split("_")[1])
            assert done.returncode == 0, done.stderr
            assert asks(service, token) == 401
        assert asks(service, None) == 401, "revoking the last token does not open the service"
    stored = json.dumps(listed)
    with server.connect(database) as connection:
        kept = str(connection.execute("SELECT id, name, token_hash::text, scopes FROM api_tokens").fetchall())
    for token in (reader, writer, deleter, admin):
        secret = token.split("_", 2)[2]
        for text in (stored, kept, service.log):
            assert secret not in text
    assert "revoked" in tool(database, "token", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("token", "create", "--name", "x", "--scope", "root"), 2),
        (("token", "create", "--name", "x", "--scope", ""), 2),
        (("token", "create", "--name", " "), 2),
        (("token", "create"), 2),
        (("token", "revoke", "nobody"), 5),
        (("serve", "--port", "x"), 2),
        (("serve", "--port", "70000"), 2),
        (("serve", "--host", "no such host"), 2),
        (("serve", "--port", "0", "--host", "192.0.2.1"), 70),
        (("nothing",), 2),
    ],
    ids=str,
)
def test_wrong_commands_say_what_is_wrong(database: str, arguments: tuple[str, ...], code: int) -> None:
    done = tool(database, *arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr


def test_beyond_loopback_a_token_is_needed_to_start(database: str, tmp_path: Path) -> None:
    done = tool(database, "serve", "--host", "0.0.0.0", "--port", "0")
    assert (done.returncode, done.stdout) == (4, "")
    assert "token" in done.stderr
    with running(tmp_path / "log", "--host", "0.0.0.0", DATABASE_URL=database, ARIA_API_TOKEN=TOKEN) as service:
        port = urlsplit(service.url).port
        url = f"http://127.0.0.1:{port}/api/sessions"
        assert httpx.get(url, trust_env=False).status_code == 401
        assert httpx.get(url, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False).status_code == 200
    token = created(database)
    with running(tmp_path / "log2", "--host", "0.0.0.0", DATABASE_URL=database) as service:
        url = f"http://127.0.0.1:{urlsplit(service.url).port}/api/sessions"
        assert httpx.get(url, trust_env=False).status_code == 401
        assert httpx.get(url, headers={"Authorization": f"Bearer {token}"}, trust_env=False).status_code == 200
    assert tool(database, "token", "revoke", token.split("_")[1]).returncode == 0
    assert tool(database, "serve", "--host", "0.0.0.0", "--port", "0").returncode == 4


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every comparison of secrets goes through hmac.compare_digest; there is no other in these modules."""
    for module in ("auth.py", "db/tokens.py"):
        text = (ROOT / "session_manager" / "service" / module).read_text()
        assert "hmac.compare_digest(" in text
        assert not re.search(r"(token_hash|digest\([^)]*\)|api_token)\s*[=!]=", text)


def test_no_sql_is_built_from_strings() -> None:
    for path in (ROOT / "session_manager" / "service").rglob("*.py"):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            assert not re.search(r"(text|execute|scalar)\(\s*(f[\"']|[\"'][^\"']*[\"']\s*(%|\.format|\+))", line), (
                path,
                number,
            )


def test_logs_hold_no_token_no_text_and_no_whole_id(closed: Service) -> None:
    client = closed.client
    label = "the secret label of a conversation"
    body = {"agent_id": "logged", "metadata": {"aria_session_id": SID, "label": label}}
    row = client.post("/api/sessions", json=body).json()["id"]
    client.get("/api/sessions", params={"aria_session_id": SID, "search": label})
    client.patch(f"/api/sessions/{row}", json={"status": "ended", "metadata": {"note": label}})
    client.patch(
        "/api/sessions", json={"status": "ended", "sessions": [{"agent_id": "logged", "aria_session_id": SID}]}
    )
    client.patch(f"/api/sessions/{row}", json={"metadata": {"aria_session_id": 7, "label": label}})
    client.patch(f"/api/sessions/{SID}x", json={"status": "ended"})
    client.get(f"/api/nothing/{SID}")
    client.delete(f"/api/sessions/{row}")
    httpx.post(f"{closed.url}/login", data={"token": "a-guess-that-failed"}, trust_env=False)
    log = closed.log
    assert f"/api/sessions/{row[:8]}…" in log
    for secret in (TOKEN, "a-guess-that-failed", label, SID, row):
        assert secret not in log


def test_what_loopback_is() -> None:
    for name in ("localhost", "LocalHost", "a.localhost", "127.0.0.1", "127.255.1.2", "::1", "[::1]"):
        assert is_loopback(name), name
    for name in ("", "0.0.0.0", "::", "10.0.0.1", "localhost.example", "127.0.0.1.example", "2130706433", "127.1"):
        assert not is_loopback(name), name
