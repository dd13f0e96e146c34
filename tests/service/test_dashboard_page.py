"""/sessions in a real browser: with scripts and without, light and dark, narrow, by keyboard, with 1,000,000 rows."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chats import Chats
from chromium import chromium
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect
from service import Databases, Service, running
from support import ROOT, Skill, StoreBuilder

pytestmark = pytest.mark.system
AXE = ROOT / "tests" / "axe" / "axe.min.js"
# A folder to keep pictures of the pages in.
PICTURES = os.environ.get("SM_PICTURES")
_FILL = """
    INSERT INTO agent_sessions (agent_id, session_type, status, started_at, last_activity_at, metadata, tokens_used)
    SELECT 'agent-' || n %% 12, (ARRAY['cron', 'subagent', 'hook', 'direct'])[1 + n %% 4],
      (ARRAY['active', 'ended', 'completed', 'error', 'ended'])[1 + n %% 5],
      now() - make_interval(secs => (%s::int - n) * 30), now() - make_interval(secs => (%s::int - n) * 30),
      jsonb_build_object('aria_session_id', 's' || n, 'label', 'label ' || n, 'key', 'agent:main:cron:s' || n), n
    FROM generate_series(1, %s::int) AS n
"""


def fill(rows: Chats, n: int) -> None:
    rows.execute(_FILL, n, n, n)


@pytest.fixture(scope="module")
def service(server: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with 2,000 rows, ghosts, and a volume where a run removed sessions."""
    folder = tmp_path_factory.mktemp("service")
    url = server.create()
    rows = Chats(server, url)
    fill(rows, 2000)
    rows.empty(3)
    (folder / "agents").mkdir()
    store = StoreBuilder(folder / "agents")
    for n in range(3):
        store.add(f"cron:old{n}", 120, session_id=f"old{n}")
    store.write()
    pruned = Skill(folder / "agents", HOME=str(folder))("prune_sessions", {"max_age_minutes": 60})
    assert pruned.document["pruned_count"] == 3
    with running(
        folder / "log",
        DATABASE_URL=url,
        HOME=str(folder),
        ARIA_AGENTS_DIR=str(folder / "agents"),
        ARIA_SYNC_SECONDS="0",
    ) as found:
        yield found
    server.drop(url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def context(browser: Browser, service: Service, scheme: str) -> Iterator[BrowserContext]:
    found = browser.new_context(base_url=service.url, color_scheme=scheme)
    yield found
    found.close()


@pytest.fixture
def page(context: BrowserContext, service: Service) -> Iterator[Page]:
    """A page that may not log an error (a refusal by the content security policy is one) nor ask elsewhere."""
    found = context.new_page()
    wrong: list[str] = []
    found.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    found.on("pageerror", lambda error: wrong.append(str(error)))
    found.on("request", lambda asked: None if asked.url.startswith((service.url, "data:")) else wrong.append(asked.url))
    yield found
    # htmx tells of every request that failed, or was replaced by a newer one; the page tells the former itself.
    assert [line for line in wrong if not re.match("htmx:|Response Status|Failed to load resource", line)] == []


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=str(Path(PICTURES) / f"{name}.png"), full_page=True)


def stay(page: Page) -> None:
    """Has the page notice when its document is loaded anew."""
    page.evaluate("window.seen = true")


def is_same_document(page: Page) -> bool:
    return bool(page.evaluate("window.seen === true"))


