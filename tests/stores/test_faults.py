"""Faults: one errno at a time at every call, damaged and hostile stores. A clear answer, and nothing half done."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from forks import NOBODY
from support import CLOSED_API, Skill, StoreBuilder, picture

from session_manager.faces import runner
from session_manager.files import atomic

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("list_sessions", {}),
    ("get_session_stats", {}),
    ("prune_sessions", {"dry_run": True}),
    ("prune_sessions", {}),
    ("delete_session", {"session_id": "a", "force": True}),
    ("cleanup_after_delegation", {"session_id": "a", "wait_seconds": 0}),
]
WRITES = CALLS[3:]
LEDGER_USERS: list[tuple[str, dict[str, Any]]] = [
    *WRITES,
    ("restore_session", {"session_id": "c"}),
    ("restore_run", {"run_id": "any"}),
    ("cleanup_orphans", {"dry_run": False}),
    ("readopt_orphans", {"dry_run": False}),
]
EVERYTHING: list[tuple[str, dict[str, Any]]] = [
    *CALLS,
    ("delete_sessions", {"agent": "main", "dry_run": False}),
    ("show_session", {"session_id": "a"}),
    ("cleanup_ghosts", {"dry_run": False}),
    ("cleanup_orphans", {"dry_run": False}),
    ("readopt_orphans", {"dry_run": False, "rebuild": True}),
    ("purge_archives", {"dry_run": False}),
    ("erase_session", {"session_id": "a", "confirm": "a"}),
    ("list_deleted", {}),
    ("restore_session", {"session_id": "a"}),
    ("verify_ledger", {}),
    ("deliver_history", {}),
    ("check_policy", {}),
    ("doctor", {}),
]
EXPECTED = {
    errno.ENOSPC: (4, "disk_full"),
    errno.EACCES: (4, "not_writable"),
    errno.EROFS: (4, "not_writable"),
    errno.EIO: (70, "io_error"),
}


def build(agents: Path, agent: str = "main") -> StoreBuilder:
    """Two old sessions, one with a topic file, and a young one."""
    store = StoreBuilder(agents, agent)
    store.add("cron:a", 90, "a")
    store.add("cron:a:run:a", 90, "a")
    store.add("cron:b", 90, "b")
    store.add("cron:young", 5, "young")
    store.write()
    (store.dir / "a-topic-1.jsonl").write_bytes(b"{}\n")
    os.utime(store.dir / "a-topic-1.jsonl", (1, 1))
    return store


def ours(agents: Path) -> list[Path]:
    """What a call of ours must not leave behind in a sessions folder."""
    return [*agents.glob("*/**/.session_manager.*.*"), *agents.glob("*/**/sessions.json.lock")]


def check_error(document: dict[str, Any]) -> None:
    assert document["error"]
    assert "Traceback" not in document["error"]
    assert document["code"] not in ("internal_error", "")


# --- injected faults ----------------------------------------------------------------------------------------------


class Call(NamedTuple):
    document: dict[str, Any]
    exit_code: int


def in_process(agents: Path, function: str, arguments: dict[str, Any], url: str = CLOSED_API) -> Call:
    """The runner in this process, so that its system calls can be made to fail."""
    output, stdout = io.TextIOWrapper(io.BytesIO()), sys.stdout
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    sys.stdout = output
    try:
        exit_code = runner.main(
            ["session_manager", function, json.dumps(arguments)],
            {"ARIA_AGENTS_DIR": str(agents), "ARIA_LOCK_TIMEOUT": "1", "ARIA_API_URL": url},
        )
    finally:
        sys.stdout = stdout
        for number, handler in handlers.items():
            signal.signal(number, handler)
    output.flush()
    return Call(json.loads(output.buffer.getvalue()), exit_code)  # type: ignore[attr-defined]


class Fault:
    """Fails the ``nth`` call (with ``sticky``, that and all later ones); counts calls."""

    def __init__(self, nth: int, sticky: bool, error: Exception) -> None:
        self.nth, self.sticky, self.error = nth, sticky, error
        self.calls = 0
        self.fired = False

    def pass_by(self) -> None:
        self.calls += 1
        if self.nth and (self.calls == self.nth or (self.sticky and self.calls > self.nth)):
            self.fired = True
            raise self.error

    def wrap(self, function: Callable[..., Any], concerns: Callable[..., bool]) -> Callable[..., Any]:
        @functools.wraps(function)
        def failing(*args: Any, **keywords: Any) -> Any:
            if concerns(*args):
                self.pass_by()
            return function(*args, **keywords)

        return failing


def anything(*args: Any) -> bool:
    return True


def creating(path: Any, flags: int = 0, *rest: Any) -> bool:
    return bool(flags & os.O_CREAT)


PLACES: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "create": (os, "open", creating),
    "write": (os, "write", anything),
    "fsync": (os, "fsync", anything),
    "chmod": (os, "fchmod", anything),
    "link": (os, "link", anything),
    "mkdir": (os, "mkdir", anything),
    "utime": (os, "utime", anything),
    "exchange and rename": (atomic, "_renameat2", anything),
    "replace": (os, "replace", anything),
    "rename": (os, "rename", anything),
    "list": (os, "listdir", anything),
    "scan": (os, "scandir", anything),
}


def faulted(agents: Path, place: str, fault: Fault, call: tuple[str, dict[str, Any]]) -> Call:
    with pytest.MonkeyPatch.context() as patch:
        if place in ("replace", "rename"):
            # A file system without exchange.
            patch.setattr(atomic, "_renameat2", lambda *_: False)
        owner, name, concerns = PLACES[place]
        patch.setattr(owner, name, fault.wrap(getattr(owner, name), concerns))
        return in_process(agents, *call)


def check_outcome(
    agents: Path, store: StoreBuilder, before: Any, call: tuple[str, dict[str, Any]], answer: Call, expected: Any
) -> None:
    """Either nothing happened, or what happened is said; and the next call brings it to its end."""
    document, exit_code = answer
    going = {"a", "b"} if call[0] == "prune_sessions" else {"a"}
    assert ours(agents) == []
    if exit_code:
        check_error(document)
    if exit_code in (0, 3):
        gone = set(document.get("deleted_ids", [document.get("deleted")]))
        # A session whose transcript could not be archived stays as it was.
        stays = {e["id"] for e in document.get("errors", []) if "was not changed" in e["error"]}
        assert gone == going - stays
        assert {e["sessionId"] for e in store.read().values()} == {"a", "b", "young"} - gone
        assert not stays or not [n for n in store.names() for s in stays if n.startswith(s) and ".deleted." in n]
    if exit_code == 3:
        assert document["code"] == "partial"
        assert {e["code"] for e in document["errors"]} == {expected[1]}
    elif exit_code:
        assert (exit_code, document["code"]) == expected
        assert picture(agents) == before
    again = in_process(agents, *call)
    assert again.exit_code == 0, again.document
    assert {e["sessionId"] for e in store.read().values()} == {"a", "b", "young"} - going
    assert ours(agents) == []
    files = {"a.jsonl", "a-topic-1.jsonl"} | ({"b.jsonl"} if "b" in going else set())
    assert not files & store.names()
    assert {n.split(".deleted.")[0] for n in store.names() if ".deleted." in n} == files
    assert in_process(agents, "get_session_stats", {}).document["pending_history_marks"] == len(going)


def moments(count: int, every: bool) -> range:
    """At which of ``count`` calls one fails: at every one for the first error (and in a soak), else at each third."""
    if every or "SOAK" in os.environ:
        return range(1, count + 1)
    return range(1 + count % max(1, min(3, count)), count + 1, 3)


def fresh(tmp_path: Path, name: object) -> tuple[Path, StoreBuilder]:
    agents = tmp_path / str(name)
    agents.mkdir()
    return agents, build(agents)


@pytest.mark.parametrize("number", EXPECTED, ids=errno.errorcode.get)
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("call", [WRITES[0], WRITES[1]], ids=["prune", "delete"])
def test_a_system_call_fails(
    tmp_path: Path, place: str, number: int, sticky: bool, call: tuple[str, dict[str, Any]]
) -> None:
    def error() -> OSError:
        return OSError(number, os.strerror(number))

    agents, _ = fresh(tmp_path, "count")
    count = Fault(0, False, error())
    assert faulted(agents, place, count, call).exit_code == 0
    assert count.calls > 0
    for nth in moments(count.calls, number == errno.ENOSPC):
        agents, store = fresh(tmp_path, nth)
        before = picture(agents)
        fault = Fault(nth, sticky, error())
        answer = faulted(agents, place, fault, call)
        assert fault.fired
        expected = EXPECTED[number]
        codes = {e["code"] for e in answer.document.get("errors", [])} | {answer.document.get("code")}
        if "not_readable" in codes and (place, number) in (("list", errno.EACCES), ("scan", errno.EACCES)):
            expected = (4, "not_readable")
        elif "index_damaged" in codes and place in ("list", "scan"):
            # A folder that cannot be listed is damaged in whatever way.
            expected = (7, "index_damaged")
        elif place in ("list", "scan") and answer.exit_code == 70:
            expected = (70, "io_error")
        check_outcome(agents, store, before, call, answer, expected)


SQL_ERRORS = {
    sqlite3.SQLITE_FULL: (4, "disk_full"),
    sqlite3.SQLITE_READONLY: (4, "not_writable"),
    sqlite3.SQLITE_IOERR: (70, "io_error"),
    sqlite3.SQLITE_BUSY: (4, "ledger_busy"),
    sqlite3.SQLITE_CORRUPT: (7, "ledger_damaged"),
}


def sql_error(number: int) -> sqlite3.OperationalError:
    """An error of SQLite with a code."""
    made = sqlite3.OperationalError("injected")
    made.sqlite_errorcode = number
    return made


@contextlib.contextmanager
def failing_sql(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> Iterator[None]:
    """Every statement passes ``fault`` by while this lasts, but for the end of what failed."""

    class Failing(sqlite3.Connection):
        def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
            if sql != "ROLLBACK":
                fault.pass_by()
            return super().execute(sql, *rest)

        def executemany(self, *args: Any) -> sqlite3.Cursor:
            fault.pass_by()
            return super().executemany(*args)

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Failing))
        yield


@pytest.mark.parametrize("number", SQL_ERRORS, ids=["full", "readonly", "ioerr", "busy", "corrupt"])
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
def test_the_ledger_fails(tmp_path: Path, number: int, sticky: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fault: Fault

    def call(agents: Path, url: str = CLOSED_API) -> Call:
        with failing_sql(monkeypatch, fault):
            return in_process(agents, *WRITES[0], url)

    fault = Fault(0, False, sql_error(number))
    assert call(fresh(tmp_path, "count live")[0], url="").exit_code == 0
    live = fault.calls
    assert live > 20
    fault = Fault(0, False, sql_error(number))
    assert call(fresh(tmp_path, "count")[0]).exit_code == 0
    total = fault.calls
    assert total > live
    for nth in moments(total, number == sqlite3.SQLITE_FULL):
        agents, store = fresh(tmp_path, nth)
        before = picture(agents)
        fault = Fault(nth, sticky, sql_error(number))
        answer = call(agents)
        assert fault.fired
        check_outcome(agents, store, before, WRITES[0], answer, SQL_ERRORS[number])
        # Up to the swap of the index nothing is done; from there on it is done and said. What fails after the live
        # work, while marks are delivered, leaves them waiting and is no failure.
        assert (answer.exit_code == 0) == (nth > live)
        if nth > live:
            assert answer.document["pg_error"]
        assert answer.exit_code == 3 or nth != live


def test_no_marker_is_left_when_taking_the_lock_fails_half_way(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(agents)
    before = picture(agents)
    fault = Fault(1, False, OSError(errno.EIO, os.strerror(errno.EIO)))
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", fault.wrap(os.unlink, lambda path: str(path).endswith(".marker")))
        answer = in_process(agents, "prune_sessions", {})
    assert (answer.exit_code, answer.document["code"]) == (70, "io_error")
    assert "sessions.json.lock" not in store.names()
    assert before.items() <= picture(agents).items()
    assert in_process(agents, "prune_sessions", {}).exit_code == 0
    assert ours(agents) == []


# --- real permissions, as an ordinary user ------------------------------------------------------------------------


@pytest.fixture
def ordinary() -> Iterator[Skill]:
    """The runner as a user for whom permissions count; as root that is somebody else."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    skill = Skill(base / "agents", ordinary=True)
    skill.agents.mkdir()
    try:
        yield skill
    finally:
        for path in (base, base / "agents", base / "agents" / "main", base / "agents" / "main" / "sessions"):
            path.chmod(0o755)
        shutil.rmtree(base)


