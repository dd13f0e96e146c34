"""Pages for people: server-rendered, with scripts of our own at most, no third-party host."""
