"""Makes the pictures of the README: the command line and the dashboard, as they are, on a copy of the fixtures.

    python docs/pictures.py [<folder>]

The real command runs in a pseudo-terminal, the real service on its embedded PostgreSQL; Chromium draws both.
"""

from __future__ import annotations

import io
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pexpect
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "fixtures")]

from revive import revive  # noqa: E402

WIDTH, COLUMNS, SEED = 1080, 100, 20260215
AGENTS = ("main", "main", "main", "analyst", "analyst", "aria-talk")
LABELS = {
    "cron": ("heartbeat", "Nightly digest", "Inbox triage", "Price watch", "Backup check"),
    "subagent": ("research", "Draft the release notes", "Compare three offers", "Fix the failing test"),
    "direct": ("Ann", "Ben", "Chris"),
    "hook": ("build finished", "new ticket"),
}
_TERMINAL = """<body style="margin:0;background:#fff"><div style="display:inline-block;padding:18px 22px;
border-radius:10px;background:#1b1d21;color:#d8dae0;font:14px/1.4 'DejaVu Sans Mono',monospace">%s</div></body>"""


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures"
    with tempfile.TemporaryDirectory(prefix="session-manager-") as name, sync_playwright() as playwright:
        folder = Path(name)
        # Run by root, the embedded PostgreSQL works as a system user, which must be able to pass through.
        folder.chmod(0o711)
        agents = revive("sixteen", folder / "home" / ".openclaw" / "agents")
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("ARIA_", "OPENCLAW_", "XDG_"))},
            "HOME": str(folder / "home"),
            "PYTHONPATH": str(ROOT),
            "ARIA_SYNC_SECONDS": "0",
            "XDG_STATE_HOME": str(folder / "state"),
        }
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with service(agents, env) as url:
            env["ARIA_API_URL"] = f"{url}/api"
            fill(url)
            httpx.post(f"{url}/api/sessions/sync", timeout=60).raise_for_status()
            picture_of_the_terminal(browser, env, target / "command-line.png")
            picture_of_the_dashboard(browser, url, target / "dashboard.png")
        browser.close()


@contextmanager
def service(agents: Path, env: dict[str, str]) -> Iterator[str]:
    """Runs aria-api on its embedded database, and gives its address."""
    command = [sys.executable, "-m", "session_manager.faces.cli", "serve", "--port", "0"]
    with subprocess.Popen(
        command,
        env={**env, "ARIA_AGENTS_DIR": str(agents)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def fill(url: str) -> None:
    """Makes two days of history, the same each time but for the clock."""
    chance = random.Random(SEED)
    with httpx.Client(base_url=url, timeout=60) as client:
        for number in range(260):
            kind = chance.choices(list(LABELS), (9, 6, 2, 3))[0]
            row = {
                "agent_id": chance.choice(AGENTS),
                "session_type": kind,
                "status": chance.choices(("ended", "completed", "active", "error"), (12, 6, 2, 1))[0],
                "started_at": moment(chance.triangular(0.1, 47.0, 9.0)),
                "messages_count": chance.randrange(2, 60),
                "tokens_used": chance.randrange(400, 90_000),
                "metadata": {
                    "aria_session_id": f"{chance.getrandbits(32):08x}-{number:04d}",
                    "label": chance.choice(LABELS[kind]),
                },
            }
            client.post("/api/sessions", json=row).raise_for_status()


def moment(hours_ago: float) -> str:
    from datetime import UTC, datetime, timedelta

    return (datetime.now(UTC) - timedelta(hours=hours_ago)).isoformat()


def picture_of_the_terminal(browser: Browser, env: dict[str, str], path: Path) -> None:
    """Runs a prune as a person does, who is shown the plan and asked, and then looks at what went."""
    terminal = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="truecolor")
    run = ""
    commands = ("prune --older-than 1h --type cron", "y"), ("deleted --limit 3", None), ("undo {run}", None)
    for number, (command, answer) in enumerate(commands):
        words = command.format(run=run)
        printed = in_terminal(words, answer, env)
        if found := re.search(r"undo (\w+-\w+)", printed):
            run = found[1]
        if number:
            terminal.print()
        terminal.print(Text("$ ", "bold green") + Text(f"session-manager {words}", "bold"))
        terminal.print(Text.from_ansi(printed.replace("\r", "").rstrip("\n")), soft_wrap=True)
    html = terminal.export_html(theme=MONOKAI, inline_styles=True, code_format="<pre style='margin:0'>{code}</pre>")
    page = browser.new_page(viewport={"width": WIDTH, "height": 400})
    page.set_content(_TERMINAL % html.strip())
    page.locator("div").screenshot(path=str(path))
    page.close()


def in_terminal(words: str, answer: str | None, env: dict[str, str]) -> str:
    """Runs a command of session-manager in a pseudo-terminal; returns what stays on the screen."""
    child = pexpect.spawn(
        sys.executable,
        ["-m", "session_manager.faces.cli", *words.split()],
        env={**env, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS)},
        dimensions=(60, COLUMNS),
        encoding="utf-8",
        timeout=60,
    )
    said = ""
    if answer is not None:
        child.expect(r"\[y/N\]: ")
        said = child.before + child.after
        child.sendline(answer)
    child.expect(pexpect.EOF)
    return without_what_was_erased(said + child.before)


def without_what_was_erased(printed: str) -> str:
    """Drops what showed that work was going on, and was taken away again when it was done."""
    shown = re.sub(r"\x1b\[\?25l.*?\x1b\[\?25h", "", printed, flags=re.DOTALL)
    return re.sub(r"\r?\x1b\[\d*[A-JK]", "", shown)


def picture_of_the_dashboard(browser: Browser, url: str, path: Path) -> None:
    """Draws the page from its top to the end of its charts, with a filter that leaves the table short."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
    page.goto(f"{url}/sessions?agent_id=aria-talk&status=completed&session_type=cron")
    runs = page.get_by_role("heading", name="Recent runs").bounding_box()
    assert runs is not None
    page.screenshot(path=str(path), full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": runs["y"] - 16})
    page.close()


if __name__ == "__main__":
    main()
