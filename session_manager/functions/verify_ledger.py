"""verify_ledger: checks that the audit trail is intact."""

from __future__ import annotations

from typing import Any

import msgspec

from session_manager.functions.context import Context

DESCRIPTION = "Checks that the ledger, the hash-chained record of all removals, is intact. Changes nothing."


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of verify_ledger: none."""


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns ``whole``, the counts, the newest hash, and where the chain breaks first. Raises the ledger's failure.

    A broken chain is an answer, not a failure, and it blocks nothing.
    """
    from session_manager.ledger import Ledger

    ledger = Ledger.open_existing(context.settings, "ro")
    if ledger is None:
        return {"whole": True, "runs": 0, "removals": 0, "events": 0, "head": None, "broken": None}
    with ledger:
        verdict = ledger.verify()
    broken = verdict.broken
    return {
        "whole": broken is None,
        "runs": verdict.runs,
        "removals": verdict.removals,
        "events": verdict.events,
        "head": verdict.head,
        "broken": None if broken is None else msgspec.to_builtins(broken),
    }
