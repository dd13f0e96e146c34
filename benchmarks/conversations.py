"""Conversations as a database holds them: most with a message and a title, some of them empty."""

from __future__ import annotations

from benchmarks.aria_api import Database

EMPTY_EVERY = 10
_SESSIONS = """
    INSERT INTO chat_sessions (id, title, agent_id, session_type, model, message_count, tokens, created_at, updated_at,
                               last_message_at, metadata)
    SELECT md5(n::text)::uuid, CASE WHEN used THEN concat_ws(' ', (ARRAY['daily', 'weekly', 'monthly', 'last', 'first',
             'short', 'long'])[1 + mod(n, 7)], (ARRAY['report', 'plan', 'question', 'review', 'letter', 'summary',
             'budget', 'menu', 'journey', 'garden', 'recipe'])[1 + mod(n, 11)], 'number', n) END,
           'agent-' || mod(n, 100), 'chat', 'gpt-4o', used::integer, CASE WHEN used THEN 120 ELSE 0 END, at,
           at + interval '5 seconds', CASE WHEN used THEN at + interval '5 seconds' END,
           jsonb_build_object('created_at', at, 'has_messages', used, 'backend_created', true, 'kind', 'chat')
    FROM generate_series(1, {sessions}) AS n, LATERAL (
      SELECT now() - interval '1 hour' - n * interval '2 seconds' AS at, mod(n, {empty_every}) > 0 AS used
    ) AS made
"""
_MESSAGES = """
    INSERT INTO chat_messages (session_id, position, role, content, tokens, created_at)
    SELECT id, 1, 'user', title || ': what is there to say about it?', tokens, last_message_at
    FROM chat_sessions WHERE message_count > 0
"""


def fill(database: Database, sessions: int) -> None:
    """Adds sessions of 100 agents, one in EMPTY_EVERY without a message, and lets the planner know."""
    # An index over all rows is built in a fraction of the time that its rows take one by one.
    ((search,),) = database.ask("SELECT pg_get_indexdef('idx_chat_sessions_search'::regclass)")
    database.ask("DROP INDEX idx_chat_sessions_search")
    database.ask(_SESSIONS.format(sessions=sessions, empty_every=EMPTY_EVERY), _MESSAGES, search)
    database.ask("VACUUM (FREEZE, ANALYZE) chat_sessions", "VACUUM (FREEZE, ANALYZE) chat_messages")