def give_away(agents: Path) -> None:
    if os.geteuid() == 0:
        for path in [agents, *agents.rglob("*")]:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def open_again(agents: Path, *names: str) -> None:
    for name in ("", "main", "main/sessions", *names):
        path = agents / name
        path.chmod(0o755 if path.is_dir() else 0o600)


@pytest.mark.parametrize(
    ("name", "mode", "exit_code", "code"),
    [
        ("main/sessions", 0o500, 4, "not_writable"),
        ("", 0o500, 4, "not_writable"),  # no place for the ledger
        ("main/sessions", 0o000, 4, "not_readable"),
        ("main/sessions", 0o300, 4, "not_readable"),
        ("main/sessions/sessions.json", 0o000, 4, "not_readable"),
        ("main", 0o000, 4, "not_readable"),
        ("", 0o000, 4, "not_readable"),
    ],
)
@pytest.mark.parametrize("call", WRITES, ids=[c[0] for c in WRITES])
def test_permissions_that_are_missing(
    ordinary: Skill, name: str, mode: int, exit_code: int, code: str, call: tuple[str, dict[str, Any]]
) -> None:
    agents = ordinary.agents
    build(agents)
    give_away(agents)
    open_again(agents)
    before = picture(agents, without_state=False)
    (agents / name).chmod(mode)
    answer = ordinary(*call)
    check_error(answer.document)
    # A prune locks before it reads, and a delete looks first which agents it concerns.
    locks_first = call[0] == "prune_sessions" and (name, mode) in (("main/sessions", 0), ("main/sessions", 0o300))
    # There might be a retention policy.
    looks_for_policy = (name, mode) == ("", 0)
    expected = (4, "not_writable") if locks_first or looks_for_policy else (exit_code, code)
    assert (answer.exit_code, answer.document["code"]) == expected
    # Whoever calls owns all of it here.
    assert "change its mode" in answer.document["error"]
    open_again(agents, "main/sessions/sessions.json")
    after = picture(agents, without_state=False)
    assert {k: v for k, v in after.items() if k != "main/sessions/.session_manager.lock"} == before
    assert ordinary(*call).exit_code == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of somebody else's")
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("", 0o700),
        ("main", 0o700),
        ("main/sessions", 0o700),
        ("main/sessions", 0o711),
        ("main/sessions", 0o744),
        ("main/sessions/sessions.json", 0o600),
        (".session_manager", 0o700),
        (".session_manager/ledger.sqlite", 0o600),
        (".session_manager/archives", 0o700),
        (".session_manager/session-manager.toml", 0o600),
    ],
)
def test_what_belongs_to_somebody_else_names_whom_to_run_as(ordinary: Skill, name: str, mode: int) -> None:
    agents = ordinary.agents
    build(agents)
    assert Skill(agents, ARIA_API_URL="")("delete_session", {"session_id": "a"}).exit_code == 0
    (agents / ".session_manager" / "session-manager.toml").write_text("[pins]\nids = ['young']\n")
    for path in [agents, *agents.rglob("*")]:
        os.chown(path, 4711, 4711, follow_symlinks=False)
        path.chmod(0o755 if path.is_dir() else 0o644)
    (agents / name).chmod(mode)
    before = picture(agents, without_state=False)
    for function, arguments in EVERYTHING:
        answer = ordinary(function, arguments, ARIA_API_URL="", ARIA_ALLOW_ERASE="1")
        assert answer.exit_code in (0, 4), (function, answer.document)
        if answer.exit_code == 4:
            assert answer.document["code"] in ("not_readable", "not_writable"), (function, answer.document)
            said = answer.stdout.decode() if function == "doctor" else answer.document["error"]
            assert "run as the gateway's user (uid 4711)" in said, (function, answer.document)
        else:
            assert "(uid 4711)" in answer.document.get("policy_error", "(uid 4711)")
    assert picture(agents, without_state=False) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of somebody else's")
