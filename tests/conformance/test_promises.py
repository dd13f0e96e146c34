"""README's promises, for every store kind."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from kinds import KINDS, Builder, Stage

from session_manager.archives import archive
from session_manager.archives.work import Work
from session_manager.core.errors import Damaged, Locked, NotFound, Refused, SessionManagerError
from session_manager.files.atomic import rename_new
from session_manager.ledger import start_run

NOTHING_IS_OLD = {"max_age_minutes": 1_000_000}
OLD = {"old-0", "old-1", "old-2"}
READING: list[tuple[str, dict[str, Any]]] = [
    ("list_sessions", {"sizes": True, "older_than_minutes": 60}),
    ("show_session", {"session_id": "old-0"}),
    ("get_session_stats", {}),
    ("prune_sessions", {"dry_run": True, "details": True}),
    ("delete_sessions", {"agent": "main"}),
    ("purge_archives", {"force": True, "details": True}),
    ("list_deleted", {}),
    ("verify_ledger", {}),
    ("check_policy", {}),
    ("doctor", {}),
]
# Each call that changes a store, and whether what it did can be taken back.
CALLS: dict[str, dict[str, Any]] = {
    "prune_sessions": {},
    "delete_session": {"session_id": "old-0"},
    "restore_run": {},
    "restore_session": {"session_id": "old-1"},
    "purge_archives": {"older_than_days": 30, "dry_run": False, "force": True, "days_later": 40},
    "erase_session": {"session_id": "old-0", "confirm": "old-0"},
}


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> type[Builder]:
    found: type[Builder] = request.param
    return found


def staged(kind: type[Builder], root: Path, **environ: str) -> Stage:
    """Three old sessions, and one that nothing may touch."""
    store = kind(root)
    for session_id in sorted(OLD):
        store.add(session_id)
    store.add("young", age=5)
    return Stage(store, ARIA_ALLOW_ERASE="1", **environ)


@pytest.fixture
def stage(kind: type[Builder], tmp_path: Path) -> Stage:
    return staged(kind, tmp_path / "agents")


def test_reading_and_every_dry_run_change_nothing(kind: type[Builder], tmp_path: Path) -> None:
    stage = staged(kind, tmp_path / "agents", ARIA_API_URL="")
    for _ in range(2):
        before = stage.picture()
        for function, arguments in READING:
            stage(function, **arguments)
            assert stage.picture() == before, function
        # Once more beside archives, second names and a ledger.
        stage("delete_session", session_id="old-1")


@pytest.mark.parametrize("function", ["cleanup_orphans", "readopt_orphans"])
def test_a_store_without_orphans_says_so(stage: Stage, function: str) -> None:
    before = stage.picture()
    try:
        document = stage(function)
    except Refused as error:
        assert (stage.store.name, error.code) == ("tiny", "not_supported")  # noqa: PT017
    else:
        assert document["dry_run"] is True
    assert stage.picture() == before


def test_what_is_told_is_what_is_there(stage: Stage) -> None:
    rows = stage("list_sessions", sizes=True)["sessions"]
    assert {row["id"]: row["bytes"] for row in rows} == {
        session_id: len(stage.files()[stage.store.live_file(session_id)]) for session_id in OLD | {"young"}
    }
    assert rows[0]["id"] == "young"
    assert {row["session_type"] for row in rows} == {"cron"}
    assert {row["id"] for row in stage("list_sessions", older_than_minutes=60)["sessions"]} == OLD
    stage("delete_session", session_id="old-0")
    assert stage("show_session", session_id="old-0")["removed"][0]["restorable"] is True
    (shown,) = stage("show_session", session_id="old-1")["live"]
    assert list(shown["files"]) == [stage.store.live_file("old-1")]
    (row,) = stage("list_deleted")["deleted"]
    assert (row["id"], row["state"], row["reason"]) == ("old-0", "removed", "asked for")


def test_nothing_is_thrown_away(stage: Stage) -> None:
    document = stage("prune_sessions")
    assert set(document["deleted_ids"]) == OLD
    assert document["errors"] == []
    assert stage.removed() == OLD


def test_a_run_can_be_taken_back_byte_for_byte(stage: Stage) -> None:
    before = stage.files()
    run_id = stage("prune_sessions")["run_id"]
    document = stage("restore_run", run_id=run_id)
    assert set(document["restored_ids"]) == OLD
    assert stage.files() == before
    assert stage.removed() == set()
    again = stage("restore_run", run_id=run_id)
    assert (again["restored_count"], again["already_restored"]) == (0, 3)


def test_a_session_can_be_taken_back_byte_for_byte(stage: Stage) -> None:
    before = stage.files()
    stage("prune_sessions")
    for session_id in sorted(OLD):
        assert stage("restore_session", session_id=session_id)["restored"] == session_id
    assert stage.files() == before
    assert stage("restore_session", session_id="old-0")["already_live"] is True


def test_a_lost_archive_is_taken_back_from_its_second_name(stage: Stage) -> None:
    before = stage.files()
    run_id = stage("prune_sessions")["run_id"]
    for path in stage.store.folder.glob("*.deleted.*"):
        path.unlink()
    stage("restore_run", run_id=run_id)
    assert stage.files() == before


def test_a_second_delete_is_a_success(stage: Stage) -> None:
    assert stage("delete_session", session_id="old-0")["transcript_archived"] is True
    before = stage.files()
    assert stage("delete_session", session_id="old-0")["already_deleted"] is True
    assert stage.files() == before


def test_an_unknown_session_is_not_found(stage: Stage) -> None:
    with pytest.raises(NotFound):
        stage("delete_session", session_id="nobody")
    assert stage.removed() == set()


@pytest.mark.parametrize(
    ("fields", "environ", "reason"),
    [
        ({}, {"ARIA_SESSION_ID": "kept"}, "current"),
        ({"running": True}, {}, "running"),
        ({"pinned": True}, {}, "pinned"),
        ({"kind": "main"}, {}, "main"),
        ({"kind": "direct"}, {}, "durable"),
        ({"age": 5}, {}, None),
    ],
)
def test_the_wrong_session_is_never_deleted(
    kind: type[Builder], tmp_path: Path, fields: dict[str, Any], environ: dict[str, str], reason: str | None
) -> None:
    store = kind(tmp_path / "agents")
    store.add("old-0")
    store.add("kept", **fields)
    stage = Stage(store, **environ)
    before = stage.files()
    planned, done = stage("prune_sessions", dry_run=True), stage("prune_sessions")
    for document in (planned, done):
        assert document["deleted_ids"] == ["old-0"]
        kept = [] if reason is None else [{"id": "kept", "agentId": "main", "reason": reason}]
        assert document["kept"] == kept
    name = store.live_file("kept")
    assert stage.files()[name] == before[name]
    if reason not in (None, "durable"):
        with pytest.raises(Refused):
            stage("delete_session", session_id="kept")
    assert "kept" in stage.ids()


def test_a_pin_is_kept(stage: Stage) -> None:
    stage("pin_session", session_id="old-1")
    assert set(stage("prune_sessions")["deleted_ids"]) == OLD - {"old-1"}
    with pytest.raises(Refused):
        stage("delete_session", session_id="old-1")
    assert "old-1" in stage.ids()


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("list_sessions", {}),
        *CALLS.items(),
        ("prune_sessions", {"dry_run": True}),
        ("delete_sessions", {"agent": "main"}),
    ],
)
def test_a_damaged_store_is_never_treated_as_empty(stage: Stage, function: str, arguments: dict[str, Any]) -> None:
    run_id = stage("delete_session", session_id="old-1")["run_id"]
    stage.store.damage()
    before = stage.files()
    with pytest.raises(Damaged):
        stage(function, **arguments, **({"run_id": run_id} if function == "restore_run" else {}))
    assert stage.files() == before


def test_an_erased_session_is_nowhere(stage: Stage) -> None:
    stage("delete_session", session_id="old-1")
    for session_id in ("old-0", "old-1"):
        assert stage("erase_session", session_id=session_id, confirm=session_id)["erased"] == session_id
        assert stage.where(stage.store.texts.pop(session_id)[0]) == ([], [])
        assert stage("erase_session", session_id=session_id, confirm=session_id)["already_erased"] is True
        with pytest.raises(Refused):
            stage("restore_session", session_id=session_id)
    assert stage.removed() == set()
    assert stage("verify_ledger")["whole"] is True


def test_a_purge_takes_only_what_is_old(stage: Stage) -> None:
    stage("prune_sessions")
    arguments = {"older_than_days": 30, "dry_run": False, "force": True}
    assert stage("purge_archives", **arguments, days_later=29)["purged_count"] == 0
    assert stage.removed() == OLD
    assert stage("purge_archives", **arguments, days_later=31)["removals"] == 3
    for session_id in OLD:
        assert stage.where(stage.store.texts.pop(session_id)[0]) == ([], [])
        with pytest.raises(Refused):
            stage("restore_session", session_id=session_id)
    assert stage.removed() == set()


def test_a_purge_never_takes_an_archive_of_a_live_session(stage: Stage) -> None:
    stage("prune_sessions")
    stage.store.say("old-0")
    document = stage("purge_archives", older_than_days=30, dry_run=False, force=True, days_later=31)
    assert (document["removals"], document["live_count"]) == (2, 1)
    assert stage.where(stage.store.texts["old-0"][0])[0] != []


def test_history_is_told_of_removals_that_stand(stage: Stage) -> None:
    run_id = stage("prune_sessions")["run_id"]
    assert stage.marks() == dict.fromkeys(OLD, ("ended", "pending"))
    stage("restore_session", session_id="old-0")
    assert stage.marks()["old-0"] == ("ended", "cancelled")
    stage("restore_run", run_id=run_id)
    assert stage.marks() == dict.fromkeys(OLD, ("ended", "cancelled"))
    stage("delete_session", session_id="old-0")
    assert stage.marks()["old-0"] == ("ended", "pending")


def prepared(kind: type[Builder], root: Path, function: str) -> tuple[Stage, dict[str, Any], dict[str, bytes]]:
    """A stage on which a call of ``CALLS`` has something to do, its arguments, and the files before any removal."""
    stage, arguments = staged(kind, root), CALLS[function]
    before = stage.files()
    if function in ("restore_run", "restore_session", "purge_archives"):
        run_id = stage("prune_sessions")["run_id"]
        arguments = {"run_id": run_id} if function == "restore_run" else arguments
    return stage, arguments, before


def assert_nothing_is_lost(stage: Stage, before: dict[str, bytes], function: str, where: str) -> None:
    """After one more call: each session is wholly live or wholly removed, and what is removed can be taken back."""
    # It removes nothing itself: what it finds half done is all its work.
    stage("prune_sessions", **NOTHING_IS_OLD)
    if function in ("purge_archives", "erase_session"):
        for session_id in [i for i in OLD if stage.where(stage.store.texts[i][0]) == ([], [])]:
            del stage.store.texts[session_id]
    assert "young" not in stage.removed(), where
    for run_id in {row["run_id"] for row in stage("list_deleted")["deleted"] if row["restorable"]}:
        assert stage("restore_run", run_id=run_id)["skipped"] == [], where
    assert stage.removed() == set(), where
    files = stage.files()
    for session_id in stage.store.texts:
        assert files[stage.store.live_file(session_id)] == before[stage.store.live_file(session_id)], where
    if function != "restore_session" and stage.store.texts.keys() >= OLD:
        # One by one, sessions may return in another order.
        assert files == before, where
    assert stage("verify_ledger")["whole"] is True, where


@pytest.mark.parametrize("function", CALLS)
def test_killed_at_any_step(kind: type[Builder], tmp_path: Path, function: str) -> None:
    stage, arguments, _ = prepared(kind, tmp_path / "none", function)
    names = stage.steps_of(function, **arguments)
    assert len(names) > 3
    for n, name in enumerate(names, 1):
        stage, arguments, before = prepared(kind, tmp_path / str(n), function)
        assert stage.steps_of(function, kill_at=n, **arguments)[-1] == name
        assert_nothing_is_lost(stage, before, function, name)


@pytest.mark.parametrize("function", CALLS)
def test_killed_again_while_the_next_call_ends_it(kind: type[Builder], tmp_path: Path, function: str) -> None:
    stage, arguments, _ = prepared(kind, tmp_path / "none", function)
    count = len(stage.steps_of(function, **arguments))
    for n in range(2, count, 3):
        for m in range(1, 100):
            stage, arguments, before = prepared(kind, tmp_path / f"{n}-{m}", function)
            stage.steps_of(function, kill_at=n, **arguments)
            names = stage.steps_of("prune_sessions", kill_at=m, **NOTHING_IS_OLD)
            if len(names) < m:
                break
            assert_nothing_is_lost(stage, before, function, f"{n}, {names[-1]}")


def test_killed_while_a_session_comes_back(kind: type[Builder], tmp_path: Path) -> None:
    """Its owner has begun it anew: the next call joins both parts, wherever the one before was killed."""
    for n in range(1, 100):
        stage = staged(kind, tmp_path / str(n))
        stage("prune_sessions")
        stage.store.say("old-1")
        names = stage.steps_of("prune_sessions", kill_at=n, **NOTHING_IS_OLD)
        stage("prune_sessions", **NOTHING_IS_OLD)
        assert stage.removed() == OLD - {"old-1"}, names[-1]
        text = stage.files()[stage.store.live_file("old-1")].decode()
        first, second = stage.store.texts["old-1"]
        assert text.index(first) < text.index(second), names[-1]
        assert (text.count(first), text.count(second)) == (1, 1), names[-1]
        if len(names) < n:
            return
    raise AssertionError


def test_a_run_that_begins_during_a_removal_keeps_the_session(
    stage: Stage, kind: type[Builder], tmp_path: Path
) -> None:
    at = staged(kind, tmp_path / "none").steps_of("prune_sessions").index("intent written") + 1
    with stage.meanwhile(at, lambda: stage.store.begin_run("old-1")):
        document = stage("prune_sessions")
    assert set(document["deleted_ids"]) == OLD - {"old-1"}
    assert {"id": "old-1", "agentId": "main", "reason": "active"} in document["kept"]
    assert stage.removed() == OLD - {"old-1"}


def test_a_file_that_cannot_be_moved_stays_with_its_session(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(source: str, target: str, folder: int | None = None) -> None:
        if source == stage.store.live_file("old-1"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        rename_new(source, target, folder)

    with monkeypatch.context() as patch:
        patch.setattr(archive, "rename_new", refusing)
        document = stage("prune_sessions")
    assert document["code"] == "partial"
    assert [(e["id"], e["code"]) for e in document["errors"]] == [("old-1", "not_writable")]
    assert set(document["deleted_ids"]) == OLD - {"old-1"}
    assert stage.removed() == OLD - {"old-1"}
    assert stage("prune_sessions")["deleted_ids"] == ["old-1"]
    assert stage.removed() == OLD


def test_two_calls_do_not_change_a_store_at_once(kind: type[Builder], tmp_path: Path) -> None:
    stage = staged(kind, tmp_path / "agents", ARIA_LOCK_TIMEOUT="0.05")
    store = stage.volume.store("main")
    assert store is not None

    def act(_: object) -> None:
        for function in ("prune_sessions", "delete_session", "erase_session"):
            with pytest.raises(Locked):
                stage(function, **CALLS[function])

    with Work(stage.settings, start_run("prune_sessions", stage.settings), stage.volume.living) as work:
        store.locked(work, act)
    assert stage.removed() == set()


def test_a_message_during_a_removal_keeps_the_session_whole(kind: type[Builder], tmp_path: Path) -> None:
    count = len(staged(kind, tmp_path / "none").steps_of("prune_sessions"))
    for n in range(1, count + 1):
        stage = staged(kind, tmp_path / str(n))
        with stage.meanwhile(n, lambda stage=stage: stage.store.say("old-1")) as seen:  # type: ignore[misc]
            document = stage("prune_sessions")
        if "old-1" in document["deleted_ids"]:
            # The owner wrote when all was done: the next call brings the rest back.
            stage("prune_sessions")
        assert stage.removed() == OLD - {"old-1"}, seen[n - 1]
        assert stage.marks().get("old-1") != ("ended", "pending"), seen[n - 1]


def test_a_message_to_another_session_during_a_removal_is_kept(kind: type[Builder], tmp_path: Path) -> None:
    for n in range(1, len(staged(kind, tmp_path / "none").steps_of("prune_sessions")) + 1):
        stage = staged(kind, tmp_path / str(n))
        with stage.meanwhile(n, lambda stage=stage: stage.store.say("young")):  # type: ignore[misc]
            assert set(stage("prune_sessions")["deleted_ids"]) == OLD
        assert stage.removed() == OLD


def test_a_name_in_use_is_no_place_to_restore_to(stage: Stage) -> None:
    stage("delete_session", session_id="old-0")
    (stage.store.folder / stage.store.live_file("old-0")).write_text(
        '{"key": "agent:main:cron:other", "updatedAt": 1}\n'
    )
    before = stage.files()
    with pytest.raises(SessionManagerError) as caught:
        stage("restore_session", session_id="old-0")
    assert caught.value.code in ("file_exists", "not_restorable")
    assert stage.files() == before
