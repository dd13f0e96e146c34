"""Scans and single files on a file system that exists in memory only: no locks, no processes, no other programs."""

from __future__ import annotations

import os

import pytest
from pyfakefs.fake_filesystem import FakeFilesystem

from session_manager.core.errors import Damaged, Refused, UsageError
from session_manager.files.atomic import clear_errors, write_new
from session_manager.functions.context import Context
from session_manager.functions.policy import with_policy
from session_manager.settings import read_settings
from session_manager.stores.openclaw_files.orphans import classify
from session_manager.stores.openclaw_files.store import Store, listing
from session_manager.stores.openclaw_files.volume import Volume

AGENTS = "/home/ann/.openclaw/agents"


@pytest.fixture
def volume(fs: FakeFilesystem) -> Volume:
    """An agents directory with one agent."""
    fs.create_file(f"{AGENTS}/main/sessions/sessions.json", contents="{}")
    return Volume(AGENTS)


def context(volume: Volume, **environ: str) -> Context:
    return Context(read_settings({"ARIA_AGENTS_DIR": volume.root, "HOME": "/home/ann", **environ}), volume, lambda: 0)


def store_of(volume: Volume) -> Store:
    store = volume.store("main")
    assert store is not None
    return store


def test_every_name_of_a_large_folder_has_a_class(fs: FakeFilesystem, volume: Volume) -> None:
    kinds = {
        "{}.jsonl": "true_orphan",
        "{}-topic-7.jsonl": "topic_file",
        "{}.jsonl.deleted.2026-02-15T18-00-00.123Z": "deleted_archive",
        "{}.jsonl.reset.2026-02-15T18-00-00Z": "reset_archive",
        "{}.trajectory.jsonl": "sidecar",
        "{}.txt": "other",
    }
    for number in range(500):
        for pattern in kinds:
            fs.create_file(f"{AGENTS}/main/sessions/{pattern.format(f'id{number}')}")
    store = store_of(volume)
    folder = classify(store, listing(store), [], (), ())
    counted = {kind: count for kind, (count, _) in folder.counted().items() if count}
    assert counted.pop("other") == 501
    assert counted == dict.fromkeys(sorted(set(kinds.values()) - {"other"}), 500)


def test_a_policy_of_any_kind_of_file_is_read_or_named(fs: FakeFilesystem, volume: Volume) -> None:
    path = f"{AGENTS}/.session_manager/session-manager.toml"
    assert with_policy(context(volume)).policy is None
    fs.create_file(path, contents='[types.cron]\nmax_age = "2h"\n')
    policy = with_policy(context(volume)).policy
    assert policy is not None
    assert policy.rules["cron"].max_age_minutes == 120
    for contents in (b"\xff\xfe[", b"[types.cron]\nmax_agee = 1\n", b""):
        os.unlink(path)
        fs.create_file(path, contents=contents)
        with pytest.raises(UsageError) as error:
            with_policy(context(volume))
        assert error.value.code == "bad_policy"
        assert path in error.value.message
    os.unlink(path)
    fs.create_dir(path)
    with pytest.raises((UsageError, Damaged, Refused)) as refused:
        with_policy(context(volume))
    assert path in refused.value.message


def test_a_full_disk_leaves_no_half_of_an_index(fs: FakeFilesystem, volume: Volume) -> None:
    store = store_of(volume)
    like = os.stat(store.index_path)
    fs.set_disk_usage(fs.get_disk_usage().used + 100)
    path = f"{store.sessions_dir}/new"
    with pytest.raises(Refused) as error, clear_errors("write", path):
        write_new(path, b"x" * 1000, like)
    assert error.value.code == "disk_full"
    assert os.listdir(store.sessions_dir) == ["sessions.json"]
