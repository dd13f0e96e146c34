"""The store is found where the gateway finds it: measured on 2026.2.17 and 2026.6.11, which agree unless it is said."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support import CLOSED_API, Answer, Skill, StoreBuilder
from test_import_budget import HEAVY, loaded

from session_manager.core.errors import UsageError
from session_manager.gateway import places
from session_manager.settings import Settings, read_settings

USUAL = "{agentId}/sessions/sessions.json"


class Machine:
    """A machine of a test's own: a home, and an environment without ARIA_AGENTS_DIR."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"

    def agents(self, *folders: str) -> None:
        """Makes agents directories with one store each, below the root."""
        for folder in folders:
            store = StoreBuilder(self.root / folder / "agents")
            store.add("cron:a", 120, folder.replace("/", "-").replace(".", ""))
            store.write()

    def write(self, path: str, text: str) -> Path:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text.replace("$D", str(self.root)))
        return place

    def store(self, path: str, config: str = "home/.openclaw/openclaw.json") -> Path:
        """Writes a config that says where the sessions are."""
        return self.write(config, json.dumps({"session": {"store": path}}))

    def environ(self, **variables: str) -> dict[str, str]:
        given = {name: value.replace("$D", str(self.root)) for name, value in variables.items()}
        return {"HOME": str(self.home), "ARIA_API_URL": CLOSED_API, **given}

    def settings(self, **variables: str) -> Settings:
        return read_settings(self.environ(**variables))

    def found(self, **variables: str) -> str:
        """Returns where the indexes are, with $D for the root."""
        return self.settings(**variables).place.text.replace(str(self.root), "$D")

    def refused(self, **variables: str) -> UsageError:
        with pytest.raises(UsageError) as error:
            self.settings(**variables)
        return error.value


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(places, "CONTAINER", str(tmp_path / "app" / "agents"))
    return Machine(tmp_path)


@pytest.mark.parametrize(
    ("folders", "variables", "found"),
    [
        (["home/.openclaw"], {}, "$D/home/.openclaw/agents"),
        (["home/.openclaw", "other/.openclaw"], {"OPENCLAW_HOME": "$D/other"}, "$D/other/.openclaw/agents"),
        (["home/.openclaw", "home/x/.openclaw"], {"OPENCLAW_HOME": "~/x"}, "$D/home/x/.openclaw/agents"),
        (["home/.openclaw"], {"OPENCLAW_HOME": "~"}, "$D/home/.openclaw/agents"),
        (["home/.openclaw"], {"OPENCLAW_HOME": " undefined "}, "$D/home/.openclaw/agents"),
        (["home/.openclaw", "st"], {"OPENCLAW_STATE_DIR": " $D/st "}, "$D/st/agents"),
        (["home/st", "other/st"], {"OPENCLAW_STATE_DIR": "~/st", "OPENCLAW_HOME": "$D/other"}, "$D/other/st/agents"),
        (["home/.openclaw"], {"OPENCLAW_STATE_DIR": "  ", "OPENCLAW_HOME": ""}, "$D/home/.openclaw/agents"),
        # Only 2026.2.17 knows it, and here nothing else is there.
        (["st"], {"CLAWDBOT_STATE_DIR": "$D/st"}, "$D/st/agents"),
        (["st", "clawd"], {"CLAWDBOT_STATE_DIR": "$D/clawd", "OPENCLAW_STATE_DIR": "$D/st"}, "$D/st/agents"),
        (["home/.clawdbot"], {}, "$D/home/.clawdbot/agents"),
        (["home/.clawdbot"], {"CLAWDBOT_STATE_DIR": "$D/home/.clawdbot"}, "$D/home/.clawdbot/agents"),
        (["home/.moldbot"], {}, "$D/home/.moldbot/agents"),
        (["home/.moltbot"], {}, "$D/home/.moltbot/agents"),
        (["home/.moltbot", "home/.moldbot"], {}, "$D/home/.moldbot/agents"),
        (["home/.openclaw", "home/.clawdbot", "home/.moltbot"], {}, "$D/home/.openclaw/agents"),
        (["other/.moltbot"], {"OPENCLAW_HOME": "$D/other"}, "$D/other/.moltbot/agents"),
        (["app"], {}, "$D/app/agents"),
        (["app", "home/.openclaw"], {"OPENCLAW_HOME": "~"}, "$D/home/.openclaw/agents"),
        (["app", "st"], {"OPENCLAW_STATE_DIR": "$D/st"}, "$D/st/agents"),
        (["home/.openclaw-work"], {"OPENCLAW_PROFILE": "work"}, "$D/home/.openclaw-work/agents"),
        (["home/.openclaw"], {"OPENCLAW_PROFILE": "work"}, "$D/home/.openclaw/agents"),
        (["home/.openclaw"], {"OPENCLAW_PROFILE": "default"}, "$D/home/.openclaw/agents"),
        (
            ["home/.openclaw", "home/.openclaw-work"],
            {"OPENCLAW_PROFILE": "work", "OPENCLAW_STATE_DIR": "~/.openclaw-work"},
            "$D/home/.openclaw-work/agents",
        ),
        (["home/.openclaw", "st"], {"ARIA_AGENTS_DIR": "$D/st/agents", "OPENCLAW_HOME": "/none"}, "$D/st/agents"),
    ],
)
def test_the_place_that_the_gateway_takes(
    machine: Machine, folders: list[str], variables: dict[str, str], found: str
) -> None:
    machine.agents(*folders)
    assert machine.found(**variables) == found