def test_an_agents_directory_behind_a_closed_door_is_not_missing(ordinary: Skill) -> None:
    build(ordinary.agents)
    home = ordinary.agents.parent / "home"
    home.mkdir(0o700)
    os.chown(home, 4711, 4711)
    for variable in ("ARIA_AGENTS_DIR", "OPENCLAW_STATE_DIR"):
        answer = ordinary("list_sessions", **{"ARIA_AGENTS_DIR": None, variable: str(home / "state")})
        assert (answer.exit_code, answer.document["code"]) == (4, "not_readable")
        assert "(uid 4711)" in answer.document["error"]


def test_a_damaged_index_is_never_left_to_the_gateway(agents: Path, skill: Skill) -> None:
    store = build(agents)
    store.index.write_bytes(b"{")
    for function in ("list_sessions", "prune_sessions", "readopt_orphans", "doctor"):
        answer = skill(function, ARIA_API_URL="")
        assert answer.exit_code == 7
        assert "stop the gateway, then call readopt_orphans with rebuild: true" in answer.stdout.decode()
        assert "let the gateway" not in answer.stdout.decode()


def test_reading_needs_no_writing(ordinary: Skill) -> None:
    agents = ordinary.agents
    build(agents)
    give_away(agents)
    for name in ("main/sessions", "main", ""):
        (agents / name).chmod(0o500)
    assert ordinary("list_sessions").document["session_count"] == 3
    assert ordinary("get_session_stats").document["prunable_sessions"] == 2
    assert ordinary("prune_sessions", {"dry_run": True}).document["pruned_count"] == 2


