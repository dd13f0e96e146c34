"""references/ is true: functions.md says what the functions take and return, and every link leads somewhere."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shlex
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from consoles import PAGES, sections
from service import Service
from support import ROOT, Skill, StoreBuilder, now_ms

from session_manager.core import errors
from session_manager.core.errors import PARTIAL_EXIT_CODE, SessionManagerError
from session_manager.core.keys import KINDS, parse_key
from session_manager.core.orphans import CLASSES
from session_manager.core.session import Entry
from session_manager.faces.runner import USAGE, catalogue_entry
from session_manager.files.liveness import STORE_STALE_MS, TRANSCRIPT_STALE_MS, Payload
from session_manager.functions import NAMES, load
from session_manager.service import problems
from session_manager.service.model import base

FUNCTIONS, STORE_FORMAT = sections("functions.md"), sections("store-format.md")
# What a dry run of each function is called with; the others have none.
DRY = {name for name in NAMES if "dry_run" in load(name).arguments.__struct_fields__}
# Of the erasing functions and of what is done twice.
ID = "0f7c4c1e-3a54-4a8e-9b55-5b6a3c1d2e3f"
RUN = "the run of a removal"
CALLS: dict[str, list[dict[str, Any]]] = {
    "list_sessions": [{}, {"sizes": True}],
    "show_session": [{"session_id": ID}],
    "get_session_stats": [{}],
    "prune_sessions": [{"dry_run": True}, {"dry_run": True, "details": True, "limit": 1}, {}],
    "delete_session": [{"session_id": ID}, {"session_id": ID}],
    "delete_sessions": [{"label": "*", "details": True}, {"label": "*", "dry_run": False}],
    "cleanup_after_delegation": [{"session_id": ID}, {"session_id": ID}],
    "deliver_history": [{}],
    "cleanup_orphans": [{}, {"dry_run": False}],
    "readopt_orphans": [{}, {"dry_run": False}],
    "purge_archives": [{}, {"details": True}, {"dry_run": False}],
    "erase_session": [{"session_id": ID, "confirm": ID}, {"session_id": ID, "confirm": ID}],
    "cleanup_ghosts": [{}, {"dry_run": False}],
    "list_deleted": [{}],
    "restore_session": [{"session_id": RUN}, {"session_id": ID}],
    "restore_run": [{"run_id": RUN}],
    "pin_session": [{"session_id": ID}, {"session_id": ID}],
    "unpin_session": [{"session_id": ID}],
    "verify_ledger": [{}],
    "doctor": [{}],
    "check_policy": [{}],
}


def table(section: str, head: str) -> list[list[str]]:
    """The rows of the table whose first heading is ``head``."""
    found = re.search(rf"^\| {head} \|.*\n\|[-| ]+\|\n((?:\|.*\n)*)", section, re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in found[1].splitlines()] if found else []


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize(
    "page", [*sorted(PAGES.glob("*.md")), ROOT / "README.md", ROOT / "skill.md"], ids=lambda p: p.name
)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert not target.startswith("http"), "what is on other hosts cannot be tested here"
        file, _, anchor = target.partition("#")
        found = page.parent / file if file else page
        assert found.exists(), target
        titles = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE) if found.suffix == ".md" else []
        slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not anchor or anchor in slugs, target


def test_every_function_has_its_section_in_the_order_of_the_catalogue() -> None:
    assert [title for title in FUNCTIONS if title in NAMES] == list(NAMES)


def shown_type(schema: dict[str, Any]) -> str:
    """A JSON Schema as the page writes it: what null stands for is the default's matter."""
    kinds = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    if len(kinds) > 1:
        return " or ".join(map(shown_type, kinds))
    (kind,) = kinds
    if kind["type"] == "array":
        return f"list of {kind['items']['type']}s"
    if "maximum" in kind:
        return f"{kind['type']}, {kind['minimum']} to {kind['maximum']}"
    return f"{kind['type']}, at least {kind['minimum']}" if "minimum" in kind else str(kind["type"])


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_there_with_its_type_bounds_and_default(name: str) -> None:
    function = load(name)
    schema = catalogue_entry(function)["arguments"]
    expected = []
    for field in msgspec.structs.fields(function.arguments):
        default = "required" if field.required else "left out"
        if field.default not in (msgspec.NODEFAULT, msgspec.UNSET):
            default = f"`{json.dumps(field.default)}`"
        expected.append([f"`{field.name}`", shown_type(schema["properties"][field.name]), default])
    assert sorted(row[:3] for row in table(FUNCTIONS[name], "argument")) == sorted(expected)
    assert ("takes no arguments" in " ".join(FUNCTIONS[name].split())) == (not expected)


