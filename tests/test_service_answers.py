"""What the service answers when something is wrong: to programs, to browsers, and to its own log."""

from __future__ import annotations

import pytest
from service import Service

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.mark.parametrize("path", ["/sessions?page=0", "/sessions?page=x", f"/sessions?search={'x' * 201}"])
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
        ("PUT", "/api/sessions", {"GET", "PATCH", "POST"}),
        ("GET", "/api/sessions/00000000-0000-4000-8000-000000000000", {"DELETE", "PATCH"}),
        ("DELETE", "/healthz", {"GET", "HEAD"}),
        ("DELETE", "/login", {"GET", "POST"}),
        ("PATCH", "/sessions", {"GET"}),
    ],
)
def test_405_names_every_method_that_the_address_knows(
    shared_service: Service, method: str, path: str, allowed: set[str]
) -> None:
    for headers in ({}, BROWSER):
        answer = shared_service.client.request(method, path, headers=headers)
        assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, allowed)


def test_the_description_says_how_to_authenticate(shared_service: Service) -> None:
    api: dict[str, dict[str, dict[str, dict[str, object]]]] = shared_service.client.get("/openapi.json").json()
    schemes = api["components"]["securitySchemes"]
    assert [(s["type"], s["scheme"]) for s in schemes.values()] == [("http", "bearer")]
    needed = [{name: []} for name in schemes]
    for path, operations in api["paths"].items():
        for operation in operations.values():
            assert operation.get("security") == (None if path in ("/healthz", "/readyz") else needed), path
