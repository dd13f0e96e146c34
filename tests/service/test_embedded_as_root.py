"""The embedded PostgreSQL of a service that runs as root: whom it lets in, and what it leaves as it was."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
from support import small_file_system
from test_embedded_postgres import ask, refused, start
from test_full_disk import fill

from session_manager.service.embedded import places, programs
from session_manager.service.embedded.accounts import SYSTEM_USER, database_account

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

CONNECT = """
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1]))
client = socket.socket(socket.AF_UNIX)
try:
    client.connect(sys.argv[3])
except OSError as error:
    sys.exit(type(error).__name__)
body = b"\\0\\3\\0\\0user\\0session_manager\\0database\\0session_manager\\0\\0"
client.sendall((len(body) + 4).to_bytes(4, "big") + body)
sys.stdout.write(client.recv(4096).decode(errors="replace"))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with postgres.reachable_folder() as path:
        yield path


@pytest.fixture
def base(folder: Path) -> str:
    return str(folder / "base")


def connect_as(name: str, folder: str) -> str:
    """Speaks the first words of PostgreSQL's protocol as another user; returns the answer or the error's name."""
    entry = pwd.getpwnam(name)
    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        CONNECT,
        str(entry.pw_uid),
        str(entry.pw_gid),
        f"{folder}/.s.PGSQL.5432",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout or done.stderr.strip()


def looks(*paths: str) -> dict[str, tuple[int, int, int]]:
    """Mode, owner and group of all folders above the paths, and of these."""
    found = {}
    for path in paths:
        for place in (Path(path), *Path(path).parents):
            status = place.stat()
            found[str(place)] = (status.st_mode, status.st_uid, status.st_gid)
    return found


def shipped_elsewhere(folder: Path) -> programs.Programs:
    """A copy of the programs where only root gets at them, installed under a strict umask."""
    there = folder / "closed" / "site-packages"
    (folder / "closed").mkdir(mode=0o700)
    source = programs.shipped().root
    for part in [programs.PACKAGE, f"{programs.PACKAGE}.libs"]:
        shutil.copytree(
            Path(source, part), there / part, ignore=shutil.ignore_patterns("pginstall", "include", "*.a", "pgxs")
        )
    for path in [there, *there.rglob("*")]:
        path.chmod(path.stat().st_mode & 0o700)
    return programs.Programs(str(there))


def test_no_folder_that_was_there_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = shipped_elsewhere(folder)
    (folder / "given").mkdir()
    (folder / "given").chmod(0o751)
    before = looks(str(folder / "given"), programs.shipped().path(""), closed.path(""))
    for shipped in (programs.shipped(), closed):
        monkeypatch.setattr(programs, "shipped", lambda shipped=shipped: shipped)
        with start(folder / "given" / "made" / "base") as running, start(folder / "given") as other:
            assert ask(running, "SELECT 1") == ask(other, "SELECT 1") == 1
            assert looks(*before) == before
    assert looks(*before) == before


def test_the_server_is_not_root_and_owns_only_what_it_writes(base: str) -> None:
    with start(base) as running:
        account = pwd.getpwnam(SYSTEM_USER)
        _, pid = places.read_record(base) or ("", 0)
        status = Path(f"/proc/{pid}/status").read_text()
        assert f"Uid:\t{account.pw_uid}\t{account.pw_uid}\t{account.pw_uid}\t{account.pw_uid}\n" in status
        assert f"Gid:\t{account.pw_gid}\t{account.pw_gid}\t{account.pw_gid}\t{account.pw_gid}\n" in status
        assert "Groups:\t\n" in status.replace("Groups:\t \n", "Groups:\t\n")
        owned = {p.name for p in Path(base).iterdir() if p.stat().st_uid == account.pw_uid}
        assert owned == {"data", "log", "socket"}
        assert stat.S_IMODE(os.stat(base).st_mode) == 0o710
        assert os.stat(base).st_gid == account.pw_gid
        assert ask(running, "SELECT session_user") == "session_manager"


def test_nobody_else_reaches_the_socket_and_who_does_is_not_let_in(base: str) -> None:
    with start(base) as running:
        assert connect_as("nobody", running.folder) == "PermissionError"
        assert connect_as("root", running.folder).startswith("R")
        assert connect_as(SYSTEM_USER, running.folder).startswith("R")
        for path in (base, running.folder, f"{running.folder}/.s.PGSQL.5432"):
            os.chmod(path, 0o777)
        answer = connect_as("nobody", running.folder)
        assert answer.startswith("E")
        assert "Peer authentication failed" in answer
        assert connect_as("root", running.folder).startswith("R")


def test_programs_that_the_account_cannot_reach_are_copied_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, base = shipped_elsewhere(folder), str(folder / "base")
    monkeypatch.setattr(programs, "shipped", lambda: closed)
    copy = Path(base, "programs")
    with start(base) as running:
        assert ask(running, "SELECT 1") == 1
        _, pid = places.read_record(base) or ("", 0)
        assert os.readlink(f"/proc/{pid}/exe").startswith(str(copy))
        assert (stat.S_IMODE(copy.stat().st_mode), copy.stat().st_uid) == (0o750, 0)
        assert {p.stat().st_uid for p in copy.rglob("*")} == {0}
        assert not [p for p in copy.rglob("*") if p.stat().st_mode & 0o022]
    first = copy.stat().st_ino
    start(base).stop()
    assert copy.stat().st_ino == first
    Path(closed.path("postgres")).touch()
    start(base).stop()
    second = copy.stat().st_ino
    assert second != first
    os.truncate(Path(copy, os.path.relpath(closed.path("initdb"), closed.root)), 100)
    Path(base, "programs.new").mkdir()
    start(base).stop()
    assert copy.stat().st_ino != second
    assert sorted(p.name for p in Path(base).iterdir() if p.name.startswith("programs")) == ["programs"]


