"""One errno at a time at every call of a restore: nothing is changed, or all is done, and the next call ends it."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from support import StoreBuilder, picture
from test_faults import (
    EXPECTED,
    PLACES,
    SQL_ERRORS,
    Call,
    Fault,
    build,
    check_error,
    failing_sql,
    faulted,
    in_process,
    moments,
    ours,
    sql_error,
)

from session_manager.archives.names import parse_archive
from session_manager.stores.openclaw_files import restoration

Request = tuple[str, dict[str, Any]]
NOTHING_OLD: Request = ("prune_sessions", {"max_age_minutes": 10**7})


def pruned(agents: Path, *, reaped: bool) -> tuple[StoreBuilder, dict[str, Any], str]:
    """A store after a prune of two sessions, a picture of it before that, and the run's id."""
    agents.mkdir()
    store = build(agents)
    before = picture(agents)
    run_id = in_process(agents, "prune_sessions", {}).document["run_id"]
    if reaped:
        for path in store.dir.glob("*.deleted.*"):
            path.unlink()
    return store, before, str(run_id)


def contents(store: StoreBuilder) -> set[tuple[str, bytes]]:
    """Every transcript in the folder, under its first name."""
    names = [n for n in store.names() if ".jsonl" in n]
    found = {((parse_archive(n) or (n,))[0], (store.dir / n).read_bytes()) for n in names}
    assert len(found) == len(names)
    return found


def check(
    agents: Path, store: StoreBuilder, before: Any, after: Any, answer: Call, request: Request, *, stuck: bool = False
) -> None:
    """``before`` the prune and ``after`` it are pictures; the answer says which of both there is now."""
    document, exit_code = answer
    held = {(Path(n).name, c) for n, (_, c) in before.items()}
    now = picture(agents)
    assert contents(store) <= held
    live = {e["sessionId"] for e in store.read().values()}
    assert ours(agents) == []
    if exit_code:
        check_error(document)
    if exit_code in (0, 3):
        assert set(document.get("restored_ids", [document.get("restored")])) == live - {"young"}
        if request[0] == "restore_run":
            assert now == before
    else:
        assert live == {"young"}
        # Where no rename works any more, what was brought back cannot be put away again; the next call does it.
        if not stuck:
            assert {n: c for n, c in now.items() if ".deleted." not in n} == {
                n: c for n, c in after.items() if ".deleted." not in n
            }
            assert after.items() <= now.items()
    again = in_process(agents, *request)
    assert again.exit_code == 0, again.document
    if request[0] == "restore_run":
        assert picture(agents) == before
    assert in_process(agents, *NOTHING_OLD).exit_code == 0
    assert ours(agents) == []
    assert contents(store) <= held


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("reaped", [False, True], ids=["", "reaped"])
@pytest.mark.parametrize("function", ["restore_run", "restore_session"])
def test_a_system_call_fails(
    tmp_path: Path, function: str, reaped: bool, place: str, number: int, sticky: bool
) -> None:
    def error() -> OSError:
        return OSError(number, os.strerror(number))

    def stage(name: object) -> tuple[Path, StoreBuilder, Any, Any, Request]:
        agents = tmp_path / str(name)
        store, before, run_id = pruned(agents, reaped=reaped)
        arguments = {"run_id": run_id} if function == "restore_run" else {"session_id": "a"}
        return agents, store, before, picture(agents), (function, arguments)

    agents, *_, request = stage("count")
    count = Fault(0, False, error())
    assert faulted(agents, place, count, request).exit_code == 0
    for nth in moments(count.calls, number == errno.ENOSPC):
        agents, store, before, after, request = stage(nth)
        fault = Fault(nth, sticky, error())
        answer = faulted(agents, place, fault, request)
        assert fault.fired
        codes = {e["code"] for e in answer.document.get("errors", [])} or {answer.document.get("code")}
        if answer.exit_code:
            assert codes <= {EXPECTED[number][1], "index_damaged", "io_error", "not_restorable"}, answer
            assert answer.exit_code in (3, 4, 7, 70)
        stuck = sticky and "rename" in place
        check(agents, store, before, after, answer, request, stuck=stuck)


@pytest.mark.parametrize("number", SQL_ERRORS, ids=["full", "readonly", "ioerr", "busy", "corrupt"])
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
def test_the_ledger_fails(tmp_path: Path, number: int, sticky: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fault: Fault

    def call(agents: Path, request: Request, url: str) -> Call:
        with failing_sql(monkeypatch, fault):
            return in_process(agents, *request, url)

    fault = Fault(0, False, sql_error(number))
    _, _, run_id = pruned(tmp_path / "count", reaped=False)
    fault = Fault(0, False, sql_error(number))
    assert call(tmp_path / "count", ("restore_run", {"run_id": run_id}), "").exit_code == 0
    total = fault.calls
    assert total > 15
    for nth in moments(total, number == sqlite3.SQLITE_FULL):
        agents = tmp_path / str(nth)
        store, before, run_id = pruned(agents, reaped=False)
        after = picture(agents)
        request = ("restore_run", {"run_id": run_id})
        fault = Fault(nth, sticky, sql_error(number))
        answer = call(agents, request, "")
        assert fault.fired
        if answer.exit_code:
            codes = {e["code"] for e in answer.document.get("errors", [])} or {answer.document["code"]}
            assert codes == {SQL_ERRORS[number][1]}
        check(agents, store, before, after, answer, request)


def test_the_new_index_cannot_be_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agents = tmp_path / "agents"
    store, before, run_id = pruned(agents, reaped=False)
    after, request = picture(agents), ("restore_run", {"run_id": run_id})

    def failing(path: str) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(restoration, "read_file", failing)
        answer = in_process(agents, *request)
    assert (answer.exit_code, answer.document["code"]) == (70, "io_error")
    assert picture(agents) == after
    check(agents, store, before, after, answer, request)
