"""What a gateway without a lock wrote at the worst moment: merged, never lost, never overruling a sign of life."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import StoreBuilder

from session_manager.core.index import Index
from session_manager.files import steps
from session_manager.files.liveness import now_ms
from session_manager.functions import load
from session_manager.functions.context import Context
from session_manager.ledger import Removal
from session_manager.settings import read_settings
from session_manager.stores.openclaw_files import swap
from session_manager.stores.openclaw_files.merge import merge
from session_manager.stores.openclaw_files.volume import Volume


def index(**entries: Any) -> Index:
    return Index(json.dumps(entries, indent=2).encode())


def removal(source: Index, session_id: str, *keys: str) -> Removal:
    return Removal(session_id, "asked for", list(keys), [source.raw(key) for key in keys], [])


def merged(base: Index, theirs: Index, removals: list[Removal], mine: Index | None = None) -> tuple[Any, set[str]]:
    ours = mine or Index(base.without({key for r in removals for key in r.keys}))
    result = merge(theirs, removals, base, ours)
    return json.loads(theirs.data if result.text is None else result.text), result.alive


OLD = {"sessionId": "s", "updatedAt": 1}
OTHER = {"sessionId": "o", "updatedAt": 1}


def test_a_stale_copy_of_a_removed_key_goes_again() -> None:
    base = index(a=OLD, b=OTHER)
    theirs = index(a=OLD, b={**OTHER, "updatedAt": 2}, c={"sessionId": "n"})
    assert merged(base, theirs, [removal(base, "s", "a")]) == (
        {"b": {**OTHER, "updatedAt": 2}, "c": {"sessionId": "n"}},
        set(),
    )


def test_a_sign_of_life_keeps_the_session_with_all_its_keys() -> None:
    base = index(a=OLD, a2=OLD, b=OTHER)
    theirs = index(a={**OLD, "updatedAt": 9}, b=OTHER)
    found, alive = merged(base, theirs, [removal(base, "s", "a", "a2")])
    assert found == {"a": {**OLD, "updatedAt": 9}, "a2": OLD, "b": OTHER}
    assert alive == {"s"}


def test_a_key_that_another_session_took_over_is_theirs() -> None:
    base = index(a=OLD, a2=OLD)
    theirs = index(a={"sessionId": "new"}, a2=OLD)
    assert merged(base, theirs, [removal(base, "s", "a", "a2")]) == ({"a": {"sessionId": "new"}}, set())


def test_what_the_gateway_removed_stays_removed() -> None:
    base = index(a=OLD, b=OTHER, c=OTHER)
    assert merged(base, index(a=OLD, b=OTHER), [removal(base, "s", "a")]) == ({"b": OTHER}, set())


def test_what_an_earlier_merge_brought_in_is_not_lost_to_a_version_made_without_it() -> None:
    ours_seen, ours_now = index(b=OTHER), index(b={**OTHER, "updatedAt": 5}, n={"sessionId": "n"})
    theirs = index(b=OTHER, m={"sessionId": "m"})
    found, _ = merged(ours_seen, theirs, [], mine=ours_now)
    assert found == {"b": {**OTHER, "updatedAt": 5}, "m": {"sessionId": "m"}, "n": {"sessionId": "n"}}


KEYS = st.sampled_from("abcdefgh")
STORE = st.dictionaries(KEYS, st.integers(0, 3))


@given(base=STORE, theirs=STORE, gone=st.sets(KEYS))
def test_every_change_of_the_gateways_survives(base: dict[str, int], theirs: dict[str, int], gone: set[str]) -> None:
    def entries(store: dict[str, int]) -> Index:
        return index(**{k: {"sessionId": k, "updatedAt": v} for k, v in store.items()})

    read = entries(base)
    removals = [removal(read, key, key) for key in sorted(gone & set(base))]
    found, alive = merged(read, entries(theirs), removals)
    changed = {k for k in theirs if theirs[k] != base.get(k)}
    assert {k: v["updatedAt"] for k, v in found.items() if k in changed} == {k: theirs[k] for k in changed}
    assert alive == gone & changed & set(base)
    assert set(found) == set(theirs) - {k for k in gone & set(base) if k not in changed}


@pytest.fixture
def watch() -> Any:
    """Installs a function that runs at each named step."""

    def install(watcher: Callable[[str], None]) -> None:
        steps.watcher = watcher

    yield install
    steps.watcher = None


class Scene:
    def __init__(self, agents: Path) -> None:
        self.store = StoreBuilder(agents)
        self.store.add("cron:a", 300, session_id="a")
        self.store.add("cron:b", 300, session_id="b")
        self.store.add("telegram:direct:1", 1, session_id="person", count=0)
        self.store.write()
        self.agents = agents

    def gateway_writes(self, change: Callable[[dict[str, Any]], None], of: dict[str, Any] | None = None) -> None:
        """Writes as a gateway without a lock does, from what it reads now or from what it read before (``of``)."""
        store = self.store.read() if of is None else json.loads(json.dumps(of))
        change(store)
        temp = self.store.dir / f"sessions.json.{os.urandom(3).hex()}.tmp"
        temp.write_text(json.dumps(store, indent=2))
        temp.rename(self.store.index)

    def prune(self) -> dict[str, Any]:
        settings = read_settings({"ARIA_AGENTS_DIR": str(self.agents)})
        function = load("prune_sessions")
        return function.run(Context(settings, Volume(settings.agents_dir), now_ms), function.arguments())


def touch(key: str, **fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda store: store.setdefault(f"agent:main:{key}", {}).update(fields)


@pytest.fixture(params=["exchange", "no exchange"])
def scene(request: pytest.FixtureRequest, agents: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    if request.param == "no exchange":
        monkeypatch.setattr(swap, "exchange", lambda first, second: False)
    return Scene(agents)


def test_written_between_the_read_and_the_swap(scene: Scene, watch: Any) -> None:
    """Seen by the comparison before the swap: everything is decided anew."""
    times = []

    def watcher(name: str) -> None:
        if name == "intent written" and not times:
            times.append(name)
            scene.gateway_writes(touch("cron:a", updatedAt=now_ms()))
            scene.gateway_writes(touch("telegram:direct:1", count=1))

    watch(watcher)
    document = scene.prune()
    assert document["deleted_ids"] == ["b"]
    left = scene.store.read()
    assert set(left) == {"agent:main:cron:a", "agent:main:telegram:direct:1"}
    assert left["agent:main:telegram:direct:1"]["count"] == 1
    assert (scene.store.dir / "a.jsonl").exists()


def test_written_between_the_comparison_and_the_exchange_twice(
    agents: Path, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(agents)
    real, count = swap.exchange, [0]

    def late(first: str, second: str) -> bool:
        count[0] += 1
        if count[0] <= 2:
            number = count[0]
            scene.gateway_writes(touch("telegram:direct:1", count=number))
            scene.gateway_writes(touch(f"telegram:direct:new-{number}", sessionId=f"new-{number}"))
            if number == 2:
                scene.gateway_writes(touch("cron:a", sessionId="a", updatedAt=now_ms()))
        return real(first, second)

    monkeypatch.setattr(swap, "exchange", late)
    document = scene.prune()
    # Won at the fourth: put back in vain, because the gateway wrote once more, and merged then.
    assert count[0] == 4
    assert document["deleted_ids"] == ["b"]
    assert document["kept"] == [{"id": "a", "agentId": "main", "reason": "active"}]
    left = scene.store.read()
    assert left["agent:main:telegram:direct:1"]["count"] == 2
    assert {"agent:main:telegram:direct:new-1", "agent:main:telegram:direct:new-2", "agent:main:cron:a"} <= set(left)
    assert "agent:main:cron:b" not in left
    assert scene.store.names() >= {"a.jsonl"}
    assert [n for n in scene.store.names() if n.startswith(".session_manager")] == []


@pytest.mark.parametrize("moment", ["index swapped", "index verified", "files archived"])
def test_written_back_from_a_stale_read(moment: str, scene: Scene, watch: Any) -> None:
    """The gateway read before our swap and writes after it: its change stays, the removed keys go again."""
    before = scene.store.read()

    def watcher(name: str) -> None:
        if name == moment:
            steps.watcher = None
            scene.gateway_writes(touch("telegram:direct:1", count=7), of=before)

    watch(watcher)
    document = scene.prune()
    assert sorted(document["deleted_ids"]) == ["a", "b"]
    assert scene.store.read() == {
        "agent:main:telegram:direct:1": {**before["agent:main:telegram:direct:1"], "count": 7}
    }
    assert not (scene.store.dir / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("moment", "reason"), [("intent written", "running"), ("index swapped", "active"), ("files archived", "active")]
)
def test_a_run_that_begins_meanwhile_keeps_its_session(moment: str, reason: str, scene: Scene, watch: Any) -> None:
    before = scene.store.read()

    def watcher(name: str) -> None:
        if name == moment:
            steps.watcher = None
            scene.gateway_writes(touch("cron:a", status="running", startedAt=now_ms()), of=before)

    watch(watcher)
    document = scene.prune()
    assert document["deleted_ids"] == ["b"]
    assert document["kept"] == [{"id": "a", "agentId": "main", "reason": reason}]
    assert scene.store.read()["agent:main:cron:a"]["status"] == "running"
    assert "a.jsonl" in scene.store.names()


def test_a_sign_of_life_after_the_files_were_archived_brings_them_back(scene: Scene, watch: Any) -> None:
    before = scene.store.read()

    def watcher(name: str) -> None:
        if name == "files archived":
            steps.watcher = None
            scene.gateway_writes(touch("cron:a", updatedAt=now_ms()), of=before)

    watch(watcher)
    document = scene.prune()
    assert document["deleted_ids"] == ["b"]
    assert (scene.store.dir / "a.jsonl").exists()
    assert not [n for n in scene.store.names() if n.startswith("a.jsonl.deleted")]
    assert "agent:main:cron:a" in scene.store.read()


def test_a_version_made_of_what_was_seen_between_two_swaps(
    agents: Path, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway wrote X, we displaced it, it read our version without X, and writes that after we merged X in."""
    scene = Scene(agents)
    real, seen = swap.exchange, []

    def late(first: str, second: str) -> bool:
        if not seen:
            scene.gateway_writes(touch("telegram:direct:1", count=1))
            done = real(first, second)
            seen.append(scene.store.read())
            return done
        return real(first, second)

    def watcher(name: str) -> None:
        if name == "files archived":
            steps.watcher = None
            assert scene.store.read()["agent:main:telegram:direct:1"]["count"] == 1
            scene.gateway_writes(touch("telegram:direct:2", sessionId="two"), of=seen[0])

    monkeypatch.setattr(swap, "exchange", late)
    watch(watcher)
    scene.prune()
    left = scene.store.read()
    assert left["agent:main:telegram:direct:1"]["count"] == 1
    assert left["agent:main:telegram:direct:2"] == {"sessionId": "two"}


