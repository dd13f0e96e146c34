"""Where a real gateway keeps a transcript, and what it tells the programs of a run: we see the same.

Each form of a ``sessionFile`` is tried twice: while the gateway answers in that session, where only the lock beside the
transcript shows it, and afterwards, when the session is removed and brought back.
"""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conversations import Conversation
from gateway_model import GatewayModel, gateway_model, said
from real_gateway import PATH, VERSIONS, Gateway, command, configuration
from support import CLOSED_API, RUNNER, Skill, now_ms

pytestmark = pytest.mark.system

OLDEST, NEWEST = VERSIONS


class Folders(NamedTuple):
    own: Path
    other_agent: Path
    older_state: Path
    mount: Path


# What an entry names, and the file that is there, or None where there is none.
FORMS: dict[str, Callable[[Folders, str], tuple[str, Path | None]]] = {
    "a name": lambda f, name: (name, f.own / name),
    "a path": lambda f, name: (str(f.own / name), f.own / name),
    "another agent's": lambda f, name: (str(f.other_agent / name), f.other_agent / name),
    "another agent's, by way of ours": lambda f, name: (f"{f.own}/../../other/sessions/{name}", f.other_agent / name),
    "an older state's": lambda f, name: (str(f.older_state / name), f.older_state / name),
    "a mount's that is not here": lambda f, name: (str(f.mount / name), f.own / name),
    "of Windows": lambda f, name: (rf"C:\Users\ann\.openclaw\agents\main\sessions\{name}", f.own / name),
    "of a share": lambda f, name: (rf"\\wsl$\Debian\root\.openclaw\agents\main\sessions\{name}", f.own / name),
}
# 2026.2.17 ends each run of such a session in an error.
ONLY_NEWEST = {
    "a relative path to another agent's": lambda f, name: (f"../../other/sessions/{name}", f.other_agent / name),
    "of no gateway": lambda f, name: (str(f.mount.parent / name), None),
}


def write_transcript(path: Path, session_id: str, word: str) -> None:
    """A conversation of two words, as gateways write one."""
    usage = {"input": 1, "output": 1, "cacheRead": 0, "cacheWrite": 0, "totalTokens": 2}
    usage["cost"] = {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0, "total": 0}  # type: ignore[assignment]
    asked = {"role": "user", "content": [{"type": "text", "text": word}], "timestamp": now_ms()}
    heard = {"role": "assistant", "content": [{"type": "text", "text": f"heard {word}"}], "timestamp": now_ms()}
    heard |= {
        "api": "openai-completions",
        "provider": "small",
        "model": "small-1",
        "usage": usage,
        "stopReason": "stop",
    }
    at = "2026-02-15T18:00:00.000Z"
    lines: list[dict[str, Any]] = [
        {"type": "session", "version": 3, "id": session_id, "timestamp": at, "cwd": str(path.parent)},
        {"type": "message", "id": "00000001", "parentId": None, "timestamp": at, "message": asked},
        {"type": "message", "id": "00000002", "parentId": "00000001", "timestamp": at, "message": heard},
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))


class Place(NamedTuple):
    gateway: Gateway
    model: GatewayModel
    talks: dict[str, Conversation]

    @property
    def skill(self) -> Skill:
        return Skill(self.gateway.agents)

    def history(self, talk: Conversation) -> list[str]:
        return said(self.gateway.client.history(talk.key)["messages"])


def deleting_itself(session: str) -> str:
    """A shell command in which a run removes its own session."""
    return f'{sys.executable} {RUNNER} session_manager delete_session "{{\\"session_id\\": \\"{session}\\"}}"'


def settings_of(gateway: Gateway, model_url: str) -> dict[str, Any]:
    """With an agent whose model is a program that removes its own session, where the gateway tells it which that is."""
    settings = configuration(gateway.port, model_url, gateway.home, ("other",))
    settings["tools"] = {"exec": {"security": "full", "ask": "off", "host": "gateway"}}
    if gateway.version == OLDEST:
        return settings
    program = gateway.home / "program"
    lines = [f"{deleting_itself(f'$OPENCLAW_MCP_SESSION_{what}')} > by-{what.lower()}" for what in ("KEY", "ID")]
    program.write_text("\n".join(["#!/bin/sh", f"cd {gateway.home}", *lines, "echo heard you\n"]))
    program.chmod(0o755)
    backend = {"command": str(program), "args": [], "resumeArgs": [], "input": "stdin"}
    backend |= {"output": "text", "resumeOutput": "text"}
    settings["agents"]["defaults"]["cliBackends"] = {"claude-cli": backend}
    settings["agents"]["list"].append({"id": "program", "model": {"primary": "claude-cli/opus"}})
    settings["plugins"] = {"enabled": True, "allow": ["anthropic"], "entries": {"anthropic": {"enabled": True}}}
    settings["models"]["pricing"] = {"enabled": False}
    return settings


