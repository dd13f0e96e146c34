"""Where a transcript is: every form of ``sessionFile`` means the same file to every function."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support import Skill, StoreBuilder, now_ms, picture
from test_prune import hold

from session_manager.core.session import Entry, build_sessions
from session_manager.stores.openclaw_files.whereabouts import INSIDE, Spot, Whereabouts
from session_manager.stores.openclaw_files.whereabouts import OWN as OWN_FOLDER

DAYS = 1440
# Another agent's folder, as gateways of all kinds name it.
ABROAD = [
    "../../main/sessions/x.jsonl",
    "{agents}/main/sessions/x.jsonl",
    " {agents}/other/sessions/../../main/sessions/x.jsonl\n",
    "{gone}/.openclaw/agents/main/sessions/x.jsonl",
    "..\\..\\main\\sessions\\x.jsonl",
    "C:\\Users\\ann\\.openclaw\\agents\\main\\sessions\\x.jsonl",
    "c:/Users/ann/.openclaw/Agents/Main/Sessions/x.jsonl",
    "\\\\?\\C:\\Users\\ann\\.openclaw\\agents\\main\\sessions\\x.jsonl",
    "\\\\nas\\share\\.openclaw\\agents\\main\\sessions\\x.jsonl",
    "\\\\wsl$\\Debian\\home\\ann\\.openclaw\\agents\\main\\sessions\\x.jsonl",
]
# The agent's own folder, where it is called otherwise.
OWN = [
    "x.jsonl",
    "{agents}/other/sessions/x.jsonl",
    "{gone}/.openclaw/agents/other/sessions/x.jsonl",
    "{gone}/anything/x.jsonl",
    ".\\x.jsonl",
    "C:\\Users\\ann\\.openclaw\\agents\\other\\sessions\\x.jsonl",
    "D:\\sessions\\x.jsonl",
    "\\\\nas\\share\\.openclaw\\agents\\other\\sessions\\x.jsonl",
    "\tx.jsonl ",
]
# Where nobody can look: nothing of that name lies in any folder here.
HIDDEN = [
    "{old}/agents/other/sessions/x.jsonl",
    "{old}/agents/main/sessions/deeper/x.jsonl",
    "{link}/x.jsonl",
    "{gone}/.openclaw/agents/other/sessions/x.jsonl",
    "{gone}/.openclaw/agents/main/sessions/x.jsonl",
    "{gone}/sessions/x.jsonl",
    "C:\\Users\\ann\\.openclaw\\agents\\other\\sessions\\x.jsonl",
    "D:\\old\\x.jsonl",
    "\\\\nas\\share\\x.jsonl",
    "\\\\nas\\share\\.openclaw\\agents\\third\\sessions\\x.jsonl",
    "a/../../../../x.jsonl",
    "a\0b.jsonl",
]


@pytest.fixture
def main(agents: Path) -> StoreBuilder:
    store = StoreBuilder(agents)
    store.add("main", 3 * DAYS, "the-main")
    return store.write()


@pytest.fixture
def other(agents: Path, main: StoreBuilder) -> StoreBuilder:
    return StoreBuilder(agents, "other")


def named(agents: Path, form: str) -> str:
    old, link = agents.parent / ".clawdbot", agents / "linked" / "sessions"
    for folder in ("agents/other/sessions", "agents/main/sessions/deeper"):
        (old / folder).mkdir(parents=True, exist_ok=True)
        (old / folder / "x.jsonl").touch()
    if not link.is_symlink():
        link.parent.mkdir()
        link.symlink_to(old / "agents" / "other" / "sessions")
    (agents.parent / "x.jsonl").touch()
    return form.format(agents=agents, old=old, link=link, gone=agents.parent / "gone")


def reasons(document: dict[str, Any]) -> dict[str, str]:
    return {kept["id"]: kept["reason"] for kept in document["kept"]}


def write(folder: Path, name: str, *, age: float, mtime_age: float = 3 * DAYS) -> None:
    """Writes a transcript with one message of that age in minutes."""
    store = StoreBuilder(folder.parents[1], folder.parent.name)
    store.transcript(name, "x", now_ms() - int(age * 60_000), now_ms() - int(mtime_age * 60_000))


def everything(skill: Skill, *, dry_run: bool) -> dict[str, dict[str, Any]]:
    """Calls whatever removes many, and returns the documents."""
    switch = {"dry_run": dry_run}
    return {
        "prune": skill("prune_sessions", {"include_durable": True, "max_age_minutes": 60, **switch}).document,
        "delete": skill("delete_sessions", {"label": "job", **switch}).document,
        "ghosts": skill("cleanup_ghosts", switch).document,
        "orphans": skill("cleanup_orphans", {**switch, "force": True}).document,
    }


@pytest.mark.parametrize("form", ABROAD)
def test_a_run_that_holds_a_transcript_in_another_agents_folder_keeps_its_session(
    agents: Path, skill: Skill, main: StoreBuilder, other: StoreBuilder, form: str
) -> None:
    other.add("cron:job", 2 * DAYS, "s", transcript=False, label="job", sessionFile=named(agents, form))
    other.write()
    write(main.dir, "x.jsonl", age=2 * DAYS)
    hold(main.dir / "x.jsonl.lock")
    before = picture(agents)
    for dry_run in (True, False):
        found = everything(skill, dry_run=dry_run)
        assert reasons(found["prune"])["s"] == "busy"
        assert reasons(found["delete"]) == {"s": "busy"}
        assert found["ghosts"]["deleted_ids"] == []
        assert (found["orphans"]["archived"], found["orphans"]["removed_entries"]) == ([], [])
    for function in ("delete_session", "erase_session"):
        arguments = {"session_id": "s"} | ({"confirm": "s"} if function == "erase_session" else {})
        answer = skill(function, arguments, ARIA_ALLOW_ERASE="1")
        assert (answer.exit_code, answer.document["code"]) == (4, "session_busy")
    assert picture(agents) == before


@pytest.mark.parametrize("form", ABROAD)
def test_what_was_said_and_how_much_counts_in_another_agents_folder(
    agents: Path, skill: Skill, main: StoreBuilder, other: StoreBuilder, form: str
) -> None:
    other.add("cron:job", 2 * DAYS, "s", transcript=False, label="job", sessionFile=named(agents, form))
    other.write()
    write(main.dir, "x.jsonl", age=5, mtime_age=5)
    assert skill("prune_sessions").document["deleted_ids"] == []
    assert skill("delete_sessions", {"label": "job", "older_than_minutes": 60}).document["deleted_ids"] == []
    size = (main.dir / "x.jsonl").stat().st_size
    rows = skill("list_sessions", {"agent": "other", "sizes": True}).document["sessions"]
    assert [row["bytes"] for row in rows] == [size]
    (shown,) = skill("show_session", {"session_id": "s"}).document["live"]
    assert shown["files_elsewhere"] == {named(agents, form).strip(): size}
    assert shown["bytes"] == size
    assert shown["last_activity"] is not None


@pytest.mark.parametrize("form", ABROAD)
def test_an_idle_transcript_in_another_agents_folder_is_left_alone_and_reported(
    agents: Path, skill: Skill, main: StoreBuilder, other: StoreBuilder, form: str
) -> None:
    file = named(agents, form)
    other.add("cron:job", 2 * DAYS, "s", transcript=False, label="job", sessionFile=file)
    other.write()
    write(main.dir, "x.jsonl", age=2 * DAYS)
    document = skill("prune_sessions").document
    assert (document["deleted_ids"], document["left_alone"]) == (["s"], [file.strip()])
    assert (main.dir / "x.jsonl").exists()


@pytest.mark.parametrize("form", ABROAD)
def test_a_message_in_another_agents_folder_is_no_ghost(
    agents: Path, skill: Skill, main: StoreBuilder, other: StoreBuilder, form: str
) -> None:
    other.add("cron:job", 2 * DAYS, "s", label="job", sessionFile=named(agents, form))
    other.write()
    header = (other.dir / "s.jsonl").read_text().splitlines()[0] + "\n"
    (other.dir / "s.jsonl").write_text(header)
    os.utime(other.dir / "s.jsonl", (0, 0))
    write(main.dir, "x.jsonl", age=2 * DAYS)
    assert skill("cleanup_ghosts").document["deleted_ids"] == []
    (main.dir / "x.jsonl").write_text(header)
    os.utime(main.dir / "x.jsonl", (0, 0))
    assert skill("cleanup_ghosts").document["deleted_ids"] == ["s"]


@pytest.mark.parametrize("form", [*OWN, *(form.replace("main", "other") for form in ABROAD)])
def test_a_transcript_in_the_own_folder_is_found_by_any_name(
    agents: Path, skill: Skill, main: StoreBuilder, other: StoreBuilder, form: str
) -> None:
    """A Windows path once made the main session's live transcript an orphan that cleanup_orphans archived."""
    file = named(agents, form)
    other.add("main", 3 * DAYS, "m", transcript=False, sessionFile=file)
    for number in range(3):
        other.add(f"direct:{number}", 3 * DAYS)
    other.write()
    write(other.dir, "x.jsonl", age=3 * DAYS)
    for dry_run in (True, False):
        document = skill("cleanup_orphans", {"dry_run": dry_run}).document
        assert (document["classes"]["true_orphan"]["count"], document["archived"]) == (0, [])
    assert skill("readopt_orphans").document["adopted"] == []
    hold(other.dir / "x.jsonl.lock")
    protected = {row["id"]: row["protected"] for row in skill("list_sessions").document["sessions"]}
    assert protected["m"] == "main"
    other.entries["agent:other:direct:0"]["sessionFile"] = file
    busy = other.entries["agent:other:direct:0"]["sessionId"]
    other.write()
    protected = {row["id"]: row["protected"] for row in skill("list_sessions").document["sessions"]}
    assert protected[busy] == "busy"
    (other.dir / "x.jsonl.lock").unlink()
    del other.entries["agent:other:direct:0"]
    other.write()
    document = skill("delete_session", {"session_id": "m", "force": True}).document
    assert document["transcript_archived"] is True
    assert "left_alone" not in document
    assert skill("restore_session", {"session_id": "m"}).document["restored_files"] == ["x.jsonl"]


