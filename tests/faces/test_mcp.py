"""The MCP face, through the SDK's own client: every function is a tool, and every failure readable."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client, StdioServerParameters, stdio_client
from mcp_types import CallToolResult, Tool
from mcp_wire import Wire
from service import wait_until
from small_aria import SmallAria
from support import ROOT, Skill, StoreBuilder, picture

from session_manager.faces.fitting import BYTES, fitted
from session_manager.faces.runner import encode
from session_manager.functions import NAMES

COMMAND = str(ROOT / "tests" / "mcp_command.py")
WRITES_NOTHING: dict[str, dict[str, Any]] = {
    "list_sessions": {},
    "show_session": {"session_id": "old"},
    "get_session_stats": {},
    "check_policy": {},
    "list_deleted": {},
    "verify_ledger": {},
    "doctor": {},
}
GONE = "0f7c4c1e-3a54-4a8e-9b55-5b6a3c1d2e3f"

Talk = Callable[[Client], Awaitable[None]]


@pytest.fixture
def talk(agents: Path, skill: Skill) -> Callable[[Talk], None]:
    """Has a conversation with the server, a process of its own, over its standard input and output."""
    store = StoreBuilder(agents)
    store.add("cron:old", 120, "old")
    store.add("cron:young", 5, "young")
    store.add("subagent:done", 5, GONE)
    store.write()
    skill.env.setdefault("ARIA_API_URL", "")

    def run(conversation: Talk) -> None:
        async def main() -> None:
            parameters = StdioServerParameters(command=sys.executable, args=[COMMAND, "mcp"], env=skill.environment())
            async with Client(stdio_client(parameters)) as client:
                await conversation(client)

        anyio.run(main)

    return run


def text(result: CallToolResult) -> str:
    assert len(result.content) == 1
    assert result.content[0].type == "text"
    return result.content[0].text


def test_every_function_is_a_tool_with_its_schema(talk: Callable[[Talk], None], skill: Skill) -> None:
    found: dict[str, Tool] = {}

    async def ask(client: Client) -> None:
        assert client.server_info is not None
        assert client.server_info.name == "session-manager"
        assert "cleanup_after_delegation" in (client.instructions or "")
        found.update({tool.name: tool for tool in (await client.list_tools()).tools})

    talk(ask)
    done = subprocess.run([sys.executable, ROOT / "run_skill.py", "--list"], capture_output=True, check=True)
    catalogue = {each["name"]: each for each in json.loads(done.stdout)["functions"]}
    assert list(found) == list(NAMES) == list(catalogue)
    for name, tool in found.items():
        assert (tool.description, tool.input_schema) == (catalogue[name]["description"], catalogue[name]["arguments"])


def test_annotations_say_what_a_tool_does(talk: Callable[[Talk], None]) -> None:
    async def ask(client: Client) -> None:
        for tool in (await client.list_tools()).tools:
            hints = tool.annotations
            assert hints is not None
            assert hints.read_only_hint is (tool.name in WRITES_NOTHING)
            assert hints.open_world_hint is False
            if hints.read_only_hint:
                assert (hints.destructive_hint, hints.idempotent_hint) == (False, True)
            if tool.name.startswith(("delete_", "prune_", "purge_", "erase_", "cleanup_")):
                assert hints.destructive_hint is True
            if tool.name.startswith("restore_"):
                assert hints.destructive_hint is False

    talk(ask)


def test_read_only_tools_write_nothing(talk: Callable[[Talk], None], agents: Path) -> None:
    async def ask(client: Client) -> None:
        await client.call_tool("delete_session", {"session_id": "old"})
        before = picture(agents, without_state=False)
        for name, arguments in WRITES_NOTHING.items():
            assert not (await client.call_tool(name, arguments)).is_error, name
        assert picture(agents, without_state=False) == before

    talk(ask)


def test_every_tool_can_be_called(talk: Callable[[Talk], None], skill: Skill, aria: SmallAria) -> None:
    skill.env.update(ARIA_API_URL=aria.url, ARIA_ALLOW_ERASE="1")
    aria.add_all(["old", "young", GONE])
    answers: dict[str, dict[str, Any]] = {}

    async def ask(client: Client) -> None:
        async def call(name: str, **arguments: Any) -> dict[str, Any]:
            result = await client.call_tool(name, arguments)
            assert not result.is_error, text(result)
            assert json.loads(text(result)) == result.structured_content
            answers[name] = result.structured_content
            return answers[name]

        assert (await call("list_sessions"))["session_count"] == 3
        assert (await call("get_session_stats"))["total_sessions"] == 3
        assert (await call("prune_sessions", max_age_minutes="60", dry_run="true"))["deleted_ids"] == ["old"]
        assert (await call("cleanup_after_delegation", session_id=GONE))["pg_status_updated"] is True
        run_id = (await call("prune_sessions"))["run_id"]
        assert (await call("list_deleted"))["deleted_count"] == 2
        assert (await call("restore_run", run_id=run_id))["restored_ids"] == ["old"]
        assert (await call("show_session", session_id="old"))["live"][0]["id"] == "old"
        assert (await call("check_policy"))["keep_reasons"]["restored"] == 1
        assert (await call("pin_session", session_id="old"))["pinned"] == "old"
        assert (await call("unpin_session", session_id="old"))["was_pinned"] is True
        assert (await call("delete_sessions", label="heart*"))["dry_run"] is True
        assert (await call("delete_session", session_id="old"))["deleted"] == "old"
        assert (await call("restore_session", session_id="old"))["restored"] == "old"
        assert (await call("deliver_history"))["pending"] == 0
        for name in ("cleanup_orphans", "readopt_orphans", "cleanup_ghosts"):
            assert await call(name)
        assert "purged_count" in await call("purge_archives", older_than_days=30)
        assert (await call("erase_session", session_id=GONE, confirm=GONE))["erased"] == GONE
        assert (await call("verify_ledger"))["whole"] is True
        assert (await call("doctor"))["ok"] is True

    talk(ask)
    assert set(answers) == set(NAMES)


def test_failures_are_sentences_and_the_connection_outlives_them(talk: Callable[[Talk], None], agents: Path) -> None:
    (agents / "broken" / "sessions").mkdir(parents=True)
    (agents / "broken" / "sessions" / "sessions.json").write_text("{")

    async def ask(client: Client) -> None:
        for name, arguments, code, words in (
            ("delete_session", {"session_id": "nobody", "agent": "main"}, "session_not_found", "nobody"),
            ("delete_session", {}, "bad_argument", "session_id"),
            ("delete_session", {"session": "x"}, "unknown_argument", "did you mean 'session_id'?"),
            ("prune_sessions", {"max_age_minutes": 0}, "bad_argument", ">= 1"),
            ("erase_session", {"session_id": "old", "confirm": "old"}, "erase_disabled", "ARIA_ALLOW_ERASE"),
            ("list_sessions", {"agent": "../main"}, "bad_argument", "no path"),
            ("list_sessions", {"agent": "broken"}, "index_damaged", "nothing was written"),
            ("prune", {}, "unknown_function", "prune_sessions"),
        ):
            result = await client.call_tool(name, arguments)
            assert result.is_error, name
            assert words in text(result)
            assert f"(code {code})" in text(result)
            assert "Traceback" not in text(result)
            assert result.structured_content["code"] == code
        told = await client.call_tool("doctor", {})
        assert told.is_error
        assert '"name":"store broken"' in text(told).replace(" :", ":")
        partial = await client.call_tool("list_sessions", {})
        assert (partial.is_error, partial.structured_content["code"]) == (False, "partial")
        assert partial.structured_content["session_count"] == 3

    talk(ask)


def test_a_missing_agents_directory_is_told_at_each_call(talk: Callable[[Talk], None], skill: Skill) -> None:
    skill.env["ARIA_AGENTS_DIR"] = "/nowhere"

    async def ask(client: Client) -> None:
        for _ in range(2):
            result = await client.call_tool("list_sessions", {})
            assert result.is_error
            assert "'/nowhere' does not exist" in text(result)

    talk(ask)


def test_many_calls_at_once_are_made_one_after_the_other(talk: Callable[[Talk], None], agents: Path) -> None:
    async def ask(client: Client) -> None:
        codes: list[object] = []

        async def delete() -> None:
            result = await client.call_tool("delete_session", {"session_id": "old"})
            assert not result.is_error, text(result)
            codes.append(result.structured_content.get("already_deleted"))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(delete)
        assert sorted(codes, key=bool) == [None, True, True, True, True]

    talk(ask)


def marker_of(store: StoreBuilder) -> Path:
    return store.dir / "sessions.json.lock"


@pytest.fixture
def store(agents: Path, skill: Skill) -> StoreBuilder:
    store = StoreBuilder(agents)
    store.add("cron:old", 120, "old")
    store.add("cron:young", 5, "young")
    skill.env["ARIA_LOCK_TIMEOUT"] = "60"
    return store.write()


@pytest.fixture
def wire(store: StoreBuilder, skill: Skill) -> Iterator[Wire]:
    """A server in mid-call: a prune that waits for the gateway's lock, until that is taken away."""
    marker = {"pid": os.getpid(), "createdAt": datetime.now(UTC).isoformat()}
    marker_of(store).write_text(json.dumps(marker))
    with Wire(sys.executable, COMMAND, "mcp", env=skill.environment()) as found:
        found.call(2, "prune_sessions")
        wait_until((store.dir / ".session_manager.lock").exists)
        yield found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_call_in_hand_finish_and_begins_no_other(
    wire: Wire, store: StoreBuilder, skill: Skill, number: int
) -> None:
    wire.call(3, "delete_session", session_id="young")
    wire.send(method="ping", id=4)
    assert wire.answer()["id"] == 4
    wire.process.send_signal(number)
    marker_of(store).unlink()
    assert wire.process.wait(timeout=60) == 130
    assert set(store.read()) == {"agent:main:cron:young"}
    assert skill("verify_ledger").document["whole"] is True
    assert skill("list_deleted").document["deleted_count"] == 1


