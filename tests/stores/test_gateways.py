"""Whose gateway is to be seen: only one of the very store says that a pid which is dead here is dead.

The gateways are processes that look like one to whoever reads /proc; real ones may run on this machine, too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import Skill, StoreBuilder, now_ms

from session_manager.core.errors import Refused
from session_manager.files import liveness
from session_manager.files.liveness import iso_ms, may_be_gateway, process_stat, program_of
from session_manager.functions import delete_session, doctor
from session_manager.functions.context import Context
from session_manager.settings import read_settings
from session_manager.stores.openclaw_files import gateways
from session_manager.stores.openclaw_files.gateways import vouches
from session_manager.stores.openclaw_files.volume import Volume


@contextmanager
def process(*arguments: str, holds: Path | None = None, **env: str) -> Iterator[int]:
    """Runs ``sleep`` under a command line of its own; ``holds`` is a file that it has open."""
    with ExitStack() as stack:
        file = stack.enter_context(holds.open("ab")) if holds else subprocess.DEVNULL
        # The padding is what is left of a longer command line when a title takes its place.
        command = [arguments[0], *(arguments[1:] or ("600",))]
        script = "import os, sys; os.execv('/bin/sleep', sys.argv[1:])"
        running = subprocess.Popen(
            [sys.executable, "-S", "-c", script, *command], stdin=file, stdout=subprocess.PIPE, env=env, cwd="/"
        )
        try:
            wait_for(running.pid, command)
            yield running.pid
        finally:
            running.kill()
            running.communicate()


def wait_for(pid: int, command: list[str]) -> None:
    while Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0") != [a.encode() for a in command]:
        os.sched_yield()


@pytest.fixture
def store(agents: Path) -> StoreBuilder:
    """A store in which the lock of a process that has ended is a moment old."""
    store = StoreBuilder(agents)
    store.add("cron:a", 600, "a")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lock(store, "a", ended.pid)
    return store.write()


def lock(store: StoreBuilder, session_id: str, pid: int, age_s: float = 1, **more: Any) -> Path:
    path = store.dir / f"{session_id}.jsonl.lock"
    path.write_text(json.dumps({"pid": pid, "createdAt": iso_ms(now_ms() - int(age_s * 1000)), **more}))
    return path


def vouched(store: StoreBuilder) -> bool:
    return vouches(str(store.dir))


GATEWAY = "openclaw-gateway"


def test_nobody_vouches_for_a_store_of_its_own(store: StoreBuilder) -> None:
    assert not vouched(store)


def test_a_gateway_of_another_store_does_not(store: StoreBuilder, tmp_path: Path) -> None:
    for folder in (".openclaw/agents/main/sessions", "state/agents"):
        (tmp_path / "other" / folder).mkdir(parents=True)
    other = tmp_path / "other"
    (other / "log").touch()
    with (
        process(GATEWAY, HOME=str(other)),
        process(GATEWAY, OPENCLAW_STATE_DIR=str(other / "state")),
        process(GATEWAY, holds=other / "log"),
        process(GATEWAY),
    ):
        assert not vouched(store)


def test_one_whose_environment_names_the_state_folder_does(store: StoreBuilder, agents: Path, tmp_path: Path) -> None:
    state = str(agents.parent)
    link = tmp_path / "mounted"
    link.symlink_to(state)
    for env in (
        {"OPENCLAW_STATE_DIR": state},
        {"OPENCLAW_STATE_DIR": f" {link}/ "},
        {"CLAWDBOT_STATE_DIR": state},
        {"OPENCLAW_STATE_DIR": "~/" + os.path.relpath(state, "/"), "HOME": "/"},
    ):
        with process(GATEWAY, **env):
            assert vouched(store), env
        assert not vouched(store)


@pytest.mark.parametrize(
    ("name", "env", "expected"),
    [
        (".openclaw", {"HOME": "{}"}, True),
        (".openclaw", {"HOME": "/nowhere", "OPENCLAW_HOME": "{}"}, True),
        (".clawdbot", {"HOME": "{}"}, True),
        (".openclaw", {"HOME": "/nowhere"}, False),
        (".openclaw", {"HOME": "{}", "OPENCLAW_HOME": "/nowhere"}, False),
        (".openclaw", {"HOME": "{}", "OPENCLAW_STATE_DIR": "/nowhere"}, False),
        (".openclaw", {"HOME": "{}", "OPENCLAW_PROFILE": "work"}, False),
        (".openclaw-work", {"HOME": "{}", "OPENCLAW_PROFILE": "work"}, True),
    ],
)
def test_one_whose_home_holds_the_state_folder_does(
    name: str, env: dict[str, str], expected: bool, tmp_path: Path
) -> None:
    home = tmp_path / "somebody"
    store = StoreBuilder(home / name / "agents")
    with process(GATEWAY, **{key: value.format(home) for key, value in env.items()}):
        assert vouched(store) is expected


def test_an_older_state_folder_is_not_that_of_a_gateway_that_has_a_new_one(tmp_path: Path) -> None:
    home = tmp_path / "somebody"
    store = StoreBuilder(home / ".clawdbot" / "agents")
    StoreBuilder(home / ".openclaw" / "agents")
    with process(GATEWAY, HOME=str(home)):
        assert not vouched(store)


def test_a_store_that_a_config_puts_elsewhere_has_the_gateway_of_its_state_folder(
    store: StoreBuilder, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    (state / "agents").mkdir(parents=True)
    with process(GATEWAY, OPENCLAW_STATE_DIR=str(state)):
        assert not vouched(store)
        assert vouches(str(store.dir), str(state / "agents"))
    with process(GATEWAY, holds=store.dir / "sessions.json"):
        assert vouches(str(store.dir), str(state / "agents"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("agents/main/sessions/a.jsonl.lock", True),
        ("agents/other/agent/openclaw-agent.sqlite", True),
        ("state/openclaw.sqlite", True),
        ("gateway.log", True),
        # The state folder may lie in what holds more: a home, or the program.
        (".openclaw/state/openclaw.sqlite", False),
        ("node_modules/x.node", False),
    ],
)
def test_one_that_has_files_of_the_store_open_does(
    name: str, expected: bool, store: StoreBuilder, agents: Path
) -> None:
    path = agents.parent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with process(GATEWAY, holds=path):
        assert vouched(store) is expected


def test_the_configuration_that_its_own_lock_names_counts_more_than_its_home(tmp_path: Path) -> None:
    """With ``--profile`` the environment that it was started with says nothing of it."""
    home = tmp_path / "somebody"
    usual, work = (StoreBuilder(home / name / "agents") for name in (".openclaw", ".openclaw-work"))
    own = tmp_path / "gateway.0bddf660.lock"
    own.write_text(json.dumps({"pid": 1, "configPath": str(home / ".openclaw-work" / "openclaw.json")}))
    with process(GATEWAY, holds=own, HOME=str(home)):
        assert (vouched(usual), vouched(work)) == (False, True)
    with process(GATEWAY, holds=own, HOME=str(home), OPENCLAW_CONFIG_PATH="/etc/openclaw.json"):
        assert (vouched(usual), vouched(work)) == (True, False)
    own.write_text("{")
    with process(GATEWAY, holds=own, HOME=str(home)):
        assert (vouched(usual), vouched(work)) == (True, False)


def test_one_whose_pid_the_store_s_own_locks_have_named_does(store: StoreBuilder) -> None:
    with process(GATEWAY) as pid:
        assert not vouched(store)
        status = process_stat(pid)
        assert status is not None
        for starttime, age_s, expected in (
            (None, 0, True),
            # Older than the process: another one had that pid.
            (None, 60, False),
            (status[1], 60, True),
            (status[1] - 1, 0, False),
        ):
            more = {} if starttime is None else {"starttime": starttime}
            lock(store, "b", pid, age_s, **more)
            assert vouched(store) is expected, (starttime, age_s)
        # Our own tool's locks name no gateway.
        lock(store, "b", pid, 0, owner="session_manager")
        assert not vouched(store)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("openclaw-gateway",), True),
        (("/usr/bin/openclaw-gateway   ",), True),
        (("/usr/bin/node", "/app/openclaw.mjs", "gateway"), True),
        (("node", "/usr/lib/node_modules/.bin/openclaw", "gateway", "run"), True),
        (("openclaw", "gateway"), True),
        (("openclaw",), False),
        (("node", "/app/openclaw.mjs", "tui"), False),
        (("tail", "-f", "/var/log/openclaw"), False),
        (("vim", "openclaw.mjs"), False),
        (("node", "server.js"), False),
        ((), False),
    ],
)
def test_what_looks_like_a_gateway(arguments: tuple[str, ...], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "arguments_of", lambda pid: [argument.strip() for argument in arguments])
    assert gateways._is_gateway("self") is expected


def test_a_gateway_that_calls_itself_openclaw_is_known_by_the_lock_that_it_holds(
    store: StoreBuilder, agents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "gateway.0bddf660.lock"
    own.write_text(json.dumps({"configPath": str(agents.parent / "openclaw.json")}))
    with process("sleep", holds=own) as pid, process("sleep", OPENCLAW_STATE_DIR=str(agents.parent)) as tui:
        titles = {str(pid): ["openclaw"], str(tui): ["openclaw"]}
        monkeypatch.setattr(gateways, "arguments_of", lambda pid: titles.get(pid, []))
        monkeypatch.setattr(gateways, "_pids", lambda: [str(tui)])
        assert not vouched(store)
        monkeypatch.setattr(gateways, "_pids", lambda: [str(tui), str(pid)])
        assert vouched(store)


def test_a_gateway_in_a_container_does_not_vouch_for_our_pids(
    store: StoreBuilder, agents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from a host it has two pids, and its locks hold the one that means nothing here."""
    with process(GATEWAY, OPENCLAW_STATE_DIR=str(agents.parent)):
        assert vouched(store)
        monkeypatch.setattr(gateways, "_shares_our_pids", lambda pid: False)
        assert not vouched(store)


