"""Erases sessions in history in bulk, if aria-api supports it."""

from __future__ import annotations

import msgspec

from session_manager.history.connection import Answer, Connection
from session_manager.history.marks import Name, Results, Tally
from session_manager.history.rows import PATH

MANY = 10_000
UNKNOWN_REQUEST = (404, 405, 501)
TOO_OLD = "aria-api is too old to erase a session: its row was ended, and its details stay until aria-api is updated"


class _Missing(msgspec.Struct):
    agent_id: str
    aria_session_id: str


class Marked(msgspec.Struct):
    """The answer of aria-api to marks in bulk."""

    updated: int
    missing: list[_Missing]


class Erased(msgspec.Struct):
    """The answer of aria-api to an erasure in bulk."""

    erased: int
    missing: list[_Missing]


def erase_many(connection: Connection, ended: Results, tally: Tally) -> None:
    """Erases the sessions that were ``ended`` just now; passes on the results of those that could not be ended.

    Raises Unavailable.
    """
    tally.missing(*ended.missing)
    for name, reason in ended.refused.items():
        tally.refused(name, reason)
    names = sorted(ended.delivered)
    for start in range(0, len(names), MANY):
        some = names[start : start + MANY]
        body = {"sessions": [{"agent_id": agent_id, "aria_session_id": session_id} for agent_id, session_id in some]}
        answer = connection.request("POST", f"{PATH}/erase", body=body)
        if answer.status in UNKNOWN_REQUEST:
            for name in names[start:]:
                tally.refused(name, TOO_OLD)
            return
        if answer.status != 200:
            raise connection.give_up(f"aria-api answered {answer.status} at POST {connection.url}{PATH}/erase")
        missing = read_missing(connection, answer, Erased) & set(some)
        tally.missing(*missing)
        tally.delivered(*(set(some) - missing))


def read_missing(connection: Connection, answer: Answer, kind: type[Marked] | type[Erased]) -> set[Name]:
    """Returns the sessions without a row in aria-api, from an answer in bulk. Raises Unavailable."""
    try:
        rows = msgspec.convert(connection.json(answer), kind).missing
    except msgspec.ValidationError as error:
        raise connection.unexpected() from error
    return {(row.agent_id, row.aria_session_id) for row in rows}