@pytest.mark.parametrize(
    ("folders", "variables", "named"),
    [
        (["app", "home/.openclaw"], {}, ["$D/app/agents", "$D/home/.openclaw/agents"]),
        # 2026.2.17 goes by the variable, 2026.6.11 does not know it.
        (
            ["home/.openclaw", "st"],
            {"CLAWDBOT_STATE_DIR": "$D/st"},
            ["$D/home/.openclaw/agents", "$D/st/agents"],
        ),
        (
            ["home/.openclaw", "home/.openclaw-work"],
            {"OPENCLAW_PROFILE": "work"},
            ["$D/home/.openclaw/agents", "$D/home/.openclaw-work/agents"],
        ),
    ],
)
def test_where_two_may_be_meant_neither_is_taken(
    machine: Machine, folders: list[str], variables: dict[str, str], named: list[str]
) -> None:
    machine.agents(*folders)
    error = machine.refused(**variables)
    assert (error.code, error.exit_code) == ("agents_dir_ambiguous", 2)
    assert error.details["candidates"] == [path.replace("$D", str(machine.root)) for path in named]
    for text in (*error.details["candidates"], "ARIA_AGENTS_DIR", "OPENCLAW_STATE_DIR"):
        assert text in error.message


def test_one_folder_by_two_names_is_no_doubt(machine: Machine) -> None:
    machine.agents("home/.openclaw")
    (machine.root / "app").symlink_to(machine.home / ".openclaw")
    (machine.home / ".clawdbot").symlink_to(machine.home / ".openclaw")
    assert machine.settings(CLAWDBOT_STATE_DIR="~/.clawdbot").agents_dir == str(machine.home / ".openclaw" / "agents")


@pytest.mark.parametrize(
    ("variables", "variable"),
    [
        ({"OPENCLAW_HOME": "$D/nowhere"}, "OPENCLAW_HOME"),
        ({"OPENCLAW_STATE_DIR": "~/nowhere"}, "OPENCLAW_STATE_DIR"),
        ({"CLAWDBOT_STATE_DIR": "$D/nowhere"}, "CLAWDBOT_STATE_DIR"),
        ({"ARIA_AGENTS_DIR": "$D/nowhere"}, "ARIA_AGENTS_DIR"),
    ],
)
def test_a_variable_that_names_nothing_is_never_passed_over(
    machine: Machine, variables: dict[str, str], variable: str
) -> None:
    machine.agents("home/.openclaw", "app")
    error = machine.refused(**variables)
    assert (error.code, error.details["variable"]) == ("agents_dir_missing", variable)


def test_an_older_folder_that_no_gateway_takes_is_named(machine: Machine) -> None:
    """Both gateways take an empty ~/.openclaw, and make a store in it."""
    (machine.home / ".openclaw").mkdir(parents=True)
    machine.agents("home/.moltbot")
    error = machine.refused()
    assert error.code == "agents_dir_missing"
    assert str(machine.home / ".openclaw" / "agents") in error.message
    assert f"{machine.home}/.moltbot/agents exists, but no gateway would use it now" in error.message


