"""Every test runs in an environment of its own: no variable, no home and no aria-api of the machine reaches it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
ROOMS = sorted(str(path) for path in (ROOT / "tests").iterdir() if path.is_dir())
sys.path[:0] = [str(ROOT), str(ROOT / "fixtures"), str(ROOT / "tests"), *ROOMS]

from chats import Chats  # noqa: E402
from forks import Forks  # noqa: E402
from revive import revive  # noqa: E402
from service import Databases, Service, databases, running  # noqa: E402
from small_aria import SmallAria  # noqa: E402
from small_model import SmallModel, small_model  # noqa: E402
from support import CLOSED_API, Skill  # noqa: E402

from session_manager.files import steps  # noqa: E402
from session_manager.stores.openclaw_files import removal  # noqa: E402

# A checkout may be read-only; what a run finds is printed with the example itself.
settings.register_profile("here", database=None, deadline=None)
settings.load_profile("here")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what runs on the server of this worker, so that it can be run on another one."""
    for item in items:
        if isinstance(item, pytest.Function) and "server" in item.fixturenames:
            item.add_marker("database")


@pytest.fixture(autouse=True)
def _isolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("ARIA_", "OPENCLAW_", "CLAWDBOT_", "XDG_", "SESSION_CLEANUP_")) or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ARIA_API_URL", CLOSED_API)


@pytest.fixture
def sixteen(tmp_path: Path) -> Path:
    """The mission's example as an agents directory, 14 of 16 sessions older than an hour."""
    return revive("sixteen", tmp_path / "agents")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """One agent with everything that real stores hold."""
    return revive("mixed", tmp_path / "agents")


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    """An empty agents directory."""
    path = tmp_path / "agents"
    path.mkdir()
    return path


@pytest.fixture
def skill(tmp_path: Path) -> Iterator[Skill]:
    """Calls the real runner on ``tmp_path / "agents"``."""
    return Skill(tmp_path / "agents")


@pytest.fixture(scope="session", autouse=True)
def _no_second_thoughts() -> None:
    """No gateway of a test's takes its time: what it writes after a call let go, it writes at a step."""
    removal.SECOND_LOOK_S = 0.0


@pytest.fixture(scope="session", autouse=True)
def _one_parent_of_services() -> Iterator[None]:
    yield
    Service.forks.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Databases]:
    """A real PostgreSQL for this worker, with a template that Alembic has migrated."""
    with databases() as found:
        yield found


@pytest.fixture
def database(server: Databases) -> Iterator[str]:
    """The SQLAlchemy URL of a migrated database of this test's own."""
    url = server.create()
    yield url
    server.drop(url)


@pytest.fixture(scope="module")
def shared_service(server: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for a module's tests, which keep out of each other's way by names; it has no volume."""
    url = server.create()
    log = tmp_path_factory.mktemp("service") / "log"
    with running(log, DATABASE_URL=url, HOME=str(log.parent)) as service:
        yield service
    server.drop(url)


@pytest.fixture
def client(shared_service: Service) -> httpx.Client:
    """Asks the shared service."""
    return shared_service.client


@pytest.fixture
def chats(server: Databases, shared_service: Service) -> Chats:
    """The database of the shared service, with no conversation in it."""
    return Chats.of(server, shared_service)


@pytest.fixture
def aria() -> Iterator[SmallAria]:
    """An aria-api that takes marks in bulk."""
    service = SmallAria()
    yield service
    service.stop()


@pytest.fixture
def older_aria() -> Iterator[SmallAria]:
    """An aria-api that knows one row at a time."""
    service = SmallAria(older=True)
    yield service
    service.stop()


@pytest.fixture(scope="session", autouse=True)
def one_parent() -> Iterator[Forks]:
    """The parent of this worker's forked calls."""
    with Forks() as found:
        Skill.forks = found
        yield found
        Skill.forks = None


@pytest.fixture
def fork(one_parent: Forks, agents: Path) -> Forks:
    """Calls of the runner on ``agents``, each in a forked process; history cannot be reached."""
    one_parent.environ = {"ARIA_AGENTS_DIR": str(agents), "ARIA_API_URL": CLOSED_API, "HOME": str(agents.parent)}
    return one_parent


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[], object]], None]:
    """Has something happen when a named step has been completed for the first time."""

    def arrange(name: str, act: Callable[[], object]) -> None:
        done = False

        def watch(step: str) -> None:
            nonlocal done
            if step == name and not done:
                done = True
                act()

        monkeypatch.setattr(steps, "watcher", watch)

    return arrange


@pytest.fixture(scope="module")
def model() -> Iterator[SmallModel]:
    """An endpoint with a model, for a module's tests."""
    with small_model() as found:
        yield found


@pytest.fixture(scope="module")
def service(server: Databases, model: SmallModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with that model behind it."""
    url = server.create()
    log = tmp_path_factory.mktemp("service") / "log"
    with running(log, DATABASE_URL=url, HOME=str(log.parent), **model.env) as found:
        yield found
    server.drop(url)
