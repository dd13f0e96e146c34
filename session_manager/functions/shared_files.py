"""Files of removed sessions in other agents' folders: each is archived with the last session that has it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from session_manager.core.errors import SessionManagerError, failure
from session_manager.functions.context import Context
from session_manager.functions.reading import foreign_references, names_referred_to, read_view
from session_manager.stores.base import Store

if TYPE_CHECKING:
    from session_manager.archives.work import Work
    from session_manager.ledger import Removal


class Left(msgspec.Struct):
    """The outcome for files of removed sessions in other agents' folders: the archives, by agent."""

    archived: list[tuple[str, Removal]] = []
    errors: list[dict[str, object]] = []

    @property
    def names(self) -> list[str]:
        """The archives' names."""
        return [target for _, removal in self.archived for _, target in removal.files]


def left_by(removals: Iterable[Removal]) -> list[tuple[str, str]]:
    """Returns (session id, ``<agent>/<name>``) of removed sessions' files in other agents' folders."""
    return [(removal.session_id, name) for removal in removals for name in removal.shares if "/" in name]


def archive_left(context: Context, work: Work, left: Iterable[tuple[str, str]]) -> Left:
    """Archives the ``left`` transcripts that their own agent no longer has and that no entry names any more.

    Failures of single agents are in the result: the files stay, and cleanup_orphans finds them.
    """
    by_agent: dict[str, dict[str, str]] = {}
    for session_id, name in left:
        agent_id, _, file = name.partition("/")
        by_agent.setdefault(agent_id, {})[file] = session_id
    result = Left()
    for agent_id, names in by_agent.items():
        try:
            store = context.volume.store(agent_id)
            if store is None:
                continue
            archived, failures = store.archive_last(work, names, partial(_referred_to, context, store))
        except SessionManagerError as error:
            result.errors.append(failure(error, agent_id))
            continue
        result.archived += [(agent_id, removal) for removal in archived]
        result.errors += [failure(error, agent_id, session_id) for session_id, error in failures]
    return result


def _referred_to(context: Context, store: Store) -> Collection[str]:
    view = read_view(context, None)
    for _, error in view.failed:
        # An unreadable index may name the file.
        raise error
    return names_referred_to(foreign_references(view.agents), store, ())
