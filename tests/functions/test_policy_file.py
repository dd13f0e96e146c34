"""What a policy file may say; everything else is an error with one sentence that names the key."""

from __future__ import annotations

import contextlib
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_manager.core.errors import UsageError
from session_manager.core.keys import KINDS
from session_manager.core.policy import Pins, RetentionPolicy, Rule, parse_policy

WHOLE = """
[types.cron]
max_age = "2h"
keep_newest = 3
keep_per = "job"
budget = "500 MB"

[types.direct]
max_age = "30d"

[agents]
budget = "2GiB"

[pins]
keys = ["agent:main:CRON:Daily"]
labels = ["release notes"]
ids = ["abc", "abc"]
"""


def test_a_whole_policy() -> None:
    assert parse_policy(WHOLE) == RetentionPolicy(
        {"cron": Rule(120, 3, True, 500_000_000), "direct": Rule(43_200)},
        2 * 2**30,
        Pins(frozenset({"agent:main:cron:daily"}), frozenset({"release notes"}), frozenset({"abc"})),
    )


@pytest.mark.parametrize(("text", "minutes"), [("1m", 1), ("60 m", 60), ("2h", 120), ("30d", 43_200), ("036h", 2160)])
def test_ages(text: str, minutes: int) -> None:
    assert parse_policy(f'types.hook.max_age = "{text}"').rules["hook"].max_age_minutes == minutes


@pytest.mark.parametrize(
    ("text", "size"),
    [("1B", 1), ("7 KB", 7000), ("5MB", 5_000_000), ("1 GB", 10**9), ("1 TB", 10**12), ("3KiB", 3072), ("1MiB", 2**20)],
)
def test_sizes(text: str, size: int) -> None:
    found = parse_policy(f'types.hook.budget = "{text}"\nagents.budget = "{text}"')
    assert (found.rules["hook"].budget, found.agent_budget) == (size, size)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"main"}))
def test_every_type_but_main_may_have_a_rule(kind: str) -> None:
    assert parse_policy(f"types.{kind}.keep_newest = 1").rules == {kind: Rule(keep_newest=1)}
    assert parse_policy(f'types.{kind}.keep_newest = 1\ntypes.{kind}.keep_per = "agent"').rules[kind].per_job is False


def test_a_policy_that_only_pins_has_no_rules() -> None:
    assert (parse_policy('pins.ids = ["a"]').has_rules, parse_policy('agents.budget = "1B"').has_rules) == (False, True)


BAD = [
    ("", "empty"),
    ("# nothing", "empty"),
    ("[types]\n[pins]", "empty"),
    ("pins.ids = []", "empty"),
    ("types = 3", "types is 3"),
    ("types.cron = 3", "types.cron is 3"),
    ("[types.cron]", "types.cron is empty"),
    ("[agents]", "agents is empty"),
    ("agents = 1", "agents is 1"),
    ("pins = []", "pins is []"),
    ("[type.cron]\nmax_age = '1h'", "'type'; did you mean 'types'?"),
    ("[types.crom]\nmax_age = '1h'", "'types.crom' does not name a session type; did you mean 'cron'?"),
    ("[types.main]\nmax_age = '1h'", "types.main: main sessions are never removed"),
    ("types.cron.maxage = '1h'", "'types.cron.maxage'; did you mean 'max_age'?"),
    ("types.cron.keep_per = 'job'", "types.cron.keep_newest"),
    ("types.cron.keep_newest = 1\ntypes.cron.keep_per = 'day'", 'types.cron.keep_per is \'day\': it must be "agent"'),
    ("types.hook.keep_newest = 1\ntypes.hook.keep_per = 'job'", "types.hook.keep_per is 'job'"),
    ("types.cron.keep_newest = 1\ntypes.cron.keep_per = ['job']", "types.cron.keep_per is ['job']"),
    ("agents.max_age = '1h'", "'agents.max_age'"),
    ("pins.names = ['a']", "'pins.names'"),
    ("pins.ids = 'a'", "pins.ids is 'a'"),
    ("pins.ids = ['a', 1]", "pins.ids is ['a', 1]"),
    ("pins.keys = [' ']", "pins.keys is [' ']"),
    ("pins.labels = ['']", "pins.labels is ['']"),
    ("types.cron.max_age = 1\ntypes.cron.max_age = 2", "not valid TOML"),
    ("types.cron.max_age = ", "not valid TOML"),
    ("a = " + "9" * 5000, "not valid TOML"),
    ("a = " + "[" * 5000, "not valid TOML"),
    *((f"types.cron.max_age = {value}", "types.cron.max_age is ") for value in (
        "0", "60", "-1", "1.5", "true", "[]", "{}", "inf", "2026-02-15", "''", "'60'", "'0m'", "'0 h'", "'-5m'", "'5w'",
        "'5 minutes'", "'5M'", "'1.5h'", "' 5m'", "'5m '", "'5  m'", "'h'", "'٣m'", "'36501d'", "'9999999999999999m'",
    )),
    *((f"types.cron.budget = {value}", "types.cron.budget is ") for value in (
        "0", "500", "-1", "'0 MB'", "'-1 MB'", "'500'", "'500 mb'", "'5 XB'", "'5 m'", "'1.5 GB'", "[1]", "false",
    )),
    *((f"types.cron.keep_newest = {value}", "types.cron.keep_newest is ") for value in (
        "0", "-1", "true", "1.0", "'5'", "[5]", "nan", "1000000001", "9" * 4000,
    )),
    *((f"agents.budget = {value}", "agents.budget is ") for value in ("0", "'0B'", "'1 XX'", "1", "{}")),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), BAD)
def test_what_is_not_understood_is_an_error_that_names_the_key(text: str, says: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_policy(text)
    error = raised.value
    assert (error.code, error.exit_code) == ("bad_policy", 2)
    assert says in error.message
    assert "\n" not in error.message
    assert len(error.message) < 300


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_NAMES = st.sampled_from(["types", "cron", "hook", "main", "max_age", "keep_newest", "budget", "pins", "ids", "agents"])


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in value) + '"'
    return str(value).lower() if isinstance(value, bool) else "0" if value is None else repr(value)


@given(st.text() | st.dictionaries(_NAMES, st.dictionaries(_NAMES, _VALUES | st.dictionaries(_NAMES, _VALUES))))
def test_reading_never_fails_but_with_its_own_error(found: str | dict[str, object]) -> None:
    text = found if isinstance(found, str) else "\n".join(f"{k} = {_toml(v)}" for k, v in found.items())
    with contextlib.suppress(UsageError):
        policy = parse_policy(text)
        assert policy.has_rules or policy.pins
        assert tomllib.loads(text)
