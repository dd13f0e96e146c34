"""What the promises are tested with: a builder for each store kind, and a stage to call functions on a store."""

from __future__ import annotations

import abc
import contextlib
import json
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from support import CLOSED_API, StoreBuilder, now_ms
from tiny import LIVE, RUNNING, TinyVolume

from session_manager import functions
from session_manager.archives.names import parse_archive
from session_manager.core.session import DAY_MS
from session_manager.files import steps
from session_manager.files.liveness import iso_ms
from session_manager.functions.context import Context
from session_manager.ledger import Ledger
from session_manager.settings import Settings, read_settings
from session_manager.stores.base import Volume
from session_manager.stores.registry import open_volume

AGENT = "main"
KEYS = {"cron": "cron:{}", "main": "main", "direct": "telegram:direct:{}"}


class Builder(abc.ABC):
    """Builds one agent's store. ``texts`` are what was said in each session; no text is part of another."""

    name: ClassVar[str]

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.texts: dict[str, list[str]] = {}

    def add(
        self, session_id: str, *, age: int = 300, kind: str = "cron", pinned: bool = False, running: bool = False
    ) -> str:
        """Adds a session whose last activity was ``age`` minutes ago; returns its id."""
        key = f"agent:{AGENT}:" + KEYS[kind].format(session_id)
        self.texts[session_id] = [f"<what was said in {session_id}>"]
        self._add(session_id, key, now_ms() - age * 60_000, pinned=pinned, running=running)
        return session_id

    def say(self, session_id: str) -> None:
        """Has the owner write a new message to a session, removed or not, as it would."""
        said = self.texts[session_id]
        said.append(f"<message {len(said)} in {session_id}>")
        self._say(session_id, said[-1])

    @property
    @abc.abstractmethod
    def folder(self) -> Path:
        """The folder with the agent's sessions."""

    @abc.abstractmethod
    def begin_run(self, session_id: str) -> None:
        """Has the owner begin a run of a session, which has not said anything yet."""

    @abc.abstractmethod
    def live_file(self, session_id: str) -> str:
        """The name of the file that has what was said in a live session."""

    @abc.abstractmethod
    def volume(self, settings: Settings) -> Volume:
        """The volume as the functions get it."""

    @abc.abstractmethod
    def damage(self) -> None:
        """Makes the list of sessions unreadable."""

    @abc.abstractmethod
    def _add(self, session_id: str, key: str, at: int, *, pinned: bool, running: bool) -> None: ...

    @abc.abstractmethod
    def _say(self, session_id: str, text: str) -> None: ...