@pytest.mark.parametrize(
    ("config", "variables", "found"),
    [
        ('{session: {store: "$D/x/{agentId}/sessions/sessions.json"}}', {}, f"$D/x/{USUAL}"),
        ('{session: {store: "~/x/{agentId}/sessions.json"}}', {}, "$D/home/x/{agentId}/sessions.json"),
        ('{session: {store: "$D/x/a-{agentId}.json"}}', {}, "$D/x/a-{agentId}.json"),
        ('{session: {store: "$D/x/../x//sessions.json"}}', {}, "$D/x/sessions.json"),
        ('{session: {store: ""}}', {}, "$D/home/.openclaw/agents"),
        ('{session: {store: "~/.openclaw/agents/{agentId}/sessions/sessions.json"}}', {}, "$D/home/.openclaw/agents"),
        ("{session: {}}", {}, "$D/home/.openclaw/agents"),
        ('{session: {store: "${WHERE}/s.json"}}', {"WHERE": "$D/x"}, "$D/x/s.json"),
        ('{env: {vars: {WHERE: "$D/x"}}, session: {store: "${WHERE}/s.json"}}', {}, "$D/x/s.json"),
        ('{env: {WHERE: "$D/x", vars: {WHERE: "$D/y"}}, session: {store: "${WHERE}/s.json"}}', {}, "$D/x/s.json"),
        ('{env: {WHERE: "$D/y"}, session: {store: "${WHERE}/s.json"}}', {"WHERE": "$D/x"}, "$D/x/s.json"),
        ('{session: {store: "$D/x/$${WHERE}.json"}}', {"WHERE": "no"}, "$D/x/${WHERE}.json"),
        ('{session: {store: "$D/x/${lower}.json"}}', {}, "$D/x/${lower}.json"),
        ("\ufeff// JSON5\n{'session': {/**/store: '$D/x/\\\ns.json',},}", {}, "$D/x/s.json"),
        ('{$include: "more.json5"}', {}, "$D/x/included.json"),
        ('{$include: ["more.json5"], session: {store: "$D/x/own.json"}}', {}, "$D/x/own.json"),
        ('{session: {$include: "./part/session.json5"}}', {}, "$D/x/part.json"),
    ],
)
def test_the_config_says_where_the_indexes_are(
    machine: Machine, config: str, variables: dict[str, str], found: str
) -> None:
    machine.agents("home/.openclaw")
    for folder in (machine.root / "x", machine.home / "x"):
        folder.mkdir()
    machine.write("home/.openclaw/openclaw.json", config)
    machine.write("home/.openclaw/more.json5", '{session: {store: "$D/x/included.json", /* more */}}')
    machine.write("home/.openclaw/part/session.json5", '{$include: "../part/store.json"}')
    machine.write("home/.openclaw/part/store.json", '{"store": "$D/x/part.json"}')
    assert machine.found(**variables) == found
    settings = machine.settings(**variables)
    # What is removed now must be found again when the config changes.
    assert settings.agents_dir == str(machine.home / ".openclaw" / "agents")
    assert settings.state_dir == f"{settings.agents_dir}/.session_manager"


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("{session: {store: ", "not valid JSON5"),
        ('{session: {store: "x/sessions.json"}}', "relative to the folder in which the gateway was started"),
        ('{session: {store: " /x/sessions.json"}}', "relative"),
        ('{session: {store: "C:\\\\x\\\\sessions.json"}}', "relative"),
        ("{session: {store: 5}}", "session.store is not a string"),
        ("{session: []}", "session is not an object"),
        ("[]", "it is not an object"),
        ("", "not valid JSON5"),
        ('{session: {store: "${WHERE}/s.json"}}', "needs the variable WHERE"),
        ('{$include: "openclaw.json"}', "includes itself"),
        ('{$include: "nowhere.json"}', "no such file"),
        ("{$include: [1]}", "$include"),
        ("{gateway: {auth: {token: 'secret-1'}}, session: {store: }", "not valid JSON5"),
    ],
)
def test_a_config_that_cannot_be_used_is_never_passed_over(machine: Machine, config: str, why: str) -> None:
    machine.agents("home/.openclaw")
    path = machine.write("home/.openclaw/openclaw.json", config)
    error = machine.refused()
    assert (error.code, error.exit_code, error.details["path"]) == ("bad_gateway_config", 2, str(path))
    assert why in error.message
    assert "ARIA_AGENTS_DIR" in error.message
    assert "secret-1" not in json.dumps(error.document())
    # It decides nothing where somebody has said where they are.
    named = machine.settings(ARIA_AGENTS_DIR="$D/home/.openclaw/agents").place
    assert named.problem is not None
    assert why in named.problem