@pytest.mark.parametrize("form", HIDDEN)
def test_where_nobody_can_look_a_session_stays_and_it_is_said(
    agents: Path, skill: Skill, other: StoreBuilder, form: str
) -> None:
    file = named(agents, form)
    other.add("cron:job", 3 * DAYS, "s", transcript=False, label="job", sessionFile=file)
    other.write()
    before = picture(agents.parent)
    for dry_run in (True, False):
        for name, document in everything(skill, dry_run=dry_run).items():
            assert reasons(document)["s"] == "elsewhere", name
    protected = {row["id"]: row["protected"] for row in skill("list_sessions").document["sessions"]}
    assert protected["s"] == "elsewhere"
    for function in ("delete_session", "cleanup_after_delegation", "erase_session"):
        arguments = {"session_id": "s"} | ({"confirm": "s"} if function == "erase_session" else {})
        answer = skill(function, arguments, ARIA_ALLOW_ERASE="1")
        assert (answer.exit_code, answer.document["code"]) == (4, "session_protected")
        assert answer.document["reason"] == "elsewhere"
        assert "force" in answer.document["error"]
    ours = {name: found for name, found in picture(agents.parent).items() if "/.session_manager" not in name}
    assert ours == before
    answer = skill("delete_session", {"session_id": "s", "agent": "other", "force": True})
    assert (answer.exit_code, answer.document.get("left_alone")) == (0, [file]), answer.document
    assert other.read() == {}