@pytest.fixture
def store(agents: Path) -> StoreBuilder:
    """A store with something for every function."""
    store = StoreBuilder(agents)
    store.add("subagent:finished", 2000, ID, label="done")
    store.add("cron:daily", 3000, "daily", label="Daily")
    store.add("cron:empty", 4000, "empty")
    store.add("direct:ann", 2000, "ann", label="Ann")
    store.add("main", 2000, "the-main")
    store.add("explicit:lost", 9000, "lost")
    store.add("explicit:gone", 9000, "gone", transcript=False)
    del store.entries["agent:main:explicit:lost"]
    (store.dir / "empty.jsonl").write_text((store.dir / "empty.jsonl").read_text().splitlines()[0] + "\n")
    (store.dir / "old.jsonl.deleted.2026-01-05T10-00-00.000Z").write_text("{}\n")
    return store.write()


def documents(name: str, skill: Skill) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Calls a function as ``CALLS`` says: the arguments, and the document of each."""
    run = "none"
    if any(RUN in arguments.values() for arguments in CALLS[name]):
        run = skill("delete_session", {"session_id": ID}).document["run_id"]
    elif name in ("list_deleted", "show_session"):
        skill("delete_session", {"session_id": ID})
    for arguments in CALLS[name]:
        given = {key: (run if key == "run_id" else ID) if value == RUN else value for key, value in arguments.items()}
        answer = skill(name, given)
        assert answer.exit_code == 0, answer.document
        yield given, answer.document


def check_fields(name: str, given: dict[str, Any], document: dict[str, Any]) -> None:
    fields = {field: row[1] for row in table(FUNCTIONS[name], "field") for field in names(row[0])}
    dry = name in DRY and document["dry_run"]
    required = {"always", "dry run" if dry else "real run"}
    possible = {*required, "sometimes", f"sometimes, {'dry' if dry else 'real'} run"}
    assert set(fields.values()) <= {
        "always",
        "real run",
        "dry run",
        "sometimes",
        "sometimes, real run",
        "sometimes, dry run",
    }
    assert {field for field, when in fields.items() if when in required} - set(document) == set(), given
    assert set(document) - {field for field, when in fields.items() if when in possible} == set(), given
    for row in table(FUNCTIONS[name], "field"):
        for field in names(row[0]):
            check_inside(row[2] if len(row) > 2 else "", document.get(field))


def check_inside(told: str, value: Any) -> None:
    """The members of rows are named where their field is, or where rows of that kind are told of once for all."""
    rows = value if isinstance(value, list) else [value]
    common = FUNCTIONS["What results have in common"]
    known = set(names(told))
    for word, start in (
        ("session's row", "**A session's row**"),
        ("sessions' rows", "**A session's row**"),
        ("removals' rows", "**A removal's row**"),
    ):
        if word in told:
            known |= set(names(common.split(start)[1].split("\n\n")[0]))
    if " to count" in told or "agent to" in told or "for each agent `" in told or not known:
        return
    for row in rows:
        if isinstance(row, dict):
            assert set(row) <= known, (told, set(row) - known)


@pytest.mark.parametrize("name", NAMES)
def test_every_field_of_every_result_is_there(name: str, store: StoreBuilder, skill: Skill) -> None:
    skill.env = {"ARIA_API_URL": "" if name == "doctor" else None, "ARIA_ALLOW_ERASE": "1"}
    if skill.env["ARIA_API_URL"] is None:
        del skill.env["ARIA_API_URL"]
    found = [check_fields(name, given, document) or document for given, document in documents(name, skill)]
    fields = [(field, row[1]) for row in table(FUNCTIONS[name], "field") for field in names(row[0])]
    assert [field for field, when in fields if "sometimes" not in when and not any(field in d for d in found)] == []


@pytest.mark.parametrize("name", ["prune_sessions", "delete_session", "cleanup_ghosts", "restore_run", "erase_session"])
def test_the_fields_with_history_are_there_too(
    name: str, store: StoreBuilder, skill: Skill, shared_service: Service
) -> None:
    skill.env = {"ARIA_API_URL": shared_service.api, "ARIA_ALLOW_ERASE": "1"}
    for given, document in documents(name, skill):
        check_fields(name, given, document)
        assert "database_ghosts" not in document or document["database_ghosts"] is not None


def test_the_fields_by_a_policy_are_there_too(store: StoreBuilder, skill: Skill, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[types.cron]\nmax_age = "1h"\n[agents]\nbudget = "1 B"\n')
    skill.env = {"ARIA_POLICY": str(policy)}
    for name in ("check_policy", "prune_sessions"):
        for given, document in documents(name, skill):
            check_fields(name, given, document)
            assert document["policy"] == str(policy)
    policy.write_text("nonsense")
    for name in ("list_sessions", "get_session_stats", "show_session"):
        document = skill(name, {} if name != "show_session" else {"session_id": "ann"}).document
        check_fields(name, {}, document)
        assert "policy_error" in document


def test_a_result_in_part_has_the_fields_of_the_page(store: StoreBuilder, skill: Skill) -> None:
    other = store.dir.parents[1] / "broken" / "sessions"
    other.mkdir(parents=True)
    (other / "sessions.json").write_text("{")
    for name in NAMES:
        of_one = ("pin_session", "unpin_session", "restore_run", "restore_session")
        if name in (*of_one, "deliver_history", "list_deleted", "verify_ledger", "doctor"):
            continue
        answer = skill(name, CALLS[name][0], ARIA_ALLOW_ERASE="1")
        assert (answer.exit_code, answer.document["code"]) == (PARTIAL_EXIT_CODE, "partial"), name
        assert {tuple(each) for each in answer.document["errors"]} == {("agentId", "id", "code", "error")}
        check_fields(name, CALLS[name][0], answer.document)


ROOMS = ("functions", "stores", "archives", "ledger", "files", "core")


def test_what_comes_sometimes_has_its_name_in_the_sources() -> None:
    sources = "".join(path.read_text() for room in ROOMS for path in sources_of(room))
    for name in NAMES:
        for row in table(FUNCTIONS[name], "field"):
            for field in names(row[0]):
                assert f'"{field}"' in sources, (name, field)
    for row in table(FUNCTIONS["What results have in common"], "field"):
        assert all(f'"{field}"' in sources for field in names(row[0])), row


def sources_of(room: str) -> list[Path]:
    return sorted((ROOT / "session_manager" / room).rglob("*.py"))


def constants(tree: ast.AST) -> dict[str, str]:
    """The names that a module gives to texts, by one assignment or several in a line."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            target = node.targets[0]
            targets, values = ([target], [node.value])
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                targets, values = target.elts, node.value.elts
            for name, value in zip(targets, values, strict=True):
                if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[name.id] = value.value
    return found