@pytest.fixture(scope="module", params=VERSIONS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with gateway_model() as model:
        gateway = Gateway(request.param, tmp_path_factory.mktemp("gateway"), model.url, ARIA_API_URL=CLOSED_API)
        gateway.configure(settings_of(gateway, model.url))
        own = gateway.sessions("main")
        other, older = gateway.sessions("other"), gateway.home / "older/.openclaw/agents/main/sessions"
        folders = Folders(own, other, older, gateway.home / "mount/.openclaw/agents/main/sessions")
        index, talks = {}, {}
        for number, (form, make) in enumerate({**FORMS, **ONLY_NEWEST}.items()):
            talk = Conversation(f"agent:main:explicit:{number:03d}", str(uuid.uuid4()), [])
            given, path = make(folders, f"{talk.id}.jsonl")
            if path is not None:
                write_transcript(path, talk.id, f"old-{number:03d}")
            at = now_ms() - 7_200_000
            index[talk.key] = {"sessionId": talk.id, "updatedAt": at, "systemSent": True, "sessionFile": given}
            talks[form] = talk
        own.mkdir(parents=True, exist_ok=True)
        (own / "sessions.json").write_text(json.dumps(index, indent=2))
        (other / "sessions.json").write_text("{}")
        with gateway.started():
            yield Place(gateway, model, talks)


@pytest.mark.parametrize("form", [*FORMS, *ONLY_NEWEST])
def test_a_transcript_is_where_the_gateway_finds_it(place: Place, form: str) -> None:
    talk = place.talks[form]
    if form in ONLY_NEWEST and place.gateway.version == OLDEST:
        with pytest.raises(AssertionError, match="must be within sessions directory"):
            talk.say(place.gateway, talk.word)
        return

    place.model.hold(talk.word)
    talk.begin(place.gateway, talk.word)
    place.model.wait_for(talk.word)
    refused = place.skill("delete_session", {"session_id": talk.id})
    assert refused.exit_code == 4, refused.document
    place.model.let_go(talk.word)
    talk.finish(place.gateway)
    place.gateway.wait_until_quiet("main")

    before = place.history(talk)
    assert before[-2:] == [talk.word, talk.word]
    lost = place.skill("cleanup_orphans", {"older_than_minutes": 1, "details": True}).document
    orphans = [*lost["archived"], *(kept for kept in lost["kept"] if kept["class"] == "true_orphan")]
    assert talk.id not in json.dumps(orphans), lost
    removed = place.skill("delete_session", {"session_id": talk.id, "force": True})
    assert removed.exit_code == 0, removed.document
    assert talk.key not in place.gateway.index("main")
    restored = place.skill("restore_session", {"session_id": talk.id})
    assert restored.exit_code == 0, restored.document
    assert place.history(talk) == before


def test_a_run_cannot_remove_its_own_session(place: Place) -> None:
    """Its exec gets no variable that names the session; the run itself shows."""
    talk, printed = Conversation("agent:main:explicit:self", "", []), place.gateway.home / "printed"
    itself = f"{deleting_itself(talk.key)} > {printed}"
    place.model.calls[talk.word] = {"name": "exec", "arguments": {"command": itself}}
    talk.say(place.gateway, talk.word)
    assert json.loads(printed.read_text())["code"] == "session_busy"


@pytest.mark.parametrize("place", [NEWEST], indirect=True)
def test_a_run_of_a_command_line_program_is_named_by_the_gateway(place: Place) -> None:
    """The gateway holds no lock for such a run; it gives the program the session's id and key."""
    Conversation("agent:program:explicit:self", "", []).say(place.gateway, "hello")
    for how in ("by-key", "by-id"):
        refused = json.loads((place.gateway.home / how).read_text())
        assert (refused["code"], refused["reason"]) == ("session_protected", "current"), refused


# Variables, folders in the home that are there, and the config's session.store; @ is a folder of the test's own.
PLACES: dict[str, tuple[dict[str, str], str, str | None]] = {
    "a home": ({"OPENCLAW_HOME": "~/moved"}, ".openclaw", None),
    "a state folder": ({"OPENCLAW_STATE_DIR": "~/state", "OPENCLAW_HOME": "@/moved"}, ".openclaw", None),
    "an old variable": ({"CLAWDBOT_STATE_DIR": "@/state"}, ".openclaw", None),
    "an older folder": ({}, ".clawdbot", None),
    "the oldest folder": ({}, ".moltbot", None),
    "a store": ({}, ".openclaw", "@/store/index.json"),
    "a store for each agent": ({}, ".openclaw", "~/stores/{agentId}/sessions.json"),
}


def index_of(version: str, home: Path, environ: dict[str, str]) -> Path:
    """Where that version's program says the index of main is."""
    settings = {"HOME": str(home), "PATH": PATH, "OPENCLAW_NO_RESPAWN": "1", **environ}
    called = command(version, "sessions", "--json")
    done = subprocess.run(called, env=settings, cwd=home, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout[done.stdout.index("{") :])["path"])


@pytest.mark.parametrize("case", PLACES)
def test_a_store_is_where_the_gateway_finds_it(case: str, tmp_path: Path) -> None:
    """Where the two versions differ, neither store is touched, and both are named."""
    variables, folder, store = PLACES[case]
    environ = {name: value.replace("@", str(tmp_path)) for name, value in variables.items()}
    home = tmp_path / "home"
    (home / folder).mkdir(parents=True)
    if store is not None:
        settings = {"session": {"store": store.replace("@", str(tmp_path))}}
        (home / folder / "openclaw.json").write_text(json.dumps(settings))
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(index_of, VERSIONS, [home] * 2, [environ] * 2))
    # Where only the older version looks into what is there, a folder for the newer one would decide for both.
    indexes = found[:1] if folder == ".moltbot" else list(dict.fromkeys(found))
    for index in indexes:
        index.parent.mkdir(parents=True, exist_ok=True)
        index.write_text(json.dumps({"agent:main:cron:a": {"sessionId": index.parent.name, "updatedAt": now_ms()}}))

    listed = Skill(tmp_path, ARIA_AGENTS_DIR=None, HOME=str(home), **environ)("list_sessions")
    if len(indexes) == 1:
        assert [row["id"] for row in listed.document["sessions"]] == [indexes[0].parent.name], listed.document
    else:
        assert listed.document["code"] == "agents_dir_ambiguous", listed.document
        assert all(str(index.parents[2]) in json.dumps(listed.document["candidates"]) for index in indexes)
