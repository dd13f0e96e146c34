"""Lock files: what is held, what is dead, and when a dead process may be believed to be dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import support
from support import now_ms

from session_manager.files import liveness
from session_manager.files.liveness import STORE_STALE_MS, is_held, iso_ms, process_lives, process_stat, read_marker


@pytest.fixture
def dead_pid() -> int:
    return support.dead_pid()


def write(path: Path, pid: int, age_s: float = 0, **extra: object) -> Path:
    at = now_ms() - int(age_s * 1000)
    path.write_text(json.dumps({"pid": pid, "createdAt": iso_ms(at), **extra}, indent=2))
    os.utime(path, (at / 1000, at / 1000))
    return path


def held(path: Path, vouched: bool = False) -> bool:
    marker = read_marker(path.as_posix())
    assert marker is not None
    return is_held(marker, STORE_STALE_MS, now_ms(), lambda: vouched)


@pytest.mark.parametrize("age_s", [0, 20, 31, 86_400])
def test_a_living_process_is_respected_whatever_the_age(age_s: float, tmp_path: Path) -> None:
    assert held(write(tmp_path / "lock", os.getpid(), age_s))


@pytest.mark.parametrize(("age_s", "expected"), [(0, True), (25, True), (35, False)])
def test_a_dead_pid_means_nothing_in_another_namespace(
    age_s: float, expected: bool, dead_pid: int, tmp_path: Path
) -> None:
    assert held(write(tmp_path / "lock", dead_pid, age_s)) is expected


def test_a_dead_pid_is_dead_at_once_beside_a_gateway_of_the_store(dead_pid: int, tmp_path: Path) -> None:
    assert held(write(tmp_path / "dead", dead_pid))
    assert not held(write(tmp_path / "dead", dead_pid), vouched=True)
    assert held(write(tmp_path / "living", os.getpid(), 86_400), vouched=True)


@pytest.mark.parametrize(
    ("arguments", "age_s", "expected"),
    [
        ("/sbin/init", 20, True),
        ("/sbin/init", 40, False),
        ("/sbin/init", 330 * 86_400, False),
        ("openclaw-gateway", 330 * 86_400, True),
        ("node", 330 * 86_400, True),
        ("sh\0-c\0exec openclaw gateway", 330 * 86_400, True),
        ("", 330 * 86_400, True),
    ],
)
def test_pid_1_of_another_container_is_not_ours(
    arguments: str, age_s: float, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "arguments_of", lambda pid: arguments.split("\0") if arguments else [])
    assert held(write(tmp_path / "lock", 1, age_s)) is expected
    own = process_stat(1)
    assert own is not None
    assert held(write(tmp_path / "its own", 1, age_s, starttime=own[1]))


def test_a_dead_marker_of_our_own_is_dead_at_once(dead_pid: int, tmp_path: Path) -> None:
    assert not held(write(tmp_path / "lock", dead_pid, owner="session_manager", token="x"))


def test_a_recycled_pid_is_not_its_owner(tmp_path: Path) -> None:
    stat = process_stat(os.getpid())
    assert stat is not None
    own = write(tmp_path / "own", os.getpid(), 60, starttime=stat[1])
    recycled = write(tmp_path / "recycled", os.getpid(), 60, starttime=stat[1] - 1)
    assert held(own)
    assert not held(recycled)


def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        while (found := process_stat(process.pid)) is None or found[0] != "Z":
            time.sleep(0.005)
        assert not process_lives(process.pid, None)
    finally:
        process.wait()


def test_a_process_of_another_user_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_ours(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", not_ours)
    assert process_lives(os.getpid(), None)


@pytest.mark.parametrize("pid", [0, -1, 2**31, 10**30])
def test_an_impossible_pid_is_dead(pid: int) -> None:
    assert not process_lives(pid, None)


@pytest.mark.parametrize("text", ["", "garbage", "{}", '{"pid": "1"}', '{"pid": 1', "[]", "\x00"])
@pytest.mark.parametrize(("age_s", "expected"), [(0, True), (25, True), (35, False)])
def test_an_empty_or_garbled_lock_is_respected_for_a_while(
    text: str, age_s: float, expected: bool, tmp_path: Path
) -> None:
    path = tmp_path / "lock"
    path.write_text(text)
    at = time.time() - age_s
    os.utime(path, (at, at))
    assert held(path) is expected


@pytest.mark.parametrize("created", ["tomorrow", "", "2999-01-01T00:00:00.000Z"])
def test_an_absurd_creation_time_is_replaced_by_the_files_own(created: str, dead_pid: int, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"pid": dead_pid, "createdAt": created}))
    assert held(path)
    os.utime(path, (time.time() - 35,) * 2)
    assert not held(path)


@pytest.mark.parametrize("form", [float, str, lambda ms: ms // 1000, lambda ms: ms * 1000, lambda ms: iso_ms(ms)[:-1]])
def test_a_creation_time_is_read_in_any_form(form: Callable[[int], object], dead_pid: int, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for age_s, expected in ((20, True), (40, False)):
        path.write_text(json.dumps({"pid": dead_pid, "createdAt": form(now_ms() - age_s * 1000)}))
        assert held(path) is expected


def test_a_lock_without_a_creation_time_has_its_files(dead_pid: int, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps({"pid": dead_pid}))
    assert held(path)
    os.utime(path, (time.time() - 35,) * 2)
    assert not held(path)
    path.write_text(json.dumps({"pid": os.getpid()}))
    os.utime(path, (time.time() - 35,) * 2)
    assert held(path)


def test_there_is_no_lock_where_there_is_none(tmp_path: Path) -> None:
    assert read_marker((tmp_path / "lock").as_posix()) is None
