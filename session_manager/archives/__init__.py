"""Archived files of sessions and their second names; knows no kind of store."""
