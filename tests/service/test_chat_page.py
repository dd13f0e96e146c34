"""/chat in a real browser: what a person sees, and what closing a tab leaves."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from chats import Chats, create, say
from chromium import chromium
from playwright.sync_api import Browser, Page, expect
from service import Databases, Service, running, wait_until
from small_model import SmallModel, words

pytestmark = pytest.mark.system
TOKEN = "a-token-of-the-operator"
# A folder to keep pictures of the page in.
PICTURES = os.environ.get("SM_PICTURES")


@pytest.fixture
def chats(server: Databases, service: Service) -> Chats:
    return Chats.of(server, service)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Browser, service: Service) -> Iterator[Page]:
    """A page that may not log an error: a refusal by the content security policy is one."""
    context = browser.new_context(base_url=service.url, color_scheme=request.param)
    found = context.new_page()
    wrong: list[str] = []
    found.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    found.on("pageerror", lambda error: wrong.append(str(error)))
    yield found
    context.close()
    assert [line for line in wrong if "Failed to load resource" not in line] == []


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"), full_page=True)


def test_opening_and_leaving_makes_nothing(page: Page, service: Service, chats: Chats) -> None:
    page.goto("/chat")
    expect(page.get_by_role("heading", name="New conversation")).to_be_visible()
    expect(page.get_by_label("Message")).to_be_focused()
    page.goto("/sessions")
    page.go_back()
    page.close()
    assert chats.counts() == (0, 0)


def test_a_conversation_by_keyboard(
    page: Page, service: Service, chats: Chats, model: SmallModel, request: pytest.FixtureRequest
) -> None:
    page.goto("/chat")
    model.gate.clear()
    page.keyboard.type("hold 4 <b>bold</b>")
    page.keyboard.press("Enter")
    reply = page.get_by_role("log").get_by_role("article").nth(1)
    expect(reply).to_contain_text(words(4).strip())
    expect(reply).to_have_attribute("aria-busy", "true")
    expect(page.get_by_role("status")).to_contain_text("is writing")
    expect(page.get_by_role("heading", name="New conversation")).to_be_visible()
    assert chats.counts() == (0, 0)
    picture(page, f"writing-{request.node.callspec.id}")
    model.gate.set()
    expect(page.get_by_role("heading", level=1)).to_have_text("hold 4 <b>bold</b>")
    model.gate.clear()
    expect(page.get_by_text(re.compile("Session [0-9a-f-]{36}, 2 messages"))).to_be_visible()
    expect(reply).not_to_have_attribute("aria-busy", "true")
    expect(page.get_by_label("Message")).to_be_focused()
    assert chats.counts() == (1, 2)
    page.keyboard.type("first line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("second line")
    page.keyboard.press("Enter")
    expect(page.get_by_text("4 messages")).to_be_visible()
    assert model.asked[-1]["messages"][-1]["content"] == "first line\nsecond line"
    picture(page, f"conversation-{request.node.callspec.id}")
    page.reload()
    expect(page.get_by_role("log").get_by_role("article")).to_have_count(4)
    expect(page.get_by_text("4 messages")).to_be_visible()
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_role("heading", name="New conversation")).to_be_visible()
    assert chats.counts() == (1, 4)


def test_closing_the_tab_in_mid_stream_leaves_nothing(
    page: Page, service: Service, chats: Chats, model: SmallModel
) -> None:
    page.goto("/chat")
    gone = model.gone["hold 2 tab"]
    page.get_by_label("Message").fill("hold 2 tab")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("log")).to_contain_text("word-1")
    page.close()
    wait_until(lambda: model.gone["hold 2 tab"] > gone)
    assert chats.counts() == (0, 0)


def test_a_reply_can_be_stopped_and_the_message_said_again(
    page: Page, service: Service, chats: Chats, model: SmallModel
) -> None:
    page.goto("/chat")
    gone = model.gone["hold 1 stop"]
    for stop in ("Escape", "button"):
        page.get_by_label("Message").fill("hold 1 stop")
        page.keyboard.press("Enter")
        expect(page.get_by_role("log")).to_contain_text("word-0")
        if stop == "Escape":
            page.keyboard.press("Escape")
        else:
            page.get_by_role("button", name="Stop").click()
        expect(page.get_by_label("Message")).to_have_value("hold 1 stop")
        expect(page.get_by_role("log").get_by_role("article")).to_have_count(0)
    wait_until(lambda: model.gone["hold 1 stop"] == gone + 2)
    assert chats.counts() == (0, 0)
    model.gate.set()
    page.keyboard.press("Enter")
    expect(page.get_by_text("2 messages")).to_be_visible()
    model.gate.clear()
    assert chats.counts() == (1, 2)


def test_a_model_that_fails_is_told_and_the_message_kept(
    page: Page, service: Service, chats: Chats, request: pytest.FixtureRequest
) -> None:
    page.goto("/chat")
    page.get_by_label("Message").fill("fails-midway")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Not answered: the model failed")
    expect(page.get_by_label("Message")).to_have_value("fails-midway")
    expect(page.get_by_role("heading", name="New conversation")).to_be_visible()
    picture(page, f"failed-{request.node.callspec.id}")
    page.get_by_label("Message").fill("say 2")
    page.keyboard.press("Enter")
    expect(page.get_by_text("2 messages")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_empty()
    assert chats.counts() == (1, 2)


def test_a_conversation_can_be_opened_by_its_id(page: Page, service: Service, chats: Chats) -> None:
    session_id = create(service.client, title="Bread")["id"]
    say(service.client, session_id, "How long does it bake?")
    page.goto(f"/chat?session={session_id}")
    expect(page.get_by_role("heading", name="Bread")).to_be_visible()
    expect(page.get_by_role("log")).to_contain_text("How long does it bake?")
    page.goto("/chat?session=00000000-0000-4000-8000-000000000000")
    expect(page.get_by_role("alert")).to_contain_text("cannot be shown")


def test_a_token_is_asked_for_first(
    browser: Browser, server: Databases, database: str, model: SmallModel, tmp_path: Path
) -> None:
    env = {"ARIA_API_TOKEN": TOKEN, **model.env}
    with running(tmp_path / "log", DATABASE_URL=database, **env) as closed:
        context = browser.new_context(base_url=closed.url)
        page = context.new_page()
        page.goto("/chat")
        expect(page).to_have_url(f"{closed.url}/login?next=/chat")
        page.get_by_label("Token").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page).to_have_url(f"{closed.url}/chat")
        page.get_by_label("Message").fill("say 2")
        page.keyboard.press("Enter")
        expect(page.get_by_text("2 messages")).to_be_visible()
        context.close()
    assert Chats(server, database).counts() == (1, 2)