def serious(page: Page) -> list[Any]:
    """What axe finds wrong, but for what it calls minor or moderate."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 10
    return [
        (each["id"], [node["html"] for node in each["nodes"]])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]


def test_filters_work_as_one_chooses_and_the_address_follows(page: Page) -> None:
    page.goto("/sessions")
    stay(page)
    status = page.locator("#found")
    expect(status).to_have_text("2,000 sessions.")
    page.get_by_label("Status").select_option("error")
    expect(status).to_have_text("400 sessions match.")
    page.get_by_label("Search").press_sequentially("label 199")
    expect(status).to_have_text("2 sessions match.")
    expect(page.get_by_label("Search")).to_be_focused()
    expect(page.get_by_label("Search")).to_be_in_viewport(ratio=1)
    expect(page.get_by_role("region", name="Table of sessions").get_by_role("row")).to_have_count(3)
    expect(page).to_have_url(re.compile(r"search=label(%20|\+)199&status=error"))
    assert is_same_document(page)
    page.reload()
    expect(page.get_by_label("Search")).to_have_value("label 199")
    expect(status).to_have_text("2 sessions match.")
    page.get_by_role("link", name="Clear").click()
    expect(status).to_have_text("2,000 sessions.")


def test_pages_by_keyboard_and_back(page: Page) -> None:
    page.goto("/sessions")
    stay(page)
    cells = page.get_by_role("region", name="Table of sessions").locator("tbody tr td:first-child")
    expect(cells.first).to_have_text("s2000")
    for first in ("s1950", "s1900"):
        page.get_by_role("link", name="Older").focus()
        page.keyboard.press("Enter")
        expect(cells.first).to_have_text(first)
        expect(page.get_by_role("link", name="Older")).to_be_focused()
    page.get_by_role("link", name="Newer").press("Enter")
    expect(cells.first).to_have_text("s1950")
    assert is_same_document(page)
    page.go_back()
    expect(cells.first).to_have_text("s1900")
    page.get_by_role("link", name="Newest").click()
    expect(cells.first).to_have_text("s2000")


def test_the_charts_keep_the_filters_that_were_chosen(page: Page) -> None:
    page.goto("/sessions")
    stay(page)
    page.get_by_label("Status").select_option("error")
    expect(page.locator("#found")).to_have_text("400 sessions match.")
    expect(page).to_have_url(re.compile(r"/sessions\?status=error$"))
    assert is_same_document(page)
    page.get_by_role("link", name="7 days").click()
    expect(page).to_have_url(re.compile("status=error&span=7d"))
    expect(page.locator("#found")).to_have_text("400 sessions match.")
    page.get_by_role("link", name="Clear").click()
    expect(page).to_have_url(re.compile(r"/sessions\?span=7d$"))


def test_the_keyboard_stays_where_the_rows_are(page: Page) -> None:
    page.goto("/sessions?before=101")
    stay(page)
    page.get_by_role("link", name="Older").press("Enter")
    cells = page.get_by_role("region", name="Table of sessions").locator("tbody tr td:first-child")
    expect(cells.last).to_have_text("s1")
    expect(page.get_by_role("link", name="Older")).to_have_count(0)
    assert is_same_document(page)
    expect(page.locator("#history")).to_be_focused()
    expect(page.locator("#found")).to_be_in_viewport()
    page.keyboard.press("Tab")
    expect(page.get_by_role("region", name="Table of sessions")).to_be_focused()


def test_conversations_in_parts_and_back(page: Page, service: Service, server: Databases) -> None:
    assert service.database_url is not None
    rows = Chats(server, service.database_url)
    rows.execute("DELETE FROM chat_sessions WHERE title IS NOT NULL")
    rows.execute(
        "INSERT INTO chat_sessions (title, message_count, created_at, updated_at)"
        " SELECT 'talk ' || n, n, now(), now() - make_interval(mins => n)"
        " FROM generate_series(1, 120) AS n WHERE %s",
        True,
    )
    first = page.get_by_role("region", name="Table of conversations").locator("tbody tr").first
    page.goto("/conversations?search=talk")
    stay(page)
    expect(first).to_contain_text("talk 1")
    page.get_by_role("link", name="Older").press("Enter")
    expect(first).to_contain_text("talk 51")
    expect(page.get_by_role("link", name="Older")).to_be_focused()
    expect(page.locator("#found")).to_contain_text("50 conversations, from")
    page.get_by_role("link", name="Newer").press("Enter")
    expect(first).to_contain_text("talk 1")
    page.get_by_label("Search").fill("talk 77")
    expect(page.locator("#found")).to_have_text("1 conversation.")
    assert is_same_document(page)
    expect(page.get_by_label("Search")).to_be_focused()
    page.get_by_label("Search").fill("")
    expect(page.locator("#found")).to_have_text("50 conversations, and older ones.")
    page.get_by_label("only without a message").check()
    expect(page.locator("#found")).to_have_text("3 conversations.")
    expect(page).to_have_url(re.compile(r"/conversations\?empty=true$"))
    page.go_back()
    expect(page.locator("#found")).to_have_text("50 conversations, and older ones.")
    page.go_back()
    expect(page.locator("#found")).to_have_text("1 conversation.")
    page.get_by_role("link", name="Clear").click()
    expect(page.locator("#found")).to_have_text("50 conversations, and older ones.")


def test_back_pressed_again_before_the_scripts_listen(page: Page, service: Service, server: Databases) -> None:
    """The browser then changes the address alone."""
    assert service.database_url is not None
    rows = Chats(server, service.database_url)
    rows.execute("DELETE FROM chat_sessions WHERE title IS NOT NULL")
    rows.execute(
        "INSERT INTO chat_sessions (title, message_count) VALUES ('one', 1), ('one two', 1) RETURNING %s", True
    )
    found, search = page.locator("#found"), page.get_by_label("Search")
    page.goto("/conversations?search=two")
    for words, count in (("one", "2 conversations."), ("nobody", "No conversation")):
        search.fill(words)
        expect(found).to_contain_text(count)
    held: list[Route] = []
    released = threading.Event()
    page.route("**/htmx*.js", lambda route: route.continue_() if released.is_set() else held.append(route))
    page.evaluate("history.back()")
    expect(found).to_have_text("2 conversations.")
    page.evaluate("history.back()")
    expect(page).to_have_url(re.compile(r"search=two$"))
    released.set()
    for route in held:
        route.continue_()
    expect(found).to_have_text("1 conversation.")


def test_a_session_that_ended_in_between_leads_to_the_login_and_back(
    browser: Browser, server: Databases, database: str, tmp_path: Path
) -> None:
    fill(Chats(server, database), 120)
    with running(tmp_path / "log", DATABASE_URL=database, ARIA_API_TOKEN="the-operator") as closed:
        context = browser.new_context(base_url=closed.url)
        page = context.new_page()
        page.goto("/sessions")
        page.get_by_label("Token").fill("the-operator")
        page.keyboard.press("Enter")
        expect(page.locator("#found")).to_have_text("120 sessions.")
        context.clear_cookies()
        page.get_by_label("Status").select_option("error")
        expect(page.get_by_role("heading", level=1)).to_have_text("Log in")
        page.get_by_label("Token").fill("the-intruder")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("not valid")
        assert serious(page) == []
        page.get_by_label("Token").fill("the-operator")
        page.keyboard.press("Enter")
        expect(page.locator("#found")).to_have_text("24 sessions match.")
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Log in")
        page.goto("/conversations")
        expect(page.get_by_role("heading", level=1)).to_have_text("Log in")
        context.close()


def test_a_part_that_does_not_come_is_told(page: Page, context: BrowserContext) -> None:
    page.goto("/sessions")
    status = page.locator("#found")
    expect(status).to_have_text("2,000 sessions.")
    refusal = {"status": 503, "json": {"error": "the <b>database</b> does not answer", "code": "database_unavailable"}}
    context.route("**/sessions?*", lambda route: route.fulfill(**refusal))
    page.get_by_label("Status").select_option("error")
    expect(status).to_have_text("The page could not be updated: the <b>database</b> does not answer.")
    context.unroute("**/sessions?*")
    context.route("**/sessions?*", lambda route: route.abort())
    page.get_by_label("Status").select_option("ended")
    expect(status).to_have_text("The page could not be updated: the service cannot be reached.")
    context.unroute("**/sessions?*")
    page.get_by_label("Status").select_option("error")
    expect(status).to_have_text("400 sessions match.")


def test_without_scripts_everything_is_there(browser: Browser, service: Service) -> None:
    context = browser.new_context(base_url=service.url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/sessions")
    page.get_by_label("Status").select_option("error")
    page.get_by_label("Search").fill("label 199")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#found")).to_have_text("2 sessions match.")
    page.get_by_role("link", name="Clear").click()
    page.get_by_role("link", name="Older").click()
    expect(page.get_by_role("region", name="Table of sessions").locator("tbody tr td:first-child").first).to_have_text(
        "s1950"
    )
    page.get_by_text("As a table").click()
    expect(page.get_by_role("region", name="Table of sessions per hour").get_by_role("row").nth(1)).to_be_visible()
    page.get_by_text("removed 3 sessions").click()
    expect(page.get_by_text("old0 of main")).to_be_visible()
    context.close()


def test_charts_are_drawn(page: Page, scheme: str) -> None:
    page.goto("/sessions")
    chart = page.get_by_role("img", name=re.compile("Sessions per hour"))
    expect(chart).to_be_visible()
    bars = chart.locator("rect")
    expect(bars).to_have_count(24)
    boxes = [box for box in (bars.nth(n).bounding_box() for n in range(24)) if box and box["height"] > 0]
    assert len(boxes) > 15
    assert max(box["height"] for box in boxes) > 50
    shares = page.locator("svg.share rect")
    expect(shares).to_have_count(9 + 4)
    box = shares.first.bounding_box()
    assert box
    assert box["width"] > 20
    fill = bars.last.evaluate("bar => getComputedStyle(bar).fill")
    assert fill == {"light": "rgb(11, 87, 184)", "dark": "rgb(138, 184, 255)"}[scheme]
    page.get_by_role("link", name="7 days").click()
    expect(bars).to_have_count(168)


def test_light_and_dark(page: Page, scheme: str) -> None:
    page.goto("/sessions")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
    picture(page, f"sessions-{scheme}")


# 640: a window of 1280 at 200 %; 320: one at 400 %.
@pytest.mark.parametrize("width", [320, 360, 640, 1200])
def test_nothing_is_wider_than_the_window(page: Page, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for path in ("/sessions?span=7d", "/conversations", "/chat", "/docs", "/login", "/sessions?before=x"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") == width, path
        picture(page, f"{path.strip('/').partition('?')[0]}-{width}-{scheme}")


@pytest.mark.parametrize(
    "path",
    [
        *("/sessions", "/sessions?search=nothing", "/sessions?before=x", "/conversations", "/conversations?empty=true"),
        *("/conversations?search=nothing", "/nowhere", "/login", "/chat", "/docs", "end", "delete", "forced"),
    ],
)
def test_axe_finds_nothing_serious(page: Page, path: str) -> None:
    if path == "forced":
        page.emulate_media(forced_colors="active")
        page.goto("/sessions")
        bar = page.locator("svg.chart rect").last
        ink = page.evaluate("getComputedStyle(document.body).color")
        assert bar.evaluate("bar => getComputedStyle(bar).fill") == ink
    elif path == "end":
        page.goto("/sessions?status=active")
        page.get_by_role("link", name=re.compile("^End")).first.click()
    elif path == "delete":
        page.goto("/conversations")
        page.get_by_role("link", name=re.compile("^Delete")).first.click()
    else:
        page.goto(path)
    assert serious(page) == []


def test_a_row_is_ended_and_a_conversation_deleted(page: Page, service: Service, server: Databases) -> None:
    assert service.database_url is not None
    rows = Chats(server, service.database_url)
    page.goto("/sessions?status=active")
    link = page.get_by_role("link", name=re.compile("^End ")).first
    name = (link.get_attribute("aria-label") or "").removeprefix("End ")
    link.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Mark this session as ended?")
    page.get_by_role("link", name="Leave it as it is").click()
    page.get_by_role("link", name=f"End {name}", exact=True).click()
    page.get_by_role("button", name="Mark as ended").click()
    expect(page).to_have_url(f"{service.url}/sessions?status=active")
    assert rows.execute("SELECT status FROM agent_sessions WHERE metadata->>'aria_session_id' = %s", name) == [
        ("ended",)
    ]
    (session_id,) = rows.empty(1, minutes=1)
    page.goto("/conversations?empty=true")
    page.get_by_role("link", name=f"Delete {session_id}").click()
    page.get_by_role("button", name="Delete it").click()
    expect(page).to_have_url(f"{service.url}/conversations?empty=true")
    assert session_id not in rows.ids()


def test_very_many_rows(browser: Browser, server: Databases, database: str, tmp_path: Path) -> None:
    rows = Chats(server, database)
    many = 1_000_000 if os.environ.get("SOAK") else 200_000
    fill(rows, many)
    rows.execute("VACUUM ANALYZE agent_sessions")
    with running(tmp_path / "log", DATABASE_URL=database) as service:
        page = browser.new_page(base_url=service.url)
        page.goto("/sessions")
        cells = page.get_by_role("region", name="Table of sessions").locator("tbody tr td:first-child")
        expect(cells.first).to_have_text(f"s{many}")
        expect(page.locator("#found")).to_have_text("more than 10,000 sessions.")
        expect(page.locator(".totals")).to_contain_text(f"about {many:,}")
        page.get_by_role("link", name="Older").click()
        expect(cells.first).to_have_text(f"s{many - 50}")
        page.get_by_label("Search").fill("label 77")
        expect(page.locator("#found")).to_have_text("No match in the 50,000 sessions searched so far.")
        page.get_by_role("link", name="Search older").click()
        expect(page.locator("#history")).to_contain_text("Searched 50,000 sessions, back to")
        page.get_by_label("Search").fill("s77")
        expect(page.locator("#found")).to_have_text("1 session matches.")
        page.get_by_label("Search").fill("")
        expect(page.locator("#found")).to_have_text("more than 10,000 sessions.")
        page.goto("/sessions?before=51")
        expect(cells.last).to_have_text("s1")
        page.close()