def raised() -> set[tuple[str, int]]:
    """Every code that the skill's sources give an error, with the exit code of its class."""
    trees = [
        ast.parse(path.read_text())
        for path in [
            *(p for room in (*ROOMS, "gateway", "history") for p in sources_of(room)),
            *sources_of("faces"),
        ]
        if path.parent.name != "cli" and path.name not in ("mcp_server.py", "skill_folder.py")
    ] + [ast.parse((ROOT / "session_manager" / "settings.py").read_text())]
    known = {name: text for tree in trees for name, text in constants(tree).items()}
    found = set()
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)):
        kind = getattr(errors, node.func.id, None) if isinstance(node.func, ast.Name) else None
        if not (isinstance(kind, type) and issubclass(kind, SessionManagerError)) or kind is SessionManagerError:
            continue
        given = next((word.value for word in node.keywords if word.arg == "code"), ast.Constant(kind.default_code))
        for each in (given.body, given.orelse) if isinstance(given, ast.IfExp) else (given,):
            if isinstance(each, ast.Name):
                found.add((known[each.id], kind.exit_code))
            elif isinstance(each, ast.Constant):
                found.add((str(each.value), kind.exit_code))
    return found


def test_every_code_is_there_with_its_exit_code() -> None:
    rows = [(names(row[0])[0], int(row[1])) for row in table(FUNCTIONS["Failures"], "code")]
    assert len(rows) == len(dict(rows))
    by_hand = {("partial", PARTIAL_EXIT_CODE), ("python_too_old", 70), ("key_taken", 4)}
    # It is a wrong setting, and doctor's own answer about aria-api.
    assert set(rows) == (raised() | by_hand) - {("bad_setting", 70)}
    assert {row[0] for row in table(FUNCTIONS["Failures"], "exit code")} == {"0", *(str(code) for _, code in rows)}
    assert f'"{next(code for code, _ in by_hand if code == "python_too_old")}"' in (ROOT / "run_skill.py").read_text()


