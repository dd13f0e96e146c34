"""The service's own conversations, their archive, and the owners of tokens."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATEMENTS = (
    # The checks refuse values that no program could read back, from any writer.
    # The time to live is only in the metadata; expires_at is generated from it. A value that is no number is no time to
    # live. A generated column needs immutable expressions, and only arithmetic in UTC is immutable.
    """
    CREATE TABLE chat_sessions (
      id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
      title text,
      agent_id text NOT NULL DEFAULT 'main',
      session_type text NOT NULL DEFAULT 'chat',
      model text,
      status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'ended')),
      message_count integer NOT NULL DEFAULT 0 CHECK (message_count >= 0),
      tokens bigint NOT NULL DEFAULT 0,
      user_id text,
      org_id text,
      created_at timestamptz NOT NULL DEFAULT now(),
      updated_at timestamptz NOT NULL DEFAULT now(),
      last_message_at timestamptz,
      ended_at timestamptz,
      metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
      creation_key text,
      expires_at timestamptz GENERATED ALWAYS AS (
        CASE WHEN jsonb_typeof(metadata->'ttl_minutes') = 'number' THEN
          (created_at AT TIME ZONE 'UTC' + make_interval(
            mins => CAST(least(greatest((metadata->>'ttl_minutes')::numeric, 0), 525600) AS integer)
          )) AT TIME ZONE 'UTC'
        END
      ) STORED,
      CHECK (least(created_at, updated_at, last_message_at, ended_at) >= '1970-01-01 00:00Z'),
      CHECK (greatest(created_at, updated_at, last_message_at, ended_at) < '2200-01-01 00:00Z')
    )
    """,
    """
    CREATE TABLE chat_messages (
      id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
      session_id uuid NOT NULL REFERENCES chat_sessions ON DELETE CASCADE,
      position integer NOT NULL,
      role text NOT NULL CHECK (role IN ('user', 'assistant', 'system', 'tool')),
      content text,
      encrypted jsonb,
      tokens bigint NOT NULL DEFAULT 0,
      created_at timestamptz NOT NULL DEFAULT now(),
      idempotency_key text,
      CHECK (num_nonnulls(content, encrypted) = 1),
      CHECK (jsonb_typeof(encrypted) = 'object'),
      CHECK (created_at >= '1970-01-01 00:00Z' AND created_at < '2200-01-01 00:00Z'),
      UNIQUE (session_id, position)
    )
    """,
    """
    CREATE UNIQUE INDEX uq_chat_messages_key ON chat_messages (session_id, idempotency_key)
      WHERE idempotency_key IS NOT NULL
    """,
    # One conversation per key and owner, for a client that lost its connection before it got the session's id.
    """
    CREATE UNIQUE INDEX uq_chat_sessions_creation_key ON chat_sessions (coalesce(user_id, ''), creation_key)
      WHERE creation_key IS NOT NULL
    """,
    # Lists, newest or oldest first: everybody's, an agent's, a person's own, an organisation's. The archive of idle
    # conversations reads the first of them, too.
    "CREATE INDEX idx_chat_sessions_updated ON chat_sessions (updated_at, id)",
    "CREATE INDEX idx_chat_sessions_created ON chat_sessions (created_at, id)",
    "CREATE INDEX idx_chat_sessions_agent ON chat_sessions (agent_id, updated_at, id)",
    "CREATE INDEX idx_chat_sessions_user ON chat_sessions (user_id, updated_at, id) WHERE org_id IS NULL",
    "CREATE INDEX idx_chat_sessions_org ON chat_sessions (org_id, updated_at, id) WHERE org_id IS NOT NULL",
    # The purges, which look at empty sessions only.
    "CREATE INDEX idx_chat_sessions_ghosts ON chat_sessions (created_at, id) WHERE message_count = 0",
    """
    CREATE INDEX idx_chat_sessions_expiry ON chat_sessions (expires_at, id)
      WHERE message_count = 0 AND expires_at IS NOT NULL
    """,
    # The search for any part of a title: like pg_trgm, without an extension to install.
    """
    CREATE FUNCTION chat_trigrams(given text) RETURNS text[]
      LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE COST 2000 AS $$
    DECLARE
      low text := lower(left(given, 1000));
      found text[] := '{}';
    BEGIN
      FOR place IN 1 .. length(low) - 2 LOOP
        found[place] := substr(low, place, 3);
      END LOOP;
      RETURN found;
    END $$
    """,
    "CREATE INDEX idx_chat_sessions_search ON chat_sessions USING gin (chat_trigrams(title)) WHERE title IS NOT NULL",
    """
    CREATE TABLE chat_sessions_archive (
      LIKE chat_sessions, archived_at timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (id)
    )
    """,
    "ALTER TABLE chat_sessions_archive DROP COLUMN expires_at",
    """
    CREATE TABLE chat_messages_archive (
      LIKE chat_messages, PRIMARY KEY (id), UNIQUE (session_id, position),
      FOREIGN KEY (session_id) REFERENCES chat_sessions_archive ON DELETE CASCADE
    )
    """,
    """
    CREATE INDEX idx_chat_archive_creation_key ON chat_sessions_archive (coalesce(user_id, ''), creation_key)
      WHERE creation_key IS NOT NULL
    """,
    # Empty sessions that a user has deleted: unlike a purge, a message in flight does not undo that.
    """
    CREATE TABLE chat_sessions_deleted (
      id uuid PRIMARY KEY,
      deleted_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    "CREATE INDEX idx_chat_sessions_deleted ON chat_sessions_deleted (deleted_at)",
    "CREATE INDEX idx_chat_archive_archived ON chat_sessions_archive (archived_at, id)",
    "CREATE INDEX idx_chat_archive_user ON chat_sessions_archive (user_id, archived_at, id) WHERE org_id IS NULL",
    "CREATE INDEX idx_chat_archive_org ON chat_sessions_archive (org_id, archived_at, id) WHERE org_id IS NOT NULL",
    "ALTER TABLE api_tokens ADD COLUMN user_id text, ADD COLUMN orgs text[] NOT NULL DEFAULT '{}'",
)


def upgrade() -> None:
    """Creates the tables of conversations; existing tokens get no owner."""
    for statement in _STATEMENTS:
        op.execute(statement)
