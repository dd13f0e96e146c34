"""Conversations of a real gateway: many made from one, old as told; and what became of each after a removal.

The checker asks the gateway, not the files: ``chat.history`` shows what a person sees. Beside that it follows the
transcript's lines from the last one up by their parents, as the gateway does for what it tells the model.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gateway_model import said
from real_gateway import Gateway
from support import Skill, now_ms

TIMES = ("updatedAt", "sessionStartedAt", "lastInteractionAt", "startedAt", "endedAt")


@dataclass
class Conversation:
    """One session, and every word that was said in it, in order (a person's, the model's)."""

    key: str
    id: str
    words: list[str]
    new: list[str] = field(default_factory=list)
    run: str = ""

    @property
    def name(self) -> str:
        return self.key.rpartition(":")[2]

    @property
    def agent(self) -> str:
        return self.key.split(":")[1]

    @property
    def word(self) -> str:
        """A new word of this conversation's own."""
        return f"{self.agent}-{self.name}"

    @property
    def whole(self) -> list[str]:
        return self.words + self.new

    def say(self, gateway: Gateway, word: str) -> None:
        """Says a word and waits for the reply."""
        self.begin(gateway, word)
        self.finish(gateway)

    def begin(self, gateway: Gateway, word: str) -> None:
        self.run = gateway.client.say(self.key, word)
        self.new += [word, word]

    def finish(self, gateway: Gateway, *, may_fail: bool = False) -> None:
        """Waits for the reply; what the gateway has told to have failed was never said.

        2026.6.11 gives a message up, before it has written anything of it, when the entry has changed twice meanwhile.
        """
        ended = gateway.client.end_of(self.run)
        if ended["state"] == "error" and "initialization conflicted" in ended["errorMessage"]:
            self.new.clear()
        elif ended["state"] == "error" and may_fail:
            self.new.pop()
        else:
            assert ended["state"] == "final", ended


@dataclass
class Template:
    """A session that a gateway made, to make others of the same kind from."""

    entry: dict[str, Any]
    lines: list[str]

    @classmethod
    def of(cls, gateway: Gateway) -> Template:
        """Has the gateway's main agent talk, and keeps what it wrote. It must run."""
        talk = Conversation("agent:main:explicit:template", "", [])
        talk.say(gateway, "template-a")
        talk.say(gateway, "template-b")
        gateway.wait_until_quiet("main")
        entry = gateway.index("main")[talk.key]
        return cls(entry, (gateway.sessions("main") / f"{entry['sessionId']}.jsonl").read_text().splitlines())

    def fill(self, gateway: Gateway, agent: str, minutes_old: list[float]) -> list[Conversation]:
        """The store of an agent that has none, with a copy for each age. The gateway must not run."""
        gateway.sessions(agent).mkdir(parents=True)
        talks = [self._copy(gateway, agent, f"{n:03d}", minutes) for n, minutes in enumerate(minutes_old)]
        index = gateway.sessions(agent) / "sessions.json"
        index.write_text(json.dumps({talk.key: entry for talk, entry in talks}, indent=2))
        index.chmod(0o600)
        return [talk for talk, _ in talks]

    def _copy(self, gateway: Gateway, agent: str, name: str, minutes: float) -> tuple[Conversation, dict[str, Any]]:
        talk = Conversation(f"agent:{agent}:explicit:{name}", str(uuid.uuid4()), [])
        back_ms = now_ms() - int(minutes * 60_000) - self.entry["updatedAt"]

        def moved(text: str) -> Any:
            text = text.replace(self.entry["sessionId"], talk.id).replace("agents/main/", f"agents/{agent}/")
            return json.loads(text.replace("agent:main:explicit:template", talk.key).replace("template", name))

        entry = moved(json.dumps(self.entry))
        entry |= {name: entry[name] + back_ms for name in TIMES if isinstance(entry.get(name), int)}
        lines = [older(moved(line), back_ms) for line in self.lines]
        path = gateway.sessions(talk.agent) / f"{talk.id}.jsonl"
        path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
        path.chmod(0o600)
        at = time.time() - minutes * 60
        os.utime(path, (at, at))
        talk.words = said([line["message"] for line in lines if line["type"] == "message"])
        return talk, entry


def older(record: dict[str, Any], by_ms: int) -> dict[str, Any]:
    """A transcript's line with its times moved."""
    at = datetime.fromisoformat(record["timestamp"]) + timedelta(milliseconds=by_ms)
    record["timestamp"] = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if "message" in record:
        record["message"]["timestamp"] += by_ms
    return record


def told_to_the_model(transcript: Path) -> list[str]:
    """The words on the way from a transcript's last line up by its parents: the context of the next message."""
    records = [json.loads(line) for line in transcript.read_text().splitlines()]
    assert records[0]["type"] == "session", f"{transcript.name} begins without a header"
    by_id = {record["id"]: record for record in records if record["type"] != "session"}
    path: list[dict[str, Any]] = []
    at: dict[str, Any] | None = records[-1]
    while at is not None and at["type"] != "session":
        path.insert(0, at)
        at = by_id.get(at["parentId"])
    return said([record["message"] for record in path if record["type"] == "message"])


@dataclass
class Fate:
    """What became of a conversation, in one word, and how it differs from whole."""

    conversation: Conversation
    what: str
    shown: list[str]
    wrong: str = ""


def fate(gateway: Gateway, skill: Skill, talk: Conversation) -> Fate:
    """Says whether a conversation is live and whole, or removed and whole once restored; restores what is removed."""
    entry = gateway.index(talk.agent).get(talk.key)
    if entry is not None and entry["sessionId"] == talk.id:
        return judged(gateway, talk, "live", talk.whole)
    expected, what = talk.whole, "removed"
    if entry is not None:
        what, expected = "begun anew", talk.words
        shown = said(gateway.client.history(talk.key)["messages"])
        if shown != talk.new:
            return Fate(talk, what, shown, f"the new session should show {talk.new}")
        gone = skill("delete_session", {"session_id": entry["sessionId"], "force": True})
        assert gone.exit_code == 0, gone.document
    back = skill("restore_session", {"session_id": talk.id})
    if back.exit_code:
        return Fate(talk, what, [], f"cannot be restored: {back.document['code']}")
    return judged(gateway, talk, what, expected)


def judged(gateway: Gateway, talk: Conversation, what: str, expected: list[str]) -> Fate:
    shown = said(gateway.client.history(talk.key)["messages"])
    if shown != expected:
        return Fate(talk, what, shown, f"should show {expected}")
    told = told_to_the_model(gateway.sessions(talk.agent) / f"{talk.id}.jsonl")
    if told != expected:
        return Fate(talk, what, shown, f"shown whole, but the model is told {told}")
    return Fate(talk, what, shown)