def test_a_signal_without_a_call_ends_it(skill: Skill, agents: Path) -> None:
    with Wire(sys.executable, COMMAND, "mcp", env=skill.environment()) as wire:
        wire.process.send_signal(signal.SIGTERM)
        assert wire.process.wait(timeout=30) == 130


def test_input_that_ends_in_mid_call_leaves_a_whole_state(wire: Wire, store: StoreBuilder, skill: Skill) -> None:
    assert wire.process.stdin is not None
    wire.process.stdin.close()
    marker_of(store).unlink()
    assert wire.process.wait(timeout=60) == 0
    assert set(store.read()) == {"agent:main:cron:young"}
    assert skill("verify_ledger").document["whole"] is True


def test_a_call_that_is_cancelled_leaves_a_whole_state_and_the_next_one_is_answered(
    wire: Wire, store: StoreBuilder
) -> None:
    wire.send(method="notifications/cancelled", params={"requestId": 2, "reason": "no more"})
    wire.call(3, "list_sessions")
    marker_of(store).unlink()
    answer = wire.answer()
    while answer["id"] != 3:
        answer = wire.answer()
    assert answer["result"]["structuredContent"]["session_count"] == 1
    assert set(store.read()) == {"agent:main:cron:young"}


def test_what_is_no_message_is_no_end(skill: Skill, store: StoreBuilder) -> None:
    with Wire(sys.executable, COMMAND, "mcp", env=skill.environment()) as wire:
        bare = b'{"jsonrpc": "2.0", "id": 7}'
        for line in (b"no json", b"\xff\xfe", b"[]", b"{}", bare, b"1" * 5000, b"[" * 100_000):
            wire.send(line)
        for number, arguments in enumerate((["old"], "old", 7)):
            wire.send(method="tools/call", id=10 + number, params={"name": "list_sessions", "arguments": arguments})
        wire.call(20, "delete_session", session_id="x", agent="\0")
        wire.call(21, "list_sessions", limit=-(10**30))
        wire.call(22, "list_sessions", label=[["x"] * 10] * 10)
        wire.call(23, "list_sessions")
        answers: dict[object, dict[str, Any]] = {}
        while 23 not in answers:
            answer = wire.answer()
            answers[answer.get("id")] = answer
        for number in (10, 11, 12):
            assert answers[number]["error"]["message"]
        for number in (20, 21, 22):
            assert answers[number]["result"]["structuredContent"]["code"] == "bad_argument"
        assert answers[23]["result"]["structuredContent"]["session_count"] == 2