@pytest.mark.parametrize("form", HIDDEN)
def test_a_transcript_here_says_nothing_about_one_that_cannot_be_seen(
    agents: Path, skill: Skill, other: StoreBuilder, form: str
) -> None:
    other.add("cron:job", 3 * DAYS, "s", label="job", sessionFile=named(agents, form))
    other.add("cron:child", 3 * DAYS, "child", spawnedBy="agent:other:cron:job")
    other.add("subagent:child", 3 * DAYS, "sub", spawnedBy="agent:other:subagent:up")
    other.add("subagent:up", 3 * DAYS, "up", sessionFile=named(agents, form))
    other.write()
    document = skill("prune_sessions").document
    assert reasons(document) | {"s": "elsewhere", "sub": "family", "up": "elsewhere"} == reasons(document)
    assert "s" not in reasons(skill("cleanup_ghosts").document)


@pytest.mark.parametrize(
    "form", ["/etc/passwd", "/etc/s.jsonl", "../../../x.jsonl", "..\\..\\..\\x.jsonl", "{old}/x.jsonl"]
)
def test_what_no_gateway_takes_for_a_transcript_keeps_nothing(
    agents: Path, skill: Skill, other: StoreBuilder, form: str
) -> None:
    file = named(agents, form)
    other.add("cron:job", 3 * DAYS, "s", sessionFile=file)
    other.write()
    document = skill("prune_sessions").document
    assert (document["deleted_ids"], document["left_alone"]) == (["s"], [file])


def test_a_mount_is_known_by_the_files_that_it_has_here(agents: Path, skill: Skill, other: StoreBuilder) -> None:
    here, old = (
        named(agents, "{gone}/.openclaw/agents/other/sessions"),
        named(agents, "{gone}/old/agents/other/sessions"),
    )
    other.add("cron:gone", 3 * DAYS, "gone", transcript=False, sessionFile=f"{here}/gone.jsonl")
    other.add("cron:named", 3 * DAYS, "named", transcript=False, sessionFile=f"{here}/lost.jsonl")
    other.add("cron:abroad", 3 * DAYS, "abroad", transcript=False, sessionFile=f"{here}/../../main/sessions/lost.jsonl")
    other.write()
    # As long as nothing else is known, what a gateway writes by itself is taken for this folder.
    planned = skill("prune_sessions", {"dry_run": True}).document
    assert reasons(planned) == {"the-main": "main", "named": "elsewhere", "abroad": "elsewhere"}
    other.add("cron:here", 3 * DAYS, "here", sessionFile=f"{here}/here.jsonl")
    other.add("cron:old", 3 * DAYS, "old", transcript=False, sessionFile=f"{old}/old.jsonl")
    other.write()
    document = skill("prune_sessions").document
    assert reasons(document) == {"the-main": "main", "old": "elsewhere"}
    assert set(document["deleted_ids"]) == {"gone", "named", "abroad", "here"}