def test_every_type_and_class_is_there() -> None:
    common = FUNCTIONS["What results have in common"]
    assert all(f"`{kind}`" in common for kind in KINDS)
    assert all(f"`{kind}`" in FUNCTIONS["cleanup_orphans"] for kind in (*CLASSES, "entry_without_transcript"))


def test_null_stands_for_what_is_left_out_only_where_that_is_the_default(store: StoreBuilder, skill: Skill) -> None:
    for name in NAMES:
        for field in msgspec.structs.fields(load(name).arguments):
            if field.default is None:
                given = {key: ID if value == RUN else value for key, value in CALLS[name][0].items()}
                answer = skill(name, {**given, field.name: None}, ARIA_ALLOW_ERASE="1")
                assert answer.document.get("code") != "bad_argument", (name, field.name, answer.document)
    assert skill("list_sessions", {"limit": None}).exit_code == 0
    assert skill("get_session_stats", {"stale_minutes": None}).exit_code == 2
    assert skill("prune_sessions", {"max_age_minutes": None}).exit_code == 2


def rows_below(title: str, head: str) -> list[list[str]]:
    """The rows of a table in a part of a section of store-format.md."""
    text = "\n".join(STORE_FORMAT.values())
    return table(text.split(f"{title}\n")[1], head)


def test_the_members_of_an_entry_that_are_read() -> None:
    text = (PAGES / "store-format.md").read_text().split("These members of an entry are read")[1].split("\n\n")[0]
    assert names(text) == [field.encode_name for field in msgspec.structs.fields(Entry)]


def test_session_keys_are_of_the_types_of_the_page() -> None:
    rows = rows_below("### Session keys", "rest")
    assert {kind for _, kind in rows} == set(KINDS)
    for rest, kind in rows:
        assert parse_key(f"agent:main:{names(rest)[0]}").kind == kind, rest


def test_file_names_are_of_the_classes_of_the_page(agents: Path, skill: Skill) -> None:
    store = StoreBuilder(agents)
    store.add("cron:abc", 120, "abc")
    store.write()

    def counts() -> dict[str, int]:
        classes = skill("cleanup_orphans").document["classes"]
        return {kind: found["count"] for kind, found in classes.items() if kind != "entry_without_transcript"}

    (store.dir / "abc.jsonl").unlink()
    before = counts()
    rows = rows_below("### File names", "name")
    assert len(rows) > 10
    for name, _, kind in rows:
        path = store.dir / names(name)[0]
        path.write_text("{}\n")
        assert counts() == {**before, names(kind)[0]: before[names(kind)[0]] + 1}, name
        path.unlink()