def test_half_a_character_is_answered_and_a_whole_one_is_whole(skill: Skill, agents: Path) -> None:
    store = StoreBuilder(agents)
    store.add("cron:bread", 120, "bread", label="bread \U0001f35e")
    store.write()
    with Wire(sys.executable, COMMAND, "mcp", env=skill.environment()) as wire:
        wire.call(2, "list_sessions", label="bread \ud83c")
        assert wire.answer()["result"]["structuredContent"]["session_count"] == 0
        wire.call(3, "list_sessions", label="bread \ud83c\udf5e")
        assert wire.answer()["result"]["structuredContent"]["session_count"] == 1
        wire.call(4, "delete_session", session_id="\\ud83c")
        assert wire.answer()["result"]["structuredContent"]["code"] in ("bad_argument", "session_not_found")


def test_without_standard_input_it_says_so(skill: Skill, agents: Path) -> None:
    closed = f"exec {shlex.quote(sys.executable)} -m session_manager.faces.cli mcp <&-"
    environ = {**skill.environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", closed], capture_output=True, text=True, env=environ, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: standard input is closed")


def test_nothing_that_a_function_prints_is_on_the_wire(skill: Skill, store: StoreBuilder) -> None:
    noisy = (
        "import os, sys, runpy\n"
        "from session_manager.functions import doctor, load\n"
        "quiet = doctor.run\n"
        "def run(*given):\n"
        "    print('noise'); os.write(1, b'noise'); os.system('echo noise; cat'); return quiet(*given)\n"
        "doctor.run = run\n"
        f"sys.argv = [{COMMAND!r}, 'mcp']\n"
        f"runpy.run_path({COMMAND!r}, run_name='__main__')\n"
    )
    with Wire(sys.executable, "-c", noisy, env={**skill.environment(), "PYTHONPATH": str(ROOT)}) as wire:
        wire.call(2, "doctor")
        assert wire.answer()["result"]["structuredContent"]["checks"]
        assert wire.process.stdin is not None
        wire.process.stdin.close()
        assert wire.process.stdout is not None
        assert wire.process.stdout.read() == b""
        assert wire.process.stderr is not None
        assert wire.process.stderr.read().count(b"noise") == 3


