"""Where a gateway keeps its sessions, found by its own rules."""