@pytest.mark.parametrize(
    ("configs", "variables", "found"),
    [
        ({"c/my.json": "x"}, {"OPENCLAW_CONFIG_PATH": "$D/c/my.json"}, "$D/x/s.json"),
        ({"home/my.json": "x"}, {"OPENCLAW_CONFIG_PATH": "~/my.json"}, "$D/x/s.json"),
        ({"home/.openclaw/openclaw.json": "x"}, {"OPENCLAW_CONFIG_PATH": "$D/none.json"}, "$D/home/.openclaw/agents"),
        ({"home/.openclaw/clawdbot.json": "x"}, {}, "$D/x/s.json"),
        ({"home/.clawdbot/clawdbot.json": "x"}, {}, "$D/x/s.json"),
        ({"home/.openclaw/openclaw.json": "x", "home/.openclaw/clawdbot.json": "y"}, {}, "$D/x/s.json"),
        (
            {"home/.openclaw/openclaw.json": "x", "st/openclaw.json": "y"},
            {"OPENCLAW_STATE_DIR": "$D/st"},
            "$D/y/s.json",
        ),
        # Only 2026.2.17 reads these: it would look there, and 2026.6.11 in the usual place.
        ({"home/.openclaw/moltbot.json": "x"}, {}, None),
        ({"home/.moltbot/openclaw.json": "x"}, {}, None),
        ({"c/my.json": "x"}, {"CLAWDBOT_CONFIG_PATH": "$D/c/my.json"}, None),
        ({"home/.openclaw/openclaw.json": "x"}, {"OPENCLAW_STATE_DIR": "$D/st"}, None),
    ],
)
def test_the_config_that_counts(
    machine: Machine, configs: dict[str, str], variables: dict[str, str], found: str | None
) -> None:
    machine.agents("home/.openclaw", "st")
    for folder in ("x", "y"):
        (machine.root / folder).mkdir()
    for path, folder in configs.items():
        machine.store(f"$D/{folder}/s.json", path)
    if found is not None:
        assert machine.found(**variables) == found
        return
    error = machine.refused(**variables)
    assert error.code == "agents_dir_ambiguous"
    assert f"{machine.root}/x/s.json" in error.details["candidates"]


def test_a_configured_store_that_is_not_here_is_said(machine: Machine) -> None:
    machine.agents("home/.openclaw")
    config = machine.store("/nowhere/{agentId}/sessions.json")
    error = machine.refused()
    assert (error.code, error.exit_code) == ("agents_dir_missing", 2)
    assert f"/nowhere/{{agentId}}/sessions.json (session.store of {config})" in error.message