def test_a_run_that_begins_after_the_decision_keeps_its_session(scene: Scene, watch: Any) -> None:
    """The gateway takes the transcript's lock before it writes the index."""

    def watcher(name: str) -> None:
        if name == "intent written":
            steps.watcher = None
            lock = {"pid": os.getpid(), "createdAt": "2026-01-01T00:00:00.000Z"}
            (scene.store.dir / "a.jsonl.lock").write_text(json.dumps(lock))

    watch(watcher)
    document = scene.prune()
    assert document["deleted_ids"] == ["b"]
    assert (scene.store.dir / "a.jsonl").exists()
    assert "agent:main:cron:a" in scene.store.read()


def test_what_went_before_the_lock_was_lost_is_reported(scene: Scene, watch: Any) -> None:
    def watcher(name: str) -> None:
        if name == "index swapped":
            steps.watcher = None
            (scene.store.dir / "sessions.json.lock").unlink()
            for number in range(70):
                scene.store.transcript(f"a-topic-{number}.jsonl", "a", 1)

    for number in range(70):
        scene.store.transcript(f"b-topic-{number}.jsonl", "b", 1)
    watch(watcher)
    document = scene.prune()
    assert sorted(document["deleted_ids"]) == ["a", "b"]
    assert (document["total_sessions"], document["pruned_count"], document["kept_count"]) == (3, 2, 1)
    assert "recovered" not in document


def test_a_gateway_that_never_pauses_ends_the_call_and_loses_nothing(
    agents: Path, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(agents)
    real, count = swap.exchange, [0]

    def late(first: str, second: str) -> bool:
        if first.endswith(".index"):
            count[0] += 1
            scene.gateway_writes(touch(f"telegram:direct:new-{count[0]}", sessionId=f"new-{count[0]}"))
        return real(first, second)

    monkeypatch.setattr(swap, "exchange", late)
    monkeypatch.setattr(swap, "_MOST_ROUNDS", 3)
    monkeypatch.setattr(swap, "_LEAST_ROUNDS", 3)
    assert {e["code"] for e in scene.prune()["errors"]} == {"store_locked"}
    monkeypatch.setattr(swap, "exchange", real)
    assert scene.prune()["errors"] == []
    left = scene.store.read()
    assert {f"agent:main:telegram:direct:new-{n + 1}" for n in range(count[0])} <= set(left)
    assert [n for n in scene.store.names() if n.startswith(".session_manager")] == []
