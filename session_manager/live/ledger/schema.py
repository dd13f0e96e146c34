"""The ledger's tables."""

from __future__ import annotations

VERSION = 1
SCHEMA = """
CREATE TABLE runs (
  run_id TEXT PRIMARY KEY, started_at INTEGER NOT NULL, function TEXT NOT NULL,
  asked_by TEXT, user TEXT, host TEXT, pid INTEGER NOT NULL
);
CREATE TABLE attempts (
  attempt_id INTEGER PRIMARY KEY, run_id TEXT NOT NULL REFERENCES runs, store_id TEXT NOT NULL,
  agent_id TEXT NOT NULL, created_at INTEGER NOT NULL, state TEXT NOT NULL, history INTEGER NOT NULL,
  temps TEXT NOT NULL, expected TEXT NOT NULL
);
CREATE INDEX attempts_open ON attempts (store_id) WHERE state = 'intent';
CREATE INDEX attempts_age ON attempts (created_at);
CREATE TABLE removals (
  removal_id INTEGER PRIMARY KEY, attempt_id INTEGER NOT NULL REFERENCES attempts, agent_id TEXT NOT NULL,
  session_id TEXT NOT NULL, reason TEXT NOT NULL, state TEXT NOT NULL, keys TEXT NOT NULL, files TEXT NOT NULL,
  entries BLOB
);
CREATE INDEX removals_session ON removals (session_id);
CREATE INDEX removals_attempt ON removals (attempt_id);
CREATE INDEX removals_with_entries ON removals (attempt_id) WHERE entries IS NOT NULL;
CREATE TABLE marks (
  agent_id TEXT NOT NULL, session_id TEXT NOT NULL, status TEXT NOT NULL, state TEXT NOT NULL,
  run_id TEXT NOT NULL, changed_at INTEGER NOT NULL,
  PRIMARY KEY (agent_id, session_id)
) WITHOUT ROWID;
CREATE INDEX marks_pending ON marks (changed_at) WHERE state = 'pending';
"""