def test_a_lock_holds_what_the_page_says() -> None:
    text = " ".join((PAGES / "store-format.md").read_text().split("### Locks\n")[1].split())
    assert {field.encode_name for field in msgspec.structs.fields(Payload)} <= set(names(text))
    seconds, minutes = STORE_STALE_MS // 1000, TRANSCRIPT_STALE_MS // 60_000
    assert f"after {seconds} seconds for the store and {minutes} minutes" in text


@pytest.fixture
def used(store: StoreBuilder, skill: Skill) -> sqlite3.Connection:
    """A ledger that knows of everything that can happen to a session."""
    skill.env = {"ARIA_ALLOW_ERASE": "1"}
    skill("prune_sessions", {"limit": 2})
    for function, arguments in (
        ("restore_session", {"session_id": "daily"}),
        ("purge_archives", {"dry_run": False}),
        ("erase_session", {"session_id": ID, "confirm": ID}),
    ):
        assert skill(function, arguments).exit_code == 0, function
    return sqlite3.connect(store.dir.parents[1] / ".session_manager" / "ledger.sqlite")


def test_the_ledger_has_the_tables_and_columns_of_the_page(used: sqlite3.Connection) -> None:
    shown = {names(row[0])[0]: names(row[1]) for row in table(STORE_FORMAT["The ledger"], "table")}
    tables = [name for (name,) in used.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid")]
    assert shown == {name: [row[1] for row in used.execute(f"PRAGMA table_info({name})")] for name in tables}
    assert f"is its format, {used.execute('PRAGMA user_version').fetchone()[0]}." in STORE_FORMAT["The ledger"]
    used.close()


def test_the_chain_is_made_as_the_page_says(used: sqlite3.Connection, skill: Skill) -> None:
    before = b""
    for seq, at, kind, body, sealed in used.execute("SELECT * FROM events ORDER BY seq"):
        own = hashlib.sha256(json.dumps([seq, at, kind, body], separators=(",", ":"), ensure_ascii=False).encode())
        before = hashlib.sha256(before + own.digest()).digest()
        assert sealed == before, seq
    assert skill("verify_ledger").document["head"] == before.hex()
    used.close()


def test_kinds_and_states_are_those_of_the_sources() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "session_manager" / "ledger").glob("*.py"))
    (kinds,) = re.findall(r"Kinds are (.*?)\.", " ".join(STORE_FORMAT["The ledger"].split()))
    appended = set(re.findall(r'chain\.append\(\s*\w+,\s*"(\w+)"', sources))
    assert appended <= set(names(kinds))
    assert all(f'"{kind}"' in sources for kind in names(kinds))
    for row in table(STORE_FORMAT["The ledger"], "table"):
        for states in re.findall(r"`(?:kind|state|status)` ([a-z, ]+? or [a-z]+)", row[2]):
            for state in re.split(r", | or ", states):
                assert re.search(rf"[\"']{state}[\"']", sources), state


def pattern(path: str, agents: Path) -> str:
    """A path of the page as a regular expression for real ones."""
    real = path.replace("<state>", f"{agents}/.session_manager").replace("<agents>", str(agents))
    return re.sub(r"<[a-z]+>", "[^/]+", real.replace(".", r"\."))


def test_every_file_of_ours_is_there(used: sqlite3.Connection, agents: Path, skill: Skill) -> None:
    used.close()
    store = agents / "main" / "sessions"
    store.joinpath("sessions.json").write_text('{"agent:main:cron:a": {"sessionId": "daily", "upd')
    assert skill("readopt_orphans", {"rebuild": True, "dry_run": False}).exit_code == 0
    (store / ".session_manager.1.0b7e0b7e0b7e.0123456789abcdef.index").write_text('{"a": {}}')
    assert skill("prune_sessions").exit_code == 0
    assert skill("pin_session", {"session_id": "daily"}).exit_code == 0
    (agents / ".session_manager" / "session-manager.toml").write_text('[pins]\nids = ["x"]\n')
    (store / "keep.jsonl.deleted.2026-02-15T18-00-00.123Z").write_text("{}")
    rows = table(STORE_FORMAT["The skill's own files"], "path")
    patterns = [pattern(names(row[0])[0], agents) for row in rows]
    found = [path for path in agents.rglob("*") if path.is_file()]
    ours = [str(path) for path in found if not re.search(r"/sessions\.json$|\.jsonl$", str(path))]
    assert [path for path in ours if not any(re.fullmatch(each, path) for each in patterns)] == []
    transient = (r"\.marker", r"\.index", r"\.tmp", r"\.joined", r"\.displaced", r"\.held", r"\.trial", r"\.restored")
    unseen = [each for each in patterns if not any(re.fullmatch(each, path) for path in ours)]
    assert all(each.endswith(transient) for each in unseen), unseen


