"""What the name of a file in a sessions folder says of its session, whether or not that session is in the index."""

from __future__ import annotations

import re

from session_manager.stores.openclaw_files.transcripts import STAMPED_NAME
from session_manager.stores.openclaw_files.whereabouts import is_transcript

_ID = r"(?i)^[a-z0-9][a-z0-9._-]{0,127}\Z"
TOPIC_NAME = r"^(?P<id>.+?)-topic-.+\Z"
PARTIAL_NAME = r"\.jsonl\.(?:repair-\d+-\d+\.tmp|truncate-tmp|manual-compaction-tmp)\Z"
SIDECAR_NAME = (
    r"(?i)\.(?:trajectory\.jsonl|trajectory-path\.json|checkpoint\.[0-9a-f-]{36}\.jsonl"
    r"|jsonl\.bak-\d+-\d+|jsonl\.codex-app-server\.json)\Z"
)


def session_id_of(name: str) -> str | None:
    """Returns the session id in a transcript's name, or None if the gateway would not accept it."""
    stem = name.removesuffix(".jsonl")
    for wrapping in (STAMPED_NAME, TOPIC_NAME):
        match = re.match(wrapping, stem)
        stem = match["id"] if match else stem
    return stem if is_transcript(name) and re.match(_ID, stem) and ".." not in stem else None


def owner_of_sidecar(name: str) -> str | None:
    """Returns the session id in the name of a sidecar or temporary file, or None if there is none."""
    while (match := re.search(SIDECAR_NAME, name) or re.search(PARTIAL_NAME, name)) is not None:
        name = name[: match.start()] + ".jsonl"
    return session_id_of(name)