def test_a_long_answer_is_cut_and_says_so(talk: Callable[[Talk], None], agents: Path) -> None:
    store = StoreBuilder(agents, "busy")
    for n in range(700):
        store.add(f"cron:job{n}", 120, session_id=f"job{n}", transcript=False, label=f"{n} " + "x" * 5000)
    store.write()

    async def ask(client: Client) -> None:
        listed = await client.call_tool("list_sessions", {})
        document = listed.structured_content
        assert document["session_count"] == 703
        assert len(document["sessions"]) == 50
        cut = document["shortened"]["cut"]
        assert next(iter(cut)) == "sessions"
        assert cut["sessions"] == {"shown": 50, "of": 703}
        assert cut["sessions.49.label"] == {"shown": 1000, "of": 5000 + len("646 ")}
        assert "narrow it by" in document["shortened"]["why"]
        assert len(text(listed)) < 110_000
        few = (await client.call_tool("list_sessions", {"agent": "busy", "limit": 3})).structured_content
        assert (len(few["sessions"]), "shortened" in few) == (3, False)
        failed = await client.call_tool("delete_session", {"session_id": "y" * 300_000})
        assert failed.is_error
        assert len(text(failed)) < 110_000

    talk(ask)


@given(st.recursive(st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_what_is_short_is_whole_and_what_is_long_is_cut_to_size(value: Any) -> None:
    assert fitted({"value": value}) == {"value": value}
    long = fitted({"n": 1, "value": [[value] * 210] * 5, "words": "x" * 500_000})
    assert long["n"] == 1
    assert {"value", "words"} <= set(long)
    assert long["shortened"]["cut"]["words"]["of"] == 500_000
    assert len(encode(long)) <= BYTES


def test_without_a_client_it_ends_with_its_input(skill: Skill, agents: Path) -> None:
    command = [sys.executable, COMMAND, "mcp"]
    done = subprocess.run(command, input=b"", capture_output=True, env=skill.environment(), timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


def test_the_extra_that_is_missing_is_named(agents: Path) -> None:
    probe = (
        "import sys; sys.modules['mcp'] = None\n"
        "from session_manager.faces.cli.mcp import mcp\n"
        "try:\n    mcp()\n"
        "except Exception as error:\n    print(error.exit_code, error.message)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", probe], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "70 the Python package 'mcp' is missing: pip install 'aria-sessionmanager[mcp]'\n"