def test_an_odd_place_and_programs_that_the_account_cannot_reach(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = shipped_elsewhere(folder)
    monkeypatch.setattr(programs, "shipped", lambda: closed)
    before = set(os.listdir("/tmp"))
    for name in ('it\'s 100% "odd" & $HOME+1', "grün"):
        with start(folder / name) as running:
            assert ask(running, "SELECT 1") == 1
    assert {name for name in set(os.listdir("/tmp")) - before if name.startswith("session-manager-programs-")} == set()


def test_programs_that_are_reached_are_not_copied(base: str) -> None:
    if programs.shipped().complaint(database_account(), "/"):
        pytest.skip("the virtual environment is closed to other users")
    start(base).stop()
    assert not Path(base, "programs").exists()


def test_a_base_that_the_account_cannot_reach(folder: Path) -> None:
    (folder / "closed").mkdir(mode=0o700)
    (folder / "closed" / "base").mkdir(mode=0o755)
    for base in (folder / "closed" / "base", folder / "closed" / "new" / "base"):
        error = refused(base)
        assert error.code == "database_unreachable"
        assert "XDG_STATE_HOME" in error.message
        assert str(base) in error.message
    assert [p.name for p in (folder / "closed").rglob("*")] == ["base"]


def test_a_base_of_somebody_else(folder: Path) -> None:
    (folder / "theirs").mkdir()
    os.chown(folder / "theirs", pwd.getpwnam("nobody").pw_uid, -1)
    assert refused(folder / "theirs").code == "database_not_owned"
    assert list((folder / "theirs").iterdir()) == []


def test_below_a_folder_of_somebody_else(folder: Path) -> None:
    """They could swap root's folder for another."""
    (folder / "theirs").mkdir()
    os.chown(folder / "theirs", pwd.getpwnam("nobody").pw_uid, -1)
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    for above in (folder / "theirs", folder / "open"):
        (above / "there").mkdir()
        for name in ("there", "new", "new/deep"):
            assert refused(above / name).code == "database_not_private"
        assert sorted(above.rglob("*")) == [above / "there"]


def test_data_of_somebody_else(base: str) -> None:
    start(base).stop()
    os.chown(Path(base, "data"), 0, 0)
    assert refused(base).code == "database_not_owned"


def test_a_closed_temporary_folder_of_roots(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "tmp").mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
    with start(folder / ("x" * 120)) as running:
        assert ask(running, "SELECT 1") == 1
        assert connect_as("nobody", running.folder) == "PermissionError"
        assert running.folder.startswith("/tmp/session-manager-")


def test_no_account_and_no_way_to_make_one(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("session_manager.service.embedded.accounts.SYSTEM_USER", "session-manager-none")
    monkeypatch.setattr("session_manager.service.embedded.accounts._CREATE", (["no-such-program"],))
    monkeypatch.setattr("session_manager.service.embedded.accounts._PATIENCE_S", 0.2)
    error = refused(base)
    assert error.code == "database_account"
    assert "DATABASE_URL" in error.message
    assert not Path(base).exists()


def test_an_ordinary_user_cannot_ask_which_server_runs(base: str) -> None:
    code = (
        "import os, sys; from session_manager.service.embedded import attach; os.setgid(65534); os.setuid(65534)\n"
        "try:\n attach(sys.argv[1])\nexcept Exception as e:\n print(e.code)"
    )
    with start(base):
        done = subprocess.run([sys.executable, "-c", code, base], capture_output=True, text=True, check=True)
    assert done.stdout == "not_writable\n"


@pytest.fixture
def small(folder: Path) -> Iterator[Path]:
    """A small file system, with room for the copy of the programs that a checkout closed to other users needs."""
    with small_file_system(folder / "small", "120m") as place:
        yield place


@pytest.mark.parametrize("left", [0, 1 << 20, 20 << 20], ids=["nothing left", "1 MiB left", "20 MiB left"])
def test_a_full_disk(small: Path, left: int) -> None:
    base = small / "base"
    (small / "agents").mkdir()
    ballast = fill(small / "agents", leave=left)
    error = refused(base)
    assert error.code == "disk_full", error.message
    assert "free some space" in error.message
    assert not (base / "data").exists()
    assert not (base / "data.new").exists()
    ballast.unlink()
    with start(base) as running:
        assert ask(running, "SELECT 1") == 1
    ballast = fill(small / "agents", leave=0)
    assert refused(base).code == "disk_full"
    ballast.unlink()
    with start(base) as running:
        assert ask(running, "SELECT 1") == 1


def test_a_kernel_without_shared_memory_says_so(base: str) -> None:
    """System V shared memory is forbidden with a limit that only the test's own namespace has."""
    code = (
        "import sys; from session_manager.service.embedded import EmbeddedPostgres\n"
        "try:\n EmbeddedPostgres.start(sys.argv[1], None)\nexcept Exception as e:\n print(e.code, e.message)"
    )
    script = 'echo 0 >/proc/sys/kernel/shmmni && exec "$@"'
    command = ["unshare", "--ipc", "sh", "-c", script, "sh", sys.executable, "-c", code, base]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no namespace of our own: {done.stderr.strip()}")
    assert done.stdout.startswith("database_failed ")
    assert "could not create shared memory segment" in done.stdout