@pytest.mark.parametrize(("name", "mode"), [("ledger.sqlite", 0o400), (".", 0o000)], ids=["read-only", "closed"])
@pytest.mark.parametrize("call", LEDGER_USERS, ids=[c[0] for c in LEDGER_USERS])
def test_a_ledger_that_may_not_be_written_or_found(
    ordinary: Skill, call: tuple[str, dict[str, Any]], name: str, mode: int
) -> None:
    agents = ordinary.agents
    store = build(agents)
    store.add("cron:c", 90, "c")
    store.transcript("lost.jsonl", "lost", 1_700_000_000_000)
    store.write()
    give_away(agents)
    deleted = ordinary("delete_session", {"session_id": "c"})
    assert deleted.exit_code == 0
    before = picture(agents)
    (agents / ".session_manager" / name).chmod(mode)
    arguments = {"run_id": deleted.document["run_id"]} if call[0] == "restore_run" else call[1]
    answer = ordinary(call[0], arguments)
    assert (answer.exit_code, answer.document["code"]) == (4, "not_writable")
    asks_policy_first = not mode and not call[0].startswith(("restore", "readopt"))
    assert ("retention policy" if asks_policy_first else "ledger") in answer.document["error"]
    assert ordinary("get_session_stats").document["pending_history_marks"] == (1 if mode else None)
    assert picture(agents) == before
    assert ours(agents) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of somebody else's")