def test_a_copy_of_a_store_is_told_from_an_older_folder_that_is_in_use(agents: Path, skill: Skill) -> None:
    original = StoreBuilder(agents.parent / ".openclaw" / "agents", "other")
    for name in ("idle", "talking", "locked", "gone"):
        original.add(f"cron:{name}", 3 * DAYS, name, sessionFile=str(original.dir / f"{name}.jsonl"))
    original.write()
    shutil.copytree(original.dir, agents / "other" / "sessions")
    original.transcript("talking.jsonl", "talking", now_ms())
    (original.dir / "locked.jsonl.lock").touch()
    for folder in (original.dir, agents / "other" / "sessions"):
        (folder / "gone.jsonl").unlink()
    before = picture(agents.parent / ".openclaw")
    document = skill("prune_sessions").document
    assert reasons(document) == {"talking": "elsewhere", "locked": "elsewhere"}
    assert set(document["deleted_ids"]) == {"idle", "gone"}
    assert document["left_alone"] == [str(original.dir / "idle.jsonl")]
    assert picture(agents.parent / ".openclaw") == before


def test_a_gateway_of_linux_takes_a_windows_path_for_a_name(agents: Path, skill: Skill, other: StoreBuilder) -> None:
    name = "C:\\Users\\ann\\.openclaw\\agents\\other\\sessions\\x.jsonl"
    other.add("cron:job", 3 * DAYS, "s", transcript=False, sessionFile=name)
    other.write()
    write(other.dir, name, age=3 * DAYS)
    document = skill("delete_session", {"session_id": "s"}).document
    assert [archive.split(".deleted.")[0] for archive in document["archived_files"]] == [name]


def test_a_folder_that_is_closed_is_none_that_was_looked_at(tmp_path: Path) -> None:
    """As an ordinary user; root may look everywhere."""
    with tempfile.TemporaryDirectory() as base:
        agents = Path(base, "agents")
        other, closed = StoreBuilder(agents, "other"), agents / "closed" / "sessions"
        closed.mkdir(parents=True)
        (closed / "x.jsonl").touch()
        for form in ("../../closed/sessions/x.jsonl", f"{base}/gone/agents/closed/sessions/x.jsonl"):
            other.entries = {}
            other.add("cron:job", 3 * DAYS, "s", transcript=False, sessionFile=form)
            other.write().index.chmod(0o644)
            for folder in (closed, closed.parent):
                Path(base).chmod(0o755)
                folder.chmod(0o000)
                try:
                    answer = Skill(agents, ordinary=True)("prune_sessions", {"dry_run": True, "agent": "other"})
                finally:
                    folder.chmod(0o755)
                assert reasons(answer.document) == {"s": "elsewhere"}, (form, folder)


def test_a_folder_that_is_mounted_in_two_places_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / "agents" / agent / "sessions" for agent in ("main", "other")]
    for folder in folders:
        folder.mkdir(parents=True)
        mounted = tmp_path / "mnt" / folder.relative_to(tmp_path)
        mounted.parent.mkdir(parents=True)
        mounted.symlink_to(folder)
    # What a mount has and a link has not: its own name is its real one.
    monkeypatch.setattr(os.path, "realpath", lambda path: path)
    entries = [
        (f"k{folder}", Entry("s", f"{tmp_path}/mnt/agents/{folder.parent.name}/sessions/x.jsonl")) for folder in folders
    ]
    (session,) = build_sessions("main", entries, 0)
    spots = Whereabouts(str(folders[0]), [session], ()).spots(session)
    assert spots == [Spot(OWN_FOLDER, "x.jsonl"), Spot(INSIDE, str(folders[1] / "x.jsonl"))]


def test_references_count_however_they_are_written(
    agents: Path, skill: Skill, main: StoreBuilder, other: StoreBuilder
) -> None:
    for number, form in enumerate(ABROAD):
        main.add(f"cron:{number}", 3 * DAYS, f"s{number}")
        file = named(agents, form).replace("x.jsonl", f"s{number}.jsonl")
        other.add(f"cron:{number}", 1, f"o{number}", transcript=False, sessionFile=file)
    main.write()
    other.write()
    document = skill("prune_sessions", {"agent": "main"}).document
    assert len(document["deleted_ids"]) == len(ABROAD)
    assert {f"s{number}.jsonl" for number in range(len(ABROAD))} <= main.names()
    assert skill("cleanup_orphans", {"older_than_minutes": 1}).document["archived"] == []
