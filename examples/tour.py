"""The main job on a copy of the fixtures, in both layers: what `make run` shows.

The real service runs on its embedded PostgreSQL, the real runner is called as an agent calls it, and everything lies
in a temporary folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "fixtures")]

from revive import revive  # noqa: E402


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="session-manager-") as name:
        folder = Path(name)
        # Run by root, the embedded PostgreSQL works as a system user, which must be able to pass through.
        folder.chmod(0o711)
        agents = revive("sixteen", folder / "agents")
        environment = environment_of(agents, folder / "state")
        print(f"A copy of a real store, its times moved to now: {agents}")
        with service(environment) as url:
            tour(agents, {**environment, "ARIA_API_URL": f"{url}/api"}, url)
            talk(url)
    return 0


def tour(agents: Path, environment: dict[str, str], url: str) -> None:
    """Shows both layers before, what the calls answer, and both layers after."""
    show_disk(agents, "Before, on disk")
    print("$ curl -X POST /api/sessions/sync")
    print(f"    {httpx.post(f'{url}/api/sessions/sync').text}\n")
    show_rows(url, "Before, in history")

    def call(function: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        return run(environment, function, arguments or {})

    call("get_session_stats")
    listed = call("list_sessions", {"limit": 3})
    call("prune_sessions", {"max_age_minutes": 60, "dry_run": True})
    pruned = call("prune_sessions", {"max_age_minutes": 60})
    call("restore_run", {"run_id": pruned["run_id"]})
    show_rows(url, "After the undo, in history")
    # The next prune skips restored sessions; a delete removes them.
    call("prune_sessions", {"max_age_minutes": 60})
    call("delete_sessions", {"older_than_minutes": 60, "dry_run": False})
    call("delete_session", {"session_id": listed["sessions"][1]["id"]})
    call("delete_session", {"session_id": listed["sessions"][0]["id"]})
    call("get_session_stats")
    show_disk(agents, "After, on disk")
    show_rows(url, "After, in history")


def talk(url: str) -> None:
    """Shows a conversation, which is stored with its first reply, and a session that was made and never used."""
    engine = f"{url}/api/engine"

    def totals() -> None:
        found = httpx.get(f"{engine}/sessions/stats").json()
        print(f"    conversations: {found['total_sessions']}, without a message: {found['ghost_sessions']}\n")

    print(f"Conversations ({url}/chat):")
    totals()
    print("$ curl -X POST /api/engine/sessions   # a client that wants an id before there is a message")
    httpx.post(f"{engine}/sessions", json={}).raise_for_status()
    totals()
    print('$ curl -N /api/engine/chat/stream -d \'{"message": "Hello"}\'')
    print("    " + httpx.post(f"{engine}/chat/stream", json={"message": "Hello"}).text.strip().replace("\n", "\n    "))
    totals()
    print("$ curl -X DELETE '/api/engine/sessions/ghosts?older_than_minutes=0'")
    print(f"    {httpx.delete(f'{engine}/sessions/ghosts', params={'older_than_minutes': 0}).text}")
    totals()


def environment_of(agents: Path, state: Path) -> dict[str, str]:
    """The environment of the service and of the calls: nothing of the caller's own settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ARIA_", "OPENCLAW_", "SESSION_CLEANUP_", "PG")) and name != "DATABASE_URL"
    }
    # The job that ends silent cron runs in history would be at it beside what is shown.
    quiet = {"ARIA_CLOSING_SECONDS": "0", "NO_PROXY": "*"}
    return {**kept, **quiet, "ARIA_AGENTS_DIR": str(agents), "XDG_STATE_HOME": str(state)}


@contextlib.contextmanager
def service(environment: dict[str, str]) -> Iterator[str]:
    """Runs `session-manager serve` and gives its URL."""
    print("$ session-manager serve --port 0")
    process = subprocess.Popen(
        [sys.executable, "-m", "session_manager.faces.cli", "serve", "--port", "0"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline().strip()
        if not line:
            sys.exit(f"the service did not start:\n{process.communicate()[1]}")
        print(f"    {line}, on an embedded PostgreSQL\n")
        yield line.split()[-1]
    finally:
        process.terminate()
        process.communicate()


def run(environment: dict[str, str], function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Runs one function as an agent would, shows the call and its document."""
    text = json.dumps(arguments)
    print(f"$ run_skill.py session_manager {function} '{text}'")
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_skill.py"), "session_manager", function, text],
        env=environment,
        stdout=subprocess.PIPE,
        check=False,
    )
    document: dict[str, Any] = json.loads(done.stdout)
    for name, value in document.items():
        print(f"    {name}: {shorten(value)}")
    print(f"    (exit code {done.returncode})\n")
    return document


def shorten(value: Any) -> str:
    if isinstance(value, list) and len(value) > 3:
        return f"{json.dumps(value[:2])[:-1]}, … {len(value) - 2} more]"
    return json.dumps(value, ensure_ascii=False)


def show_disk(agents: Path, title: str) -> None:
    print(f"{title}:")
    for folder in sorted(agents.glob("*/sessions")):
        names = sorted(p.name for p in folder.glob("*.jsonl*"))
        keys = len(json.loads((folder / "sessions.json").read_bytes()))
        archived = sum(".deleted." in name for name in names)
        print(
            f"    {folder.parent.name:14} {keys:2} keys, {len(names) - archived:2} transcripts, {archived:2} archived"
        )
    print()


def show_rows(url: str, title: str) -> None:
    rows = httpx.get(f"{url}/api/sessions", params={"limit": 100}).json()["items"]
    print(f"{title} ({url}/sessions):")
    for agent, status in sorted(Counter((row["agent_id"], row["status"]) for row in rows)):
        mine = [row for row in rows if (row["agent_id"], row["status"]) == (agent, status)]
        types = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(r["session_type"] for r in mine).items()))
        print(f"    {agent:14} {status:7} {len(mine):2} rows: {types}")
    print()


if __name__ == "__main__":
    sys.exit(main())
