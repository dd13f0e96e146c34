"""Finds the place where a gateway keeps its sessions, by the gateway's own rules."""
