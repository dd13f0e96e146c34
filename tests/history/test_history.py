"""The two layers together, through the real runner: every removal is heard of in history, once, sooner or later."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_aria import Hanging, SmallAria
from support import CLOSED_API, ROOT, Skill, StoreBuilder, picture
from test_delete import marks
from test_kill import KILL_AT

from session_manager.files.liveness import now_ms
from session_manager.functions import load
from session_manager.functions.context import Context
from session_manager.ledger.delivery import ELSEWHERE
from session_manager.ledger.delivery_lock import LOCK_NAME, delivery_lock
from session_manager.settings import Settings, read_settings
from session_manager.stores.openclaw_files.volume import Volume

DAY_MS = 86_400_000
TOKEN = "s3cret-token"
NOTHING_OLD = {"max_age_minutes": 1_000_000}


def fill(agents: Path, *session_ids: str, agent: str = "main") -> StoreBuilder:
    store = StoreBuilder(agents, agent)
    for session_id in session_ids:
        store.add(f"cron:{session_id}", 120, session_id)
    return store.write()


def pending(skill: Skill) -> int:
    count = skill("get_session_stats").document["pending_history_marks"]
    assert isinstance(count, int)
    return count


def settings_for(agents: Path, url: str) -> Settings:
    return read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": url})


def in_process(agents: Path, url: str, function: str, **arguments: Any) -> dict[str, Any]:
    loaded = load(function)
    context = Context(settings_for(agents, url), Volume(str(agents)), now_ms)
    return loaded.run(context, loaded.arguments(**arguments))


def change_marks(agents: Path, sql: str, *values: object) -> None:
    connection = sqlite3.connect(agents / ".session_manager" / "ledger.sqlite")
    with connection:
        connection.execute(sql, values)
    connection.close()


# Delivered.


def test_the_documented_answer(agents: Path, skill: Skill, aria: SmallAria) -> None:
    fill(agents, "abc123")
    aria.add("abc123")
    document = skill("delete_session", {"session_id": "abc123"}, ARIA_API_URL=aria.url).document
    expected = {
        "deleted": "abc123",
        "removed_keys": ["agent:main:cron:abc123"],
        "transcript_archived": True,
        "pg_status_updated": True,
        "message": "Session abc123 removed from aria-api (1 keys, transcript=archived), PG marked ended",
    }
    assert {name: document[name] for name in expected} == expected
    assert not {"pg_pending", "pg_error"} & document.keys()
    assert aria.status("abc123") == "ended"
    assert marks(agents) == [("main", "abc123", "ended", "delivered")]
    assert pending(skill) == 0


def test_a_prune_of_many_is_one_request(agents: Path, skill: Skill, aria: SmallAria) -> None:
    wanted = [f"s{i}" for i in range(300)]
    for agent in ("main", "other"):
        fill(agents, *wanted, agent=agent)
        aria.add_all(wanted, agent)
    document = skill("prune_sessions", {}, ARIA_API_URL=aria.url).document
    assert (document["pruned_count"], document["pg_updated"], document["pg_pending"]) == (600, 600, 0)
    assert document["pg_status_updated"] is True
    assert [(r.method, r.path, len(r.body["sessions"])) for r in aria.requests] == [("PATCH", "/api/sessions", 600)]
    assert pending(skill) == 0


def test_an_older_service_with_rows_far_back(agents: Path, skill: Skill, older_aria: SmallAria) -> None:
    wanted = [f"s{i}" for i in range(30)]
    fill(agents, *wanted)
    older_aria.add_all(f"x{i}" for i in range(970))
    older_aria.add_all(wanted)
    document = skill("prune_sessions", {}, ARIA_API_URL=older_aria.url).document
    assert (document["pg_updated"], document["pg_pending"]) == (30, 0)
    assert older_aria.ended() == set(wanted)
    assert older_aria.count() == {"GET": 5, "PATCH": 1 + 30}
    assert all(r.query["include_cron_events"] == "true" for r in older_aria.requests if r.method == "GET")


def test_cleanup_after_delegation_tells_history(agents: Path, skill: Skill, aria: SmallAria) -> None:
    store = StoreBuilder(agents)
    store.add("subagent:x", 1, "delegation-xyz")
    store.write()
    aria.add("delegation-xyz")
    for already in (False, True):
        answer = skill("cleanup_after_delegation", {"session_id": "delegation-xyz"}, ARIA_API_URL=aria.url)
        assert (answer.exit_code, answer.document["pg_status_updated"]) == (0, True)
        assert answer.document.get("already_deleted", False) is already
    assert aria.sent() == [("main", "delegation-xyz", "ended")]


@pytest.mark.parametrize("named", [None, "main", "other"])
def test_a_namesake_in_another_agent_stays_active(
    agents: Path, skill: Skill, aria: SmallAria, older_aria: SmallAria, named: str | None
) -> None:
    for service in (aria, older_aria):
        for agent in ("main", "other", "elsewhere"):
            service.add("same", agent)
        for agent in ("main", "other"):
            fill(agents, "same", agent=agent)
        arguments = {"session_id": "same", **({"agent": named} if named else {})}
        document = skill("delete_session", arguments, ARIA_API_URL=service.url).document
        assert document["pg_status_updated"] is True
        going = {named} if named else {"main", "other"}
        ended = {row["agent_id"] for row in service.rows if row["status"] == "ended"}
        assert ended == going


def test_without_a_history_layer_nobody_is_asked(agents: Path, skill: Skill, aria: SmallAria) -> None:
    fill(agents, "a", "b")
    aria.add_all(["a", "b"])
    assert skill("delete_session", {"session_id": "a"}).document["pg_pending"] is True
    document = skill("prune_sessions", {}, ARIA_API_URL="").document
    assert (document["pg_status_updated"], document["pg_updated"], document["pg_pending"]) == (False, 0, 0)
    assert "pg_error" not in document
    document = skill("deliver_history", {}, ARIA_API_URL="").document
    assert (document["delivered"], document["pending"]) == (0, 1)
    assert "ARIA_API_URL" in document["pg_error"]
    assert skill("deliver_history", {}, ARIA_API_URL=aria.url).document["delivered"] == 1
    assert aria.sent() == [("main", "a", "ended")]


def test_a_dry_run_asks_nobody(agents: Path, skill: Skill, aria: SmallAria) -> None:
    fill(agents, "a", "b")
    skill("delete_session", {"session_id": "a"})
    for function, arguments in (
        ("prune_sessions", {"dry_run": True}),
        ("list_sessions", {}),
        ("get_session_stats", {}),
    ):
        assert skill(function, arguments, ARIA_API_URL=aria.url).exit_code == 0
    assert aria.requests == []


# Waiting.


@pytest.mark.parametrize(
    "function", ["prune_sessions", "delete_session", "cleanup_after_delegation", "deliver_history"]
)
def test_what_waits_is_delivered_by_the_next_call(agents: Path, skill: Skill, aria: SmallAria, function: str) -> None:
    fill(agents, "a", "b", "c")
    aria.add_all(["a", "b", "c"])
    aria.stop()
    for session_id in ("a", "b"):
        answer = skill("delete_session", {"session_id": session_id}, ARIA_API_URL=aria.url)
        assert (answer.exit_code, answer.document["pg_status_updated"], answer.document["pg_pending"]) == (
            0,
            False,
            True,
        )
        assert "cannot be reached" in answer.document["pg_error"]
    assert pending(skill) == 2
    answer = skill("deliver_history", {}, ARIA_API_URL=aria.url)
    assert answer.exit_code == 0
    assert (answer.document["delivered"], answer.document["pending"]) == (0, 2)
    assert [(w["agentId"], w["id"]) for w in answer.document["waiting"]] == [("main", "a"), ("main", "b")]
    assert "cannot be reached" in answer.document["pg_error"]
    aria.start(aria.port)
    arguments = {"session_id": "c"} if "session_id" in load(function).arguments.__struct_fields__ else {}
    document = skill(function, arguments, ARIA_API_URL=aria.url).document
    assert "pg_error" not in document
    assert pending(skill) == 0
    gone = {"a", "b"} if function == "deliver_history" else {"a", "b", "c"}
    assert sorted(aria.sent()) == [("main", session_id, "ended") for session_id in sorted(gone)]
    assert len(aria.requests) == 1
    if function == "prune_sessions":
        assert (document["pg_updated"], document["pg_pending"]) == (1, 0)


def test_an_earlier_mark_goes_with_a_prune_that_removes_nothing(agents: Path, skill: Skill, aria: SmallAria) -> None:
    fill(agents, "a")
    aria.add("a")
    skill("prune_sessions")
    document = skill("prune_sessions", NOTHING_OLD, ARIA_API_URL=aria.url).document
    assert (document["pruned_count"], document["pg_updated"], document["pg_pending"]) == (0, 0, 0)
    assert aria.status("a") == "ended"
    assert pending(skill) == 0


def test_a_delete_that_is_repeated_delivers_its_mark(agents: Path, skill: Skill, aria: SmallAria) -> None:
    fill(agents, "a")
    aria.add("a")
    skill("delete_session", {"session_id": "a"})
    for _ in range(2):
        document = skill("delete_session", {"session_id": "a"}, ARIA_API_URL=aria.url).document
        assert (document["already_deleted"], document["pg_status_updated"]) == (True, True)
        assert "pg_pending" not in document
    assert aria.sent() == [("main", "a", "ended")]


def test_a_session_that_history_does_not_know_yet(agents: Path, skill: Skill, aria: SmallAria) -> None:
    fill(agents, "early", "known")
    aria.add("known")
    document = skill("prune_sessions", {}, ARIA_API_URL=aria.url).document
    assert (document["pg_updated"], document["pg_pending"], document["pg_status_updated"]) == (1, 1, False)
    assert "no row" in document["pg_error"]
    # It rides along with each later call, in the one request that there is.
    fill(agents, "another")
    aria.add("another")
    aria.requests.clear()
    document = skill("prune_sessions", {}, ARIA_API_URL=aria.url).document
    assert (document["pg_updated"], document["pg_pending"]) == (1, 0)
    assert len(aria.requests) == 1
    aria.add("early")
    document = skill("deliver_history", {}, ARIA_API_URL=aria.url).document
    assert (document["delivered"], document["pending"], document["missing"]) == (1, 0, 0)
    assert aria.ended() == {"early", "known", "another"}


@pytest.mark.parametrize(("older", "refused"), [(False, False), (True, False), (False, True), (True, True)])
def test_after_days_a_mark_that_nobody_takes_is_given_up(
    agents: Path, skill: Skill, older: bool, refused: bool
) -> None:
    service = SmallAria(older=older)
    service.refuses = lambda session_id: True
    fill(agents, "a", "b")
    if refused:
        service.add("a")
        service.add("b")
    assert skill("delete_session", {"session_id": "a"}, ARIA_API_URL=service.url).document["pg_pending"] is True
    change_marks(agents, "UPDATE marks SET changed_at = ?", now_ms() - 6 * DAY_MS)
    assert skill("deliver_history", {}, ARIA_API_URL=service.url).document["pending"] == 1
    change_marks(agents, "UPDATE marks SET changed_at = ?", now_ms() - 8 * DAY_MS)
    if refused:
        # One that takes nothing says nothing about this mark.
        assert skill("deliver_history", {}, ARIA_API_URL=service.url).document["pending"] == 1
        assert skill("delete_session", {"session_id": "b"}).document["pg_pending"] is True
    service.refuses = lambda session_id: refused and session_id == "a"
    document = skill("deliver_history", {}, ARIA_API_URL=service.url).document
    assert (document["delivered"], document["pending"], document["missing"]) == (int(refused), 0, int(not refused))
    assert document["given_up"] == 1
    others = [("main", "b", "ended", "delivered")] if refused else []
    assert marks(agents) == [("main", "a", "ended", "refused" if refused else "missing"), *others]
    service.requests.clear()
    assert skill("deliver_history", {}, ARIA_API_URL=service.url).document["pending"] == 0
    assert service.requests == []
    # Somebody who asks again for the very session is taken at his word.
    assert skill("delete_session", {"session_id": "a"}, ARIA_API_URL=service.url).document["pg_pending"] is True
    service.stop()


# Each mark once.


def test_concurrent_calls_send_each_mark_once_and_leave_none(agents: Path, skill: Skill, aria: SmallAria) -> None:
    wanted = [f"s{i}" for i in range(8)]
    fill(agents, *wanted)
    aria.add_all(wanted)
    aria.always = lambda: time.sleep(0.15)
    calls = [skill.start("delete_session", {"session_id": s}, ARIA_API_URL=aria.url) for s in wanted]
    documents = [json.loads(call.communicate(timeout=120)[0]) for call in calls]
    assert [d["deleted"] for d in documents] == wanted
    assert sorted(aria.sent()) == [("main", session_id, "ended") for session_id in wanted]
    assert pending(skill) == 0
    for document in documents:
        if not document["pg_status_updated"]:
            assert (document["pg_pending"], document["pg_error"]) == (True, ELSEWHERE)


def test_while_somebody_else_delivers_nothing_is_sent(agents: Path, skill: Skill, aria: SmallAria) -> None:
    fill(agents, "a", "b")
    skill("delete_session", {"session_id": "a"})
    with delivery_lock(settings_for(agents, aria.url)) as mine:
        assert mine
        document = skill("delete_session", {"session_id": "b"}, ARIA_API_URL=aria.url).document
        assert (document["pg_pending"], document["pg_error"]) == (True, ELSEWHERE)
        assert aria.requests == []
    assert skill("deliver_history", {}, ARIA_API_URL=aria.url).document["missing"] == 2
    path = agents / ".session_manager" / LOCK_NAME
    assert path.stat().st_mode & 0o777 == 0o600


def kill_after(skill: Skill, step: str, tmp_path: Path, function: str, arguments: dict[str, Any], **env: str) -> None:
    """Runs a call and kills it when the step has been completed."""
    code = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from session_manager.faces import runner\nfrom session_manager.files import steps\n"
        "steps.watcher = lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == sys.argv[2] else None\n"
        "sys.exit(runner.main(['session_manager', *sys.argv[3:]], os.environ))\n"
    )
    command = [sys.executable, "-c", code, str(ROOT), step, function, json.dumps(arguments)]
    done = subprocess.run(command, env=skill.environment(**env), capture_output=True, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("step", ["end noted", "marks sent"])
def test_killed_before_it_is_noted_a_mark_is_sent_again(
    agents: Path, skill: Skill, aria: SmallAria, tmp_path: Path, step: str
) -> None:
    fill(agents, "a")
    aria.add("a")
    kill_after(skill, step, tmp_path, "delete_session", {"session_id": "a"}, ARIA_API_URL=aria.url)
    assert marks(agents) == [("main", "a", "ended", "pending")]
    assert aria.status("a") == ("ended" if step == "marks sent" else "active")
    document = skill("prune_sessions", NOTHING_OLD, ARIA_API_URL=aria.url).document
    assert "pg_error" not in document
    assert marks(agents) == [("main", "a", "ended", "delivered")]
    assert aria.status("a") == "ended"


def test_a_holder_that_is_killed_blocks_nobody(agents: Path, skill: Skill, aria: SmallAria) -> None:
    fill(agents, "a", "b")
    aria.add_all(["a", "b"])
    hanging = Hanging()
    aria.prepared = [hanging]
    call = skill.start("delete_session", {"session_id": "a"}, ARIA_API_URL=aria.url)
    assert hanging.asked.wait(30)
    call.kill()
    call.communicate(timeout=30)
    document = skill("delete_session", {"session_id": "b"}, ARIA_API_URL=aria.url).document
    hanging.free.set()
    assert document["pg_status_updated"] is True
    assert pending(skill) == 0


def test_an_interrupt_while_history_hangs_leaves_the_mark_waiting(agents: Path, skill: Skill, aria: SmallAria) -> None:
    store = fill(agents, "a")
    hanging = Hanging()
    aria.prepared = [hanging]
    call = skill.start("delete_session", {"session_id": "a"}, ARIA_API_URL=aria.url)
    assert hanging.asked.wait(30)
    call.send_signal(signal.SIGTERM)
    stdout, stderr = call.communicate(timeout=30)
    hanging.free.set()
    assert (call.returncode, json.loads(stdout)["code"]) == (130, "interrupted")
    assert b"Traceback" not in stderr
    assert store.read() == {}
    assert pending(skill) == 1


def test_a_mark_that_changes_on_its_way_is_not_noted_as_delivered(agents: Path, aria: SmallAria) -> None:
    fill(agents, "a")
    aria.add("a")

    def restore() -> None:
        change_marks(agents, "UPDATE marks SET status = 'active', run_id = 'later', changed_at = changed_at + 1")

    aria.prepared = [restore]
    document = in_process(agents, aria.url, "delete_session", session_id="a")
    # The new mark is delivered too, after the old one: what history hears last is what was decided last.
    assert aria.sent() == [("main", "a", "ended"), ("main", "a", "active")]
    assert aria.status("a") == "active"
    assert marks(agents) == [("main", "a", "active", "delivered")]
    assert document["deleted"] == "a"


def test_a_mark_that_changes_on_its_way_waits_when_it_cannot_be_sent(agents: Path, aria: SmallAria) -> None:
    fill(agents, "a")
    aria.add("a")

    def restore() -> None:
        change_marks(agents, "UPDATE marks SET status = 'active', run_id = 'later', changed_at = changed_at + 1")

    aria.prepared = [restore, (500, {}, b"")]
    document = in_process(agents, aria.url, "delete_session", session_id="a")
    assert (document["pg_status_updated"], document["pg_pending"]) == (False, True)
    assert marks(agents) == [("main", "a", "active", "pending")]


# Nothing of history fails a call, or gets out.


@pytest.mark.parametrize(
    "prepared",
    [(500, {}, b"oh"), (401, {}, b""), (200, {}, b"<html>"), (302, {"Location": "http://192.0.2.1/"}, b""), "die"],
    ids=["500", "401", "page", "redirect", "die"],
)
@pytest.mark.parametrize("function", ["prune_sessions", "delete_session"])
def test_the_live_work_is_done_whatever_history_does(
    agents: Path, skill: Skill, aria: SmallAria, prepared: Any, function: str
) -> None:
    store = fill(agents, "a")
    aria.always = prepared
    arguments = {"session_id": "a"} if function == "delete_session" else {}
    answer = skill(function, arguments, ARIA_API_URL=aria.url, ARIA_API_TOKEN=TOKEN)
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert (answer.document["pg_status_updated"], bool(answer.document["pg_pending"])) == (False, True)
    assert answer.document["pg_error"]
    assert store.read() == {}
    assert [r.headers["authorization"] for r in aria.requests] == [f"Bearer {TOKEN}"]
    waiting = skill("deliver_history", {}, ARIA_API_URL=aria.url, ARIA_API_TOKEN=TOKEN)
    assert waiting.exit_code == 0
    for output in (answer.stdout, waiting.stdout, waiting.stderr.encode()):
        assert TOKEN.encode() not in output
    assert not any(TOKEN.encode() in p.read_bytes() for p in agents.rglob("*") if p.is_file())


def test_a_token_opens_a_service_that_asks_for_one(agents: Path, skill: Skill) -> None:
    service = SmallAria(token=TOKEN)
    service.add("a")
    fill(agents, "a")
    document = skill("delete_session", {"session_id": "a"}, ARIA_API_URL=service.url).document
    assert "ARIA_API_TOKEN" in document["pg_error"]
    answer = skill("deliver_history", {}, ARIA_API_URL=service.url, ARIA_API_TOKEN=TOKEN)
    assert answer.document["delivered"] == 1
    service.stop()


def test_a_service_that_hangs_costs_no_more_than_the_budget(agents: Path, skill: Skill, aria: SmallAria) -> None:
    store = fill(agents, "a")
    aria.always = hanging = Hanging()
    answer = skill("delete_session", {"session_id": "a"}, ARIA_API_URL=aria.url, ARIA_API_TIMEOUT="0.3")
    hanging.free.set()
    assert (answer.exit_code, answer.document["pg_pending"], answer.stderr) == (0, True, "")
    assert "0.3 s" in answer.document["pg_error"]
    assert store.read() == {}


def test_without_httpx_the_live_work_is_done(agents: Path, skill: Skill, tmp_path: Path) -> None:
    store = fill(agents, "a")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "httpx.py").write_text("import no_such_package_here")
    answer = skill("delete_session", {"session_id": "a"}, PYTHONPATH=str(tmp_path / "broken"))
    assert (answer.exit_code, answer.document["pg_pending"]) == (0, True)
    assert "no_such_package_here" in answer.document["pg_error"]
    assert store.read() == {}


def test_a_lock_that_cannot_be_made_leaves_the_marks_waiting(agents: Path, skill: Skill, aria: SmallAria) -> None:
    fill(agents, "a", "b")
    skill("delete_session", {"session_id": "a"})
    lock = agents / ".session_manager" / LOCK_NAME
    lock.unlink()
    lock.mkdir()
    answer = skill("delete_session", {"session_id": "b"}, ARIA_API_URL=aria.url)
    assert (answer.exit_code, answer.document["pg_pending"]) == (0, True)
    assert LOCK_NAME in answer.document["pg_error"] or "lock" in answer.document["pg_error"]
    assert aria.requests == []


def test_deliver_history_reports_a_ledger_that_cannot_be_read(agents: Path, skill: Skill) -> None:
    (agents / ".session_manager").mkdir()
    (agents / ".session_manager" / "ledger.sqlite").write_bytes(b"no database" * 100)
    answer = skill("deliver_history")
    assert (answer.exit_code, answer.document["code"]) == (7, "ledger_damaged")


def test_deliver_history_without_anything_to_deliver(agents: Path, skill: Skill, aria: SmallAria) -> None:
    before = picture(agents, without_state=False)
    answer = skill("deliver_history", {}, ARIA_API_URL=aria.url)
    assert answer.document == {"run_id": None, "delivered": 0, "pending": 0, "missing": 0, "given_up": 0, "waiting": []}
    assert aria.requests == []
    assert picture(agents, without_state=False) == before


@pytest.mark.parametrize(
    ("variable", "value"), [("ARIA_API_URL", "nonsense"), ("ARIA_API_TOKEN", "a\nb"), ("ARIA_API_TIMEOUT", "x")]
)
def test_a_bad_setting_is_a_usage_error(agents: Path, skill: Skill, variable: str, value: str) -> None:
    store = fill(agents, "a")
    answer = skill("prune_sessions", {}, **{variable: value})
    assert (answer.exit_code, answer.document["code"]) == (2, "bad_setting")
    assert variable in answer.document["error"]
    assert store.read() == store.entries


# Sessions that only history knows.


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("named", [None, "main"])
def test_a_session_that_only_history_knows_is_ended_there(
    agents: Path, skill: Skill, older: bool, named: str | None
) -> None:
    service = SmallAria(older=older)
    service.add_all(f"x{i}" for i in range(300))
    for agent in ("main", "other"):
        service.add("lost", agent)
        fill(agents, "alive", agent=agent)
    arguments = {"session_id": "lost", **({"agent": named} if named else {})}
    before = picture(agents)
    answer = skill("delete_session", arguments, ARIA_API_URL=service.url)
    document = answer.document
    going = [named] if named else ["main", "other"]
    assert (answer.exit_code, document["deleted"], document["removed_keys"]) == (0, "lost", [])
    assert (document["transcript_archived"], document["pg_status_updated"]) == (False, True)
    assert "already_deleted" not in document
    assert document["agents"] == going
    assert [row["agent_id"] for row in service.rows if row["status"] == "ended"] == going
    assert picture(agents) == before
    again = skill("delete_session", arguments, ARIA_API_URL=service.url).document
    assert (again["already_deleted"], again["pg_status_updated"]) == (True, True)
    # Brought back to life in history alone, it is ended once more.
    service.rows[-2]["status"] = "active"
    assert service.status("lost") == "active"
    assert skill("delete_session", arguments, ARIA_API_URL=service.url).document["pg_status_updated"] is True
    assert service.status("lost") == "ended"
    service.stop()


@pytest.mark.parametrize("status", ["ended", "completed", "error"])
def test_a_session_that_has_ended_in_history_is_already_deleted(
    agents: Path, skill: Skill, aria: SmallAria, status: str
) -> None:
    fill(agents, "alive")
    aria.add("lost", status=status)
    document = skill("delete_session", {"session_id": "lost"}, ARIA_API_URL=aria.url).document
    assert (document["already_deleted"], document["removed_keys"]) == (True, [])
    assert aria.status("lost") == status
    assert aria.count() == {"GET": 1}


def test_known_to_neither_layer(agents: Path, skill: Skill, aria: SmallAria) -> None:
    fill(agents, "alive")
    aria.add("lost", "other")
    for arguments in ({"session_id": "nobody"}, {"session_id": "lost", "agent": "main"}):
        answer = skill("delete_session", arguments, ARIA_API_URL=aria.url)
        assert (answer.exit_code, answer.document["code"]) == (5, "session_not_found")
        assert "history" not in answer.document
    answer = skill("delete_session", {"session_id": "nobody"}, ARIA_API_URL=CLOSED_API)
    assert (answer.exit_code, answer.document["history"]) == (5, "unknown")
    assert "cannot be reached" in answer.document["pg_error"]
    assert aria.status("lost", "other") == "active"


def test_a_session_may_live_in_an_agent_that_cannot_be_read(agents: Path, skill: Skill, aria: SmallAria) -> None:
    fill(agents, "alive")
    StoreBuilder(agents, "damaged").index.write_bytes(b"")
    aria.add("lost", "damaged")
    answer = skill("delete_session", {"session_id": "lost"}, ARIA_API_URL=aria.url)
    assert (answer.exit_code, answer.document["code"]) == (5, "session_not_found")
    assert [e["agentId"] for e in answer.document["errors"]] == ["damaged"]
    assert aria.status("lost", "damaged") == "active"


def test_a_mark_for_what_only_history_knows_waits_when_it_goes_away(
    agents: Path, skill: Skill, aria: SmallAria
) -> None:
    fill(agents, "alive")
    aria.add("lost")
    aria.prepared = [lambda: None, (500, {}, b"")]
    answer = skill("delete_session", {"session_id": "lost"}, ARIA_API_URL=aria.url)
    assert (answer.exit_code, answer.document["pg_pending"]) == (0, True)
    assert pending(skill) == 1
    assert skill("deliver_history", {}, ARIA_API_URL=aria.url).document["delivered"] == 1
    assert aria.status("lost") == "ended"


def test_steps_can_be_watched_up_to_the_note(agents: Path, skill: Skill, aria: SmallAria, tmp_path: Path) -> None:
    fill(agents, "a")
    aria.add("a")
    log = tmp_path / "steps"
    command = [*KILL_AT, "0", str(log), "delete_session", json.dumps({"session_id": "a"})]
    subprocess.run(command, env=skill.environment(ARIA_API_URL=aria.url), capture_output=True, timeout=60, check=True)
    assert log.read_text().splitlines()[-4:] == ["end noted", "store let go", "marks sent", "marks noted"]


def test_no_test_reaches_a_service_of_the_machine() -> None:
    assert os.environ["ARIA_API_URL"] == CLOSED_API
