"""The ledger's tables, format 2. The package's docstring describes their contents."""

import sqlite3

VERSION = 2

SCHEMA = """
CREATE TABLE runs (
  run_id TEXT PRIMARY KEY, started_at INTEGER NOT NULL, function TEXT NOT NULL,
  asked_by TEXT, user TEXT, host TEXT, pid INTEGER NOT NULL
);
CREATE TABLE attempts (
  attempt_id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs, store_id TEXT NOT NULL,
  agent_id TEXT NOT NULL, created_at INTEGER NOT NULL, state TEXT NOT NULL, history INTEGER NOT NULL,
  temps TEXT NOT NULL, expected TEXT NOT NULL, kind TEXT NOT NULL, restores TEXT NOT NULL
);
CREATE INDEX attempts_open ON attempts (store_id) WHERE state = 'intent';
CREATE INDEX attempts_age ON attempts (created_at);
CREATE INDEX attempts_run ON attempts (run_id);
CREATE TABLE removals (
  removal_id INTEGER PRIMARY KEY, attempt_id INTEGER NOT NULL REFERENCES attempts, session_id TEXT NOT NULL,
  reason TEXT NOT NULL, state TEXT NOT NULL, changed_at INTEGER, details TEXT, digest BLOB NOT NULL,
  chunk_id INTEGER, start INTEGER, length INTEGER
);
CREATE INDEX removals_session ON removals (session_id);
CREATE INDEX removals_attempt ON removals (attempt_id);
CREATE TABLE chunks (
  chunk_id INTEGER PRIMARY KEY, attempt_id INTEGER NOT NULL REFERENCES attempts, entries BLOB NOT NULL
);
CREATE INDEX chunks_attempt ON chunks (attempt_id);
CREATE TABLE marks (
  agent_id TEXT NOT NULL, session_id TEXT NOT NULL, status TEXT NOT NULL, state TEXT NOT NULL,
  run_id TEXT NOT NULL, changed_at INTEGER NOT NULL, sent INTEGER NOT NULL,
  PRIMARY KEY (agent_id, session_id)
) WITHOUT ROWID;
CREATE INDEX marks_pending ON marks (changed_at) WHERE state = 'pending';
CREATE TABLE events (
  seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, hash BLOB NOT NULL
)
"""


def create(sql: sqlite3.Connection) -> None:
    """Creates the tables and records their format, in the caller's transaction."""
    for statement in SCHEMA.split(";"):
        sql.execute(statement)
    sql.execute(f"PRAGMA user_version = {VERSION:d}")
