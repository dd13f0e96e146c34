"""Layer 1: the gateway's files."""
