"""erase_session: of an erased session no byte is left where we can reach, and what we cannot reach is said."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import zlib
from pathlib import Path
from typing import Any

import pytest
from service import Service
from small_aria import SmallAria
from support import CLOSED_API, Skill, StoreBuilder, ledger_sql, now_ms, picture
from test_faults import Fault
from test_kill import run_until

from session_manager.faces import runner
from session_manager.ledger import Facts, Ledger, Removal, start_run
from session_manager.settings import read_settings
from session_manager.stores.openclaw_files.mentions import mentions
from session_manager.stores.openclaw_files.volume import Volume

GONE = "0aded5e5-0000-4000-8000-00000000e5ed"
STAYS = "57a75e55-0000-4000-8000-0000000057a7"
WANTED = {"session_id": GONE, "confirm": GONE}
SECRET = "the-secret-of-a-person"
OLD = "2025-01-01T00-00-00.000Z"
QUIET = {"max_age_minutes": 10**7}


@pytest.fixture
def skill(agents: Path) -> Skill:
    return Skill(agents, ARIA_ALLOW_ERASE="1")


class Scene:
    """A session with all that one can leave behind: keys, topic, sidecars, archives, an earlier removal, its ledger."""

    def __init__(self, agents: Path, skill: Skill) -> None:
        self.agents, self.skill = agents, skill
        self.store = StoreBuilder(agents)
        self.store.add("cron:other", 300, STAYS, label="harmless")
        self.store.add("main", 1, "the-main")
        self._live()
        assert skill("delete_session", {"session_id": GONE}).exit_code == 0
        self._live()
        for name in (f"{GONE}.jsonl.reset.{OLD}", f"{GONE}.jsonl.bak.{OLD}", f"{GONE}-topic-9.jsonl.deleted.{OLD}",
                     f"{GONE}.jsonl.deleted.{OLD}.{'0f' * 16}.zst", f"{GONE}.trajectory.jsonl",
                     f"{GONE}.trajectory-path.json", f"{GONE}.checkpoint.{STAYS}.jsonl",
                     f"{GONE}.jsonl.bak-12-34", f"2026-01-01T00-00-00-000Z_{GONE}.jsonl"):  # fmt: skip
            (self.store.dir / name).write_text(SECRET)
        self.others = {n: (self.store.dir / n).read_bytes() for n in (f"{STAYS}.jsonl", "the-main.jsonl")}

    def _live(self) -> None:
        fields = {"label": SECRET, "lastTo": SECRET, "model": f"model-of-{SECRET}"}
        for rest in (f"cron:{SECRET}", f"cron:{SECRET}:run:{GONE}"):
            self.store.add(rest, 300, GONE, **fields)
        self.store.transcript(f"{GONE}-topic-7.jsonl", GONE, 1_700_000_000_000)
        for name in (f"{GONE}.jsonl", f"{GONE}-topic-7.jsonl"):
            with (self.store.dir / name).open("a") as file:
                file.write(json.dumps({"text": SECRET}) + "\n")
        self.store.write()

    def bytes_left(self) -> dict[str, bytes]:
        """Every file below the agents directory, the ledger and its journal included, that holds the secret."""
        files = [p for p in self.agents.rglob("*") if p.is_file()]
        return {str(p.relative_to(self.agents)): p.read_bytes() for p in files if SECRET.encode() in p.read_bytes()}

    def raw_entries(self) -> bool:
        """Says whether an entry in the ledger holds the secret; they are compressed in the file."""
        chunks = [zlib.decompress(blob) for (blob,) in ledger_sql(self.agents, "SELECT entries FROM chunks")]
        return any(SECRET.encode() in chunk for chunk in chunks)

    def assert_erased(self) -> None:
        assert self.bytes_left() == {}
        assert not self.raw_entries()
        assert [n for n in self.store.names() if GONE in n] == []
        assert GONE not in self.store.index.read_text()
        self.assert_others()

    def assert_others(self) -> None:
        assert {n: (self.store.dir / n).read_bytes() for n in self.others} == self.others
        live = {e["sessionId"] for e in self.store.read().values()}
        assert live >= {STAYS, "the-main"}
        assert self.skill("verify_ledger").document["broken"] is None

    def rows(self) -> list[tuple[str, str]]:
        return [(r["id"], r["state"]) for r in self.skill("list_deleted").document["deleted"]]


@pytest.fixture
def scene(agents: Path, skill: Skill) -> Scene:
    return Scene(agents, skill)


# --- what goes ------------------------------------------------------------------------------------------------------


def test_no_byte_of_it_is_left(scene: Scene, skill: Skill, agents: Path) -> None:
    assert scene.bytes_left()
    assert scene.raw_entries()
    answer = skill("erase_session", WANTED)
    assert answer.exit_code == 0, answer.document
    scene.assert_erased()
    document = answer.document
    assert document["erased"] == GONE
    receipt = document["receipt"]
    # Two transcripts in each of two lives, and nine files that others left.
    assert (receipt["agents"], receipt["keys"], receipt["files"], receipt["ledger_entries"]) == (["main"], 2, 13, 2)
    assert receipt["bytes"] > 13 * len(SECRET)
    assert receipt["erased_at"]
    assert scene.rows() == [(GONE, "erased")] * 3, "two removals and the receipt"
    listed = skill("list_deleted").document["deleted"][0]
    assert (listed["function"], listed["reason"], listed["why_not"]) == ("erase_session", "erased", "it was erased")
    (event,) = ledger_sql(agents, "SELECT body FROM events WHERE kind = 'erased'")
    assert {k: v for k, v in json.loads(event[0]).items() if k not in ("run", "removals")} == {
        k: receipt[k] for k in ("keys", "files", "bytes", "ledger_entries")
    }
    assert not list((agents / ".session_manager" / "archives").rglob("*"))


def test_twice_is_a_success_that_says_so(scene: Scene, skill: Skill, agents: Path) -> None:
    first = skill("erase_session", WANTED).document
    before = picture(agents, without_state=False)
    again = skill("erase_session", WANTED)
    assert again.exit_code == 0
    assert (again.document["already_erased"], again.document["run_id"]) == (True, None)
    assert again.document["receipt"]["files"] == 0
    assert again.document["receipt"]["erased_at"] == first["receipt"]["erased_at"]
    assert again.document["not_reached"]
    after = picture(agents, without_state=False)
    # History was to be told once more.
    assert {n for n in before if before[n] != after.get(n)} <= {".session_manager/ledger.sqlite"}
    deleted = skill("delete_session", {"session_id": GONE})
    assert (deleted.exit_code, deleted.document["already_deleted"]) == (0, True)


def test_one_that_came_back_is_erased_again(scene: Scene, skill: Skill) -> None:
    assert skill("erase_session", WANTED).exit_code == 0
    scene._live()
    again = skill("erase_session", WANTED).document
    assert (again["receipt"]["keys"], again["receipt"]["files"]) == (2, 2)
    scene.assert_erased()


def test_one_that_only_archives_of_the_gateway_know(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents).write()
    (store.dir / f"{GONE}.jsonl.deleted.{OLD}").write_text(SECRET)
    document = skill("erase_session", WANTED).document
    assert (document["receipt"]["files"], document["receipt"]["bytes"]) == (1, len(SECRET))
    assert store.names() == {"sessions.json"}
    assert skill("delete_session", {"session_id": GONE}).document["already_deleted"] is True


def test_an_orphan_is_erased_unless_a_run_holds_it(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.transcript(f"{GONE}.jsonl", GONE, now_ms())
    store.write()
    lock = store.dir / f"{GONE}.jsonl.lock"
    lock.write_text(json.dumps({"pid": os.getpid(), "createdAt": "2999-01-01T00:00:00.000Z"}))
    refused = skill("erase_session", WANTED)
    assert (refused.exit_code, refused.document["code"]) == (4, "session_busy")
    assert f"{GONE}.jsonl" in store.names()
    assert skill("erase_session", {**WANTED, "force": True}).exit_code == 0
    assert f"{GONE}.jsonl" not in store.names()


def test_every_agent_or_the_named_one(agents: Path, skill: Skill) -> None:
    stores = {agent: StoreBuilder(agents, agent) for agent in ("one", "two")}
    for store in stores.values():
        store.add("cron:a", 100, GONE)
        store.write()
    assert skill("erase_session", {**WANTED, "agent": "one"}).document["receipt"]["agents"] == ["one"]
    assert f"{GONE}.jsonl" in stores["two"].names()
    assert skill("erase_session", WANTED).document["receipt"]["agents"] == ["one", "two"]
    assert f"{GONE}.jsonl" not in stores["two"].names()


def test_an_agent_that_is_gone(scene: Scene, skill: Skill, agents: Path) -> None:
    assert skill("delete_session", {"session_id": GONE}).exit_code == 0
    (agents / "main").rename(agents.parent / "elsewhere")
    StoreBuilder(agents, "other").write()
    document = skill("erase_session", WANTED).document
    assert (document["receipt"]["agents"], document["receipt"]["ledger_entries"]) == (["main"], 2)
    assert scene.bytes_left() == {}
    assert skill("verify_ledger").document["broken"] is None


def test_removals_that_were_kept_restored_or_purged_are_forgotten_too(agents: Path, skill: Skill) -> None:
    StoreBuilder(agents).write()
    settings = read_settings({"ARIA_AGENTS_DIR": str(agents)})
    with Ledger.open(settings) as ledger:
        for number, session_id in enumerate((GONE, GONE, GONE, STAYS)):
            removal = Removal(session_id, "why", [f"k-{SECRET}"], [(b'"k"', json.dumps(SECRET).encode())],
                              [(f"{session_id}.jsonl", f"x{number}")], facts=Facts(label=SECRET))  # fmt: skip
            run = start_run("prune_sessions", settings)
            attempt = ledger.intend(run, "main:1", "main", [], [], [removal])
            ledger.finish(attempt, {GONE} if number == 0 else set())
            if number == 1:
                back = ledger.intend_restore(run, "main:1", "main", [], [], ledger.removals(run_id=run.run_id))
                ledger.finish(back, {GONE})
            elif number == 2:
                (going,) = ledger.removals(run_id=run.run_id)
                ids = [going.removal_id]
                ledger.finish_purge(ledger.intend_purge(run, "main:1", "main", ids), ids, {})
    assert skill("erase_session", WANTED).document["receipt"]["ledger_entries"] == 3
    rows = ledger_sql(
        agents, "SELECT session_id, state, details IS NULL, chunk_id IS NULL FROM removals WHERE reason = 'why'"
    )
    assert rows == [(GONE, "erased", 1, 1)] * 3 + [(STAYS, "removed", 0, 0)]
    assert skill("verify_ledger").document["broken"] is None


@pytest.mark.parametrize("seed", range(8))
def test_what_sqlite_moved_about_is_gone_too(agents: Path, skill: Skill, seed: int) -> None:
    """Rows that grow are moved to other pages, and SQLite now and then leaves what was there before."""
    chance = random.Random(seed)
    StoreBuilder(agents).write()
    settings = read_settings({"ARIA_AGENTS_DIR": str(agents)})
    keys = [(GONE, f"{SECRET}-{i}") if i % 5 == 0 else (f"s{i}", f"k{i}") for i in range(300)]
    removals = [
        Removal(session_id, "why", [key], [(b'"k"', b"{}")], [("a", "x" * chance.randint(10, 1500))])
        for session_id, key in keys
    ]
    with Ledger.open(settings) as ledger:
        ledger.sql.execute("PRAGMA synchronous = OFF")
        attempt = ledger.intend(start_run("prune_sessions", settings), "main:1", "main", [], [], removals)
        ledger.finish(attempt, set())
        for _ in range(300):
            removal = chance.choice(removals)
            removal.files = [("a", "x" * chance.randint(10, 1500))]
            ledger.note_files(removal)
    assert skill("erase_session", WANTED).exit_code == 0
    for path in (agents / ".session_manager").iterdir():
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


# --- what stays -----------------------------------------------------------------------------------------------------


def test_files_of_others_stay_and_are_named(agents: Path, skill: Skill) -> None:
    """An id that looks like a topic of it, a topic file that another entry refers to, an archive of another removal."""
    store, other = StoreBuilder(agents), StoreBuilder(agents, "other")
    store.add("cron:b", 100, f"{GONE}-topic-7")
    store.add("cron:c", 100, STAYS, sessionFile=f"{GONE}-topic-8.jsonl")
    store.transcript(f"{GONE}-topic-8.jsonl", STAYS, now_ms())
    store.transcript(f"{GONE}-topic-9.jsonl", GONE, now_ms())
    other.add("cron:d", 100, "abroad", sessionFile=str(store.dir / f"{GONE}-topic-9.jsonl"))
    store.add("cron:e", 100, "removed", sessionFile=f"{GONE}-topic-6.jsonl")
    store.transcript(f"{GONE}-topic-6.jsonl", "removed", now_ms())
    store.write()
    other.write()
    (theirs,) = [
        f
        for f in skill("delete_session", {"session_id": "removed"}).document["archived_files"]
        if f.startswith(f"{GONE}-topic-6")
    ]
    del store.entries["agent:main:cron:e"]
    store.add("cron:a", 100, GONE)
    store.write()
    document = skill("erase_session", WANTED).document
    stays = {f"{GONE}-topic-{n}.jsonl" for n in (7, 8, 9)} | {theirs}
    assert {n for n in store.names() if n.startswith(GONE)} == stays
    named = {p["place"] for p in document["not_reached"] if "stays" in p["reason"]}
    assert named == {f"main/sessions/{n}" for n in stays - {f"{GONE}-topic-7.jsonl"}}
    listed = {r["id"]: r["restorable"] for r in skill("list_deleted").document["deleted"]}
    assert listed["removed"] is True


def test_what_was_found_is_named_and_what_cannot_be_looked_into_too(scene: Scene, skill: Skill) -> None:
    told = {
        "sessions.json.bak.1771178400000": f'{{"{GONE}": 1}}',
        f"sessions.json.found.{OLD}": "x" * 1_048_570 + GONE,
        f"sessions.json.damaged.{OLD}": GONE,
        ".usage-cost-cache.json": f'{{"files": ["{GONE}.jsonl"]}}',
        f"{GONE}.jsonl.lock": '{"pid": 4194999, "createdAt": "2020-01-01T00:00:00.000Z"}',
    }
    for name, text in {**told, "sessions.json.bak.1": "{}", "notes.txt": GONE[:-1]}.items():
        (scene.store.dir / name).write_text(text)
    (scene.store.dir / "link").symlink_to("/nowhere")
    (scene.store.dir / f"{STAYS}.jsonl").write_text(GONE)
    scene.others[f"{STAYS}.jsonl"] = GONE.encode()
    places = [p["place"] for p in skill("erase_session", WANTED).document["not_reached"]]
    here = {p.removeprefix("main/sessions/") for p in places if "/" in p}
    assert here == {*told, "link"}
    beyond = {"backups", "model provider", "search indexes", "other sessions", "a running gateway", "free blocks"}
    assert beyond < set(places)


def test_a_search_for_mentions_is_bounded(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StoreBuilder(agents).write()
    (store.dir / "a").write_text("x" * 100 + GONE)
    (store.dir / "b").write_text("x" * 100)
    (store.dir / "c").write_text(GONE)
    os.mkfifo(store.dir / "pipe")
    found = Volume(str(agents)).store("main")
    assert found is not None
    assert mentions(found, store.names(), GONE) == (["a", "c"], ["pipe"])
    for piece in (1, 7, 50):
        monkeypatch.setattr("session_manager.stores.openclaw_files.mentions._PIECE", piece)
        assert mentions(found, ["a", "b"], GONE) == (["a"], [])
    monkeypatch.setattr("session_manager.stores.openclaw_files.mentions._BUDGET", 150)
    assert mentions(found, ["a", "b", "c"], GONE) == (["a"], ["b", "c"])


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, "0", ""])
def test_it_is_off_unless_a_person_switches_it_on(scene: Scene, skill: Skill, agents: Path, value: str | None) -> None:
    before = picture(agents, without_state=False)
    answer = skill("erase_session", WANTED, ARIA_ALLOW_ERASE=value)
    assert (answer.exit_code, answer.document["code"]) == (4, "erase_disabled")
    assert "ARIA_ALLOW_ERASE=1" in answer.document["error"]
    assert "not against attackers" in answer.document["error"]
    assert picture(agents, without_state=False) == before
    assert skill("list_sessions", ARIA_ALLOW_ERASE="yes").document["code"] == "bad_setting"


@pytest.mark.parametrize(
    "arguments",
    [
        {"session_id": GONE},
        {"session_id": GONE, "confirm": STAYS},
        {"session_id": GONE, "confirm": True},
        {"session_id": "agent:main:cron:a", "confirm": "agent:main:cron:a"},
        {"session_id": "../x", "confirm": "../x"},
        {"session_id": "", "confirm": ""},
        {**WANTED, "agent": "../main"},
    ],
)
def test_bad_arguments_change_nothing(scene: Scene, skill: Skill, agents: Path, arguments: dict[str, Any]) -> None:
    before = picture(agents, without_state=False)
    assert skill("erase_session", arguments).exit_code == 2
    assert picture(agents, without_state=False) == before


@pytest.mark.parametrize(
    ("rest", "fields", "code"),
    [
        ("main", {}, "session_protected"),
        ("cron:a", {"pinnedAt": 1_771_178_400_000}, "session_protected"),
        ("cron:a", {"pendingFinalDelivery": True}, "session_protected"),
        ("cron:a", {"busy": True}, "session_busy"),
    ],
)
def test_what_is_protected_needs_force(
    agents: Path, skill: Skill, rest: str, fields: dict[str, Any], code: str
) -> None:
    store = StoreBuilder(agents)
    busy = fields.pop("busy", False)
    store.add(rest, 100, GONE, **fields)
    store.write()
    if busy:
        lock = store.dir / f"{GONE}.jsonl.lock"
        lock.write_text(json.dumps({"pid": os.getpid(), "createdAt": "2999-01-01T00:00:00.000Z"}))
    before = picture(agents)
    refused = skill("erase_session", WANTED)
    assert (refused.exit_code, refused.document["code"]) == (4, code)
    assert "was not erased" in refused.document["error"]
    assert {n: v for n, v in picture(agents).items() if n in before} == before
    assert skill("erase_session", {**WANTED, "force": True}).exit_code == 0
    assert store.read() == {}


def test_nobody_erases_itself(scene: Scene, skill: Skill, agents: Path) -> None:
    before = picture(agents)
    for env in ({"ARIA_SESSION_ID": GONE}, {"OPENCLAW_SESSION_ID": f"agent:main:cron:{SECRET}"}):
        answer = skill("erase_session", {**WANTED, "force": True}, **env)
        assert (answer.exit_code, answer.document["code"]) == (4, "session_protected")
        assert picture(agents) == before


def test_unknown_everywhere(agents: Path, skill: Skill, aria: SmallAria) -> None:
    StoreBuilder(agents).write()
    before = picture(agents, without_state=False)
    answer = skill("erase_session", WANTED, ARIA_API_URL=aria.url)
    assert (answer.exit_code, answer.document["code"]) == (5, "session_not_found")
    unasked = skill("erase_session", WANTED)
    assert (unasked.exit_code, unasked.document["history"]) == (5, "unknown")
    assert {n for n in picture(agents, without_state=False) if n not in before} <= {".session_manager"}


def test_a_damaged_index_is_refused_and_the_others_are_done(agents: Path, skill: Skill) -> None:
    fine, damaged = StoreBuilder(agents, "fine"), StoreBuilder(agents, "damaged")
    for store in (fine, damaged):
        store.add("cron:a", 100, GONE)
        store.write()
    damaged.index.write_bytes(damaged.index.read_bytes()[:30])
    answer = skill("erase_session", WANTED)
    assert (answer.exit_code, answer.document["receipt"]["agents"]) == (3, ["fine"])
    assert [(e["agentId"], e["code"]) for e in answer.document["errors"]] == [("damaged", "index_damaged")]
    assert f"{GONE}.jsonl" in damaged.names()
    assert skill("erase_session", {**WANTED, "agent": "damaged"}).exit_code == 7


def test_what_the_ledger_knows_of_a_damaged_agent_is_no_session_not_found(scene: Scene, skill: Skill) -> None:
    StoreBuilder(scene.agents, "fine").write()
    scene.store.index.write_bytes(b"{")
    answer = skill("erase_session", WANTED)
    assert (answer.exit_code, answer.document["code"]) == (7, "index_damaged")


# --- killed, and faults ---------------------------------------------------------------------------------------------

STEPS = [
    "index prepared",
    "intent written",
    "index swapped",
    "index verified",
    *["second name kept"] * 7,
    "second names kept",
    *["file archived"] * 7,
    "files archived",
    "second names checked",
    "displaced index removed",
    "folder synced",
    "end noted",
    "erasure intent written",
    *["trace removed"] * 13,
    "erased folders synced",
    "session forgotten",
    "ledger compacted",
    "erasure noted",
    "marks sent",
]


def test_the_named_steps_are_those_that_occur(scene: Scene, skill: Skill, tmp_path: Path) -> None:
    code, steps = run_until(skill, 0, tmp_path / "steps", "erase_session", WANTED)
    assert (code, steps) == (0, STEPS)


@pytest.mark.parametrize("limit", range(1, len(STEPS) + 1))
def test_killed_at_a_step(limit: int, scene: Scene, skill: Skill, tmp_path: Path) -> None:
    entries = {k: e for k, e in scene.store.read().items() if e["sessionId"] == GONE}
    assert run_until(skill, limit, tmp_path / "steps", "erase_session", WANTED)[0] == -signal.SIGKILL
    answer = skill("prune_sessions", QUIET)
    assert answer.exit_code == 0, answer.document
    scene.assert_others()
    assert ledger_sql(scene.agents, "SELECT count(*) FROM attempts WHERE state = 'intent'") == [(0,)]
    assert not list(scene.store.dir.glob(".session_manager.*.*"))
    left = {k: e for k, e in scene.store.read().items() if e["sessionId"] == GONE}
    if limit >= STEPS.index("erasure intent written") + 1:
        scene.assert_erased()
        assert scene.rows()[0] == (GONE, "erased")
        assert skill("erase_session", WANTED).document["already_erased"] is True
        if limit <= STEPS.index("ledger compacted") + 1:
            (recovered,) = answer.document["recovered"]
            assert (recovered["what"], recovered["finished"]) == ("erase", [GONE])
        marks = ledger_sql(scene.agents, "SELECT status, state FROM marks")
        assert marks == [("erased", "pending")]
        return
    transcripts = {f"{GONE}.jsonl", f"{GONE}-topic-7.jsonl"}
    if left:
        assert left == entries
        assert transcripts <= scene.store.names()
    else:
        assert not transcripts & scene.store.names()
        assert skill("list_deleted").document["deleted"][0]["restorable"] is True
    assert skill("erase_session", WANTED).exit_code == 0
    scene.assert_erased()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EROFS])
def test_what_cannot_be_removed_is_said_and_tried_again(
    scene: Scene, skill: Skill, agents: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fault = Fault(1, True, OSError(number, os.strerror(number)))
    environ = {"ARIA_AGENTS_DIR": str(agents), "ARIA_ALLOW_ERASE": "1", "ARIA_API_URL": CLOSED_API}
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fault.wrap(os.unlink, lambda path, **_: ".reset." in str(path)))
        document, exit_code = runner._answer(["session_manager", "erase_session", json.dumps(WANTED)], environ)
        assert (exit_code, document["code"]) == (3, "partial")
        assert [e["id"] for e in document["errors"]] == [GONE]
        assert document["pg_status_updated"] is False
        assert "not completely erased" in document["message"]
        assert set(scene.bytes_left()) - {".session_manager/ledger.sqlite"} == {
            f"main/sessions/{GONE}.jsonl.reset.{OLD}"
        }
    assert [r["what"] for r in skill("prune_sessions", QUIET).document["recovered"]] == ["erase"]
    scene.assert_erased()


def test_a_ledger_that_fails_half_way_is_said_and_brought_to_its_end(
    scene: Scene, skill: Skill, agents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compact(self: Ledger) -> None:
        raise failure

    failure = runner.Failed("no room", code="io_error")
    environ = {"ARIA_AGENTS_DIR": str(agents), "ARIA_ALLOW_ERASE": "1", "ARIA_API_URL": CLOSED_API}
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "compact", compact)
        document, exit_code = runner._answer(["session_manager", "erase_session", json.dumps(WANTED)], environ)
    assert (exit_code, document["errors"][0]["error"]) == (3, "no room")
    assert [r["what"] for r in skill("prune_sessions", QUIET).document["recovered"]] == ["erase"]
    scene.assert_erased()


# --- history --------------------------------------------------------------------------------------------------------


def marks(agents: Path) -> list[tuple[str, str]]:
    return ledger_sql(agents, "SELECT status, state FROM marks")


def test_history_hears_of_it_once(scene: Scene, skill: Skill, agents: Path, aria: SmallAria) -> None:
    aria.add(GONE)
    skill.env["ARIA_API_URL"] = aria.url
    document = skill("erase_session", WANTED).document
    assert (document["pg_status_updated"], document["message"].endswith("PG erased")) == (True, True)
    assert "aria-api" not in {p["place"] for p in document["not_reached"]}
    assert set(aria.rows[0]["metadata"]) == {"aria_session_id", "erased_at"}
    assert marks(agents) == [("erased", "delivered")]
    count = len(aria.requests)
    skill("erase_session", WANTED)
    skill("deliver_history")
    assert len(aria.requests) == count


def test_what_history_does_not_hear_waits_and_is_delivered(
    scene: Scene, skill: Skill, agents: Path, aria: SmallAria
) -> None:
    document = skill("erase_session", WANTED).document
    assert (document["pg_status_updated"], document["pg_pending"]) == (False, True)
    assert document["pg_error"] in [p["reason"] for p in document["not_reached"] if p["place"] == "aria-api"]
    for call, arguments in (
        ("delete_session", {"session_id": GONE}),
        ("prune_sessions", {}),
        ("erase_session", WANTED),
    ):
        skill(call, arguments)
        assert ("erased", "pending") in marks(agents)
    aria.add_all([GONE, STAYS])
    assert skill("deliver_history", ARIA_API_URL=aria.url).document["delivered"] >= 1
    assert "erased_at" in aria.rows[0]["metadata"]
    assert "erased_at" not in aria.rows[1]["metadata"]


def test_an_older_service_ends_the_row_and_the_mark_waits(
    scene: Scene, skill: Skill, agents: Path, older_aria: SmallAria
) -> None:
    older_aria.add(GONE)
    document = skill("erase_session", WANTED, ARIA_API_URL=older_aria.url).document
    assert older_aria.status(GONE) == "ended"
    assert (document["pg_status_updated"], document["pg_pending"]) == (False, True)
    assert "too old" in document["pg_error"]
    assert {p["place"]: p["reason"] for p in document["not_reached"]}["aria-api"] == document["pg_error"]
    assert marks(agents) == [("erased", "pending")]
    older_aria.older, older_aria.erases = False, True
    skill("deliver_history", ARIA_API_URL=older_aria.url)
    assert marks(agents) == [("erased", "delivered")]


def test_a_later_end_does_not_take_an_erasure_back(scene: Scene, skill: Skill, agents: Path, aria: SmallAria) -> None:
    aria.add(GONE)
    skill("erase_session", WANTED)
    scene._live()
    assert skill("delete_session", {"session_id": GONE}).exit_code == 0
    assert marks(agents) == [("erased", "pending")]
    skill("deliver_history", ARIA_API_URL=aria.url)
    assert marks(agents) == [("erased", "delivered")]
    assert "erased_at" in aria.rows[0]["metadata"]


def test_one_that_only_history_knows(agents: Path, skill: Skill, aria: SmallAria) -> None:
    StoreBuilder(agents).write()
    skill.env["ARIA_API_URL"] = aria.url
    aria.add(GONE, "main")
    aria.add(GONE, "abroad")
    document = skill("erase_session", {**WANTED, "agent": "main"}).document
    assert (document["receipt"]["agents"], document["pg_status_updated"]) == (["main"], True)
    assert document["run_id"]
    assert [set(row["metadata"]) for row in aria.rows] == [{"aria_session_id", "erased_at"}, {"aria_session_id"}]
    assert skill("erase_session", WANTED).document["receipt"]["agents"] == ["abroad", "main"]
    assert all("erased_at" in row["metadata"] for row in aria.rows)


def test_an_agents_name_in_history_leads_nowhere(agents: Path, skill: Skill, aria: SmallAria) -> None:
    StoreBuilder(agents).write()
    for agent_id in ("../../etc", "\0", ".session_manager"):
        aria.add(GONE, agent_id)
    answer = skill("erase_session", WANTED, ARIA_API_URL=aria.url)
    assert answer.exit_code == 0, answer.document
    assert all("erased_at" in row["metadata"] for row in aria.rows)


def test_without_a_history_layer_nothing_is_owed(scene: Scene, skill: Skill, agents: Path) -> None:
    ledger_sql(agents, "DELETE FROM marks")
    document = skill("erase_session", WANTED, ARIA_API_URL="").document
    assert (document["pg_status_updated"], document["message"].endswith("no history service")) == (False, True)
    assert marks(agents) == []


def test_both_layers_on_the_real_service(scene: Scene, skill: Skill, shared_service: Service) -> None:
    body = {"agent_id": "main", "metadata": {"aria_session_id": GONE, "label": SECRET}, "tokens_used": 7}
    assert shared_service.client.post("/api/sessions", json=body).status_code == 201
    document = skill("erase_session", WANTED, ARIA_API_URL=shared_service.api).document
    assert document["pg_status_updated"] is True
    (row,) = shared_service.client.get("/api/sessions", params={"aria_session_id": GONE}).json()["items"]
    assert (row["status"], row["tokens_used"], set(row["metadata"])) == (
        "ended",
        7,
        {"aria_session_id", "erased_at"},
    )
    assert SECRET not in json.dumps(row)
