"""Names of archives: a live name with ``.<reason>.<time>``, as OpenClaw gateways write them, too."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from functools import cache, lru_cache

from session_manager.core.session import EARLIEST_MS

_TIMESTAMP = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d{3})?Z"
# The gateway's own rule (2026.6.11); a 2026.9 archive adds a generation and may be compressed.
_ARCHIVE = rf"^(?P<path>.+)\.(?P<reason>deleted|reset|bak)\.(?P<at>{_TIMESTAMP})(?:\.[0-9a-f]{{32}}(?:\.zst)?)?\Z"
# In bytes: a longer name has no room for the suffix of an archive.
LONGEST_NAME = 255 - len(".deleted.2026-02-15T18-00-00.123Z")


@cache
def _pattern() -> re.Pattern[str]:
    return re.compile(_ARCHIVE)


def parse_archive(name: str) -> tuple[str, str, str] | None:
    """Splits an archive's name into (original name, reason, timestamp); None if it is no archive."""
    match = _pattern().match(name)
    return (match["path"], match["reason"], match["at"]) if match else None


def original_name(name: str) -> str:
    """Returns the live name of an archive, or of an archive of one; any other name is returned as it is."""
    while (archive := parse_archive(name)) is not None:
        name = archive[0]
    return name


def archive_time(timestamp: str) -> int | None:
    """Returns the time (epoch ms) in an archive's name, or None if it is invalid or absurd."""
    date, _, time = timestamp.partition("T")
    try:
        moment = int(datetime.fromisoformat(f"{date}T{time.replace('-', ':')}").timestamp() * 1000)
    except ValueError:
        return None
    return moment if moment >= EARLIEST_MS else None


@lru_cache(maxsize=1)
def archive_timestamp(epoch_ms: int) -> str:
    """Writes a time as the gateway does in archive names: ``2026-02-15T18-00-00.123Z``."""
    moment = datetime.fromtimestamp(epoch_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H-%M-%S}.{epoch_ms % 1000:03d}Z"


def archive_names(names: Iterable[str], taken: Collection[str], now_ms: int) -> list[tuple[str, str]]:
    """Returns each name with its archive name (reason ``deleted``), which is never one of ``taken``."""
    suffix = f".deleted.{archive_timestamp(now_ms)}"
    return [(n, n + suffix) if n + suffix not in taken else (n, _free(n, taken, now_ms)) for n in names]


def _free(name: str, taken: Collection[str], moment: int) -> str:
    while (target := f"{name}.deleted.{archive_timestamp(moment)}") in taken:
        moment += 1
    return target


def is_text(name: str) -> bool:
    """Returns True if a file's name is UTF-8, so that the ledger and an index can hold it."""
    if name.isascii():
        return True
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