def test_an_index_whose_owner_cannot_be_kept_is_not_replaced(ordinary: Skill) -> None:
    agents = ordinary.agents
    store = build(agents)
    give_away(agents)
    os.chown(store.index, 0, 0)
    store.index.chmod(0o644)
    before = picture(agents)
    answer = ordinary("prune_sessions")
    assert (answer.exit_code, answer.document["code"]) == (4, "not_writable")
    assert picture(agents) == before
    assert store.index.stat().st_uid == 0
    assert ours(agents) == []


# --- damaged and missing indexes ------------------------------------------------------------------------------------


def _content(data: bytes) -> Callable[[Path], None]:
    def damage(index: Path) -> None:
        index.write_bytes(data)

    return damage


def _truncated(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:-30])


def _directory(index: Path) -> None:
    index.unlink()
    index.mkdir()


def _fifo(index: Path) -> None:
    index.unlink()
    os.mkfifo(index)


def _loop(index: Path) -> None:
    index.unlink()
    index.symlink_to(index.name)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": _truncated,
    "empty": _content(b""),
    "white space": _content(b"  \n"),
    "NULs": _content(b"\0" * 4096),
    "array": _content(b"[]"),
    "null": _content(b"null"),
    "two objects": _content(b"{}{}"),
    "garbage": _content(b"\xff\xfe garbage"),
    "open brace": _content(b"{"),
    "directory": _directory,
    "FIFO": _fifo,
    "loop": _loop,
    "missing": Path.unlink,
}


