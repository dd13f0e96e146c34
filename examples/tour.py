"""The main job on a copy of the fixtures, through the real runner: what `make run` shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "fixtures")]

from revive import revive  # noqa: E402


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="session-manager-") as folder:
        agents = revive("sixteen", Path(folder) / "agents")
        print(f"A copy of a real store, its times moved to now: {agents}\n")
        show_disk(agents, "Before")
        call(agents, "get_session_stats")
        listed = call(agents, "list_sessions", {"limit": 3})
        call(agents, "prune_sessions", {"max_age_minutes": 60, "dry_run": True})
        call(agents, "prune_sessions", {"max_age_minutes": 60})
        call(agents, "delete_session", {"session_id": listed["sessions"][1]["id"]})
        call(agents, "delete_session", {"session_id": listed["sessions"][0]["id"]})
        call(agents, "get_session_stats")
        show_disk(agents, "After")
    return 0


def call(agents: Path, function: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """Runs one function as an agent would, shows the call and its document."""
    text = json.dumps(arguments or {})
    print(f"$ run_skill.py session_manager {function} '{text}'")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ARIA_", "OPENCLAW_"))}
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_skill.py"), "session_manager", function, text],
        # No aria-api of this machine shall hear that sessions of a copy have ended.
        env={**environment, "ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": ""},
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
    print(f"{title}, on disk:")
    for folder in sorted(agents.glob("*/sessions")):
        names = sorted(p.name for p in folder.glob("*.jsonl*"))
        keys = len(json.loads((folder / "sessions.json").read_bytes()))
        archived = sum(".deleted." in name for name in names)
        print(
            f"    {folder.parent.name:14} {keys:2} keys, {len(names) - archived:2} transcripts, {archived:2} archived"
        )
    print()


if __name__ == "__main__":
    sys.exit(main())
