"""The service against its own description: whatever schemathesis thinks of, no answer is a 5xx or undescribed.

It runs as a process of its own, so that its plugin and its warnings are no business of the other tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from chats import BASE, Chats, create, say
from service import Databases, Service, running

pytestmark = pytest.mark.system

TOKEN = "the-token-of-schemathesis"
# Of each state in which a session can be; what deletes them is asked for as often as what reads them.
EACH = 12
# Data that fit the schema may still be refused: a schema cannot say "at least one field that is not null".
LEFT_OUT = "positive_data_acceptance"
SETTINGS = """
headers = {{ Authorization = "Bearer {token}" }}
request-timeout = 60
[dictionaries]
ids = {{ values = {ids} }}
jobs = {{ values = {jobs} }}
[parameters]
"path.id" = {{ dictionary = "ids", probability = 0.8 }}
"path.name" = {{ dictionary = "jobs", probability = 0.8 }}
"body.session_id" = {{ dictionary = "ids", probability = 0.5 }}
[phases.fuzzing]
generation = {{ max-examples = 8 }}
[phases.stateful]
generation = {{ max-examples = 6 }}
"""


def prepare(service: Service) -> list[str]:
    """Makes rows and conversations, and returns their ids."""
    ids: list[str] = []
    for number in range(EACH):
        row = {"agent_id": "main", "metadata": {"aria_session_id": f"s{number}"}}
        ids.append(service.client.post("/api/sessions", json=row).json()["id"])
        for state in ("empty", "used", "end", "archive"):
            session_id = create(service.client)["id"]
            ids.append(session_id)
            if state != "empty":
                say(service.client, session_id)
            if state in ("end", "archive"):
                assert service.client.post(f"{BASE}/{session_id}/{state}").status_code == 200
    return ids


def schemathesis(service: Service, folder: Path) -> subprocess.CompletedProcess[str]:
    jobs = [job["name"] for job in service.client.get("/api/jobs").json()["items"]]
    settings = folder / "schemathesis.toml"
    settings.write_text(SETTINGS.format(token=TOKEN, ids=json.dumps(prepare(service)), jobs=json.dumps(jobs)))
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(settings)]
    command += ["run", f"{service.url}/openapi.json", "--phases", "coverage,fuzzing,stateful"]
    command += ["--checks", "all", "--exclude-checks", LEFT_OUT]
    command += ["--generation-deterministic", "--continue-on-failure", "--no-color"]
    env = {**os.environ, "NO_PROXY": "*"}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600, check=False)


def test_no_answer_is_a_server_s_error_or_not_described(
    server: Databases, database: str, sixteen: Path, tmp_path: Path
) -> None:
    chats = Chats(server, database)
    with running(
        tmp_path / "log", DATABASE_URL=database, ARIA_API_TOKEN=TOKEN, ARIA_AGENTS_DIR=str(sixteen)
    ) as service:
        paths = service.client.get("/openapi.json").json()["paths"]
        done = schemathesis(service, tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"Tested: {sum(map(len, paths.values()))}\n" in done.stdout, done.stdout
        assert service.client.get("/readyz").json() == {"status": "ok"}
    assert "Traceback" not in service.log
    assert " ERROR " not in service.log
    chats.check()
    # What is begun by talking has no time to live.
    begun = "FROM chat_sessions WHERE NOT metadata ? 'ttl_minutes'"
    assert chats.execute(f"SELECT count(*) > 0 {begun}") == [(True,)]
    assert chats.execute(f"SELECT id {begun} AND message_count = 0") == []
