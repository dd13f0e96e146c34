"""What a call keeps in memory of an index, which may be large: so many times its size, and no more."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import StoreBuilder, now_ms

from benchmarks import stores
from benchmarks.measure import call
from session_manager.files.versions import Identity
from session_manager.functions.context import Context
from session_manager.functions.reading import read_view
from session_manager.settings import read_settings
from session_manager.stores.openclaw_files.snapshot import read_snapshot
from session_manager.stores.openclaw_files.store import Snapshot
from session_manager.stores.openclaw_files.volume import Volume

SESSIONS, ENTRY_BYTES = 1_000, 6_000


@pytest.fixture
def index_bytes(agents: Path) -> int:
    return stores.build(agents, SESSIONS, ENTRY_BYTES).stat().st_size


def peak(act: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], int]:
    """The most that Python had taken at any moment, beyond what it had before."""
    gc.collect()
    tracemalloc.start(1)
    try:
        document = act()
        return document, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_prune_and_its_undoing_copy_the_index_no_more_often_than_they_must(agents: Path, index_bytes: int) -> None:
    # What is imported, and what is made once, is no part of it.
    call(agents, "prune_sessions", limit=1)
    pruned, most = peak(lambda: call(agents, "prune_sessions"))
    assert pruned["pruned_count"] == SESSIONS * 9 // 10 - 1
    # The old text, the new one, and what is known of each session.
    assert most < 1.8 * index_bytes
    (run_id,) = {row["run_id"] for row in call(agents, "list_deleted", limit=1)["deleted"]}
    restored, most = peak(lambda: call(agents, "restore_run", run_id=run_id))
    assert restored["restored_count"] == pruned["pruned_count"]
    # What the ledger has, and the new text, which is read back by nobody.
    assert most < 2.7 * index_bytes


def test_a_version_that_is_known_is_read_again_only_when_another_is_in_its_place(agents: Path) -> None:
    builder = StoreBuilder(agents)
    builder.add("cron:1", 5, session_id="written")
    builder.write()
    store = Volume(str(agents)).store("main")
    assert store is not None
    identity = Identity.of(os.stat(store.index_path))
    known = Path(store.index_path).read_bytes().replace(b"written", b"known")
    assert [session.id for session in read_snapshot(store, 0, (known, identity)).sessions] == ["known"]
    os.utime(store.index_path, ns=(1, 1))
    assert [session.id for session in read_snapshot(store, 0, (known, identity)).sessions] == ["written"]


def test_a_view_of_all_agents_holds_the_text_of_no_index(agents: Path) -> None:
    for agent in ("a", "b"):
        builder = StoreBuilder(agents, agent)
        builder.add("cron:1", 5, session_id="one")
        builder.write()
    context = Context(read_settings({"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": ""}), Volume(str(agents)), now_ms)
    snapshots = [read.snapshot for read in read_view(context, None).agents]
    assert [isinstance(snapshot, Snapshot) and snapshot.index for snapshot in snapshots] == [None, None]
