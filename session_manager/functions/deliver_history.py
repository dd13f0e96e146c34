"""deliver_history: delivers the pending updates in the ledger to aria-api."""

from __future__ import annotations

from itertools import islice
from typing import Any

import msgspec

from session_manager.functions.context import Context, named_when_interrupted
from session_manager.functions.get_session_stats import pending_marks

DESCRIPTION = (
    "Delivers pending history marks: status updates that aria-api has not received yet, because it could not be "
    "reached. Every call that removes something delivers them, too; this one does nothing else."
)


_SHOWN = 100


class Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """Arguments of deliver_history: none."""


def run(context: Context, arguments: Arguments) -> dict[str, Any]:
    """Returns how many marks were delivered, how many are pending and why, how many sessions have no row in aria-api,
    and how many marks are not tried again.

    Raises the ledger's failure.
    """
    from session_manager.functions.delivery import History
    from session_manager.ledger import start_run

    run_info = start_run("deliver_history", context.settings)
    with (
        named_when_interrupted(run_info, lambda: {"pending": pending_marks(context)}),
        History(context, run_info) as history,
    ):
        delivery = history.deliver()
    if delivery.failure is not None:
        raise delivery.failure
    document: dict[str, Any] = {
        "run_id": run_info.shown_id,
        "delivered": len(delivery.delivered),
        "pending": len(delivery.waiting),
        "missing": len(delivery.unknown),
        "given_up": len(delivery.given_up),
        "waiting": [{"agentId": a, "id": s, "reason": why} for (a, s), why in islice(delivery.waiting.items(), _SHOWN)],
    }
    if delivery.error is not None:
        document["pg_error"] = delivery.error
    return document
