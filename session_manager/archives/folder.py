"""What archives know of the store whose files they are: a folder, whose guard they must be able to ask."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol


class InUse(OSError):
    """The owner of the store holds the file."""


class Guard(Protocol):
    """The store's lock, held by the caller."""

    def check(self) -> None:
        """Raises if another process has taken the lock over: the next rename must not happen."""


class Folder(Protocol):
    """A folder with one agent's sessions as files."""

    @property
    def agent_id(self) -> str:
        """The agent's name, which its second names are kept under."""

    @property
    def sessions_dir(self) -> str:
        """The folder's path, links resolved."""

    @property
    def store_id(self) -> str:
        """The folder's name in the ledger."""

    def owner(self, name: str, ids: Collection[str]) -> str | None:
        """Returns the one of the session ids ``ids`` that a file's live name belongs to, or None."""

    def join(self, name: str, archive: str, session_id: str, number: str) -> None:
        """Joins a session's archived part (a path) and the live file ``name`` that its owner has begun since.

        ``number`` is unique to this pair. The archive stays. If killed, a second call ends it. Raises FileExistsError
        if they are two conversations, or this kind cannot join files; InUse while the owner holds the file, and other
        OSErrors; both parts are then as they were.
        """
