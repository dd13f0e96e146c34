"""One errno at a time at every call of the orphan functions: nothing is lost, the next call brings it to its end."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from support import StoreBuilder, now_ms
from test_faults import EXPECTED, PLACES, Fault, check_error, faulted, in_process, ours

CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "cleanup": ("cleanup_orphans", {"dry_run": False}),
    "readopt": ("readopt_orphans", {"dry_run": False}),
    "rebuild": ("readopt_orphans", {"dry_run": False, "rebuild": True}),
}
BROKEN = b'{\n  "agent:main:cron:a": {"sessionId": "a", "updatedAt": 1},\n  "agent:main:cr'


def build(agents: Path, kind: str) -> StoreBuilder:
    """Two living sessions and a dead entry, and two old orphans; for a rebuild the index is cut off."""
    agents.mkdir()
    store = StoreBuilder(agents)
    store.add("cron:a", 90, "a")
    store.add("cron:b", 90, "b")
    store.add("hook:dead", 9000, "dead", transcript=False)
    for name in ("lost-1", "lost-2"):
        store.transcript(f"{name}.jsonl", name, now_ms() - 9 * 86_400_000)
    store.write()
    if kind == "rebuild":
        store.index.write_bytes(BROKEN)
    return store


def contents(store: StoreBuilder) -> set[tuple[str, bytes]]:
    """Every transcript under its first name, wherever it is now."""
    return {(p.name.split(".deleted.")[0], p.read_bytes()) for p in store.dir.glob("*.jsonl*")}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
@pytest.mark.parametrize("sticky", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", CALLS)
def test_a_system_call_fails(tmp_path: Path, place: str, number: int, sticky: bool, kind: str) -> None:
    def error() -> OSError:
        return OSError(number, os.strerror(number))

    build(tmp_path / "count", kind)
    count = Fault(0, False, error())
    assert faulted(tmp_path / "count", place, count, CALLS[kind]).exit_code == 0
    for nth in range(1, count.calls + 1):
        agents = tmp_path / str(nth)
        store = build(agents, kind)
        before, index = contents(store), store.index.read_bytes()
        fault = Fault(nth, sticky, error())
        answer = faulted(agents, place, fault, CALLS[kind])
        assert fault.fired
        assert contents(store) == before
        assert len([n for n in store.names() if ".jsonl" in n]) == len(before)
        if answer.exit_code:
            check_error(answer.document)
            codes = {e["code"] for e in answer.document.get("errors", [])} or {answer.document["code"]}
            assert codes <= {EXPECTED[number][1], "index_damaged", "io_error"}
        if answer.exit_code not in (0, 3):
            assert {p.name for p in store.dir.glob("*.jsonl")} == {n for n, _ in before}
            assert kind == "cleanup" or store.index.read_bytes() == index
        again = in_process(agents, *CALLS[kind])
        assert again.exit_code == 0, again.document
        live = {e["sessionId"] for e in store.read().values()}
        if kind == "cleanup":
            assert live == {"a", "b"}
            assert {p.name for p in store.dir.glob("*.jsonl")} == {"a.jsonl", "b.jsonl"}
        else:
            assert live == {"a", "b", "lost-1", "lost-2"} | ({"dead"} if kind == "readopt" else set())
        damaged = {p.read_bytes() for p in store.dir.glob("sessions.json.damaged.*")}
        assert damaged == ({BROKEN} if kind == "rebuild" else set())
        assert in_process(agents, "prune_sessions", {"max_age_minutes": 10**7}).exit_code == 0
        assert ours(agents) == []
        assert contents(store) == before
