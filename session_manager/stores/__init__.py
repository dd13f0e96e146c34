"""Stores of sessions, one folder for each kind."""
