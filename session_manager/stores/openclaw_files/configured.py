"""Indexes in the place that a gateway's ``session.store`` names: one for each agent, or one for all of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

import msgspec

from session_manager.core.errors import UsageError
from session_manager.core.index import Index
from session_manager.core.keys import safe_name
from session_manager.core.layout import Layout
from session_manager.files.versions import read_file
from session_manager.stores.openclaw_files.kind import FilesStore
from session_manager.stores.openclaw_files.volume import AGENT_ID, Volume, unknown_agent, unlistable, without_twins


class ConfiguredVolume(Volume):
    """The folder of ``session.store`` with all indexes; its paths are safe like those of the agents directory."""

    def __init__(self, layout: Layout, agents_dir: str) -> None:
        assert layout.root is not None
        super().__init__(layout.root, layout.main_key, agents_dir)
        self._layout = layout
        self.shared = layout.shared

    def agent_ids(self) -> list[str]:
        """Returns the agents that have their own index, or keys in the shared one, and those of the config.

        Raises Refused (``not_readable``) or Failed (``io_error``) when the folder cannot be read.
        """
        if self._layout.shared:
            return self._sharing()
        try:
            names = [name for entry in os.listdir(self.root) if (name := self._layout.agent_at(entry))]
        except OSError as error:
            raise unlistable("the folder of session.store", self.root, error) from error
        found = [name for name in names if re.fullmatch(AGENT_ID, name) and self._has_store(name)]
        return sorted(found if self._layout.one_folder else without_twins({n: self._folder(n) for n in found}))

    def _has_store(self, name: str) -> bool:
        if self._layout.one_folder:
            # Any file there may look like an agent's index.
            return self._is_known(name)
        return os.path.lexists(self._folder(name))

    def _is_known(self, name: str) -> bool:
        """Returns True if a gateway knows an agent, even without sessions."""
        known = (self._layout.default_agent, *self._layout.agents)
        return name in known or os.path.isdir(os.path.join(self._agents_dir, name))

    def _sharing(self) -> list[str]:
        layout, keys = self._layout, self._keys()
        if keys is None:
            # The caller that reads the index reports the error; once is enough.
            return [layout.default_agent]
        return sorted({layout.default_agent, *layout.agents, *map(layout.agent_of, keys)})

    def _keys(self) -> Iterable[str] | None:
        """Returns the keys of the shared index, or None if it cannot be read now."""
        try:
            return Index(read_file(os.path.join(self.root, self._layout.pattern))[0]).entries
        except FileNotFoundError:
            return ()
        except (OSError, ValueError):
            return None

    def _folder(self, agent_id: str) -> str:
        return os.path.join(self.root, os.path.dirname(self._layout.index(agent_id)))

    def resolve_agent(self, agent: str) -> str:
        """Returns the agent's name as results show it; also for an agent that has no sessions any more.

        Raises UsageError for a name that is no plain name, NotFound (``agent_not_found``) for an unknown one.
        """
        if not safe_name(agent):
            raise UsageError(f"{agent!r} is not an agent name: plain names only, no path, no leading dot or dash")
        known, name = self.agent_ids(), agent.lower()
        if name in known or (self._layout.shared and (self._is_known(name) or self._keys() is None)):
            return name
        if not self._layout.one_folder and os.path.isdir(self._folder(name)):
            return self._owner(name, known)
        raise unknown_agent(agent, known)

    def store(self, agent_id: str) -> FilesStore | None:
        """Returns the agent's store, or its part of the one index; None when there is no such folder.

        Raises Refused as for an agents directory.
        """
        self._check_kind(agent_id)
        return self._found(agent_id)

    def _found(self, agent_id: str) -> FilesStore | None:
        layout = self._layout
        name = os.path.basename(layout.index(agent_id))
        store = self._store_in(self._folder(agent_id), agent_id, name)
        if store is None or not layout.one_folder:
            return store
        if not layout.shared:
            known = self.agent_ids()
            first = layout.default_agent if layout.default_agent in known or not known else known[0]
            return msgspec.structs.replace(store, mates=True, keeper=agent_id == first)
        keeper = agent_id == layout.default_agent
        return msgspec.structs.replace(store, shared_as=layout, mates=True, keeper=keeper)