@pytest.mark.parametrize("call", CALLS, ids=[c[0] for c in CALLS])
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_index_is_reported_and_left_alone(
    agents: Path, skill: Skill, how: str, call: tuple[str, dict[str, Any]]
) -> None:
    store = build(agents)
    DAMAGE[how](store.index)
    before = picture(agents, without_state=False)
    for named in ({}, {"agent": "main"}):
        answer = skill(call[0], {**call[1], **named})
        check_error(answer.document)
        assert (answer.exit_code, answer.document["code"]) == (7, "index_damaged")
        assert "main" in answer.document["error"]
        after = picture(agents, without_state=False)
        after.pop("main/sessions/.session_manager.lock", None)
        assert after == before


@pytest.mark.parametrize("call", WRITES, ids=[c[0] for c in WRITES])
@pytest.mark.parametrize("how", ["empty", "truncated", "missing", "FIFO"])
def test_one_damaged_agent_and_one_that_is_well(
    agents: Path, skill: Skill, how: str, call: tuple[str, dict[str, Any]]
) -> None:
    broken, well = build(agents, "broken"), build(agents, "well")
    DAMAGE[how](broken.index)
    before = picture(agents / "broken")
    answer = skill(*call)
    document = answer.document
    assert (answer.exit_code, document["code"]) == (3, "partial")
    assert [(e["agentId"], e["code"]) for e in document["errors"]] == [("broken", "index_damaged")]
    assert "a" not in {e["sessionId"] for e in well.read().values()}
    assert picture(agents / "broken") == before


@pytest.mark.parametrize("call", CALLS, ids=[c[0] for c in CALLS])
@pytest.mark.parametrize("beside", [[], ["x.jsonl.deleted.2026-02-15T18-00-00.123Z"], ["notes.txt", "x.jsonl.lock"]])
def test_a_missing_index_without_transcripts_is_empty(
    agents: Path, skill: Skill, call: tuple[str, dict[str, Any]], beside: list[str]
) -> None:
    folder = StoreBuilder(agents).dir
    for name in beside:
        (folder / name).write_bytes(b"x")
    before = picture(agents)
    answer = skill(*call)
    if "session_id" in call[1]:
        assert (answer.exit_code, answer.document["code"]) == (5, "session_not_found")
    else:
        assert answer.exit_code == 0
        assert answer.document.get("session_count", answer.document.get("total_sessions")) == 0
    assert picture(agents) == before


