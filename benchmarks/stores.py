"""Stores of a given size in the gateway's format: aged like their entries, one transcript a session."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

MODE = 0o600
YOUNG_EVERY = 10
_HOME = "/home/node/.openclaw"
_SKILLS = ("github", "healthcheck", "weather", "tmux", "notes", "skill-creator", "issues", "pdf")
_TEXT = (
    "the agent may use this skill when a person asks for weather market reports issues notes calendar files and "
    "messages it reads the current state first then answers briefly in the language of the question never guess "
    "prefer tools over memory résumé naïve 天気 📈 session cron delegation workspace summary reply daily check"
)
_WORDS = _TEXT.split()


def build(agents: Path, sessions: int, entry_bytes: int, agent: str = "main") -> Path:
    """Builds an agent with entries of about ``entry_bytes``; one in ``YOUNG_EVERY`` is young. Returns its index.

    File times follow the entries, so that nothing gives a reason to look into a transcript.
    """
    folder = agents / agent / "sessions"
    folder.mkdir(parents=True)
    chance = random.Random(f"{agent} {sessions}")
    text = _varied_text(chance, 8 * entry_bytes)
    now = time.time_ns() // 1_000_000
    index = folder / "sessions.json"
    with open(index, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, MODE)) as file:
        for i in range(sessions):
            at = now - (60_000 if i % YOUNG_EVERY == 0 else 86_400_000 + 1_000 * i)
            session_id = str(uuid.UUID(int=chance.getrandbits(128), version=4))
            key = f"agent:{agent}:{('cron', 'subagent', 'hook')[i % 3]}:{session_id[:13]}"
            member = json.dumps({key: _entry(chance, text, key, session_id, at, entry_bytes)}, indent=2)
            file.write(("{" if i == 0 else ",") + member[1:-2])
            _write_transcript(folder / f"{session_id}.jsonl", session_id, at)
        file.write("\n}")
    return index


def copy(agents: Path, target: Path) -> Path:
    """Copies a store. Transcripts are linked: they are renamed only, and a copy of 100,000 files takes long."""
    folder = target / "main" / "sessions"
    folder.mkdir(parents=True)
    for found in os.scandir(agents / "main" / "sessions"):
        if found.name == "sessions.json":
            shutil.copy2(found.path, folder / found.name)
        else:
            os.link(found.path, folder / found.name)
    return target


def _entry(chance: random.Random, text: str, key: str, session_id: str, at: int, size: int) -> dict[str, Any]:
    snapshot = {"prompt": "", "skills": [{"name": name} for name in _SKILLS], "version": 0}
    entry = {
        "sessionId": session_id,
        "updatedAt": at,
        "systemSent": True,
        "abortedLastRun": False,
        "chatType": "direct",
        "deliveryContext": {
            "channel": "telegram",
            "to": f"telegram:{chance.randrange(10_000)}",
            "accountId": "default",
        },
        "lastChannel": "telegram",
        "origin": {"label": f"Operator id:{chance.randrange(10_000)}", "provider": "telegram", "surface": "telegram"},
        "sessionFile": f"{_HOME}/agents/main/sessions/{session_id}.jsonl",
        "inputTokens": chance.randrange(100_000),
        "outputTokens": chance.randrange(10_000),
        "totalTokens": chance.randrange(110_000),
        "model": "gpt-4o",
        "modelProvider": "openai",
        "contextTokens": 128_000,
        "skillsSnapshot": snapshot,
        "systemPromptReport": _report(chance, key, session_id, at, tools=max(3, size // 2_000)),
    }
    room = size - len(json.dumps(entry, indent=2))
    start = chance.randrange(len(text) - size)
    snapshot["prompt"] = f"<available_skills>{text[start : start + max(0, room)]}</available_skills>"
    return entry


def _report(chance: random.Random, key: str, session_id: str, at: int, tools: int) -> dict[str, Any]:
    return {
        "source": "run",
        "generatedAt": at,
        "sessionId": session_id,
        "sessionKey": key,
        "workspaceDir": f"{_HOME}/workspace",
        "systemPrompt": {"chars": chance.randrange(40_000), "projectContextChars": chance.randrange(20_000)},
        "injectedWorkspaceFiles": [
            {"name": name, "path": f"{_HOME}/workspace/{name}", "missing": False, "rawChars": chance.randrange(5_000)}
            for name in ("AGENTS.md", "SOUL.md")
        ],
        "tools": {
            "entries": [
                {"name": chance.choice(_WORDS), "summaryChars": chance.randrange(900), "propertiesCount": i % 9}
                for i in range(tools)
            ]
        },
    }


def _varied_text(chance: random.Random, length: int) -> str:
    words = (
        chance.choice(_WORDS) if chance.random() < 0.9 else f"{chance.getrandbits(40):x}" for _ in range(length // 5)
    )
    return " ".join(words)


def _write_transcript(path: Path, session_id: str, at: int) -> None:
    path.write_text(f'{{"type":"session","version":3,"id":"{session_id}"}}\n')
    path.chmod(MODE)
    os.utime(path, (at / 1000, at / 1000))