class OpenClawFiles(Builder):
    """An index, and a transcript for each session."""

    name = "openclaw_files"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._store = StoreBuilder(root, AGENT).write()
        self._keys: dict[str, str] = {}

    @property
    def folder(self) -> Path:
        return self._store.dir

    def begin_run(self, session_id: str) -> None:
        marker = {"pid": os.getpid(), "createdAt": iso_ms(now_ms())}
        (self.folder / (self.live_file(session_id) + ".lock")).write_text(json.dumps(marker))

    def live_file(self, session_id: str) -> str:
        return f"{session_id}.jsonl"

    def volume(self, settings: Settings) -> Volume:
        return open_volume(settings)

    def damage(self) -> None:
        text = self._store.index.read_bytes()
        self._store.index.write_bytes(text[: len(text) // 2])

    def _add(self, session_id: str, key: str, at: int, *, pinned: bool, running: bool) -> None:
        fields: dict[str, Any] = {"pinnedAt": at} if pinned else {}
        fields |= {"status": "running", "startedAt": now_ms()} if running else {}
        self._store.add(f"={key}", None, session_id, transcript=False, updatedAt=at, **fields)
        path = self._store.transcript(self.live_file(session_id), session_id, at)
        with path.open("a") as file:
            file.write(_line(at, self.texts[session_id][0]))
        os.utime(path, (at / 1000, at / 1000))
        self._store.write()
        self._keys[session_id] = key

    def _say(self, session_id: str, text: str) -> None:
        entries, key, path = self._store.read(), self._keys[session_id], self.folder / self.live_file(session_id)
        self._store.replace({**entries, key: {**entries.get(key, {"sessionId": session_id}), "updatedAt": now_ms()}})
        if not path.exists():
            self._store.transcript(path.name, session_id, now_ms())
        with path.open("a") as file:
            file.write(_line(now_ms(), text))


class Tiny(Builder):
    """One file for each session."""

    name = "tiny"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.folder.mkdir()
        self._headers: dict[str, str] = {}

    @property
    def folder(self) -> Path:
        return self.root / AGENT

    def begin_run(self, session_id: str) -> None:
        (self.folder / (session_id + RUNNING)).touch()

    def live_file(self, session_id: str) -> str:
        return session_id + LIVE

    def volume(self, settings: Settings) -> Volume:
        return TinyVolume(settings.agents_dir)

    def damage(self) -> None:
        path = min(self.folder.glob("*" + LIVE))
        path.write_bytes(path.read_bytes()[:7])

    def _add(self, session_id: str, key: str, at: int, *, pinned: bool, running: bool) -> None:
        self._headers[session_id] = json.dumps({"key": key, "updatedAt": at, "label": session_id, "pinned": pinned})
        path = self.folder / self.live_file(session_id)
        path.write_text(self._headers[session_id] + "\n" + _line(at, self.texts[session_id][0]))
        os.utime(path, (at / 1000, at / 1000))
        if running:
            self.begin_run(session_id)

    def _say(self, session_id: str, text: str) -> None:
        with (self.folder / self.live_file(session_id)).open("a") as file:
            begun = "" if file.tell() else self._headers[session_id] + "\n"
            file.write(begun + _line(now_ms(), text))


def _line(at: int, text: str) -> str:
    """One message, in the form of both kinds."""
    return json.dumps({"type": "message", "timestamp": iso_ms(at), "at": at, "text": text}) + "\n"


KINDS: tuple[type[Builder], ...] = (OpenClawFiles, Tiny)


class Stage:
    """A store and its functions. ``environ`` adds to the environment that the settings are read from."""

    def __init__(self, store: Builder, **environ: str) -> None:
        self.store, self.root = store, store.root
        given = {"ARIA_AGENTS_DIR": str(store.root), "ARIA_API_URL": CLOSED_API, "HOME": str(store.root.parent)}
        self.settings = read_settings({**given, **environ})
        self.volume = store.volume(self.settings)

    def __call__(self, function: str, *, days_later: int = 0, **arguments: Any) -> dict[str, Any]:
        """Calls a function, on a later day by its own clock; returns its document. Raises SessionManagerError."""
        found = functions.load(function)
        context = Context(self.settings, self.volume, lambda: now_ms() + days_later * DAY_MS)
        return found.run(context, msgspec.convert(arguments, found.arguments))

    def steps_of(self, function: str, *, kill_at: int = 0, **arguments: Any) -> list[str]:
        """Calls a function in a process of its own; kills it when so many steps are complete. Returns their names."""
        with tempfile.TemporaryFile() as log:
            with warnings.catch_warnings():
                # A worker of pytest-xdist has a second thread, which holds nothing that the child needs.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                self._as_child(log.fileno(), kill_at, function, arguments)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            log.seek(0)
            names = log.read().decode().splitlines()
            assert code == (-signal.SIGKILL if 0 < kill_at <= len(names) else 0)
            return names

    def _as_child(self, log: int, kill_at: int, function: str, arguments: dict[str, Any]) -> None:
        seen = 0

        def watch(name: str) -> None:
            nonlocal seen
            seen += 1
            os.write(log, name.encode() + b"\n")
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            steps.watcher = watch
            self(function, **arguments)
            os._exit(0)
        finally:
            os._exit(1)

    @contextlib.contextmanager
    def meanwhile(self, at: int, act: Callable[[], object]) -> Iterator[list[str]]:
        """Has something happen when the step of that number is complete; yields the names of the steps so far."""
        seen: list[str] = []

        def watch(name: str) -> None:
            seen.append(name)
            if len(seen) == at:
                act()

        steps.watcher = watch
        try:
            yield seen
        finally:
            steps.watcher = None

    def ids(self) -> set[str]:
        """The ids of the live sessions, as the store lists them."""
        store = self.volume.store(AGENT)
        return set() if store is None else {session.id for session in store.read(now_ms()).sessions}

    def marks(self) -> dict[str, tuple[str, str] | None]:
        """What history has been told, or will be, of each session that was ever removed."""
        with Ledger.open(self.settings) as ledger:
            return {removed.session_id: removed.mark for removed in reversed(ledger.removals())}

    def picture(self) -> dict[str, tuple[int, int, bytes]]:
        """Every path below the root, and what is there: mode, mtime and bytes."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            status = path.lstat()
            data = path.read_bytes() if path.is_file() else b""
            found[str(path.relative_to(self.root))] = (status.st_mode, status.st_mtime_ns, data)
        return found

    def files(self) -> dict[str, bytes]:
        """The names and bytes of the files in the store; our own lock is none of its files."""
        return {
            p.name: p.read_bytes() for p in self.store.folder.iterdir() if not p.name.startswith(".session_manager")
        }

    def where(self, text: str) -> tuple[list[str], list[str]]:
        """The names of the files in the store, and of those in the state directory, that hold a text."""
        found = [p for p in self.root.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]
        state = Path(self.settings.state_dir)
        return sorted(p.name for p in found if state not in p.parents), [p.name for p in found if state in p.parents]

    def removed(self) -> set[str]:
        """The ids of the removed sessions. Checks that each session is wholly live, or wholly removed."""
        live, removed = self.ids(), set()
        for session_id, texts in self.store.texts.items():
            for text in texts:
                here, second = self.where(text)
                if session_id in live:
                    assert here == [self.store.live_file(session_id)], (session_id, here)
                    assert second == [], (session_id, second)
                else:
                    removed.add(session_id)
                    (name,) = here
                    assert parse_archive(name) is not None
                    assert second == [name], (session_id, second)
        return removed