def test_an_index_that_is_only_away_for_a_moment(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = build(agents)
    aside = store.index.rename(store.dir / "sessions.json.bak.1771180200000")
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            shutil.copy(aside, store.index)

    monkeypatch.setattr("time.sleep", nap)
    assert in_process(agents, "list_sessions", {}).document["session_count"] == 3
    assert len(naps) == 2


# --- links that lead out, names that lead out ----------------------------------------------------------------------


def _agent_out(agents: Path, outside: Path) -> None:
    (agents / "main").rename(outside / "main")
    (agents / "main").symlink_to(outside / "main")


def _sessions_out(agents: Path, outside: Path) -> None:
    (agents / "main" / "sessions").rename(outside / "sessions")
    (agents / "main" / "sessions").symlink_to(outside / "sessions")


def _index_out(agents: Path, outside: Path) -> None:
    index = agents / "main" / "sessions" / "sessions.json"
    index.rename(outside / "sessions.json")
    index.symlink_to("../../../outside/sessions.json")


@pytest.mark.parametrize("call", CALLS, ids=[c[0] for c in CALLS])
@pytest.mark.parametrize("lead", [_agent_out, _sessions_out, _index_out])
def test_no_link_is_followed_out_of_the_agents_directory(
    agents: Path, skill: Skill, lead: Callable[[Path, Path], None], call: tuple[str, dict[str, Any]]
) -> None:
    build(agents)
    outside = agents.parent / "outside"
    outside.mkdir()
    lead(agents, outside)
    before = picture(agents, without_state=False), picture(outside, without_state=False)
    for named in ({}, {"agent": "main"}):
        answer = skill(call[0], {**call[1], **named})
        check_error(answer.document)
        assert (answer.exit_code, answer.document["code"]) == (4, "outside_agents_dir")
        assert (picture(agents, without_state=False), picture(outside, without_state=False)) == before


def test_a_link_to_another_agent_is_no_second_agent(agents: Path, skill: Skill) -> None:
    build(agents)
    (agents / "alias").symlink_to("main")
    assert skill("get_session_stats").document["by_agent"] == {"main": 3}
    assert skill("prune_sessions").document["deleted_ids"] == ["a", "b"]


BAD_NAMES = [
    "../main",
    "./main",
    "main/",
    "/",
    "/etc",
    "..",
    ".",
    "",
    "-x",
    ".hidden",
    "a\0b",
    "a\\b",
    "main\n",
    "main/../main",
    "main/sessions",
    "x" * 300,
    "\ud83d",
]


@pytest.mark.parametrize("call", CALLS, ids=[c[0] for c in CALLS])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_a_path_is_a_usage_error(
    agents: Path, skill: Skill, name: str, call: tuple[str, dict[str, Any]]
) -> None:
    build(agents)
    before = picture(agents.parent, without_state=False)
    for argument in ("agent", "session_id", "session_type"):
        if argument == "session_id" and "session_id" not in call[1]:
            continue
        if argument == "session_type" and call[0] not in ("list_sessions", "prune_sessions"):
            continue
        answer = skill(call[0], {**call[1], argument: name})
        check_error(answer.document)
        assert answer.exit_code == 2, (argument, answer.document)
        assert picture(agents.parent, without_state=False) == before


@pytest.mark.parametrize(
    "key", ["agent:../main:main", "agent:main:../../x", "a:\0", "::", "agent:main:cron:a\n", ":" * 2000]
)
def test_a_strange_key_harms_nothing(agents: Path, skill: Skill, key: str) -> None:
    build(agents)
    before = picture(agents.parent, without_state=False)
    for function in ("delete_session", "cleanup_after_delegation"):
        answer = skill(function, {"session_id": key, "force": True})
        check_error(answer.document)
        assert answer.exit_code in (2, 5)
        assert picture(agents.parent, without_state=False) == before


@pytest.mark.parametrize("call", CALLS, ids=[c[0] for c in CALLS])
@pytest.mark.parametrize("value", ["", "/nonexistent", "{file}", "relative/none"])
def test_an_agents_directory_that_is_missing(tmp_path: Path, call: tuple[str, dict[str, Any]], value: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    answer = Skill(tmp_path)(*call, ARIA_AGENTS_DIR=value.format(file=tmp_path / "file"))
    check_error(answer.document)
    assert (answer.exit_code, answer.document["code"]) == (2, "agents_dir_missing")


# --- the ledger, the lock -------------------------------------------------------------------------------------------


def _newer(ledger: Path) -> None:
    connection = sqlite3.connect(ledger)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def _overwritten(ledger: Path) -> None:
    data = ledger.read_bytes()
    ledger.write_bytes(data[:100] + b"\xa5" * (len(data) - 100))


def _not_a_database(ledger: Path) -> None:
    ledger.write_bytes(b"this is no database\n" * 100)


def _a_directory(ledger: Path) -> None:
    ledger.unlink()
    ledger.mkdir()


def _foreign(ledger: Path) -> None:
    ledger.unlink()
    connection = sqlite3.connect(ledger)
    connection.execute("CREATE TABLE marks (something TEXT)")
    connection.execute("PRAGMA user_version = 1")
    connection.close()


@pytest.mark.parametrize("call", LEDGER_USERS, ids=[c[0] for c in LEDGER_USERS])
@pytest.mark.parametrize(
    ("spoil", "exit_code", "code"),
    [
        (_newer, 4, "ledger_unsupported"),
        (_overwritten, 7, "ledger_damaged"),
        (_not_a_database, 7, "ledger_damaged"),
        (_foreign, 7, "ledger_damaged"),
        (_a_directory, 7, "ledger_damaged"),
    ],
)
def test_a_ledger_that_cannot_be_used(
    agents: Path,
    skill: Skill,
    call: tuple[str, dict[str, Any]],
    spoil: Callable[[Path], None],
    exit_code: int,
    code: str,
) -> None:
    store = build(agents)
    store.add("cron:c", 90, "c")
    store.write()
    assert skill("delete_session", {"session_id": "c"}).exit_code == 0
    spoil(agents / ".session_manager" / "ledger.sqlite")
    before = picture(agents, without_state=False)
    answer = skill(*call)
    check_error(answer.document)
    assert (answer.exit_code, answer.document["code"]) == (exit_code, code)
    assert "ledger" in answer.document["error"]
    assert picture(agents, without_state=False) == before
    assert skill("list_sessions").exit_code == 0


def test_a_state_directory_that_cannot_be(agents: Path, skill: Skill) -> None:
    build(agents)
    (agents / ".session_manager").write_bytes(b"a file")
    before = picture(agents)
    answer = skill("prune_sessions")
    check_error(answer.document)
    assert answer.exit_code in (4, 70)
    assert picture(agents) == before
    assert ours(agents) == []


def test_a_state_directory_elsewhere(agents: Path, skill: Skill) -> None:
    build(agents)
    state = agents.parent / "deep" / "er"
    assert skill("prune_sessions", ARIA_STATE_DIR=str(state)).exit_code == 0
    assert [p.stat().st_mode & 0o777 for p in (state, state / "ledger.sqlite")] == [0o700, 0o600]
    assert not (agents / ".session_manager").exists()
    assert skill("get_session_stats", ARIA_STATE_DIR=str(state)).document["pending_history_marks"] == 2


@pytest.mark.parametrize("call", WRITES, ids=[c[0] for c in WRITES])
@pytest.mark.parametrize("alone", [True, False])
def test_a_store_that_stays_locked(agents: Path, skill: Skill, call: tuple[str, dict[str, Any]], alone: bool) -> None:
    store = build(agents, "busy")
    other = None if alone else build(agents, "free")
    marker = store.dir / "sessions.json.lock"
    marker.write_text(json.dumps({"pid": os.getpid(), "createdAt": "2026-02-15T18:00:00.000Z"}))
    before = picture(agents / "busy")
    answer = skill(*call, ARIA_LOCK_TIMEOUT="0.1")
    check_error(answer.document)
    if other is None:
        assert (answer.exit_code, answer.document["code"]) == (6, "store_locked")
        assert answer.document["holder"]["pid"] == os.getpid()
    else:
        assert (answer.exit_code, answer.document["code"]) == (3, "partial")
        assert [(e["agentId"], e["code"]) for e in answer.document["errors"]] == [("busy", "store_locked")]
        assert "a" not in {e["sessionId"] for e in other.read().values()}
    assert picture(agents / "busy") == before
    marker.unlink()
    assert skill(*call).exit_code == 0