def test_what_may_be_deleted_while_no_call_runs(used: sqlite3.Connection, agents: Path, skill: Skill) -> None:
    used.close()
    state, store = agents / ".session_manager", agents / "main" / "sessions"
    (state / "delivery.lock").unlink(missing_ok=True)
    (store / ".session_manager.lock").unlink()
    shutil.rmtree(state / "archives")
    assert skill("delete_session", {"session_id": "daily"}).exit_code == 0
    assert skill("restore_session", {"session_id": "daily"}).exit_code == 0
    assert skill("verify_ledger").document["whole"] is True
    assert state.stat().st_mode & 0o777 == 0o700
    assert (state / "ledger.sqlite").stat().st_mode & 0o777 == 0o600


def test_every_variable_of_the_skill_is_there() -> None:
    shown = {name for row in table(FUNCTIONS["The environment"], "variable") for name in names(row[0])}
    assert shown == set(re.findall(r"\b(?:ARIA|OPENCLAW)_[A-Z_]+\b", USAGE))


def service_codes() -> tuple[set[tuple[str, int]], set[tuple[str, int]]]:
    """Codes of aria-api's sources: with the status of what answers, and with the exit code of what ends a command."""
    answers, ends = set(), set()
    # Where these functions take the status and the code.
    places = {"refuse": (3, 5), "problem": (1, 3)}
    kinds = {name: kind for room in (errors, problems, base) for name, kind in vars(room).items() if is_failure(kind)}
    for path in sources_of("service"):
        inner = path.relative_to(ROOT / "session_manager" / "service").parts
        at_start = inner[0] in ("embedded", "server.py", "config.py", "volume_reader.py") or inner in (
            ("db", "migrate.py"),
            ("db", "tokens.py"),
        )
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id in places:
                status, code = (node.args[at] for at in places[node.func.id])
                if isinstance(status, ast.Constant) and isinstance(code, ast.Constant):
                    answers.add((str(code.value), int(str(status.value))))
            elif kind := kinds.get(node.func.id):
                usual = ast.Constant(kind.default_code)
                given = next((word.value for word in node.keywords if word.arg == "code"), usual)
                if isinstance(given, ast.Constant):
                    found = (str(given.value), kind.exit_code if at_start else kind.http_status)
                    (ends if at_start else answers).add(found)
    return answers, ends


def is_failure(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, SessionManagerError)


def test_every_code_of_the_service_is_there() -> None:
    answers, ends = service_codes()
    failures = sections("aria-api.md")["Failures"]
    shown = {(names(row[0])[0], row[1]) for row in table(failures, "code")}
    by_framework = {(code, status) for status, code in problems._CODES.items()} | {("http_error", "other")}
    by_hand = {("model_failed", 502), ("bad_id", 400), ("job_failed", 503), ("no_volume", 409), ("internal_error", 500)}
    # What a job says of itself is handed on with another status.
    answers -= {("job_failed", 500)}
    assert shown == {(code, str(status)) for code, status in answers | by_framework | by_hand}
    second = failures[failures.index("| code | exit code |") :]
    shown_ends = {(names(row[0])[0], int(row[1])) for row in table(second, "code")}
    assert shown_ends == ends - {("no_volume", 4), ("address_unusable", 2)}


