"""Any order of gateway writes, removals, restores, kills and failures of history, against a simple model.

The model knows what is in the index, which files have which bytes, and what history must say in the end. A call that
was killed leaves its sessions in limbo: after the next call that lives each of them must be wholly live or wholly
removed, and the model takes over which.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from forks import Call, Forks
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from scene import marks, query, second_names
from small_aria import SmallAria
from support import CLOSED_API, StoreBuilder, now_ms

from session_manager.archives.names import parse_archive

SOAK = "SOAK" in os.environ
SHARDS, RUNS = (40, 50) if SOAK else (2, 8)
OLD_MINUTES = 300
NOTHING_OLD = {"max_age_minutes": 10**6}
NO_SHRINK = "NO_SHRINK" in os.environ
LIVE, REMOVED, GHOST = "live", "removed", "ghost"

which = st.integers(0, 30)
# A step at which the call is killed; most calls live.
kills = st.one_of(st.just(0), st.integers(1, 26))
moods = st.sampled_from(["ok", "ok", "ok", "500", "die", "gone"])


@dataclass
class Life:
    """What goes and comes back together: entries by key, contents by file name. An orphan has no entries."""

    session_id: str
    entries: dict[str, Any]
    files: dict[str, bytes]
    runs: set[str] = field(default_factory=set)
    removed: bool = True
    reaped: bool = False


class Machine(RuleBasedStateMachine):
    """The store, the service, and the model of both."""

    def __init__(self, fork: Forks, aria: SmallAria) -> None:
        super().__init__()
        self.fork, self.aria = fork, aria
        self.root = Path(tempfile.mkdtemp())
        fork.environ = {"ARIA_AGENTS_DIR": str(self.root / "agents"), "HOME": str(self.root)}
        aria.rows.clear()
        aria.requests.clear()
        self.mood = "ok"
        (self.root / "agents").mkdir()
        self.store = StoreBuilder(self.root / "agents")
        self.store.add("main", 1, "the-main")
        self.store.write()
        self.index: dict[str, Any] = dict(self.store.entries)
        self.files = {"the-main.jsonl": (self.store.dir / "the-main.jsonl").read_bytes()}
        self.count = 0
        # Every life that was ever removed, oldest first; what came back may be removed again, as another life.
        self.lives: list[Life] = []
        self.limbo: list[Life] = []
        # A call was killed, and no other has been made since.
        self.unended = False
        # What a message saved from limbo before a call could end it.
        self.saved: set[str] = set()
        self.ghosts: set[str] = set()
        self.orphans: set[str] = set()
        # Sessions that a message woke after their removal, with the life that was removed: a call makes them one.
        self.woken: dict[str, Life] = {}
        # None: both will do. A session that a gateway resumed is history's own business.
        self.status: dict[str, str | None] = {}
        self.runs: list[str] = []

    def teardown(self) -> None:
        try:
            self._prune_nothing()
            self._bring_all_back()
            assert self.fork("verify_ledger").document["whole"] is True
        finally:
            shutil.rmtree(self.root)

    # The gateway.

    def _gateway_writes(self, change: dict[str, Any], drop: tuple[str, ...] = ()) -> None:
        left = {k: v for k, v in self.store.read().items() if k not in drop}
        (self.store.dir / "sessions.json.lock").unlink(missing_ok=True)
        temp = self.store.dir / "sessions.json.1.tmp"
        temp.write_text(json.dumps({**left, **change}, indent=2))
        temp.rename(self.store.index)

    def _ids(self, *, ghosts: bool = False) -> list[str]:
        found = {e["sessionId"] for e in self.index.values()} - {"the-main"}
        return sorted(found if ghosts else found - self.ghosts)

    def _of(self, session_id: str) -> Life:
        """What a session is made of now."""
        entries = {k: e for k, e in self.index.items() if e["sessionId"] == session_id}
        mine = (f"{session_id}.", f"{session_id}-")
        files = {n: b for n, b in self.files.items() if n.startswith(mine) and ".reset." not in n}
        return Life(session_id, entries, files)

    @rule(key=st.integers(0, 5), alias=st.booleans(), topic=st.booleans(), young=st.booleans())
    def new_session(self, key: int, alias: bool, topic: bool, young: bool) -> None:
        actual = self.store.read()
        keys = [f"agent:main:cron:job-{key}"] + [f"agent:main:hook:extra-{key}"] * alias
        if any(k in actual for k in keys):
            return
        self._create(keys, topic, young)

    def _create(self, keys: list[str], topic: bool, young: bool) -> None:
        self.count += 1
        session_id = f"s{self.count}"
        at = now_ms() - (0 if young else OLD_MINUTES * 60_000)
        names = [f"{session_id}.jsonl"] + [f"{session_id}-topic-7.jsonl"] * topic
        for name in names:
            self.files[name] = self.store.transcript(name, session_id, at).read_bytes()
        entries = {k: {"sessionId": session_id, "updatedAt": at, "n": self.count} for k in keys}
        self._gateway_writes(entries)
        self.index |= entries
        self.aria.add(session_id)
        self.status[session_id] = "active"

    @precondition(lambda self: self._ids())
    @rule(n=which)
    def write(self, n: int) -> None:
        """A message arrives."""
        ids = self._ids()
        session_id = ids[n % len(ids)]
        life = self._of(session_id)
        key = min(life.entries)
        entry = {**life.entries[key], "updatedAt": now_ms(), "n": life.entries[key]["n"] + 1}
        self._append(session_id)
        self._gateway_writes({key: entry})
        self.index[key] = entry

    def _append(self, session_id: str) -> None:
        name = f"{session_id}.jsonl"
        other = self.store.transcript("other", session_id, now_ms())
        text = self.files[name] + other.read_bytes()
        other.unlink()
        (self.store.dir / name).write_bytes(text)
        self.files[name] = text

    @precondition(lambda self: self.limbo)
    @rule(n=which)
    def write_to_one_in_limbo(self, n: int) -> None:
        """Whatever the killed call was about: a session with a sign of life lives."""
        life = self.limbo[n % len(self.limbo)]
        actual = self.store.read()
        there = life.entries and all(actual.get(k) == e for k, e in life.entries.items())
        if not there or not all((self.store.dir / name).exists() for name in life.files) or not life.removed:
            return
        self.limbo.remove(life)
        self._revive(life)
        self.saved.add(life.session_id)
        self.write(self._ids().index(life.session_id))

    def _known(self) -> list[str]:
        """Sessions of which we have seen that they live; one that goes before that we take for removed all along."""
        return [i for i in self._ids() if i not in self.saved]

    def _kept(self) -> Any:
        path = self.root / "agents" / ".session_manager" / "kept.json"
        return json.loads(path.read_text()) if path.exists() else {"restored": {}}

    @precondition(lambda self: self._ids())
    @rule(n=which)
    def time_passes(self, n: int) -> None:
        """A session was idle for long; if it was brought back, that is days ago."""
        ids = self._ids()
        life = self._of(ids[n % len(ids)])
        kept = self._kept()
        if kept["restored"].pop(f"main/{life.session_id}", None) is not None:
            (self.root / "agents" / ".session_manager" / "kept.json").write_text(json.dumps(kept))
        at = now_ms() - OLD_MINUTES * 60_000
        entries = {k: {**e, "updatedAt": at} for k, e in life.entries.items()}
        for name in life.files:
            os.utime(self.store.dir / name, (at / 1000, at / 1000))
        # What a woken session said before its removal is older still.
        for path in self.store.dir.glob(f"{life.session_id}[.-]*.deleted.*"):
            os.utime(path, (at / 1000, at / 1000))
        self._gateway_writes(entries)
        self.index |= entries

    @precondition(lambda self: self._known())
    @rule(n=which)
    def reset(self, n: int) -> None:
        """All keys of a session get a new one, the old transcript stays as an archive of the gateway's."""
        ids = self._known()
        life = self._of(ids[n % len(ids)])
        self.woken.pop(life.session_id, None)
        for name in life.files:
            new = f"{name}.reset.2026-02-15T18-00-00.123Z"
            (self.store.dir / name).rename(self.store.dir / new)
            self.files[new] = self.files.pop(name)
        self._create(sorted(life.entries), topic=False, young=True)

    @precondition(lambda self: self._known())
    @rule(n=which)
    def lose_the_entry(self, n: int) -> None:
        """A cron run expires: the entry goes, the transcript stays.

        Of a session that was restored before, that looks like an entry that a gateway wrote away, and a restore puts
        it back: tests/functions/test_restore.py.
        """
        ids = self._known()
        life = self._of(ids[n % len(ids)])
        if len(life.files) > 1 or life.session_id in {other.session_id for other in self.lives}:
            return
        self._gateway_writes({}, tuple(life.entries))
        for key in life.entries:
            del self.index[key]
        self.orphans.add(life.session_id)

    def _gone(self) -> list[Life]:
        """The newest life of each session that is removed, whose keys are free."""
        actual = self.store.read()
        newest = {life.session_id: life for life in self.lives}
        busy = {life.session_id for life in self.limbo} | self.orphans | self.ghosts | set(self._ids())
        return [
            life
            for life in newest.values()
            if life.removed and life.entries and life.session_id not in busy and not life.entries.keys() & actual.keys()
        ]

    @precondition(lambda self: self._gone())
    @rule(n=which)
    def write_back_from_a_cache(self, n: int) -> None:
        gone = self._gone()
        life = gone[n % len(gone)]
        self._gateway_writes(life.entries)
        self.index |= life.entries
        self.ghosts.add(life.session_id)

    @precondition(lambda self: self._gone())
    @rule(n=which)
    def message_after_the_removal(self, n: int) -> None:
        """It wakes the session: the gateway writes an entry, and begins a new transcript of the same name."""
        gone = self._gone()
        life = gone[n % len(gone)]
        name = f"{life.session_id}.jsonl"
        if (self.store.dir / name).exists():
            return
        key = min(life.entries)
        self.files[name] = self.store.transcript(name, life.session_id, now_ms() + 1).read_bytes()
        entry = {"sessionId": life.session_id, "updatedAt": now_ms() + 1, "n": 0}
        self._gateway_writes({key: entry})
        self.index[key] = entry
        self.status[life.session_id] = None
        self.woken[life.session_id] = life

    def _learn_joined(self) -> None:
        """Takes over which woken sessions have been made one conversation, live or removed once more."""
        actual = self.store.read()
        for session_id, earlier in list(self.woken.items()):
            name = f"{session_id}.jsonl"
            waiting = next((life for life in self.limbo if life.session_id == session_id), None)
            entries, files = (self.index, self.files) if waiting is None else (waiting.entries, waiting.files)
            paths = [*self.store.dir.glob(f"{name}*"), *second_names(self.store.dir.parents[1]).values()]
            contents = {path.read_bytes() for path in paths if path.name.startswith(name)}
            joined = [text for text in contents if _is_joined(text, earlier.files[name], files[name])]
            if not joined:
                continue
            del self.woken[session_id]
            earlier.removed = earlier.reaped = False
            files |= {**earlier.files, name: joined[0]}
            # Keys that came back by the joining and went with the session in the same call are in no index now.
            came = {k: e for k, e in earlier.entries.items() if (actual.get(k, e) if waiting else actual.get(k)) == e}
            entries |= {k: e for k, e in came.items() if k not in entries}

    @precondition(lambda self: not self.unended)
    @rule()
    def reap(self) -> None:
        """The gateway's cron reaper deletes all archives in the folder; they are a day old by then."""
        for path in self.store.dir.glob("*.deleted.*"):
            path.unlink()
        for life in (*self.lives, *self.limbo):
            life.reaped = True

    # Calls of ours.

    def _call(self, function: str, arguments: dict[str, Any], kill_at: int, mood: str) -> Call:
        self.aria.always = {"500": (500, {}, b""), "die": "die"}.get(mood)
        url = CLOSED_API if mood == "gone" else self.aria.url
        call = self.fork(function, arguments, kill_at=kill_at, ARIA_API_URL=url)
        self.aria.always = None
        self.unended = call.killed
        assert not call.stderr, call.stderr
        assert call.exit_code in (0, 4, 5, -9), call
        return call

    def _into_limbo(self, session_ids: set[str]) -> None:
        """What a call may remove: after it each is wholly there or wholly removed."""
        for session_id in sorted(session_ids - self.ghosts - {life.session_id for life in self.limbo}):
            life = self._of(session_id)
            for key in life.entries:
                del self.index[key]
            for name in life.files:
                del self.files[name]
            self.orphans.discard(session_id)
            life.removed = False
            self.limbo.append(life)
        self._ghosts_into_limbo(session_ids)

    def _ghosts_into_limbo(self, session_ids: set[str]) -> None:
        for session_id in session_ids & self.ghosts:
            life = [one for one in self.lives if one.session_id == session_id][-1]
            if life in self.limbo:
                continue
            for key in life.entries:
                del self.index[key]
            self.limbo.append(life)

    def _resolve(self) -> dict[str, str]:
        """Takes over what became of everything in limbo: session id -> live, removed or ghost."""
        self._learn_joined()
        actual, names = self.store.read(), self.store.names()
        found = {}
        for life in self.limbo:
            session_id = life.session_id
            keys = [k for k, entry in life.entries.items() if actual.get(k) == entry]
            files = [n for n in life.files if n in names and (self.store.dir / n).read_bytes() == life.files[n]]
            assert len(keys) in (0, len(life.entries)), f"{session_id} is half there: {keys}"
            if session_id in self.ghosts and keys and not files:
                self.index |= life.entries
                found[session_id] = GHOST
                continue
            self.ghosts.discard(session_id)
            if life.entries:
                assert bool(keys) == bool(files), (session_id, keys, files, names)
            assert len(files) in (0, len(life.files)), (session_id, files, names)
            found[session_id] = LIVE if files else REMOVED
            if files:
                self._revive(life)
            elif life not in self.lives or not life.removed:
                self._bury(life)
        self.limbo.clear()
        self.saved.clear()
        self._learn_runs()
        return found

    def _revive(self, life: Life) -> None:
        self.index |= life.entries
        self.files |= life.files
        self.ghosts.discard(life.session_id)
        if life in self.lives and life.removed:
            self.status[life.session_id] = "active"
        life.removed = life.reaped = False
        if not life.entries:
            self.orphans.add(life.session_id)

    def _bury(self, life: Life) -> None:
        # What comes back and goes again is another life.
        self.lives.append(Life(life.session_id, life.entries, life.files, reaped=life.reaped))
        self.status[life.session_id] = "ended"

    def _learn_runs(self) -> None:
        """Which run took what is told by the ledger; whether that is true, a restore of the run shows."""
        rows = query(
            self.store.dir.parents[1],
            "SELECT session_id, run_id FROM removals JOIN attempts USING (attempt_id) WHERE kind = 'remove'"
            " AND removals.state = 'removed' AND attempts.state = 'done' ORDER BY removal_id",
        )
        newest = {life.session_id: life for life in self.lives if life.removed}
        for life in self.lives:
            # One that came back and went again while nobody looked is another run's now.
            life.runs &= {run_id for session_id, run_id in rows if session_id == life.session_id}
        for session_id, run_id in rows:
            if run_id not in self.runs:
                self.runs.append(run_id)
            known = {run for life in self.lives if life.session_id == session_id for run in life.runs}
            if run_id not in known and session_id in newest:
                newest[session_id].runs.add(run_id)

    def _old(self, session_id: str) -> bool:
        """Says whether a session, or an orphan, was idle for more than an hour, and was not brought back lately."""
        if f"main/{session_id}" in self._kept()["restored"]:
            return False
        since = now_ms() - 3_600_000
        life = self._of(session_id)
        if life.entries:
            return all(e["updatedAt"] < since for e in life.entries.values())
        inside = [t for text in life.files.values() for t in re.findall(rb'"timestamp":"([^"]+)"', text)]
        newest = max(os.stat(self.store.dir / name).st_mtime for name in life.files)
        return newest * 1000 < since and max(inside) < time.strftime("%FT%T", time.gmtime(since // 1000)).encode()

    @rule(kill_at=kills, mood=moods, limit=st.sampled_from([None, None, 1, 2]))
    def prune(self, kill_at: int, mood: str, limit: int | None) -> None:
        unsure = {life.session_id for life in self.limbo}
        self._into_limbo({i for i in self._ids(ghosts=True) if self._old(i) or i in self.ghosts})
        call = self._call("prune_sessions", {"limit": limit} if limit else {}, kill_at, mood)
        if call.killed:
            return
        assert call.exit_code == 0, call
        found = self._resolve()
        assert GHOST not in found.values()
        deleted = set(call.document["deleted_ids"])
        assert all(found[i] == REMOVED for i in deleted)
        if limit is None:
            assert [i for i in self._ids() if self._old(i)] == []
        else:
            assert len(deleted) <= limit
        said = deleted | {r["id"] for r in call.document.get("reappeared", [])}
        assert {i for i, state in found.items() if state == REMOVED} <= said | unsure, (found, call)

    @precondition(lambda self: self.count)
    @rule(n=which, kill_at=kills, mood=moods)
    def delete(self, n: int, kill_at: int, mood: str) -> None:
        session_id = f"s{n % self.count + 1}"
        self._into_limbo({session_id, *self.ghosts} & set(self._ids(ghosts=True)))
        call = self._call("delete_session", {"session_id": session_id}, kill_at, mood)
        if call.killed:
            return self._maybe_ended(session_id)
        found = self._resolve()
        assert found.get(session_id, REMOVED) == REMOVED or session_id in self.orphans
        if call.exit_code == 0:
            self.status[session_id] = "ended"
        else:
            assert call.exit_code == 5
            self._maybe_ended(session_id)
        return None

    def _maybe_ended(self, session_id: str) -> None:
        """A delete of what is in no index asks history, and may or may not have told it."""
        if session_id not in {e["sessionId"] for e in self.index.values()}:
            self.status[session_id] = None

    def _restore(self, lives: list[Life], function: str, arguments: dict[str, Any], kill_at: int, mood: str) -> None:
        going = [life for life in lives if life.removed]
        for life in going:
            if life.session_id in self.ghosts:
                for key in life.entries:
                    self.index.pop(key, None)
            if life not in self.limbo:
                self.limbo.append(life)
        call = self._call(function, arguments, kill_at, mood)
        if call.killed:
            return
        taken = self._conflicts(going)
        found = self._resolve()
        states = {found[life.session_id] for life in going}
        if call.exit_code == 0:
            assert states <= {LIVE}, (found, call)
        else:
            assert call.exit_code == 4, call
            assert taken, (found, call)
            assert call.document["code"] in ("key_taken", "file_exists")

    def _conflicts(self, lives: list[Life]) -> bool:
        """Says whether something is in the way of lives that are to come back."""
        actual, names = self.store.read(), self.store.names()
        return any(
            actual.get(k, {"sessionId": life.session_id})["sessionId"] != life.session_id
            for life in lives
            for k in life.entries
        ) or any(n in names for life in lives for n in life.files)

    @precondition(lambda self: self.lives)
    @rule(n=which, kill_at=kills, mood=moods)
    def restore_session(self, n: int, kill_at: int, mood: str) -> None:
        ids = sorted({life.session_id for life in self.lives} - {life.session_id for life in self.limbo})
        if not ids:
            return
        if self.woken:
            self._prune_nothing()
        session_id = ids[n % len(ids)]
        newest = [life for life in self.lives if life.session_id == session_id][-1]
        if newest.removed:
            self._restore([newest], "restore_session", {"session_id": session_id}, kill_at, mood)
        else:
            call = self._call("restore_session", {"session_id": session_id}, kill_at, mood)
            if not call.killed:
                self._resolve()
                assert call.exit_code == (0 if session_id in self._ids(ghosts=True) else 4), call

    @precondition(lambda self: self.runs)
    @rule(n=which, kill_at=kills, mood=moods)
    def restore_run(self, n: int, kill_at: int, mood: str) -> None:
        run_id = self.runs[n % len(self.runs)]
        if self.limbo:
            # Which lives are the run's is known again when the limbo is over.
            return
        if self.woken:
            self._prune_nothing()
        lives = [life for life in self.lives if run_id in life.runs]
        self._restore(lives, "restore_run", {"run_id": run_id}, kill_at, mood)

    @rule(kill_at=kills, mood=moods)
    def cleanup_orphans(self, kill_at: int, mood: str) -> None:
        going = {i for i in self.orphans if self._old(i)}
        self._into_limbo(going | self.ghosts)
        arguments = {"dry_run": False, "older_than_minutes": 60, "force": True}
        call = self._call("cleanup_orphans", arguments, kill_at, mood)
        if call.killed:
            return
        assert call.exit_code == 0, call
        found = self._resolve()
        assert GHOST not in found.values()
        assert all(found[i] == REMOVED for i in going), (found, call)

    @rule()
    def settle(self) -> None:
        """After one more ordinary call and with history in reach, history says what the files say."""
        self._prune_nothing()
        assert self._call("deliver_history", {}, 0, "ok").exit_code == 0
        states = {state for _, state in marks(self.store.dir.parents[1]).values()}
        assert states <= {"delivered", "cancelled", "superseded"}
        for session_id, status in self.status.items():
            assert status in (None, self.aria.status(session_id)), (session_id, status)

    def _prune_nothing(self) -> None:
        self._ghosts_into_limbo(set(self.ghosts))
        call = self._call("prune_sessions", NOTHING_OLD, 0, "ok")
        assert (call.exit_code, call.document["deleted_ids"]) == (0, []), call
        self._resolve()
        assert not self.woken, call
        self.is_whole()

    def _bring_all_back(self) -> None:
        """Every run that removed something takes it back, except where something else is in the way by now."""
        for run_id in reversed(self.runs):
            lives = [life for life in self.lives if run_id in life.runs and life.removed]
            blocked = [life for life in lives if self._conflicts([life])]
            self.limbo += lives
            done = self._call("restore_run", {"run_id": run_id, "skip_conflicts": True}, 0, "ok")
            assert done.exit_code == 0, done
            found = self._resolve()
            assert {life.session_id for life in blocked} == {i for i, state in found.items() if state == REMOVED}
            assert len(done.document["skipped"]) == len(blocked)
            self.is_whole()

    # What must hold.

    @invariant()
    def is_whole(self) -> None:
        """Checks everything that is sure; while a killed call waits to be ended, that the index is valid."""
        actual = self.store.read()
        if self.limbo or self.unended:
            assert all(actual[k] == e for k, e in self.index.items())
            return
        assert actual == self.index
        names = self.store.names()
        archives = Counter(
            (parsed[0], (self.store.dir / n).read_bytes())
            for n in names
            if (parsed := parse_archive(n)) is not None and parsed[1] == "deleted"
        )
        removed = [life for life in self.lives if life.removed]
        expected = Counter((n, b) for life in removed for n, b in life.files.items())
        must = Counter((n, b) for life in removed if not life.reaped for n, b in life.files.items())
        assert must <= archives <= expected
        seconds = Counter(
            (p.name.partition(".deleted.")[0], p.read_bytes()) for p in second_names(self.store.dir.parents[1]).values()
        )
        assert seconds == expected
        others = {n for n in names if ".deleted." not in n}
        assert others == {*self.files, "sessions.json"}
        assert all((self.store.dir / n).read_bytes() == b for n, b in self.files.items())


def _is_joined(text: bytes, earlier: bytes, later: bytes) -> bool:
    """Says whether a transcript is the earlier part and then all that the later one says."""
    if not text.startswith(earlier):
        return False

    def said(part: bytes) -> list[Any]:
        lines = [json.loads(line) for line in part.splitlines()]
        return [(line["timestamp"], line["message"]) for line in lines if line["type"] == "message"]

    return said(text[len(earlier) :]) == said(later)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_any_order_of_anything(shard: int, fork: Forks, aria: SmallAria) -> None:
    run_state_machine_as_test(
        lambda: Machine(fork, aria),
        settings=settings(
            max_examples=RUNS,
            stateful_step_count=25,
            deadline=None,
            # The long runs look for what is new; the short one tells whether this change broke anything.
            derandomize=not SOAK,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate] if NO_SHRINK else list(Phase),
        ),
    )
