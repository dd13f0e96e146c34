"""doctor: finds problems and says how to fix them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from session_manager.core.diagnosis import Check, failed, page, plural
from session_manager.core.errors import SessionManagerError
from session_manager.files.owners import advice_about
from session_manager.functions.context import Context
from session_manager.settings import ledger_path
from session_manager.stores.base import Store
from session_manager.stores.results import Look

if TYPE_CHECKING:
    from session_manager.ledger import Ledger

DESCRIPTION = (
    "Finds problems and says how to fix them. Checks the agents directory, every store, locks, the retention policy, "
    "free space, what the file systems can do, the ledger, the clock, unfinished runs, pending history marks, "
    "aria-api, its token and its database. Changes nothing."
)

_ADVICE = {
    "store_unsupported": "list and delete them with the gateway's own `openclaw sessions`; other agents are unaffected",
    "outside_agents_dir": "mount the folder itself in the agents directory; links that lead outside are not followed",
}


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of doctor: none."""


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns ``ok`` and ``checks``; a partial success when work is only pending.

    Raises the first failure that a function would meet, with all checks as its details.
    """
    from session_manager.functions.diagnosis_files import file_system_checks
    from session_manager.functions.diagnosis_history import history_checks, ledger_checks
    from session_manager.functions.diagnosis_settings import config_checks, disk_checks, policy_check

    checks = [_agents_dir(context), *config_checks(context)]
    if checks[0].ok:
        with _ledger(context) as ledger:
            for agent_id, store in context.volume.stores(None):
                checks += _agent(context, agent_id, store, ledger)
    checks.append(policy_check(context))
    checks += disk_checks(context)
    checks += file_system_checks(context)
    checks += ledger_checks(context)
    checks += history_checks(context)
    return page(checks)


def _agents_dir(context: Context) -> Check:
    settings = context.settings
    layout, passed_over = settings.place.layout, settings.place.passed_over
    root, named_by = settings.agents_dir if layout.root is None else layout.text, settings.agents_dir_from
    try:
        agents = context.volume.agent_ids()
    except SessionManagerError as error:
        return failed("agents_dir", error, advice_about(error, root))
    what = f"{root} ({named_by}): {plural(len(agents), 'agent')}"
    if passed_over:
        what += f"; no gateway uses {' or '.join(passed_over)} while this one exists"
    if not agents:
        return Check(
            "agents_dir",
            True,
            what,
            "if there should be some, set ARIA_AGENTS_DIR to the folder that holds <agent>/sessions",
        )
    return Check("agents_dir", True, what)


@contextlib.contextmanager
def _ledger(context: Context) -> Iterator[Ledger | None]:
    """Yields the ledger, read-only; None when there is none, or when its own check reports a problem."""
    from session_manager.functions.diagnosis_history import left_in_the_middle
    from session_manager.ledger import Ledger

    ledger = None
    if not left_in_the_middle(ledger_path(context.settings)):
        with contextlib.suppress(SessionManagerError):
            ledger = Ledger.open_existing(context.settings, "ro")
    with ledger or contextlib.nullcontext():
        yield ledger


def _agent(
    context: Context, agent_id: str, store: Store | SessionManagerError | None, ledger: Ledger | None
) -> Iterator[Check]:
    name = f"store {agent_id}"
    if store is None:
        yield Check(name, True, "no sessions folder", None, None, agent_id)
    elif isinstance(store, SessionManagerError):
        path = os.path.join(context.volume.root, agent_id, "sessions")
        yield failed(name, store, _ADVICE.get(store.code) or advice_about(store, path), agent_id)
    else:
        from session_manager.archives.second_names import SecondNames

        second_names = SecondNames(context.settings.state_dir)
        try:
            yield from store.check(Look(context.clock(), ledger, second_names, partial(_shared, context, store)))
        except SessionManagerError as error:
            yield failed(name, error, advice_about(error, store.sessions_dir), agent_id)


def _shared(context: Context, store: Store) -> Collection[str]:
    from session_manager.functions.reading import foreign_references, names_referred_to, read_view

    return names_referred_to(foreign_references(read_view(context, None).agents), store, ())