def test_processes_that_have_gone_or_are_another_s_vouch_for_nothing(
    store: StoreBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "_is_gateway", lambda pid: True)
    monkeypatch.setattr(gateways, "_pids", lambda: ["0", "999999999"])
    assert not vouched(store)
    monkeypatch.setattr(gateways, "_shares_our_pids", lambda pid: True)
    assert not vouched(store)


@pytest.mark.parametrize("own", [True, False])
def test_the_lock_of_a_dead_run_is_free_at_once_only_beside_its_own_gateway(
    store: StoreBuilder, agents: Path, skill: Skill, tmp_path: Path, own: bool
) -> None:
    with process(GATEWAY, OPENCLAW_STATE_DIR=str(agents.parent if own else tmp_path / "other")):
        document = skill("prune_sessions").document
    assert document["deleted_ids"] == (["a"] if own else [])
    assert [kept["reason"] for kept in document["kept"]] == ([] if own else ["busy"])


def test_what_may_be_a_gateway() -> None:
    with process("sh", "600") as shell, process("node", "600") as node, process("openclaw", "600") as cli:
        assert [may_be_gateway(pid) for pid in (shell, node, cli, 999_999_999)] == [False, True, True, True]
        assert [program_of(pid) for pid in (shell, 999_999_999)] == ["sh", None]


