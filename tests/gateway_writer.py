"""A gateway-like writer: appends values to entries of its own in sessions.json, so that a lost one stays lost.

usage: gateway_writer.py locking|lockless <sessions dir> <first> <writes> <log>

``locking`` follows gateways 2026.4: marker made with O_EXCL and then written, stale by dead pid or 30 s, read and write
under it, removed by path. ``lockless`` follows 2026.5 to 2026.7: stat, reuse of the cached object when nothing changed,
rename. Each committed write is a line "<key> <value>" in the log. Waits are a twentieth of the gateway's. It goes on
after ``writes`` writes until there is a file "<log>.stop". While there is a file "<log>.pause" it stands still, and
says so by a file "<log>.paused".
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# More than a gateway writes while one swap is under way: where both sides changed one entry, the newer one wins.
KEYS = 250
SCALE = 20


def acquire(marker: str) -> None:
    attempt = 0
    while True:
        attempt += 1
        try:
            fd = os.open(marker, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            if stale(marker):
                os.unlink(marker) if os.path.exists(marker) else None
                continue
            time.sleep(min(1.0, 0.05 * attempt) / SCALE)
            continue
        started = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()[19]
        created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        payload = {"pid": os.getpid(), "createdAt": created, "starttime": int(started)}
        os.write(fd, json.dumps(payload, indent=2).encode())
        os.close(fd)
        return


def stale(marker: str) -> bool:
    try:
        text, mtime = Path(marker).read_text(), os.stat(marker).st_mtime
    except FileNotFoundError:
        return False
    try:
        payload = json.loads(text)
        pid, created = int(payload["pid"]), datetime.fromisoformat(payload["createdAt"])
    except (ValueError, KeyError, TypeError):
        return time.time() - mtime > 30
    if (datetime.now(UTC) - created).total_seconds() > 30:
        return True
    try:
        os.kill(pid, 0)
    except OSError:
        return True
    return False


def read(index: str) -> dict[str, Any]:
    while True:
        try:
            found = json.loads(Path(index).read_text(encoding="utf-8"))
            assert isinstance(found, dict)
            return found
        except FileNotFoundError:
            time.sleep(0.001)


def write(index: str, store: dict[str, Any]) -> None:
    temp = f"{index}.{os.getpid()}.{uuid.uuid4()}.tmp"
    with open(temp, "w", encoding="utf-8") as file:
        file.write(json.dumps(store, indent=2, ensure_ascii=False))
    os.chmod(temp, 0o600)
    os.rename(temp, index)


def stand_still(log_path: str) -> None:
    paused = Path(f"{log_path}.paused")
    while os.path.exists(f"{log_path}.pause"):
        paused.touch()
        time.sleep(0.002)
    paused.unlink(missing_ok=True)


def main(mode: str, folder: str, first: int, writes: int, log_path: str) -> None:
    index, marker = os.path.join(folder, "sessions.json"), os.path.join(folder, "sessions.json.lock")
    cached: tuple[tuple[int, int], dict[str, Any]] | None = None
    with open(log_path, "a", buffering=1) as log:
        for value in itertools.count(first):
            if value >= first + writes and os.path.exists(f"{log_path}.stop"):
                return
            stand_still(log_path)
            key = f"agent:main:telegram:direct:{value % KEYS}"
            if mode == "locking":
                acquire(marker)
            status = os.stat(index) if mode == "lockless" else None
            version = (status.st_mtime_ns, status.st_size) if status else None
            store = cached[1] if cached and version == cached[0] else read(index)
            values = [*store.get(key, {}).get("values", []), value]
            # A fresh time with each write, as an active conversation has it.
            now = time.time_ns() // 1_000_000
            store[key] = {"sessionId": f"own-{value % KEYS}", "updatedAt": now, "values": values}
            write(index, store)
            if mode == "lockless":
                status = os.stat(index)
                cached = ((status.st_mtime_ns, status.st_size), store)
            else:
                os.unlink(marker)
            log.write(f"{key} {value}\n")
            time.sleep(random.uniform(0, 0.012))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
