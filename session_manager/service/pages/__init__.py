"""Pages for people: server-rendered, no script, no third-party host."""
