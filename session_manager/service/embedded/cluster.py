"""The data of the embedded server: creation, access, and the server's settings."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
from collections.abc import Mapping

from session_manager.core.errors import Failed, Refused, SessionManagerError
from session_manager.files.atomic import sync_folder
from session_manager.service.embedded import places
from session_manager.service.embedded.accounts import Account, run_as
from session_manager.service.embedded.programs import MAJOR, Programs, for_initdb

# The name of the database, and of the role that owns it. The role is no superuser, and no superuser can log in.
NAME = "session_manager"
DATA = "data"
_SUPERUSER = "postgres"
_KEPT_LOGS = 5
_TAIL_BYTES = 2000
_SETTINGS = {
    "max_connections": "50",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "min_wal_size": "32MB",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "max_logical_replication_workers": "0",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # A container's /dev/shm may be tiny or missing.
    "dynamic_shared_memory_type": "mmap",
    "io_method": "sync",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "on",
    "log_filename": "postgresql-%Y%m%d-%H%M%S.log",
    "log_rotation_size": "1MB",
    "log_rotation_age": "0",
    "log_file_mode": "0600",
    "log_checkpoints": "off",
    "log_min_messages": "warning",
}
# The kernel uses the same error for a file system and for its table of shared memory.
_FULL = re.compile(
    r"^(?!.*could not create (?:shared memory|semaphore))"
    r".*(?:No space left on device|Disk quota exceeded|free disk space)",
    re.MULTILINE,
)
_AS_CREATED = """\
CREATE ROLE {name} LOGIN CREATEDB
CREATE DATABASE {name} OWNER {name}
"""


def ensure_data(base: str, account: Account, programs: Programs, keep: int, settings: Mapping[str, str]) -> None:
    """Creates the data folder, or checks the one that is there.

    ``keep`` is a lock that the programs inherit; new data is on disk on return, unless ``settings`` switch ``fsync``
    off. Raises OSError, Refused (``database_version``, ``database_not_owned``, ``database_unreachable``, ``disk_full``)
    and Failed (``database_failed``).
    """
    data = os.path.join(base, DATA)
    fresh = f"{data}.new"
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(fresh)
    if os.path.lexists(data):
        check_data(base, account)
        return
    places.make_folder(fresh, account)
    try:
        with for_initdb(programs, account) as plain:
            _create(base, fresh, account, plain, keep, durable=settings.get("fsync") != "off")
        os.rename(fresh, data)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    sync_folder(base)


def check_data(base: str, account: Account) -> None:
    """Checks that there is data that this version of PostgreSQL can use.

    Raises OSError and Refused (``database_version``, ``database_not_owned``).
    """
    os.lstat(os.path.join(base, DATA))
    data = places.own_folder(base, DATA, account)
    version = os.path.join(data, "PG_VERSION")
    with open(version, opener=places.private, encoding="ascii", errors="replace") as file:
        found = file.read(16).strip()
    if found != MAJOR:
        raise Refused(
            f"{data} was written by PostgreSQL {found or '?'}, and this is {MAJOR}; run the service that wrote it, "
            f"dump the database there and restore it here in another folder, or set DATABASE_URL",
            code="database_version",
            found=found,
            expected=MAJOR,
        )


def _create(base: str, fresh: str, account: Account, programs: Programs, keep: int, *, durable: bool) -> None:
    initdb = [programs.path("initdb"), "--pgdata", fresh, "--username", _SUPERUSER, "--encoding", "UTF8"]
    initdb += ["--locale", "C", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--data-checksums"]
    initdb += ["--auth-local", "peer", "--auth-host", "reject", "--no-instructions"]
    single = [programs.path("postgres"), "--single", "-D", fresh, "-c", "exit_on_error=on"]
    if not durable:
        initdb += ["--no-sync"]
        single += ["-c", "fsync=off"]
    single += ["-c", "dynamic_shared_memory_type=mmap", _SUPERUSER]
    for argv, text in ((initdb, ""), (single, _AS_CREATED.format(name=NAME))):
        code, said = run_as(account, argv, cwd=base, text=text, keep=(keep,))
        if code:
            raise failure(base, f"{os.path.basename(argv[0])} ended with code {code}", said)


def failure(base: str, what: str, said: str) -> SessionManagerError:
    """Returns the error for a program that failed, with the end of its output."""
    if _FULL.search(said):
        return places.full_disk(base)
    return Failed(
        f"the embedded PostgreSQL in {base} does not start: {what}; set DATABASE_URL to use a server of your own. Its "
        f"output: {said[-_TAIL_BYTES:].strip() or 'nothing'}",
        code="database_failed",
    )


def server_arguments(base: str, folder: str, account: Account, settings: Mapping[str, str]) -> list[str]:
    """Writes the access rules, and returns the server's arguments. ``settings`` override ours, except for access.

    Raises OSError and Refused (``database_not_owned``).
    """
    config = os.path.join(base, "config")
    with contextlib.suppress(FileExistsError):
        places.make_folder(config, account, ours=True)
    people = {account.name, pwd.getpwuid(os.geteuid()).pw_name}
    texts = {
        "postgresql.conf": "# The settings are arguments of the server, given at every start.\n",
        "pg_hba.conf": f"local all {NAME} peer map=owner\n",
        "pg_ident.conf": "".join(f"owner {_quoted(person)} {NAME}\n" for person in sorted(people)),
    }
    for name, text in texts.items():
        with open(os.path.join(config, name), "w", opener=places.private, encoding="utf-8") as file:
            file.write(text)
            if account.other:
                os.fchown(file.fileno(), -1, account.gid)
                os.fchmod(file.fileno(), 0o640)
    chosen = {
        **_SETTINGS,
        "log_directory": places.own_folder(base, "log", account),
        **settings,
        "config_file": os.path.join(config, "postgresql.conf"),
        "hba_file": os.path.join(config, "pg_hba.conf"),
        "ident_file": os.path.join(config, "pg_ident.conf"),
        "listen_addresses": "",
        "port": str(places.PORT),
        "unix_socket_directories": _quoted(folder),
        "unix_socket_permissions": "0700",
    }
    return [
        "-D",
        os.path.join(base, DATA),
        *(part for name, value in chosen.items() for part in ("-c", f"{name}={value}")),
    ]


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def prune_logs(base: str) -> None:
    """Keeps the newest files of the server's log only. Raises OSError."""
    folder = os.path.join(base, "log")
    for name in sorted(os.listdir(folder))[:-_KEPT_LOGS]:
        os.unlink(os.path.join(folder, name))


def last_words(base: str) -> str:
    """Returns the end of the server's newest log. Never raises."""
    with contextlib.suppress(OSError):
        folder = os.path.join(base, "log")
        for name in sorted(os.listdir(folder))[-1:]:
            with open(os.path.join(folder, name), "rb", opener=places.private) as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
                return file.read().decode(errors="replace").strip()
    return ""