def test_the_request_of_aria_api_s_page_is_answered(shared_service: Service) -> None:
    (command,) = re.findall(r"^(curl .*)$", (PAGES / "aria-api.md").read_text(), re.MULTILINE)
    program, _, address, _, header, _, body = shlex.split(command)
    assert (program, address.partition("/")[0]) == ("curl", "localhost:8000")
    headers = dict([header.split(": ")])
    answer = shared_service.client.post(address.removeprefix("localhost:8000"), content=body, headers=headers)
    text = sections("aria-api.md")["Conversations"]
    shown = {names(row[0])[0]: set(names(row[1])) for row in table(text, "event")}
    events = re.findall(r"^event: (\w+)\ndata: (.*)$", answer.text, re.MULTILINE)
    assert [name for name, _ in events][-1] == "done"
    for name, data in events:
        assert set(json.loads(data)) <= shown[name], name


# What the page says of a session -> its key, its age in minutes, and what else it has.
PROTECTED: dict[str, tuple[str, float | None, dict[str, Any]]] = {
    "the one that calls": ("cron:a", 120, {}),
    "with an id that is no safe file name": ("cron:a", 120, {"session_id": "a..b", "transcript": False}),
    "an agent's main session": ("main", 120, {}),
    "busy": ("cron:a", 120, {}),
    "running": ("cron:a", 120, {"status": "running"}),
    "undelivered": ("cron:a", 120, {"pendingFinalDelivery": True}),
    "pinned": ("cron:a", 120, {"pinnedAt": 1}),
    "elsewhere": ("cron:a", 120, {"sessionFile": "D:\\sessions\\x.jsonl"}),
    "of a durable or unknown type": ("direct:ann", 120, {}),
    "bound to a conversation": ("subagent:a", 120, {"lastThreadId": "7"}),
    "of unknown age": ("cron:a", None, {}),
    "brought back within": ("cron:a", 120, {}),
    "a sub-agent in a family": ("subagent:a", 120, {}),
}


@pytest.mark.parametrize("row", table(FUNCTIONS["What is protected"], "session"), ids=lambda row: row[0][:20])
def test_what_is_protected_is(row: list[str], agents: Path, skill: Skill) -> None:
    (rest, age, fields) = next(found for start, found in PROTECTED.items() if row[0].startswith(start))
    store = StoreBuilder(agents)
    session_id = store.add(rest, age, **fields)
    store.add("subagent:a:subagent:b", 1)
    key = f"agent:main:{rest}"
    if row[0].startswith("running"):
        store.entries[key]["startedAt"] = now_ms()
    store.write()
    if row[0].startswith("the one that calls"):
        skill.env = {"ARIA_SESSION_ID": key}
    elif row[0].startswith("busy"):
        lock = {"pid": os.getpid(), "createdAt": "2026-02-15T18:00:00.000Z"}
        (store.dir / f"{session_id}.jsonl.lock").write_text(json.dumps(lock))
    elif row[0].startswith("brought back"):
        skill("delete_session", {"session_id": key})
        skill("restore_session", {"session_id": key})
    _, prune, delete, force = row
    assert prune.startswith("stays")
    assert skill("prune_sessions", {"max_age_minutes": 60}).document["deleted_ids"] == []
    refused = skill("delete_session", {"session_id": key}).document.get("code")
    assert refused in {"refused": ("session_protected", "session_busy"), "goes": (None,)}[delete]
    if delete == "refused":
        forced = skill("delete_session", {"session_id": key, "force": True}).document.get("code")
        assert {"no help": "session_protected", "removes it": None}[force] == forced
    assert (key in store.read()) == (force == "no help")


def test_every_kind_of_protection_has_its_row() -> None:
    assert len(table(FUNCTIONS["What is protected"], "session")) == len(PROTECTED)


def test_the_folders_of_the_readme_are_there() -> None:
    layout = (ROOT / "README.md").read_text().split("## Layout\n")[1]
    folders = [names(row[0])[0] for row in table(layout, "folder")]
    assert len(folders) > 5
    assert all((ROOT / folder).is_dir() for folder in folders)
    rooms = {f"session_manager/{path.name}/" for path in (ROOT / "session_manager").iterdir() if path.is_dir()}
    assert rooms - {"session_manager/__pycache__/"} <= set(folders)
