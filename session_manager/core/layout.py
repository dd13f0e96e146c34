"""The places of agents' indexes below a folder, and the agent of a key in an index that all agents share."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import msgspec

from session_manager.core.keys import MAIN, parse_key
from session_manager.core.session import Session

AGENT = "{agentId}"
INDEX_NAME = "sessions.json"
USUAL = f"{AGENT}/sessions/{INDEX_NAME}"
MAIN_AGENT = "main"


class Layout(msgspec.Struct, frozen=True):
    """The places of the indexes of a volume's agents.

    ``root`` is the folder that holds them, None if that is the agents directory; ``pattern`` is an index's path below
    it. ``default_agent`` owns the keys that name no agent, ``agents`` are those that the config names. ``main_key`` is,
    beside ``main``, the end of a main session's key.
    """

    root: str | None = None
    pattern: str = USUAL
    default_agent: str = MAIN_AGENT
    agents: tuple[str, ...] = ()
    main_key: str | None = None

    @property
    def shared(self) -> bool:
        """Returns True if all agents share one index."""
        return AGENT not in self.pattern

    @property
    def one_folder(self) -> bool:
        """Returns True if the transcripts of all agents lie in one folder."""
        return "/" not in self.pattern

    def index(self, agent_id: str) -> str:
        """Returns the path of an agent's index below the root."""
        return self.pattern.replace(AGENT, agent_id)

    def agent_at(self, name: str) -> str | None:
        """Returns the agent of an entry of the root's folder, by its name alone, or None."""
        first, agent = re.escape(self.pattern.partition("/")[0]), re.escape(AGENT)
        found = re.fullmatch(first.replace(agent, "(?P<agent>.+)", 1).replace(agent, "(?P=agent)"), name, re.DOTALL)
        return found["agent"] if found else None

    def agent_of(self, key: str) -> str:
        """Returns the agent that a key of a shared index belongs to."""
        parts = key.split(":", 2)
        named = len(parts) > 2 and parts[0].lower() == "agent" and parts[1]
        return agent_name(named) if named else self.default_agent

    @property
    def text(self) -> str:
        """The place as a config would write it."""
        return self.pattern if self.root is None else f"{self.root.rstrip('/')}/{self.pattern}"


@cache
def agent_name(text: str) -> str:
    """Returns an agent's name as gateways write it in paths and keys (2026.2.17 ``normalizeAgentId``)."""
    name = text.strip().lower()
    if re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,63}", name):
        return name
    return re.sub(r"[^a-z0-9_-]+", "-", name).strip("-")[:64] or MAIN_AGENT


def tell_main(sessions: Iterable[Session], main_key: str) -> None:
    """Marks sessions as main whose key ends with the config's ``main_key``."""
    for session in sessions:
        named = [key for key in session.keys if parse_key(key).rest.lower() == main_key]
        if named:
            session.kinds |= {MAIN}
            if session.key in named:
                session.session_type = MAIN