def test_doctor_names_the_stranger_behind_a_lock(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:a", 600, "a")
    store.write()
    with process("sh", "600") as pid:
        for age_s, advised in ((60, False), (3600, True)):
            lock(store, "a", pid, age_s)
            checks = {check["name"]: check for check in skill("doctor").document["checks"]}
            found = checks["lock main/a.jsonl.lock"]
            assert f"here pid {pid} is sh, not a gateway" in found["what"]
            assert bool(found["advice"]) is advised
        # A living process's lock is never broken all the same.
        answer = skill("delete_session", {"session_id": "a"})
        assert (answer.exit_code, answer.document["reason"]) == (4, "busy")


def test_a_very_old_lock_of_pid_1_keeps_nothing_busy(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "arguments_of", lambda pid: ["/sbin/tini", "--"] if pid == "1" else [])
    context = Context(read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": ""}), Volume(str(agents)), now_ms)
    store = StoreBuilder(agents)
    store.add("cron:a", 600, "a")
    store.write()
    lock(store, "a", 1, 60)
    with pytest.raises(Refused) as refused:
        delete_session.run(context, delete_session.Arguments("a"))
    assert refused.value.details["reason"] == "busy"
    lock(store, "a", 1, 330 * 86_400)
    checks = {check["name"]: check["what"] for check in doctor.run(context, doctor.Arguments())["checks"]}
    assert "here pid 1 is tini, not a gateway" in checks["lock main/a.jsonl.lock"]
    assert delete_session.run(context, delete_session.Arguments("a"))["deleted"] == "a"
