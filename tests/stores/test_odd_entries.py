"""Entries that no gateway writes as a rule: blanks around what they name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import Skill, StoreBuilder

DAYS = 1440


@pytest.mark.parametrize("blanks", [" {} ", "\t{}\n", "\ufeff{}\u00a0", "\u2003{}\u3000"])
def test_blanks_around_an_id_do_not_count(agents: Path, skill: Skill, blanks: str) -> None:
    store = StoreBuilder(agents)
    store.add("main", 3 * DAYS, "mmm")
    store.add("cron:s", 3 * DAYS, "sid", sessionFile=blanks.format("./sid.jsonl"))
    store.entries["agent:main:cron:s"]["sessionId"] = blanks.format("sid")
    store.add("cron:s:run:1", 3 * DAYS, "sid")
    text = store.write().index.read_text()
    assert sorted(row["id"] for row in skill("list_sessions").document["sessions"]) == ["mmm", "sid"]
    assert skill("cleanup_orphans").document["classes"]["true_orphan"]["count"] == 0
    document = skill("prune_sessions").document
    assert document["deleted_ids"] == ["sid"]
    assert [name.split(".deleted.")[0] for name in store.names() if name.startswith("sid")] == ["sid.jsonl"]
    answer = skill("restore_session", {"session_id": "sid"})
    assert (answer.exit_code, answer.document["restored_files"]) == (0, ["sid.jsonl"])
    assert store.index.read_text() == text
    # What a gateway wrote back without the blanks is the session itself, and nobody else has its key.
    assert skill("delete_session", {"session_id": "sid"}).document["deleted"] == "sid"
    store.replace({"agent:main:cron:s": {"sessionId": "sid", "updatedAt": 5}, "agent:main:main": {"sessionId": "mmm"}})
    assert skill("restore_session", {"session_id": "sid"}).exit_code == 0
    assert "sid.jsonl" in store.names()


@pytest.mark.parametrize("session_id", ["", " ", "\ufeff", None, 5])
def test_an_id_of_blanks_is_none(agents: Path, skill: Skill, session_id: object) -> None:
    store = StoreBuilder(agents)
    store.add("cron:s", 3 * DAYS, "sid")
    store.entries["agent:main:cron:s"]["sessionId"] = session_id
    store.index.write_text(json.dumps(store.entries))
    assert skill("list_sessions").document["sessions"] == []