class Gateway(Machine):
    """A gateway whose config says where the sessions are, and the skill beside it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.state = root / "state"
        (self.state / "agents").mkdir(parents=True)
        self.skill = Skill(root, ARIA_AGENTS_DIR=None, OPENCLAW_STATE_DIR=str(self.state), ARIA_API_URL="")

    def says(self, **session: str) -> None:
        (self.state / "openclaw.json").write_text(json.dumps({"session": session}).replace("$D", str(self.root)))


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(tmp_path)


def rows(answer: Answer) -> list[tuple[str, str]]:
    assert answer.exit_code == 0, answer.document
    return sorted((row["agentId"], row["id"]) for row in answer.document["sessions"])


@pytest.mark.parametrize(
    "pattern", ["{agentId}/sessions/sessions.json", "{agentId}/s/store.json", "of-{agentId}/a.json"]
)
def test_each_agent_has_its_index_where_the_config_puts_it(gateway: Gateway, pattern: str) -> None:
    gateway.agents("state")
    gateway.says(store=f"$D/x/{pattern}")
    stores = [Elsewhere(gateway.root / "x" / pattern.replace("{agentId}", agent), agent) for agent in ("ops", "main")]
    for store in stores:
        store.add("cron:old", 120, f"{store.agent}-old")
        store.add("cron:new", 1, f"{store.agent}-new")
        store.write()
    (gateway.root / "x" / "of-other.txt").touch()
    expected = [("main", "main-new"), ("main", "main-old"), ("ops", "ops-new"), ("ops", "ops-old")]
    assert rows(gateway.skill("list_sessions")) == expected
    answer = gateway.skill("prune_sessions", {"agent": "ops"})
    assert answer.document["deleted_ids"] == ["ops-old"]
    assert list(stores[0].read()) == ["agent:ops:cron:new"]
    assert list(stores[1].read()) == ["agent:main:cron:old", "agent:main:cron:new"]
    assert not stores[0].index.with_name(stores[0].index.name + ".lock").exists()
    restored = gateway.skill("restore_session", {"session_id": "ops-old"})
    assert (restored.exit_code, restored.document["restored_keys"]) == (0, ["agent:ops:cron:old"])
    assert rows(gateway.skill("list_sessions")) == expected
    found = checks(gateway.skill("doctor"))
    assert found["agents_dir"][1] == (
        f"{gateway.root}/x/{pattern} (session.store of {gateway.state}/openclaw.json): 2 agents"
    )
    assert found["store ops"][1].startswith(stores[0].index.name)
    assert all(ok for ok, _ in found.values())


def test_what_the_gateway_keeps_in_its_database_is_told_whatever_the_config_says(gateway: Gateway) -> None:
    gateway.says(store="$D/x/{agentId}/sessions.json")
    store = Elsewhere(gateway.root / "x" / "main" / "sessions.json", "main")
    store.add("cron:a", 120, "a")
    store.write()
    database = gateway.state / "agents" / "main" / "agent" / "openclaw-agent.sqlite"
    database.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(database)) as sql:
        sql.execute("CREATE TABLE session_nodes (session_key TEXT)")
    assert gateway.skill("list_sessions").document["code"] == "store_unsupported"


def test_a_link_to_another_agents_sessions_counts_once(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents, "main")
    store.add("cron:a", 120, "a")
    store.write()
    (agents / "again").mkdir()
    (agents / "again" / "sessions").symlink_to(store.dir)
    # Before and after it in the order of names.
    (agents / "zwei").mkdir()
    (agents / "zwei" / "sessions").symlink_to("../main/sessions")
    assert rows(skill("list_sessions")) == [("main", "a")]
    assert rows(skill("list_sessions", {"agent": "again"})) == [("main", "a")]
    assert skill("get_session_stats").document["by_agent"] == {"main": 1}
    assert skill("prune_sessions").document["deleted_ids"] == ["a"]


def test_two_links_to_a_folder_of_nobody_count_once(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents / "kept", "here")
    store.add("cron:a", 120, "a")
    store.write()
    for agent in ("one", "two"):
        (agents / agent).mkdir()
        (agents / agent / "sessions").symlink_to(store.dir)
    assert rows(skill("list_sessions")) == [("one", "a")]


def test_the_configured_main_key_names_a_main_session(gateway: Gateway) -> None:
    gateway.says(mainKey=" Home ", scope="global")
    store = StoreBuilder(gateway.state / "agents", "ops")
    for rest in ("home", "=home", "=global", "main"):
        store.add(rest, 10_000, rest.strip("=") + str(len(rest)))
    store.add("other", 10_000, "other")
    store.write()
    found = {row["id"]: row for row in gateway.skill("list_sessions").document["sessions"]}
    assert {i: row["session_type"] for i, row in found.items()} == {
        "home4": "main",
        "home5": "main",
        "global7": "main",
        "main4": "main",
        "other": "unknown",
    }
    assert found["home4"]["protected"] == "main"
    pruned = gateway.skill("prune_sessions", {"include_durable": True}).document
    assert pruned["deleted_ids"] == ["other"]
    refused = gateway.skill("delete_session", {"session_id": "home4"})
    assert (refused.exit_code, refused.document["code"]) == (4, "session_protected")


def test_the_doctor_is_not_green_where_a_configured_store_is_not_looked_at(gateway: Gateway) -> None:
    gateway.agents("state")
    gateway.says(store="$D/x/sessions.json")
    (gateway.root / "x").mkdir()
    named = str(gateway.state / "agents")
    answer = gateway.skill("doctor", None, ARIA_AGENTS_DIR=named)
    assert (answer.exit_code, answer.document["ok"]) == (3, False)
    ok, what = checks(answer)["gateway_config"]
    assert not ok
    assert f"{gateway.root}/x/sessions.json" in what
    assert "ARIA_AGENTS_DIR" in what
    # The same folder, which the gateway knows by a path of its own container.
    for path in (f"{named}/{USUAL}", f"/home/node/.openclaw/agents/{USUAL}"):
        gateway.says(store=path)
        assert gateway.skill("doctor", None, ARIA_AGENTS_DIR=named).exit_code == 0
    (gateway.state / "openclaw.json").write_text("{session: ")
    answer = gateway.skill("doctor", None, ARIA_AGENTS_DIR=named)
    assert (answer.exit_code, checks(answer)["gateway_config"][0]) == (3, False)
    assert "not valid JSON5" in checks(answer)["gateway_config"][1]
    assert gateway.skill("list_sessions", None, ARIA_AGENTS_DIR=named).exit_code == 0
    assert (gateway.skill("doctor").exit_code, gateway.skill("doctor").document["code"]) == (2, "bad_gateway_config")


def test_the_doctor_says_which_was_taken_and_what_was_not(machine: Machine) -> None:
    machine.agents("home/.openclaw", "home/.clawdbot")
    skill = Skill(machine.root, ARIA_AGENTS_DIR=None, OPENCLAW_HOME=str(machine.home), ARIA_API_URL="")
    what = checks(skill("doctor"))["agents_dir"][1]
    assert what.startswith(f"{machine.home}/.openclaw/agents (OPENCLAW_HOME): 1 agent")
    assert f"no gateway uses {machine.home}/.clawdbot/agents" in what


def test_the_session_of_an_older_state_directory_is_listed(machine: Machine) -> None:
    machine.agents("home/.clawdbot")
    for variables in ({"OPENCLAW_HOME": str(machine.home)}, {"CLAWDBOT_STATE_DIR": str(machine.home / ".clawdbot")}):
        skill = Skill(machine.root, ARIA_AGENTS_DIR=None, **variables)
        assert rows(skill("list_sessions")) == [("main", "home-clawdbot")]


def test_a_plain_config_costs_no_parser_of_json5(gateway: Gateway) -> None:
    gateway.agents("state")
    config = gateway.state / "openclaw.json"
    for text, costs in (('{"session": {"scope": "global"}}', False), ("{session: {scope: 'global'}}", True)):
        config.write_text(text)
        modules = loaded(gateway.skill, "list_sessions")
        assert ("pyjson5" in modules) is costs
        assert modules & HEAVY == set()
    config.unlink()
    assert "session_manager.gateway.config" not in loaded(gateway.skill, "list_sessions")


def checks(answer: Answer) -> dict[str, tuple[bool, str]]:
    return {check["name"]: (check["ok"], check["what"]) for check in answer.document["checks"]}


class Elsewhere(StoreBuilder):
    """A store whose index has a name, and a folder, of its own."""

    def __init__(self, index: Path, agent: str) -> None:
        index.parent.mkdir(parents=True, exist_ok=True)
        self.agent = agent
        self.dir = index.parent
        self.entries: dict[str, Any] = {}
        self._index = index

    @property
    def index(self) -> Path:
        return self._index


@pytest.mark.skipif(os.geteuid() != 0, reason="whoever runs this may look into what it made")
def test_a_home_that_may_not_be_looked_into_is_no_missing_folder() -> None:
    with tempfile.TemporaryDirectory() as base:
        Path(base).chmod(0o755)
        home = Path(base, "home")
        StoreBuilder(home / ".openclaw" / "agents").write()
        home.chmod(0o700)
        answer = Skill(home, ordinary=True, ARIA_AGENTS_DIR=None, HOME=str(home))("list_sessions")
    assert (answer.exit_code, answer.document["code"]) == (4, "not_readable")
    assert f"{home}/.openclaw/agents" in answer.document["error"]
