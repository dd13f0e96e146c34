"""The embedded PostgreSQL as one user sees it: life, death, and what it refuses. Runs as root and as anybody."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import postgres
import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError

from session_manager.core.errors import SessionManagerError
from session_manager.service.embedded import EmbeddedPostgres, attach, cluster, keeper, places, programs
from session_manager.service.embedded.accounts import database_account

SERVICE = """
import sys
from session_manager.service.embedded import EmbeddedPostgres
running = EmbeddedPostgres.start(sys.argv[1], None)
print(running.url, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with postgres.reachable_folder() as path:
        yield path


@pytest.fixture
def base(folder: Path) -> str:
    return str(folder / "base")


def start(base: str | Path, agents: Path | None = None, **settings: str) -> EmbeddedPostgres:
    return EmbeddedPostgres.start(str(base), None if agents is None else str(agents), {**postgres.FAST, **settings})


def ask(where: EmbeddedPostgres | str, question: str) -> object:
    """Asks through the URL, as the service does."""
    url = where if isinstance(where, str) else where.url
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            found = connection.execute(text(question))
            return found.scalar() if found.returns_rows else None
    finally:
        engine.dispose()


def refused(base: str | Path, agents: Path | None = None, **settings: str) -> SessionManagerError:
    with pytest.raises(SessionManagerError) as caught:
        start(base, agents, **settings)
    return caught.value


@contextlib.contextmanager
def service(base: str, *, alone: bool = True) -> Iterator[subprocess.Popen[bytes]]:
    """A service in a process of its own; killed at the end, and, when no other has the base, its server with it."""
    command = [sys.executable, "-c", SERVICE, base]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()
            if alone and os.path.exists(os.path.join(base, "server.lock")):
                wait_for_end(base)


def wait_for_end(base: str) -> None:
    """Waits until no process of the server is left."""
    fd = places.lock(os.path.join(base, "server.lock"), 60)
    assert fd is not None, "the server outlived its service"
    os.close(fd)


def test_first_start_and_second(base: str) -> None:
    with start(base) as running:
        assert make_url(running.url).query == {"host": f"{base}/socket", "port": "5432"}
        assert running.url == f"postgresql+psycopg://session_manager@/session_manager?host={base}/socket&port=5432"
        assert ask(running, "SELECT current_user || ' ' || current_database()") == "session_manager session_manager"
        ask(running, "CREATE TABLE kept (word text)")
        ask(running, "INSERT INTO kept VALUES ('still here')")
        assert attach(base) == running.url
    assert attach(base) is None
    with start(base) as running:
        assert ask(running, "SELECT word FROM kept") == "still here"
    wait_for_end(base)


def test_stopping_twice_and_with_a_client_inside(base: str) -> None:
    running = start(base)
    with psycopg.connect(host=running.folder, port=5432, user="session_manager", dbname="session_manager") as client:
        running.stop()
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT 1")
    running.stop()
    wait_for_end(base)


def test_the_server_is_durable_small_and_neutral(base: str) -> None:
    expected = {
        "fsync": "on",
        "full_page_writes": "on",
        "synchronous_commit": "on",
        "data_checksums": "on",
        "listen_addresses": "",
        "max_connections": "50",
        "server_encoding": "UTF8",
        "TimeZone": "UTC",
        "dynamic_shared_memory_type": "mmap",
        "unix_socket_permissions": "0700",
    }
    with EmbeddedPostgres.start(base, None) as running:
        assert {name: ask(running, f"SELECT current_setting('{name}')") for name in expected} == expected
        locale = "SELECT concat_ws(' ', datlocprovider, datlocale) FROM pg_database WHERE datname = 'session_manager'"
        assert ask(running, locale) == "b C.UTF-8"
        assert ask(running, "SELECT upper('ä') || (now()::text LIKE '%+00')") == "Ätrue"


def test_the_role_owns_its_database_and_no_more(base: str) -> None:
    with start(base) as running:
        assert ask(running, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
        with pytest.raises(ProgrammingError, match="permission denied"):
            ask(running, "COPY (SELECT 1) TO PROGRAM 'true'")
        for name in ("postgres", "root", "nobody"):
            with pytest.raises(psycopg.OperationalError, match="no pg_hba"):
                psycopg.connect(host=running.folder, port=5432, user=name, dbname="session_manager")


def test_databases_from_a_template() -> None:
    with postgres.server() as running:
        ask(running, "CREATE TABLE mark (id int)")
        to_any = {"host": running.folder, "port": 5432, "user": "session_manager"}
        with psycopg.connect(**to_any, dbname="postgres", autocommit=True) as client:
            client.execute("CREATE DATABASE second TEMPLATE session_manager")
        with psycopg.connect(**to_any, dbname="second") as client:
            assert client.execute("SELECT count(*) FROM mark").fetchone() == (0,)
        with psycopg.connect(**to_any, dbname="postgres", autocommit=True) as client:
            client.execute("DROP DATABASE second WITH (FORCE)")


@pytest.mark.parametrize("name", ["with space", 'it\'s 100% "odd" & $HOME+1', "grün", "a,b", "x" * 120, "-D"])
def test_odd_and_deep_places(folder: Path, name: str) -> None:
    base = str(folder / name)
    with start(base) as running:
        assert ask(running, "SELECT 1") == 1
        assert attach(base) == running.url
        socket = Path(running.folder)
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        assert socket.stat().st_uid == database_account().uid
        inside = len(base) < 80 and "," not in name
        assert (socket == Path(base, "socket")) is inside
    assert attach(base) is None
    assert socket.exists() is inside


def shipped_in(folder: Path) -> programs.Programs:
    """A copy of the programs in a folder; linked where that can be."""
    source = programs.shipped().root
    for name in programs._files(source):
        there = folder / name
        there.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(Path(source, name), there)
        except OSError:
            shutil.copy2(Path(source, name), there)
    return programs.Programs(str(folder))


@pytest.mark.parametrize("name", ['a "b"', "$HOME", "`x`", "back\\slash", "line\nbreak"])
def test_programs_that_lie_where_a_shell_reads_something_else(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = shipped_in(folder / name / "site-packages")
    monkeypatch.setattr(programs, "shipped", lambda: odd)
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
    (folder / "tmp").mkdir()
    with start(folder / "base") as running:
        assert ask(running, "SELECT 1") == 1
    with start(folder / "base") as running:
        assert ask(running, "SELECT 1") == 1
    assert list((folder / "tmp").iterdir()) == [], "what was copied for the making is gone"


def test_programs_that_cannot_be_copied_from_such_a_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str, group: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)

    odd = shipped_in(folder / "$HOME")
    monkeypatch.setattr(programs, "shipped", lambda: odd)
    monkeypatch.setattr(programs, "_copy", full)
    error = refused(folder / "base")
    assert error.code == "database_unreachable"
    assert "No space left on device; set TMPDIR" in error.message
    assert not (folder / "base" / "data.new").exists()


def test_a_temporary_socket_folder_does_not_outlive_a_killed_service(folder: Path) -> None:
    base = str(folder / ("x" * 120))
    with service(base) as process:
        assert process.stdout
        url = process.stdout.readline().decode().strip()
        assert attach(base) == url
    socket = Path(str(make_url(url).query["host"]))
    assert socket.exists()
    with start(base) as running:
        assert running.folder != str(socket)
        assert not socket.exists()


def test_a_symbolic_link_and_the_real_place_are_one(folder: Path) -> None:
    (folder / "real").mkdir()
    (folder / "real").chmod(0o711)
    (folder / "link").symlink_to("real")
    with start(folder / "link" / "base") as running:
        assert attach(str(folder / "real" / "base")) == running.url
        assert refused(folder / "real" / "base").code == "database_in_use"


def test_everything_made_is_private(base: str) -> None:
    with start(base):
        found = {p.name: p.stat() for p in [Path(base), *Path(base).iterdir()]}
    account = database_account()
    assert {name for name, status in found.items() if status.st_mode & 0o007} == set()
    if not account.other:
        assert {name for name, status in found.items() if status.st_mode & 0o077} == set()
    writable = {name for name, status in found.items() if status.st_uid == account.uid}
    assert {"data", "log", "socket"} <= writable
    if account.other:
        assert writable == {"data", "log", "socket"}


@pytest.mark.parametrize("ending", ["killed", "leaves without stopping", "terminated"])
def test_the_server_ends_with_its_service(base: str, ending: str) -> None:
    with service(base) as process:
        assert process.stdout
        assert process.stdin
        url = process.stdout.readline().decode().strip()
        ask(url, "CREATE TABLE kept AS SELECT 7 AS seven")
        if ending == "killed":
            process.kill()
        elif ending == "leaves without stopping":
            process.stdin.close()
        else:
            process.send_signal(signal.SIGTERM)
        process.wait(20)
        wait_for_end(base)
        assert attach(base) is None
    with start(base) as running:
        assert ask(running, "SELECT seven FROM kept") == 7


def test_the_server_outlives_the_thread_that_asked_for_it(base: str) -> None:
    found: list[EmbeddedPostgres] = []
    thread = threading.Thread(target=lambda: found.append(start(base)))
    thread.start()
    thread.join()
    with found[0] as running:
        time.sleep(0.2)
        assert ask(running, "SELECT 1") == 1


def test_ctrl_c_at_the_terminal_is_for_the_service(base: str) -> None:
    with start(base) as running:
        (_, pid) = places.read_record(base) or ("", 0)
        assert os.getpgid(pid) != os.getpgid(0)
        assert ask(running, "SELECT 1") == 1


def test_the_next_start_waits_for_a_server_that_is_still_ending(base: str) -> None:
    with service(base) as process:
        assert process.stdout
        process.stdout.readline()
        _, pid = places.read_record(base) or ("", 0)
        os.kill(pid, signal.SIGSTOP)
        process.kill()
        process.wait()
        threading.Timer(0.5, os.kill, (pid, signal.SIGCONT)).start()
        began = time.monotonic()
        with start(base) as running:
            assert time.monotonic() - began > 0.4
            assert ask(running, "SELECT 1") == 1


def test_a_server_that_was_killed_itself_is_recovered(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody has noticed it when the service ends.
    monkeypatch.setattr(keeper, "_LOOK_S", 600.0)
    running = EmbeddedPostgres.start(base, None)
    ask(running, "CREATE TABLE kept AS SELECT 7 AS seven")
    _, pid = places.read_record(base) or ("", 0)
    os.kill(pid, signal.SIGKILL)
    running.stop()
    assert Path(base, "data", "postmaster.pid").exists()
    with start(base) as again:
        assert ask(again, "SELECT seven FROM kept") == 7


@pytest.mark.parametrize("delay_s", [0, 0.1, 0.3])
def test_killed_while_the_data_is_made(base: str, delay_s: float) -> None:
    with service(base) as process:
        fresh = Path(base, "data.new")
        while not fresh.exists():
            assert process.poll() is None
            time.sleep(0.005)
        time.sleep(delay_s)
        process.kill()
        process.wait()
        with start(base) as running:
            assert ask(running, "SELECT 1") == 1
            assert not fresh.exists()


def test_two_starts_at_the_same_moment(base: str) -> None:
    with service(base, alone=False) as one, service(base, alone=False) as two:
        winners = [process for process in (one, two) if process.stdout and process.stdout.readline()]
        assert len(winners) == 1
        error = refused(base)
        assert (error.code, error.details["pid"]) == ("database_in_use", winners[0].pid)
        assert str(winners[0].pid) in error.message
        loser = two if winners[0] is one else one
        assert loser.stderr
        assert b"is in use by" in loser.stderr.read()
    wait_for_end(base)


@pytest.mark.parametrize(
    ("base", "agents"),
    [("agents", "agents"), ("agents/main/db", "agents"), ("link/db", "agents"), ("db", "db/agents"), (".", "agents")],
)
def test_not_in_the_agents_directory_nor_around_it(folder: Path, base: str, agents: str) -> None:
    (folder / agents / "main").mkdir(parents=True)
    (folder / "link").symlink_to(folder / agents)
    before = sorted(folder.rglob("*"))
    assert refused(folder / base, folder / agents).code == "database_in_agents_dir"
    assert sorted(folder.rglob("*")) == before


def test_beside_the_agents_directory_is_fine(folder: Path) -> None:
    (folder / "agents").mkdir()
    start(folder / "agents-db", folder / "agents").stop()
    assert list((folder / "agents").iterdir()) == []


def test_not_a_folder(folder: Path) -> None:
    (folder / "file").write_text("mine")
    assert refused(folder / "file").code == "not_a_folder"
    assert refused(folder / "file" / "below").code == "not_a_folder"
    assert (folder / "file").read_text() == "mine"


def test_a_folder_that_others_may_write(folder: Path) -> None:
    (folder / "open").mkdir()
    (folder / "open").chmod(0o777)
    assert refused(folder / "open").code == "database_not_private"
    assert list((folder / "open").iterdir()) == []


def test_a_folder_of_somebody_else() -> None:
    """Root owns /usr; for root, the same is tested with a folder of nobody's."""
    if os.geteuid() == 0:
        pytest.skip("an ordinary user's test")
    assert refused("/usr").code == "database_not_owned"
    assert refused("/usr/session-manager-test").code == "not_writable"


def test_data_of_another_version(base: str) -> None:
    start(base).stop()
    Path(base, "data", "PG_VERSION").write_text("16\n")
    error = refused(base)
    assert (error.code, error.details) == ("database_version", {"found": "16", "expected": "18"})
    Path(base, "data", "PG_VERSION").write_text("18\n")
    start(base).stop()


def test_programs_missing(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = refused(base)
    assert error.code == "database_programs_missing"
    assert "pip install" in error.message
    assert "DATABASE_URL" in error.message


def test_a_server_that_does_not_start_says_why_and_leaves_nothing(base: str) -> None:
    error = refused(base, shared_buffers="a lot")
    assert error.code == "database_failed"
    assert 'invalid value for parameter "shared_buffers"' in error.message
    wait_for_end(base)
    with start(base) as running:
        assert ask(running, "SELECT 1") == 1


def test_a_damaged_server_says_why(base: str) -> None:
    start(base).stop()
    shutil.rmtree(Path(base, "data", "pg_wal"))
    error = refused(base)
    assert error.code == "database_failed"
    assert "pg_wal" in error.message


HOSTILE = {
    "PGHOST": "db.invalid",
    "PGHOSTADDR": "192.0.2.1",
    "PGPORT": "1",
    "PGUSER": "somebody",
    "PGDATABASE": "elsewhere",
    "PGPASSWORD": "secret",
    "PGSERVICE": "no such service",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGTARGETSESSIONATTRS": "standby",
    "PGDATESTYLE": "German",
    "PGDATA": "/nonexistent",
    "PGTZ": "Asia/Tokyo",
    "TZ": "Asia/Tokyo",
    "LC_ALL": "no_SUCH.locale",
}


def test_client_settings_in_the_environment_do_no_harm(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    with start(base) as running:
        ask(running, "CREATE TABLE fine (id int)")
        assert (
            ask(running, "SELECT current_setting('timezone') || ' ' || current_setting('datestyle')") == "UTC ISO, MDY"
        )
        for name, value in HOSTILE.items():
            monkeypatch.setenv(name, value)
        assert attach(base) == running.url
        assert ask(attach(base) or "", "SELECT count(*) FROM fine") == 0


def test_nobody_runs(folder: Path) -> None:
    assert attach(str(folder / "nothing")) is None


def test_a_stale_record_is_no_server(base: str) -> None:
    start(base).stop()
    places.write_record(base, os.path.join(base, "socket"), os.getpid())
    assert attach(base) is None
    with start(base) as running:
        assert attach(base) == running.url


def test_logs_are_bounded(base: str) -> None:
    start(base).stop()
    for number in range(9):
        Path(base, "log", f"postgresql-2020010{number}-000000.log").write_text("old")
    cluster.prune_logs(base)
    kept = sorted(p.name for p in Path(base, "log").iterdir())
    assert len(kept) == 5
    assert not kept[-1].startswith("postgresql-2020")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/home/a"}, "/home/a/.local/state/session-manager"),
        ({"HOME": "/home/a", "XDG_STATE_HOME": "/state"}, "/state/session-manager"),
        ({"HOME": "/home/a", "XDG_STATE_HOME": "relative"}, "/home/a/.local/state/session-manager"),
        ({"HOME": "/home/a", "XDG_STATE_HOME": ""}, "/home/a/.local/state/session-manager"),
    ],
)
@pytest.mark.parametrize("uid", [0, 1000])
def test_default_base(environ: dict[str, str], expected: str, uid: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    if uid == 0 and expected.startswith("/home"):
        expected = "/var/lib/session-manager"
    assert places.default_base(environ) == expected


def test_the_programs_are_found_without_loading_the_package() -> None:
    code = "import sys; from session_manager.service.embedded import programs; programs.shipped(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert programs.PACKAGE not in done.stdout.split()
