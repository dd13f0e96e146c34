"""An index behind a byte order mark, in UTF-16, or after somebody's notes: named as what it is, and rebuilt whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import Skill, StoreBuilder, now_ms, picture

from session_manager.core.errors import Damaged
from session_manager.core.index import Index
from session_manager.stores.openclaw_files.readoption import salvage
from session_manager.stores.openclaw_files.store import Store
from session_manager.stores.openclaw_files.wrapping import trouble, unwrapped

READOPT = "readopt_orphans"
REBUILD = {"dry_run": False, "rebuild": True}
OLD = 3 * 86_400_000
ENCODINGS = ("utf-8-sig", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
MARKS = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff", "utf-32-le": b"\xff\xfe\0\0", "utf-32-be": b"\0\0\xfe\xff"}
BEFORE = [
    "// edited by hand\n",
    "# edited by hand {see #12}\n",
    "/* kept from\n * {the old} machine: it's \"fine\" */\n",
    "\n\n  \t// one\n\n# two\n",
    "module.exports = ",
    "2026-02-15 18:00:00 wrote {} and {\"x\": 1}\n",
    "\0\0\0",
]  # fmt: skip


def wrapped(text: str, encoding: str, mark: bool = True) -> bytes:
    return (MARKS.get(encoding, b"") if mark else b"") + text.encode(encoding)


def build(agents: Path) -> StoreBuilder:
    store = StoreBuilder(agents)
    store.add("main", 300, "m", label="schön 📈 // no comment", big=12345678901234567890, url="http://a/b#c")
    store.add("cron:a", 300, "a", pinnedAt=1_771_180_200_000, origin={"label": "x", "to": '"{'})
    store.add("telegram:direct:1", 300, "d", deliveryContext={"channel": "telegram", "to": "1"})
    store.entries["agent:main:dm:nobody"] = {"updatedAt": 1_771_180_200_000}
    store.transcript("lost.jsonl", "lost", now_ms() - OLD)
    return store.write()


def rebuilt(skill: Skill, store: StoreBuilder, data: bytes) -> dict[str, Any]:
    store.index.write_bytes(data)
    before = picture(store.dir)
    plan = skill(READOPT, {"rebuild": True}).document
    assert picture(store.dir) == before
    document = skill(READOPT, REBUILD).document
    assert (document["salvaged_entries"], document["adopted"]) == (plan["salvaged_entries"], plan["adopted"])
    (kept,) = store.dir.glob("sessions.json.damaged.*")
    assert kept.read_bytes() == data
    return document


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_index_in_another_encoding_comes_back_whole(agents: Path, skill: Skill, encoding: str) -> None:
    store = build(agents)
    text = store.index.read_text()
    document = rebuilt(skill, store, wrapped(text, encoding))
    assert document["salvaged_entries"] == 4
    assert [(a["id"], a["key"]) for a in document["adopted"]] == [("lost", "agent:main:dashboard:lost")]
    # What was there stands there as it did; the lost one is added behind it.
    assert store.index.read_text().startswith(text[:-2])
    assert skill("list_sessions").document["session_count"] == 4
    assert {k["id"]: k["reason"] for k in skill("prune_sessions", {"dry_run": True}).document["kept"]}["a"] == "pinned"


@pytest.mark.parametrize("before", BEFORE)
def test_an_index_after_notes_comes_back_whole(agents: Path, skill: Skill, before: str) -> None:
    store = build(agents)
    (store.dir / "lost.jsonl").unlink()
    text = store.index.read_text()
    assert rebuilt(skill, store, (before + text).encode())["salvaged_entries"] == 4
    assert store.index.read_text() == text


def test_notes_between_entries_and_after_them(agents: Path, skill: Skill) -> None:
    store = build(agents)
    text = store.index.read_text()
    noted = text.replace(',\n  "agent', ', // {\n  /* "x": { */\n  "agent') + "\n# the end\n"
    assert rebuilt(skill, store, noted.encode())["salvaged_entries"] == 4
    left = store.read()
    assert {k: left[k] for k in store.entries} == store.entries


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_wrapped_index_that_is_cut_off_gives_back_its_beginning(agents: Path, skill: Skill, encoding: str) -> None:
    store = build(agents)
    text = store.index.read_text()
    data = wrapped(text, encoding)
    cut = len(wrapped(text[: text.index("telegram:direct:1") + 30], encoding)) + 1
    document = rebuilt(skill, store, data[:cut])
    assert (document["salvaged_entries"], document["adopted_count"]) == (2, 2)
    assert store.read()["agent:main:cron:a"] == store.entries["agent:main:cron:a"]


def test_half_an_emoji_survives_utf_16(agents: Path, skill: Skill) -> None:
    store = build(agents)
    text = store.index.read_text().replace("📈", "\ud83d")
    data = b"\xff\xfe" + text.encode("utf-16-le", "surrogatepass")
    rebuilt(skill, store, data)
    assert b'"sch\xc3\xb6n \\ud83d // no comment"' in store.index.read_bytes()
    assert store.read()["agent:main:main"]["label"] == "schön \ud83d // no comment"


def test_an_entry_of_a_part_is_not_taken_for_the_whole(agents: Path, skill: Skill) -> None:
    store = build(agents)
    nested = {"cliSessionBindings": {"claude": {"sessionId": "not-a-session"}}}
    store.entries = {"agent:main:main": {"sessionId": "m", **nested}}
    text = store.write().index.read_text()
    rebuilt(skill, store, text[text.index('"cliSessionBindings') :].encode())
    assert "claude" not in store.read()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "byte order mark"),
        (b"\xff\xfe" + "{}".encode("utf-16-le"), "UTF-16, little-endian"),
        (b"\xfe\xff" + "{}".encode("utf-16-be"), "UTF-16, big-endian"),
        ("{}".encode("utf-16-le"), "UTF-16, little-endian"),
        ("{}".encode("utf-16-be"), "UTF-16, big-endian"),
        (b"\xff\xfe\0\0" + "{}".encode("utf-32-le"), "UTF-32"),
        ("{}".encode("utf-32-be"), "UTF-32"),
        (b"// mine\n{}", "before its first brace"),
        (b"", "0 bytes"),
        (b"{", "not a readable JSON object"),
        (b"{\0\0\0\0\0\0\0\0", "not a readable JSON object"),
        (b"\0" * 50, "not a readable JSON object"),
        (b"[]", "not a readable JSON object"),
    ],
)
def test_the_sentence_names_what_is_wrong(agents: Path, skill: Skill, data: bytes, said: str) -> None:
    build(agents).index.write_bytes(data)
    answer = skill("list_sessions")
    assert (answer.exit_code, answer.document["code"]) == (7, "index_damaged")
    assert said in answer.document["error"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_a_wrapped_index_mentions_is_no_orphan_of_another(agents: Path, skill: Skill, encoding: str) -> None:
    store = build(agents)
    other = StoreBuilder(agents, "other")
    other.add("cron:b", 300, "b", sessionFile="/home/node/.openclaw/agents/main/sessions/lost.jsonl")
    other.write()
    other.index.write_bytes(wrapped(other.index.read_text(), encoding))
    document = skill("cleanup_orphans", {"dry_run": False}).document
    assert [(e["agentId"], e["code"]) for e in document["errors"]] == [("other", "index_damaged")]
    assert document["archived"] == []
    assert (store.dir / "lost.jsonl").exists()


@pytest.mark.parametrize("encoding", ENCODINGS[:3])
def test_a_copy_in_another_encoding_that_holds_an_erased_id_is_named(agents: Path, skill: Skill, encoding: str) -> None:
    store = build(agents)
    (store.dir / "sessions.json.copy").write_bytes(wrapped(store.index.read_text(), encoding))
    store.add("hook:later", 300, "later")
    store.write()
    for session_id, named in (("later", False), ("d", True)):
        arguments = {"session_id": session_id, "confirm": session_id}
        document = skill("erase_session", arguments, ARIA_ALLOW_ERASE="1").document
        places = [place["place"] for place in document["not_reached"]]
        assert ("main/sessions/sessions.json.copy" in places) is named


# Properties.

keys = st.text(min_size=1, max_size=12).map(lambda text: f"agent:main:{text}")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
entries = st.dictionaries(
    keys,
    st.dictionaries(st.text(max_size=6), values, max_size=4).map(lambda entry: {**entry, "sessionId": "s"}),
    min_size=1,
    max_size=4,
)


@given(entries, st.sampled_from(ENCODINGS), st.booleans(), st.sampled_from(["", *BEFORE[:4]]), st.booleans())
def test_any_index_comes_back_from_any_wrapping(
    tmp_path_factory: pytest.TempPathFactory,
    content: dict[str, Any], encoding: str, mark: bool, before: str, pretty: bool,
) -> None:  # fmt: skip
    text = before + json.dumps(content, indent=2 if pretty else None, ensure_ascii=False)
    folder = tmp_path_factory.mktemp("index", numbered=True)
    path = folder / "sessions.json"
    data = wrapped(text, encoding, mark or not text.isascii())
    path.write_bytes(data)
    snapshot, _ = salvage(Store("main", str(folder), str(path), "main:1"), Damaged("it is"))
    assert snapshot.index is not None
    assert json.loads(snapshot.index.data) == content
    assert trouble(data) is not None


@given(st.binary(max_size=300))
def test_no_bytes_make_a_rebuild_raise(data: bytes) -> None:
    trouble(data)
    for text in (unwrapped(data), unwrapped(b"\xff\xfe" + data), unwrapped(b"\xfe\xff" + data)):
        text.decode("utf-8", "replace")


@given(st.text(max_size=200))
def test_unwrapping_keeps_the_text(text: str) -> None:
    for encoding in ("utf-16-le", "utf-16-be"):
        assert unwrapped(wrapped(text, encoding)).decode() == text.lstrip("\ufeff")
    data = text.encode()
    assert unwrapped(b"\xef\xbb\xbf" + data) == text.lstrip("\ufeff").encode()


def test_a_long_broken_index_costs_no_more_than_it_is_long() -> None:
    from session_manager.stores.openclaw_files.readoption import _most_of

    whole = json.dumps({f"agent:main:cron:{i}": {"sessionId": f"s{i}", "x": {"y": [{}]}} for i in range(5000)})
    assert len(_most_of(whole[:-20].encode()).entries) == 4999
    assert len(_most_of(b"{" * 100_000).entries) == 0
    assert isinstance(_most_of(b'{"a":[' * 20_000), Index)
