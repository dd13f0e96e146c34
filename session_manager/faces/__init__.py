"""Faces: parse, call, print. No decision lives here."""
