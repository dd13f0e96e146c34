"""references/ is true: functions.md says what the functions take and return, and every link leads somewhere."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from consoles import PAGES, sections
from service import Service
from support import ROOT, Skill, StoreBuilder

from session_manager.core import errors
from session_manager.core.errors import PARTIAL_EXIT_CODE, SessionManagerError
from session_manager.core.session import KINDS
from session_manager.faces.runner import catalogue_entry
from session_manager.functions import NAMES, load
from session_manager.live.orphans import CLASSES

FUNCTIONS = sections("functions.md")
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
    "purge_archives": [{}, {"dry_run": False}],
    "erase_session": [{"session_id": ID, "confirm": ID}, {"session_id": ID, "confirm": ID}],
    "cleanup_ghosts": [{}, {"dry_run": False}],
    "list_deleted": [{}],
    "restore_session": [{"session_id": RUN}, {"session_id": ID}],
    "restore_run": [{"run_id": RUN}],
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
    (kind,) = kinds
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
        if name in ("deliver_history", "list_deleted", "restore_run", "verify_ledger", "restore_session", "doctor"):
            continue
        answer = skill(name, CALLS[name][0], ARIA_ALLOW_ERASE="1")
        assert (answer.exit_code, answer.document["code"]) == (PARTIAL_EXIT_CODE, "partial"), name
        assert {tuple(each) for each in answer.document["errors"]} == {("agentId", "id", "code", "error")}
        check_fields(name, CALLS[name][0], answer.document)


def test_what_comes_sometimes_has_its_name_in_the_sources() -> None:
    sources = "".join(path.read_text() for room in ("functions", "live", "core") for path in sources_of(room))
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
            *(p for room in ("core", "live", "functions", "history") for p in sources_of(room)),
            *sources_of("faces"),
        ]
        if path.parent.name != "cli" and path.name != "mcp_server.py"
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
