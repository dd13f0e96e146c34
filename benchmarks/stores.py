"""Stores of a given size in the gateway's format, aged, with one transcript a session."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

_WORDS = ("run", "check", "note", "reply", "session", "agent", "cron", "daily", "weather", "report", "market")


def build(agents: Path, sessions: int, entry_bytes: int, young_every: int = 10) -> Path:
    """Builds agent ``main`` with ``sessions`` entries of about ``entry_bytes``; one in ``young_every`` is young."""
    folder = agents / "main" / "sessions"
    folder.mkdir(parents=True)
    chance = random.Random(sessions)
    now = time.time_ns() // 1_000_000
    with open(folder / "sessions.json", "w", encoding="utf-8") as file:
        for i in range(sessions):
            at = now - (60_000 if i % young_every == 0 else 86_400_000 + i)
            entry = {
                "sessionId": f"{i:08x}-0000-4000-8000-000000000000",
                "updatedAt": at,
                "systemSent": True,
                "chatType": "direct",
                "deliveryContext": {"channel": "telegram", "to": "telegram:1001", "accountId": "default"},
                "origin": {"label": "Operator", "provider": "telegram", "from": "telegram:1001"},
                "sessionFile": f"/home/node/.openclaw/agents/main/sessions/{i:08x}-0000-4000-8000-000000000000.jsonl",
                "inputTokens": i,
                "model": "gpt-4o",
                "contextTokens": 128000,
                "skillsSnapshot": {"prompt": _text(chance, entry_bytes - 700), "version": 0},
            }
            text = json.dumps({f"agent:main:cron:{i:08x}": entry}, indent=2)
            file.write(("{" if i == 0 else ",") + text[1:-2])
            path = folder / f"{entry['sessionId']}.jsonl"
            path.write_text('{"type":"session"}\n')
            os.utime(path, (at / 1000, at / 1000))
        file.write("\n}")
    os.chmod(folder / "sessions.json", 0o600)
    return folder


def _text(chance: random.Random, length: int) -> str:
    words = chance.choices(_WORDS, k=length // 6 + 1)
    for i in range(0, len(words), 5):
        words[i] = f"{chance.getrandbits(40):x}"
    return " ".join(words)[:length]
